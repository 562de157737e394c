# SPDX-License-Identifier: Apache-2.0
"""Makes the table of false alarms of new tasks with and without good runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from safe_training.evaluation.good_runs_rates import DRAWS, TaskRates
from safe_training.reporting.numbers import percent
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    count_cell,
    name_columns,
    rate_cell,
)
from safe_training.reporting.tables.terminal import shortened

LEGEND = (
    'All numbers are in percent, each the mean over the splits in which the task is unseen. '
    'Without: the band of all tasks. With: the threshold from good runs, drawn '
    f'{DRAWS} times from the successes of the task; the good runs are not judged. T_det: step of '
    'the first alarm as a share of the length of the failure, 100 without alarm. The last rows are '
    'the mean and the largest value over the tasks that have both numbers. The promise is an '
    'average over tasks and runs that are drawn alike.'
)
_COLUMNS = (
    *name_columns('task'),
    Column('splits'),
    Column('false alarms, without', narrow='false alarms\nwithout'),
    Column('false alarms, with', narrow='false alarms\nwith'),
    Column('detected, without', narrow='detected\nwithout'),
    Column('detected, with', narrow='detected\nwith'),
    Column('T_det, without', narrow='T_det\nwithout'),
    Column('T_det, with', narrow='T_det\nwith'),
)
_RATES = ('false_alarm_rate', 'detection_rate', 'detection_time')

Rates = dict[str, tuple[float, float]]


def good_runs_tables(found: Sequence[TaskRates], k: int, alpha: float) -> list[ResultTable]:
    """Return one table for each detector; the last table has the notes."""
    names = list(dict.fromkeys(rates.detector for rates in found))
    return [
        _table(name, by_task(found, name), k, alpha, (LEGEND,) if name == names[-1] else ())
        for name in names
    ]


def by_task(found: Sequence[TaskRates], detector: str) -> dict[str, tuple[int, Rates]]:
    """Return the number of splits and the rates (without, with good runs) of each task.

    The rates are means over the splits in which they exist; NaN if they do not exist.
    """
    tasks: dict[str, list[TaskRates]] = {}
    for rates in found:
        if rates.detector == detector:
            tasks.setdefault(rates.task, []).append(rates)
    return {
        task: (
            len(members),
            {
                name: (
                    _mean([member.without[name] for member in members]),
                    _mean([member.with_runs[name] for member in members]),
                )
                for name in _RATES
            },
        )
        for task, members in sorted(tasks.items())
    }


def _mean(values: Sequence[float]) -> float:
    used = [value for value in values if np.isfinite(value)]
    return float(np.mean(used)) if used else np.nan


def _table(
    detector: str,
    tasks: dict[str, tuple[int, Rates]],
    k: int,
    alpha: float,
    notes: tuple[str, ...],
) -> ResultTable:
    title = f'{detector}, {k} good runs, promised false-alarm rate {percent(alpha)} %'
    rows = [
        TableRow((Cell(shortened(task)), count_cell(splits), *_cells(rates)))
        for task, (splits, rates) in tasks.items()
    ]
    for name, summary in (('mean over tasks', _mean), ('largest', _largest)):
        rows.append(TableRow((Cell(name), Cell(''), *_cells(_over_tasks(tasks, summary)))))
    return ResultTable(title, _COLUMNS, tuple(rows), notes)


def _over_tasks(
    tasks: dict[str, tuple[int, Rates]], summary: Callable[[Sequence[float]], float]
) -> Rates:
    """Return the rates over the tasks that have both, so that both can be compared."""
    found: Rates = {}
    for name in _RATES:
        pairs = [rates[name] for _, rates in tasks.values() if np.isfinite(rates[name]).all()]
        found[name] = summary([pair[0] for pair in pairs]), summary([pair[1] for pair in pairs])
    return found


def _largest(values: Sequence[float]) -> float:
    used = [value for value in values if np.isfinite(value)]
    return max(used, default=np.nan)


def _cells(rates: Rates) -> list[Cell]:
    return [rate_cell(value) for name in _RATES for value in rates[name]]
