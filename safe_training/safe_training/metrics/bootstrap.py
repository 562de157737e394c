# SPDX-License-Identifier: Apache-2.0
"""Percentile bootstrap intervals of means and of the ROC-AUC."""

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

    `given` is the number of values (or of resamples, for an AUC). `used` is the number of values
    that are not NaN. If used < given, the mean does not include all values.
    """

    value: float
    low: float
    high: float
    used: int
    given: int


def bootstrap_interval(
    values: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return the mean of some values, such as one AUC per split, with its bootstrap interval.

    NaN values are left out of the mean and counted: see `Interval`. The values are resampled as if
    they were independent. But splits of one set of rollouts overlap. Therefore the interval
    describes the variation between splits and not between new rollouts.

    Parameters
    ----------
    values : (N,) array
        Values, possibly with NaN. If fewer than two values are not NaN, the interval is NaN.
    generator : numpy.random.Generator
        Draws the resamples.
    level : float
        Confidence level of the interval, in (0, 1).
    resamples : int
        Number of resamples.
    """
    _check_bootstrap(level, resamples)
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1:
        raise MetricError(where='metrics', expected='values of shape (N,)', found=str(given.shape))
    used = given[~np.isnan(given)]
    value = float(used.mean()) if used.size else np.nan
    if used.size < 2:
        return Interval(value, np.nan, np.nan, int(used.size), int(given.size))
    means = used[generator.integers(used.size, size=(resamples, used.size))].mean(axis=1)
    low, high = _percentiles(means, level)
    return Interval(value, low, high, int(used.size), int(given.size))


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
    generator, level, resamples
        As in `bootstrap_interval`.

    """
    _check_bootstrap(level, resamples)
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
    low, high = _percentiles(existing, level)
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


def _check_bootstrap(level: float, resamples: int) -> None:
    if not 0.0 < level < 1.0:
        raise MetricError(where='metrics', expected='level inside (0, 1)', found=str(level))
    if resamples < 1:
        raise MetricError(where='metrics', expected='at least one resample', found=str(resamples))


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2
    low, high = np.quantile(values, (tail, 1.0 - tail))
    return float(low), float(high)
