# SPDX-License-Identifier: Apache-2.0
"""Makes the table of the differences of a live session."""

from __future__ import annotations

from safe_training.evaluation.live_parity import LiveParity
from safe_training.reporting.tables.model import Cell, Column, ResultTable, TableRow
from safe_training.reporting.tables.terminal import shortened

MOST_ROWS = 40
"""Largest number of differences in the table."""

_COLUMNS = (
    Column('where', align='left'),
    Column('step'),
    Column('what', align='left'),
    Column('offline'),
    Column('live'),
)


def parity_line(parity: LiveParity) -> str:
    """Return the result in one sentence."""
    counted = f'{parity.steps} steps of {parity.episodes} episodes were compared'
    apart = f'the largest difference of two scores is {parity.largest:.2g}'
    if not parity.differences:
        return f'Live session: equal to offline: {counted}; {apart}.'
    return f'Live session: {len(parity.differences)} differences: {counted}; {apart}.'


def difference_table(parity: LiveParity) -> ResultTable:
    """Return the first differences as a table."""
    rows = [
        TableRow(
            (
                Cell(shortened(difference.where)),
                Cell('' if difference.step is None else str(difference.step)),
                Cell(difference.what),
                Cell(difference.offline),
                Cell(difference.live),
            )
        )
        for difference in parity.differences[:MOST_ROWS]
    ]
    left = len(parity.differences) - MOST_ROWS
    notes = (f'{left} more differences are not shown; --json has all of them.',) if left > 0 else ()
    return ResultTable('differences of the live session', _COLUMNS, tuple(rows), notes)
