# SPDX-License-Identifier: Apache-2.0
"""Makes the table of every number of some entries, for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safe_training.evaluation.summary import Summary
from safe_training.reporting.tables.entries import Entry, group_of
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    count_cell,
    name_columns,
)

_FIELDS = ('mean', 'std', 'splits', 'over_tasks', 'low', 'high', 'tasks')


def exact_table(found: Sequence[Entry]) -> ResultTable:
    """Return one row for each entry with every number, rates as shares of 1.

    The columns ``METRIC:mean`` and so on are the fields of `Summary`. ``chosen_on`` is the part of
    the splits that was used for the choice. It contains a warning if the same part is reported.
    """
    metrics = sorted({metric for entry in found for metric in entry.values})
    columns = (
        *name_columns('benchmark', 'protocol', 'chosen_on', 'group', 'detector'),
        Column('combinations'),
        Column('splits'),
        *name_columns('chosen'),
        *(Column(f'{metric}:{field}') for metric in metrics for field in _FIELDS),
    )
    return ResultTable('', columns, tuple(_row(entry, metrics) for entry in found))


def _row(entry: Entry, metrics: Sequence[str]) -> TableRow:
    chosen = sorted({f'{c.params} {c.feature}' for c in entry.chosen.values()})
    reported = ' (THE REPORTED PART)' if entry.select_on == 'unseen' else ''
    return TableRow(
        (
            _name(entry.benchmark),
            _name(entry.protocol),
            _name(entry.select_on + reported),
            _name(group_of(entry.detector)),
            _name(entry.detector),
            count_cell(entry.combinations),
            count_cell(entry.splits),
            _name('; '.join(chosen)),
            *(_number(entry.values.get(metric), field) for metric in metrics for field in _FIELDS),
        )
    )


def _name(text: str) -> Cell:
    return Cell(text, value=text)


def _number(summary: Summary | None, field: str) -> Cell:
    value = getattr(summary, field) if summary else math.nan
    return Cell() if math.isnan(value) else Cell(repr(value), value=value)
