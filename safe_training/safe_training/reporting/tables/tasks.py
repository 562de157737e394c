# SPDX-License-Identifier: Apache-2.0
"""Makes the table of the numbers of each task. Averages hide tasks with 0 % and with 100 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safe_training.evaluation.summary import Summary, TaskNumbers, spread_of
from safe_training.reporting.tables.measures import (
    CLOCK_EARLY,
    EARLY,
    HEADLINE,
    MEASURES,
    SAVED,
    SAVED_OVER_CLOCK,
)
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    count_cell,
    name_columns,
)
from safe_training.reporting.tables.numbers import summary_cell
from safe_training.reporting.tables.terminal import shortened

_NUMBERS = (
    EARLY,
    CLOCK_EARLY,
    SAVED,
    SAVED_OVER_CLOCK,
    'false_alarm_rate',
    'detection_rate',
    'detection_time',
    HEADLINE,
    'roc_auc_running_100_percent',
)
_NOTE = (
    'The numbers of one task come from few rollouts. Clock early: the clock has the false-alarm '
    'rate of the detector over all tasks of a split, not over this task.'
)


def task_table(
    title: str, detectors: Mapping[str, Sequence[TaskNumbers]], *, with_note: bool = True
) -> ResultTable:
    """Return one row for each detector and task: means over the splits in which the task is.

    Parameters
    ----------
    title : str
    detectors : mapping of str to sequence of TaskNumbers
        Shown name of each detector, and its splits.
    """
    columns = (
        *name_columns('task'),
        Column('splits'),
        Column('failures'),
        Column('successes'),
        *(MEASURES[name] for name in _NUMBERS[:-1]),
        Column('AUC at median', narrow='AUC at\nmedian'),
    )
    rows = []
    for name, splits in detectors.items():
        by_task: dict[str, list[Mapping[str, float]]] = {}
        for split in splits:
            for task, values in split.tasks.items():
                by_task.setdefault(task, []).append(values)
        group = name if len(detectors) > 1 else ''
        rows += [TableRow(_cells(task, by_task[task]), group) for task in sorted(by_task)]
    notes = (_NOTE,) if with_note else ()
    return ResultTable(title, columns, tuple(rows), notes, group_title='detector')


def _cells(task: str, splits: Sequence[Mapping[str, float]]) -> tuple[Cell, ...]:
    def summary(name: str) -> Summary:
        return spread_of([values.get(name, float('nan')) for values in splits])

    counts = [summary(name).mean for name in ('n_failures', 'n_successes')]
    return (
        Cell(shortened(task), value=task),
        count_cell(len(splits)),
        *(Cell(f'{count:.4g}', value=count) for count in counts),
        *(summary_cell(name, summary(name)) for name in _NUMBERS),
    )
