# SPDX-License-Identifier: Apache-2.0
"""Writes a table as LaTeX."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from safe_training.reporting.tables.model import Cell, Column, ResultTable, group_starts

_SPECIAL = {
    '\\': '\\textbackslash{}',
    '~': '\\textasciitilde{}',
    '^': '\\textasciicircum{}',
    '<': '\\textless{}',
    '>': '\\textgreater{}',
    **{character: f'\\{character}' for character in '&%$#_{}'},
}


def to_latex(table: ResultTable) -> str:
    """Return a table as LaTeX; it needs the package booktabs.

    Title and notes are comments, a warning is a row.
    """
    groups = [table.group_title] if table.has_groups else []
    letters = 'l' * len(groups) + ''.join(column.align[0] for column in table.columns)
    lines = [
        f'% {" ".join(table.title.split())}; needs \\usepackage{{booktabs}}',
        f'\\begin{{tabular}}{{{letters}}}',
        '\\toprule',
    ]
    if any(column.over for column in table.columns):
        lines.append(_line([*['' for _ in groups], *_titles_over(table.columns)]))
    lines.append(_line([_escaped(t) for t in (*groups, *(c.title for c in table.columns))]))
    if not groups:
        lines.append('\\midrule')
    for row, starts in zip(table.rows, group_starts(table.rows), strict=True):
        cells = [_cell(cell) for cell in row.cells]
        if groups:
            cells.insert(0, _escaped(row.group) if starts else '')
        lines += ['\\midrule'] if groups and starts else []
        lines.append(_line(cells))
    if table.warning:
        warning = f'\\textbf{{{_escaped(table.warning)}}}'
        lines += ['\\midrule', _line([f'\\multicolumn{{{len(letters)}}}{{l}}{{{warning}}}'])]
    lines += ['\\bottomrule', '\\end{tabular}']
    lines += [f'% {" ".join(note.split())}' for note in table.notes]
    return '\n'.join(lines) + '\n'


def _line(cells: Sequence[str]) -> str:
    return re.sub(' +', ' ', ' & '.join(cells)) + ' \\\\'


def _titles_over(columns: Sequence[Column]) -> list[str]:
    shown = []
    for name, members in itertools.groupby(columns, key=lambda column: column.over):
        count = len(list(members))
        shown += [f'\\multicolumn{{{count}}}{{c}}{{{_escaped(name)}}}'] if name else [''] * count
    return shown


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    text = f'\\textbf{{{text}}}' if cell.emphasis else text
    text += f' {{\\scriptsize $\\pm$ {cell.spread}}}' if cell.spread else ''
    text += f' ({_escaped(cell.detail)})' if cell.detail else ''
    return text + ('!' if cell.flag else '')


def _escaped(text: str) -> str:
    return ' '.join(''.join(_SPECIAL.get(c, c) for c in text).split())
