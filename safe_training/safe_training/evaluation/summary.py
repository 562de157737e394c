# SPDX-License-Identifier: Apache-2.0
"""Summaries of results over splits and over tasks, and comparisons of detectors.

Mean and standard deviation are over splits. Intervals are over tasks: splits share tasks, so an
interval over splits would be too narrow (with 12 tasks, 4 of them unseen in each of ten splits, an
interval of 95 % over splits covers the mean over tasks in about half of the cases).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from safe_training.evaluation.evaluate import Row
from safe_training.metrics.bootstrap import Interval
from safe_training.metrics.task_bootstrap import (
    FEW_TASKS,
    Cells,
    paired_task_interval,
    task_interval,
)

_EACH_TASK = ''
# Number -> (number of a task, its weight in the mean over tasks). A rate over all rollouts has the
# weight of its rollouts, a macro average has the same weight for each task. Numbers that are not
# sums over tasks, such as a pooled AUC, have no interval over tasks.
_BY_TASK: dict[str, tuple[str, str]] = {
    'found_early': ('found_early', 'n_failures_with_median'),
    'clock_found_early': ('clock_found_early', 'n_failures_with_median'),
    'macro_found_early': ('found_early', _EACH_TASK),
    'clock_macro_found_early': ('clock_found_early', _EACH_TASK),
    'steps_saved': ('steps_saved', 'n_failures'),
    'steps_saved_over_clock': ('steps_saved_over_clock', 'n_failures'),
    'macro_roc_auc_max_score_until_min_length': (
        'roc_auc_max_score_until_min_length',
        _EACH_TASK,
    ),
    'macro_average_precision_max_score_until_min_length': (
        'average_precision_max_score_until_min_length',
        _EACH_TASK,
    ),
    'macro_roc_auc_running_100_percent': ('roc_auc_running_100_percent', _EACH_TASK),
    'false_alarm_rate': ('false_alarm_rate', 'n_successes'),
    'macro_false_alarm_rate': ('false_alarm_rate', _EACH_TASK),
    'detection_rate': ('detection_rate', 'n_failures'),
    'macro_detection_rate': ('detection_rate', _EACH_TASK),
    'detection_time': ('detection_time', 'n_failures'),
    'macro_detection_time': ('detection_time', _EACH_TASK),
}


class TaskNumbers(Protocol):
    """Numbers of one split, and of each of its tasks: a `Row` or a `Result`."""

    @property
    def split(self) -> int:
        """Number of the split."""

    @property
    def values(self) -> Mapping[str, float]:
        """Numbers by name."""

    @property
    def tasks(self) -> Mapping[str, Mapping[str, float]]:
        """Numbers of each task by name."""


@dataclass(frozen=True)
class Summary:
    """One number over splits and over tasks.

    Attributes
    ----------
    mean, std : float
        Mean and standard deviation (ddof 1) over the splits that have the number.
    splits : int
        Number of these splits.
    over_tasks : float
        Mean over tasks, each averaged over its splits first; NaN if the number has no value by
        task. It differs from `mean` if some tasks are unseen more often than others.
    low, high : float
        95 % bootstrap interval of `over_tasks` over tasks; NaN with fewer than two tasks. With a
        dozen tasks it covers the true mean in about 90 % of the cases.
    tasks : int
        Number of tasks that have the number.
    """

    mean: float
    std: float
    splits: int
    over_tasks: float = np.nan
    low: float = np.nan
    high: float = np.nan
    tasks: int = 0


@dataclass(frozen=True)
class Difference:
    """The difference of two detectors in one number, with its interval over tasks (paired).

    Attributes
    ----------
    first, second, number : str
        Names of the detectors and of the number.
    interval : Interval
        Of first - second over the tasks and splits that both have.
    """

    first: str
    second: str
    number: str
    interval: Interval

    @property
    def clear(self) -> bool:
        """True if the interval does not contain 0."""
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def too_few_tasks(self) -> bool:
        """True if the difference is inside its interval, and the tasks are fewer than 20."""
        return not self.clear and self.interval.used < FEW_TASKS


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Summary]]]:
    """Return rows summarised as ``[detector][part][number]``.

    Splits without a value are excluded.
    """
    grouped: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        grouped.setdefault(row.detector, {}).setdefault(row.part, []).append(row)
    return {
        detector: {part: summaries(members) for part, members in parts.items()}
        for detector, parts in grouped.items()
    }


def summaries(splits: Sequence[TaskNumbers]) -> dict[str, Summary]:
    """Return each number of some splits summarised, by its name."""
    names = dict.fromkeys(name for split in splits for name in split.values)
    return {name: summary_of(name, splits) for name in names}


def summary_of(name: str, splits: Sequence[TaskNumbers]) -> Summary:
    """Return one number summarised over splits and over tasks."""
    plain = spread_of([split.values.get(name, np.nan) for split in splits])
    cells = task_cells(name, splits)
    if not cells:
        return plain
    found = task_interval(cells)
    return Summary(
        plain.mean, plain.std, plain.splits, found.value, found.low, found.high, found.used
    )


def spread_of(values: Sequence[float]) -> Summary:
    """Return mean and standard deviation of one number over splits, NaN left out."""
    array = np.array(values, dtype=np.float64)
    used = array[np.isfinite(array)]
    return Summary(
        mean=float(used.mean()) if used.size else np.nan,
        std=float(used.std(ddof=1)) if used.size > 1 else np.nan,
        splits=int(used.size),
    )


def task_cells(name: str, splits: Sequence[TaskNumbers]) -> Cells:
    """Return a number by task and split, with weights; empty if it has no values by task."""
    if name not in _BY_TASK:
        return {}
    own, weight = _BY_TASK[name]
    return {
        (task, split.split): (
            values[own],
            1.0 if weight == _EACH_TASK else values.get(weight, 0.0),
        )
        for split in splits
        for task, values in split.tasks.items()
        if own in values
    }


def difference(
    number: str, first: tuple[str, Sequence[TaskNumbers]], second: tuple[str, Sequence[TaskNumbers]]
) -> Difference:
    """Return the difference of two detectors in one number, paired over tasks.

    Parameters
    ----------
    number : str
    first, second : tuple of str and sequence of TaskNumbers
        Name and splits of each detector.
    """
    cells = [task_cells(number, splits) for _, splits in (first, second)]
    return Difference(first[0], second[0], number, paired_task_interval(*cells))


def differences_to_best(
    number: str, detectors: Mapping[str, Sequence[TaskNumbers]]
) -> list[Difference]:
    """Return the differences of the best detector to each other detector.

    The best detector has the highest mean over tasks. Empty if fewer than two detectors have values
    by task.

    Parameters
    ----------
    number : str
        A number that is better if it is higher.
    detectors : mapping of detector to its splits
    """
    means = {
        name: task_interval(cells).value
        for name, splits in detectors.items()
        if (cells := task_cells(number, splits))
    }
    means = {name: value for name, value in means.items() if value == value}
    if len(means) < 2:
        return []
    best = max(means, key=means.__getitem__)
    found = [
        difference(number, (best, detectors[best]), (name, detectors[name]))
        for name in means
        if name != best
    ]
    return [made for made in found if made.interval.used]


def fragile_tasks(splits: Sequence[TaskNumbers]) -> list[str]:
    """Return the tasks whose shortest rollout has one step, in sorted order.

    Until the minimum length, the AUC of such a task is computed from its first step alone.
    """
    return sorted(
        {
            task
            for split in splits
            for task, values in split.tasks.items()
            if values.get('min_length') == 1
        }
    )
