# SPDX-License-Identifier: Apache-2.0
"""Reliability of probabilities of failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.probability import ProbabilityMap
from safe_training.metrics.scored import (
    MetricError,
    ScoredRollout,
    Task,
    median_success_lengths,
    running_steps,
    task_members,
    values_and_outcomes,
)

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the median success length at which probabilities are compared with outcomes."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Agreement between predicted probabilities of failure and the frequency of failures.

    Attributes
    ----------
    brier : float
        Mean squared difference between probability and outcome, in [0, 1]. A constant probability
        of 0.5 has a Brier score of 0.25.
    calibration_error : float
        Expected calibration error: mean over bins of |confidence - frequency|, weighted by the
        number of rollouts in the bin (Naeini, Cooper and Hauskrecht, AAAI 2015).
    bin_confidence, bin_frequency : (B,) float64 arrays
        Mean probability and share of failures of the rollouts in each bin of equal width over
        [0, 1]; NaN in an empty bin.
    bin_count : (B,) int64 array
        Rollouts in each bin.
    """

    brier: float
    calibration_error: float
    bin_confidence: NDArray[np.float64]
    bin_frequency: NDArray[np.float64]
    bin_count: NDArray[np.int64]


@dataclass(frozen=True)
class Brier:
    """Brier scores of the detector, of the step number alone, and of a constant probability.

    All three come from fits on the same rollouts: see
    :class:`safe_monitor_node.bands.probability.ProbabilityMap`. Lower is better.
    """

    detector: float
    clock: float
    base_rate: float


@dataclass(frozen=True, eq=False)
class ProbabilityReport:
    """Quality of the probabilities of failure of a detector while rollouts run.

    A rollout counts at each time of :data:`FRACTIONS` at which it still runs. A time is a share of
    the median length of the successes of its task in the given rollouts. Rollouts of tasks without
    a success are left out.

    Attributes
    ----------
    brier : Brier
        Brier scores over all pairs of a rollout and a time.
    per_task : dict of task to Brier
    reliability : Reliability
        Reliability of the detector, over the same pairs.
    """

    brier: Brier
    per_task: dict[Task, Brier]
    reliability: Reliability


def probability_report(
    scored: Sequence[ScoredRollout], fitted: ProbabilityMap
) -> ProbabilityReport | None:
    """Return how the probabilities of running rollouts agree with their outcomes.

    None if no rollout belongs to a task with a success.
    """
    medians = median_success_lengths(scored)
    tasks: list[Task] = []
    given, clock, outcomes = [], [], []
    for fraction in FRACTIONS:
        steps = {task: count - 1 for task, count in running_steps(medians, fraction).items()}
        by_clock = {task: fitted.clock_at(step) for task, step in steps.items()}
        for rollout in scored:
            step = steps.get(rollout.task, len(rollout))
            if step < len(rollout):
                tasks.append(rollout.task)
                outcomes.append(bool(rollout.failed))
                given.append(fitted.at(float(rollout.scores[step]), step))
                clock.append(by_clock[rollout.task])
    if not tasks:
        return None
    failed = np.array(outcomes)
    errors = (np.array([given, clock, [fitted.base_rate] * len(tasks)]) - failed) ** 2
    return ProbabilityReport(
        brier=Brier(*errors.mean(axis=1).tolist()),
        per_task={
            task: Brier(*errors[:, members].mean(axis=1).tolist())
            for task, members in task_members(tasks, len(tasks)).items()
        },
        reliability=reliability(given, failed),
    )


def reliability(probabilities: ArrayLike, failed: ArrayLike, bins: int = 10) -> Reliability:
    """Return how probabilities of failure agree with the labels.

    Parameters
    ----------
    probabilities : (N,) array
        Each in [0, 1]; N >= 1.
    failed : (N,) bool array
        True for a failure.
    bins : int
        Number of bins of equal width; the last bin contains 1.0.

    Raises
    ------
    MetricError
        There are no rollouts or no bins, or a value is not a probability.
    """
    values, positive = values_and_outcomes(probabilities, failed)
    if values.size == 0:
        raise MetricError(where='metrics', expected='at least one rollout', found='none')
    if bins < 1:
        raise MetricError(where='metrics', expected='at least one bin', found=str(bins))
    outside = np.flatnonzero((values < 0.0) | (values > 1.0))
    if outside.size:
        raise MetricError(
            where=f'metrics: rollout {outside[0]}',
            expected='a probability in [0, 1]',
            found=str(values[outside[0]]),
            advice='give the probability of failure, not the score',
        )
    which = np.minimum((values * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid='ignore'):
        confidence = np.bincount(which, weights=values, minlength=bins) / count
        frequency = np.bincount(which, weights=positive, minlength=bins) / count
    gap = np.where(count > 0, np.abs(confidence - frequency), 0.0)
    return Reliability(
        brier=float(np.mean((values - positive) ** 2)),
        calibration_error=float((gap * count).sum() / values.size),
        bin_confidence=confidence,
        bin_frequency=frequency,
        bin_count=count,
    )
