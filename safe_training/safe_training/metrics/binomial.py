# SPDX-License-Identifier: Apache-2.0
"""Confidence interval of a counted rate, and counts of alarms per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

FEWEST = 10
"""With fewer rollouts, the rate of a task is not meaningful."""


def clopper_pearson(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a probability, after `count` events in `total` trials.

    Clopper and Pearson (1934); its coverage is at least `level`. (NaN, NaN) without a trial.
    """
    if total == 0:
        return np.nan, np.nan
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(level)
    return float(interval.low), float(interval.high)


@dataclass
class Tally:
    """Alarms among rollouts with one label, by task.

    Attributes
    ----------
    repeats : int
        Number of random draws of the rollouts; counts are summed over all draws.
    """

    repeats: int = 1
    alarms: dict[str, int] = field(default_factory=dict)
    rollouts: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, alarmed: bool) -> None:
        """Count one rollout."""
        self.alarms[task] = self.alarms.get(task, 0) + alarmed
        self.rollouts[task] = self.rollouts.get(task, 0) + 1

    @property
    def rate(self) -> float:
        """Share of the rollouts with an alarm; NaN without a rollout."""
        total = sum(self.rollouts.values())
        return sum(self.alarms.values()) / total if total else np.nan


def tally_cells(tallies: Mapping[int, Tally]) -> dict[tuple[str, int], tuple[float, float]]:
    """Return the rate of each task and split with its number of rollouts, for `task_interval`."""
    return {
        (task, split): (tally.alarms[task] / count, float(count))
        for split, tally in tallies.items()
        for task, count in tally.rollouts.items()
    }


def worst_task(tallies: Sequence[Tally]) -> tuple[str, float] | None:
    """Return the task with the highest rate; None if no task has enough rollouts."""
    alarms: dict[str, int] = {}
    counts: dict[str, int] = {}
    enough: set[str] = set()
    for tally in tallies:
        for task, count in tally.rollouts.items():
            alarms[task] = alarms.get(task, 0) + tally.alarms[task]
            counts[task] = counts.get(task, 0) + count
            # A rollout that was drawn several times counts as one rollout.
            if count >= FEWEST * tally.repeats:
                enough.add(task)
    rates = {task: alarms[task] / counts[task] for task in sorted(enough)}
    if not rates:
        return None
    worst = max(rates, key=rates.__getitem__)
    return worst, rates[worst]
