# SPDX-License-Identifier: Apache-2.0
"""Writes a table as Markdown."""

from __future__ import annotations

from safe_training.reporting.tables.model import Cell, Table


def to_markdown(table: Table) -> str:
    """Write a table as Markdown; the best of a column is bold."""
    over = any(column.over for column in table.columns)
    headings = [
        f'{_escape_markdown(c.over)} {c.heading}' if over else c.heading for c in table.columns
    ]
    lines = [
        f'### {_escape_markdown(table.title)}',
        '',
        *([f'**{_escape_markdown(table.warning)}**', ''] if table.warning else []),
        '| | Method | ' + ' | '.join(headings) + ' |',
        '|---|---|' + '---:|' * len(headings),
    ]
    group = ''
    for row in table.rows:
        cells = [_markdown_cell(cell) for cell in row.cells]
        shown = row.group if row.group != group else ''
        group = row.group
        lines.append(f'| {shown} | {_escape_markdown(row.name)} | ' + ' | '.join(cells) + ' |')
    for note in table.notes:
        lines += ['', _escape_markdown(note)]
    return '\n'.join(lines) + '\n'


def _markdown_cell(cell: Cell) -> str:
    text = f'**{cell.text}**' if cell.best else cell.text
    return f'{text} ± {cell.spread}' if cell.spread else text


def _escape_markdown(text: str) -> str:
    for character in '\\`*_[]<>|':
        text = text.replace(character, f'\\{character}')
    return ' '.join(text.split())
