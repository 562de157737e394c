# SPDX-License-Identifier: Apache-2.0
"""Percentile bootstrap interval of the ROC-AUC over rollouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_training.metrics.ranking import rank
from safe_training.metrics.scored import MetricError, values_and_outcomes

# Number of resampled weights that are in memory at the same time.
_BOOTSTRAP_CHUNK = 1_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with a percentile bootstrap interval.

    `given` is the number of tasks, or of resamples if rollouts are resampled. `used` is the number
    of tasks or resamples that have a value.
    """

    value: float
    low: float
    high: float
    used: int
    given: int


def bootstrap_auc_interval(
    values: ArrayLike,
    failed: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return the ROC-AUC of one value per rollout with its bootstrap interval over rollouts.

    Rollouts are drawn with replacement. A resample with only one class has no AUC: it is left out
    and counted.

    Parameters
    ----------
    values, failed : (N,) arrays
        As in `rank`.
    generator : numpy.random.Generator
        Draws the resamples.
    level : float
        Confidence level of the interval, in (0, 1).
    resamples : int
        Number of resamples.
    """
    check_bootstrap(level, resamples)
    scores, positive = values_and_outcomes(values, failed)
    value = rank(scores, positive).roc_auc
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan, 0, resamples)
    size = scores.size
    chunk = max(1, _BOOTSTRAP_CHUNK // size)
    found = []
    for start in range(0, resamples, chunk):
        counts = generator.multinomial(
            size, np.full(size, 1 / size), size=min(chunk, resamples - start)
        )
        found.append(_weighted_auc(scores, positive, counts))
    aucs = np.concatenate(found)
    existing = aucs[~np.isnan(aucs)]
    if existing.size == 0:
        return Interval(value, np.nan, np.nan, 0, resamples)
    low, high = percentiles(existing, level)
    return Interval(value, low, high, int(existing.size), resamples)


def _weighted_auc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the ROC-AUC for each row of weights (R, N); NaN if a class is absent.

    Ties count half. The function of scikit-learn computes one row at a time, so that a bootstrap
    takes 100 times longer.
    """
    order = np.argsort(scores, kind='stable')
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    failures = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    successes = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(successes, axis=1) - successes
    wins = (failures * (below + 0.5 * successes)).sum(axis=1)
    pairs = (failures.sum(axis=1) * successes.sum(axis=1)).astype(np.float64)
    return np.divide(wins, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def check_bootstrap(level: float, resamples: int) -> None:
    """Raise `MetricError` unless the level is inside (0, 1) and there is a resample."""
    if not 0.0 < level < 1.0:
        raise MetricError(where='metrics', expected='level inside (0, 1)', found=str(level))
    if resamples < 1:
        raise MetricError(where='metrics', expected='at least one resample', found=str(resamples))


def percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Return the two ends of the central interval that contains the share `level` of values."""
    tail = (1.0 - level) / 2
    low, high = np.quantile(values, (tail, 1.0 - tail))
    return float(low), float(high)
