# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of estimated beginnings of failures."""

from __future__ import annotations

from collections.abc import Sequence

from safe_training.evaluation.onset import SPLICED, OnsetResult
from safe_training.metrics.onset import NEAR, Located
from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.numbers import MISSING
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    count_cell,
    name_columns,
    rate_cell,
    steps_cell,
)
from safe_training.reporting.tables.terminal import shortened

LEGEND = (
    'Off: median distance from the true beginning of the failure in policy steps. Near: share of '
    f'the failures with a distance of at most {NEAR} steps. Alarm: the first alarm, or the last '
    'step without an alarm. Estimate: the step from which on the scores of the whole rollout are '
    'higher. Middle: the middle of the rollout, for comparison; it does not use scores.'
)
SPLICED_NOTE = (
    'A spliced failure consists of the first steps of a success and of late steps of a failure of '
    'the same task, so that its beginning is known. Its beginning is easier to find than in a '
    'real failure, which begins gradually.'
)
FAILURES_NOTE = (
    'Steps count from 0. The estimate uses all scores of the rollout. It is not an annotation: '
    'look at the recording before you use the estimate as an annotation.'
)
_SOURCES = ('alarm', 'onset', 'middle')
_SHOWN = {'alarm': 'alarm', 'onset': 'estimate', 'middle': 'middle'}


def located_table(found: Sequence[OnsetResult], title: str) -> ResultTable:
    """Return one row for each detector and kind of failure."""
    columns = (
        *name_columns('failures'),
        Column('number'),
        *(Column(f'off, {_SHOWN[s]}', narrow=f'off,\n{_SHOWN[s]}') for s in _SOURCES),
        *(Column(f'near, {_SHOWN[s]}', narrow=f'near,\n{_SHOWN[s]}') for s in _SOURCES),
    )
    rows = []
    for result in found:
        report = result.report
        located: list[Located] = [getattr(report, source) for source in _SOURCES]
        cells = (
            Cell(result.failures),
            count_cell(report.leads.annotated),
            *(steps_cell(entry.median_distance) for entry in located),
            *(rate_cell(entry.near) for entry in located),
        )
        rows.append(TableRow(cells, result.detector))
    notes = (LEGEND, *((SPLICED_NOTE,) if any(r.failures == SPLICED for r in found) else ()))
    return ResultTable(title, columns, tuple(rows), notes, group_title='detector')


def failures_table(failures: Sequence[ScoredRollout], title: str) -> ResultTable:
    """Return one row for each failure: first alarm, estimated and annotated beginning."""
    columns = (
        *name_columns('episode'),
        Column('steps'),
        Column('first alarm', narrow='first\nalarm'),
        Column('estimated beginning', narrow='estimated\nbeginning'),
        Column('annotated beginning', narrow='annotated\nbeginning'),
    )
    rows = [
        TableRow(
            (
                Cell(shortened(rollout.episode_id), value=rollout.episode_id),
                count_cell(len(rollout)),
                *map(_step, (rollout.alarm_step, rollout.onset_step, rollout.failure_step)),
            ),
            rollout.part,
        )
        for rollout in failures
    ]
    return ResultTable(title, columns, tuple(rows), (FAILURES_NOTE,), group_title='part')


def _step(step: int | None) -> Cell:
    return Cell(MISSING) if step is None else count_cell(step)
