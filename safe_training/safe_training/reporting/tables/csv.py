# SPDX-License-Identifier: Apache-2.0
"""Writes a table as CSV, for programs."""

from __future__ import annotations

import csv
import io

from safe_training.reporting.numbers import MISSING
from safe_training.reporting.tables.model import Cell, ResultTable


def to_csv(table: ResultTable) -> str:
    """Return a table as CSV: one line per row, exact numbers, an empty field for a missing number.

    Title, notes and warning are not included.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    groups = [table.group_title] if table.has_groups else []
    titles = (f'{column.over} {column.title}'.strip() for column in table.columns)
    writer.writerow([*groups, *titles])
    for row in table.rows:
        writer.writerow([*([row.group] if groups else []), *(_field(c) for c in row.cells)])
    return text.getvalue()


def _field(cell: Cell) -> str:
    value = cell.value
    if value is None:
        return '' if cell.text == MISSING else cell.text
    if isinstance(value, str):
        return value
    return '' if value != value else repr(value)
