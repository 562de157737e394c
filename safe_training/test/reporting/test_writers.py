# SPDX-License-Identifier: Apache-2.0
"""One table in five formats: each shows the same, and no text can leave its cell."""

from __future__ import annotations

import csv
import io
import itertools

import pytest
from rich.console import Console

from safe_training.reporting.tables.bands import COMPARISON_LEGEND, FOLDER_LEGEND
from safe_training.reporting.tables.csv import to_csv
from safe_training.reporting.tables.evaluation import LEGEND
from safe_training.reporting.tables.html import to_html
from safe_training.reporting.tables.latex import to_latex
from safe_training.reporting.tables.markdown import to_markdown
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    name_columns,
    rate_cell,
)
from safe_training.reporting.tables.terminal import print_table

HOSTILE = '[red]a|b_{%}\\ & </td><script>alert(1)</script> :bomb: "'


def in_terminal(table: ResultTable) -> str:
    text = io.StringIO()
    print_table(Console(width=40, file=text), table)
    return text.getvalue()


WRITERS = {
    'terminal': in_terminal,
    'markdown': to_markdown,
    'latex': to_latex,
    'csv': to_csv,
    'html': to_html,
}


def table(name: str) -> ResultTable:
    columns = (
        *name_columns('name'),
        Column('false alarms', narrow='false\nalarms', explanation=name),
        Column('detected', over=name),
    )
    rows = (
        TableRow((Cell(name), rate_cell(1 / 3, 0.05, detail='1 of 3', flag='above'), Cell()), name),
        TableRow((Cell('other'), Cell('7.0', emphasis=True, value=0.07), Cell('3/4')), 'last'),
    )
    return ResultTable(name, columns, rows, (f'note {name}',), group_title='group')


@pytest.mark.parametrize('writer', WRITERS)
def test_every_format_shows_the_cells(writer):
    text = WRITERS[writer](table('plain'))
    shown = ['33.3', '5.0', '1 of 3', '7.0', '3/4', 'last', 'note plain']
    if writer == 'csv':
        shown = [repr(1 / 3), '0.07', '3/4', 'last']
    assert [cell for cell in shown if cell not in text] == []
    if writer != 'csv':
        assert ('(above)' if writer == 'html' else '!') in text


@pytest.mark.parametrize('width', [60, 90, 140])
@pytest.mark.parametrize('note', [LEGEND, COMPARISON_LEGEND, FOLDER_LEGEND])
def test_notes_are_wrapped_at_the_width_of_the_terminal(note, width):
    text = io.StringIO()
    print_table(Console(file=text, width=width), ResultTable('t', name_columns('a'), (), (note,)))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    lines = lines[lines.index(next(line for line in lines if line[:8] == note[:8])) :]
    assert ' '.join(lines) == note
    for line, following in itertools.pairwise(lines):
        assert len(line) <= width < len(f'{line} {following.split()[0]}')


def test_text_stays_in_its_cell():
    hostile = table(HOSTILE)
    assert '<script>' not in to_html(hostile) and '"' + HOSTILE not in to_html(hostile)
    assert HOSTILE in in_terminal(hostile), 'neither markup nor emoji of rich'
    rows = [line for line in to_markdown(hostile).splitlines() if line.startswith('|')]
    assert {line.replace('\\|', '').count('|') for line in rows} == {5}
    body = [line for line in to_latex(hostile).splitlines() if line.endswith('\\\\')]
    assert {line.replace('\\&', '').count('&') for line in body[1:]} == {3}
    read = list(csv.reader(io.StringIO(to_csv(hostile))))
    assert read[1] == [HOSTILE, HOSTILE, repr(1 / 3), '']
