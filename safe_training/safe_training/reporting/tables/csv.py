# SPDX-License-Identifier: Apache-2.0
"""Writes tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from safe_training.table import Cell, Table
from safe_training.table_entries import GROUPS, OTHERS, Entry


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


def to_csv(found: Sequence[Entry]) -> str:
    """Write entries as CSV for machines: one line each, exact numbers, empty where there is none.

    Rates are shares of 1, not percent. Notes have no place; ``chosen_on`` is the part of the splits
    that the choice was made on, and says so where it is the one that is reported.
    """
    names = sorted({name for entry in found for name in entry.values})
    fields = ('mean', 'std', 'low', 'high', 'splits')
    groups = {d: group for group, methods in GROUPS.items() for d in methods}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(
        ['benchmark', 'protocol', 'chosen_on', 'group', 'detector', 'combinations', 'splits']
        + ['chosen']
        + [f'{name}:{f}' for name in names for f in fields]
    )
    for entry in found:
        chosen = sorted({f'{c.params} {c.feature}' for c in entry.chosen.values()})
        row: list[object] = [
            entry.benchmark,
            entry.protocol,
            entry.select_on + (' (WHICH IS REPORTED)' if entry.select_on == 'unseen' else ''),
            groups.get(entry.detector, OTHERS),
            entry.detector,
            entry.combinations,
            entry.splits,
            '; '.join(chosen),
        ]
        for name in names:
            summary = entry.values.get(name)
            for f in fields:
                value = getattr(summary, f) if summary else math.nan
                row.append('' if math.isnan(value) else repr(value))
        writer.writerow(row)
    return text.getvalue()
