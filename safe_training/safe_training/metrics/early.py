# SPDX-License-Identifier: Apache-2.0
"""Measures how early failures are found: before a median success is over, and the saved steps.

Both numbers are computed for the detector and for the clock, which only counts steps. The clock has
the same realised false-alarm rate as the detector. A clock that raises an alarm at step k has
alarms on all rollouts with more than k steps. Its rate changes in jumps, so its numbers are
interpolated linearly between the two neighbouring values of k. The threshold of the clock is chosen
on the evaluated rollouts, which is an advantage for the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from safe_training.metrics.alarms import checked_alarms
from safe_training.metrics.scored import (
    ScoredRollout,
    Task,
    labels,
    mean_or_nan,
    mean_where_it_exists,
    median_success_lengths,
    task_members,
)


class BesideClock(NamedTuple):
    """A number of the detector, and of the clock at the same realised false-alarm rate."""

    detector: float
    clock: float

    @property
    def gain(self) -> float:
        """Number of the detector minus number of the clock."""
        return self.detector - self.clock


@dataclass(frozen=True)
class EarlyRates:
    """How early the failures of a group are found.

    Attributes
    ----------
    found_early : BesideClock
        Share of the failures with an alarm before the median success of their task is over. NaN
        without a failure of a task that has a median success. The clock is NaN without a success.
    steps_saved : BesideClock
        Mean over all failures of length - alarm step [policy steps]; 0 for a failure without an
        alarm. NaN without failures. The clock is NaN without a success.
    n_failures : int
        Number of failures.
    n_with_median : int
        Number of failures of tasks with a success. The other failures have no median success: they
        count in `steps_saved` and not in `found_early`.
    """

    found_early: BesideClock
    steps_saved: BesideClock
    n_failures: int
    n_with_median: int


@dataclass(frozen=True)
class EarlyReport:
    """How early failures are found: all failures together, per task, and averaged over tasks.

    Attributes
    ----------
    pooled : EarlyRates
    per_task : dict of task to EarlyRates
        The clock has the same alarm step on all tasks. Therefore, its false-alarm rate is equal to
        the rate of the detector over all rollouts together, not on each task.
    macro_found_early : BesideClock
        Mean of `found_early` over the tasks for which it exists.
    false_alarm_rate : float
        Realised false-alarm rate of both; NaN without successes.
    medians : dict of task to float
        Median length of the successes of each task with a success [policy steps].
    """

    pooled: EarlyRates
    per_task: dict[Task, EarlyRates]
    macro_found_early: BesideClock
    false_alarm_rate: float
    medians: dict[Task, float]


def found_early(scored: Sequence[ScoredRollout], alarms: Sequence[int | None]) -> BesideClock:
    """Return the share of the failures that are found early, for the detector and the clock.

    A failure is found early if its first alarm is at a step below m, the median length of the
    successes of its task in the given rollouts (steps count from 0). Failures of tasks without a
    success are left out: see `EarlyRates.n_with_median`.

    Parameters
    ----------
    scored : sequence of N ScoredRollout
        Labelled rollouts, successes and failures.
    alarms : sequence of N int or None
        First alarm step of each, from `band_alarms` or from an alarm state machine.
    """
    return early_report(scored, alarms).pooled.found_early


def steps_saved(scored: Sequence[ScoredRollout], alarms: Sequence[int | None]) -> BesideClock:
    """Return the mean number of policy steps that alarms save per failure, also of the clock.

    Without an alarm, a failure runs until its time-out, and nothing is saved. An alarm at step t of
    a failure with T steps saves T - t steps: the robot does not execute the actions of step t.
    False alarms are not subtracted, because the clock has the same number of false alarms.

    Parameters
    ----------
    scored, alarms
        As in `found_early`.
    """
    return early_report(scored, alarms).pooled.steps_saved


def early_report(scored: Sequence[ScoredRollout], alarms: Sequence[int | None]) -> EarlyReport:
    """Return how early failures are found.

    Parameters
    ----------
    scored, alarms
        As in `found_early`.

    Raises
    ------
    MetricError
        A rollout has no label, or the number of alarms differs from the number of rollouts.
    """
    failed = labels(scored)
    steps = np.array(
        [np.inf if step is None else step for step in checked_alarms(scored, alarms)], dtype=float
    )
    lengths = np.array([len(rollout) for rollout in scored], dtype=float)
    medians = median_success_lengths(scored)
    ends = np.array([medians.get(rollout.task, np.nan) for rollout in scored], dtype=float)
    rate = mean_or_nan(np.isfinite(steps[~failed]))
    found, saved = _found_and_saved(steps, lengths, ends)
    clock_found, clock_saved = np.full_like(found, np.nan), np.full_like(saved, np.nan)
    if not np.isnan(rate):
        mixed = [
            (weight, *_found_and_saved(np.where(lengths > step, step, np.inf), lengths, ends))
            for step, weight in clock_steps(lengths[~failed], rate)
        ]
        clock_found = sum((w * f for w, f, _ in mixed), np.zeros_like(found))
        clock_saved = sum((w * s for w, _, s in mixed), np.zeros_like(saved))

    def rates(members: NDArray[np.int64]) -> EarlyRates:
        failures = members[failed[members]]
        timed = failures[~np.isnan(ends[failures])]
        return EarlyRates(
            BesideClock(mean_or_nan(found[timed]), mean_or_nan(clock_found[timed])),
            BesideClock(mean_or_nan(saved[failures]), mean_or_nan(clock_saved[failures])),
            int(failures.size),
            int(timed.size),
        )

    tasks = task_members([rollout.task for rollout in scored], len(scored))
    per_task = {task: rates(members) for task, members in tasks.items()}
    return EarlyReport(
        pooled=rates(np.arange(len(scored))),
        per_task=per_task,
        macro_found_early=BesideClock(
            mean_where_it_exists([r.found_early.detector for r in per_task.values()]),
            mean_where_it_exists([r.found_early.clock for r in per_task.values()]),
        ),
        false_alarm_rate=rate,
        medians=medians,
    )


@dataclass(frozen=True, eq=False)
class EarlyCurve:
    """Share of the failures with an alarm until a time, in units of the median success.

    Attributes
    ----------
    shares : (K,) float64 array
        Times as a share of the median success length of the task, ascending.
    detector, clock : (K,) float64 arrays
        Share of the failures with an alarm before this time. At the share 1 they are `found_early`.
    found_early : BesideClock
    false_alarm_rate : float
        Realised false-alarm rate of both.
    """

    shares: NDArray[np.float64]
    detector: NDArray[np.float64]
    clock: NDArray[np.float64]
    found_early: BesideClock
    false_alarm_rate: float


def early_curve(scored: Sequence[ScoredRollout], alarms: Sequence[int | None]) -> EarlyCurve:
    """Return how many failures have an alarm, over the time of a median success.

    Parameters
    ----------
    scored, alarms
        As in `found_early`.
    """
    report = early_report(scored, alarms)
    timed = [
        (report.medians[rollout.task], len(rollout), np.inf if alarm is None else float(alarm))
        for rollout, alarm in zip(scored, alarms, strict=True)
        if rollout.failed and rollout.task in report.medians
    ]
    medians, lengths, steps = (np.array(column, dtype=float) for column in zip(*timed, strict=True))
    successes = np.array([len(r) for r in scored if not r.failed], dtype=float)
    last = float((lengths / medians).max())
    shares = np.linspace(0.0, max(last, 1.0), 201)
    # The share 1 is on the grid, because `found_early` belongs to it.
    shares = np.unique(np.append(shares, 1.0))

    def reached(alarm_steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((alarm_steps < shares[:, None] * medians).mean(axis=1))

    mixed = clock_steps(successes, report.false_alarm_rate)
    clock = sum(
        (weight * reached(np.where(lengths > step, step, np.inf)) for step, weight in mixed),
        np.zeros_like(shares),
    )
    return EarlyCurve(
        shares, reached(steps), clock, report.pooled.found_early, report.false_alarm_rate
    )


def clock_steps(success_lengths: NDArray[np.float64], rate: float) -> list[tuple[int, float]]:
    """Return the alarm steps of a clock with a false-alarm rate, as pairs of step and weight.

    One pair, or two pairs with weights that sum to 1. A clock that uses each step with the
    probability of its weight has this rate on average.

    Parameters
    ----------
    success_lengths : (N,) array
        Number of steps of each success, N >= 1.
    rate : float
        False-alarm rate in [0, 1].
    """
    lengths = np.asarray(success_lengths)
    # The share of the successes that run at step k, from 1 at step 0 to 0 at the largest length.
    rates = np.array([(lengths > k).mean() for k in range(int(lengths.max()) + 1)])
    step = int(np.argmax(rates <= rate))
    if step == 0:
        return [(0, 1.0)]
    weight = float((rate - rates[step]) / (rates[step - 1] - rates[step]))
    if weight == 0.0:
        return [(step, 1.0)]
    return [(step - 1, weight), (step, 1.0 - weight)]


def _found_and_saved(
    steps: NDArray[np.float64], lengths: NDArray[np.float64], ends: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return whether each rollout is found early (0 or 1), and its saved steps, both (N,)."""
    return (steps < ends).astype(float), np.where(np.isfinite(steps), lengths - steps, 0.0)
