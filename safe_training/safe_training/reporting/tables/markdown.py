# SPDX-License-Identifier: Apache-2.0
"""Writes a table as Markdown."""

from __future__ import annotations

from safe_training.reporting.tables.model import Cell, Column, ResultTable, group_starts


def to_markdown(table: ResultTable) -> str:
    """Return a table as Markdown; the best of a column is bold, a flagged number has a '!'."""
    grouped = table.has_groups
    titles = [_title(column) for column in table.columns]
    rules = ['---:' if column.align == 'right' else '---' for column in table.columns]
    if grouped:
        titles.insert(0, _escaped(table.group_title))
        rules.insert(0, '---')
    lines = [
        f'### {_escaped(table.title)}',
        '',
        *([f'**{_escaped(table.warning)}**', ''] if table.warning else []),
        '|' + ''.join(f' {title} |' if title else ' |' for title in titles),
        '|' + ''.join(f'{rule}|' for rule in rules),
    ]
    for row, starts in zip(table.rows, group_starts(table.rows), strict=True):
        cells = [_cell(cell) for cell in row.cells]
        if grouped:
            cells.insert(0, _escaped(row.group) if starts else '')
        lines.append('| ' + ' | '.join(cells) + ' |')
    for note in table.notes:
        lines += ['', _escaped(note)]
    return '\n'.join(lines) + '\n'


def _title(column: Column) -> str:
    # Our own titles need no escape: an underscore within a word is plain text.
    return f'{_escaped(column.over)} {column.title}'.strip()


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    text = f'**{text}**' if cell.emphasis else text
    text += f' ± {cell.spread}' if cell.spread else ''
    text += f' ({_escaped(cell.detail)})' if cell.detail else ''
    return text + ('!' if cell.flag else '')


def _escaped(text: str) -> str:
    for character in '\\`*_[]<>|':
        text = text.replace(character, f'\\{character}')
    return ' '.join(text.split())
