# SPDX-License-Identifier: Apache-2.0
"""Writes a table as LaTeX."""

from __future__ import annotations

from safe_training.reporting.tables.model import Cell, Table


def to_latex(table: Table) -> str:
    """Write a table as LaTeX; it needs the package booktabs.

    Title and notes are comments, a warning is a row.
    """
    count = len(table.columns)
    lines = [
        f'% {" ".join(table.title.split())}; needs \\usepackage{{booktabs}}',
        '\\begin{tabular}{ll' + 'r' * count + '}',
        '\\toprule',
    ]
    if any(column.over for column in table.columns):
        spans: list[tuple[str, int]] = []
        for column in table.columns:
            if spans and spans[-1][0] == column.over:
                spans[-1] = (column.over, spans[-1][1] + 1)
            else:
                spans.append((column.over, 1))
        above = [f'\\multicolumn{{{n}}}{{c}}{{{_escape_latex(name)}}}' for name, n in spans]
        lines.append(' & & ' + ' & '.join(above) + ' \\\\')
    heads = [_escape_latex(column.heading) for column in table.columns]
    lines.append(' & Method & ' + ' & '.join(heads) + ' \\\\')
    group = ''
    for row in table.rows:
        if row.group != group:
            lines.append('\\midrule')
        shown = _escape_latex(row.group) if row.group != group else ''
        group = row.group
        cells = [_latex_cell(cell) for cell in row.cells]
        lines.append(f'{shown} & {_escape_latex(row.name)} & ' + ' & '.join(cells) + ' \\\\')
    if table.warning:
        warning = f'\\textbf{{{_escape_latex(table.warning)}}}'
        lines += ['\\midrule', f'\\multicolumn{{{count + 2}}}{{l}}{{{warning}}} \\\\']
    lines += ['\\bottomrule', '\\end{tabular}']
    lines += [f'% {" ".join(note.split())}' for note in table.notes]
    return '\n'.join(lines) + '\n'


def _latex_cell(cell: Cell) -> str:
    text = _escape_latex(cell.text)
    text = f'\\textbf{{{text}}}' if cell.best else text
    return f'{text} {{\\scriptsize $\\pm$ {cell.spread}}}' if cell.spread else text


def _escape_latex(text: str) -> str:
    special = {
        '\\': '\\textbackslash{}',
        '~': '\\textasciitilde{}',
        '^': '\\textasciicircum{}',
        '<': '\\textless{}',
        '>': '\\textgreater{}',
    }
    escaped = ''.join(special.get(c, f'\\{c}' if c in '&%$#_{}' else c) for c in text)
    return ' '.join(escaped.split())
