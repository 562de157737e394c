# SPDX-License-Identifier: Apache-2.0
"""Reliability of scores that are probabilities of failure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_training.metrics.scored import MetricError, values_and_outcomes


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


def reliability(probabilities: ArrayLike, failed: ArrayLike, bins: int = 10) -> Reliability:
    """Return how one probability of failure per rollout agrees with the labels.

    This is for detectors whose score is a probability. The caller chooses the step of the score;
    the last step of a rollout reveals its length.

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
        raise MetricError(
            where='metrics', expected='rollouts to compare probabilities with', found='none'
        )
    if bins < 1:
        raise MetricError(where='metrics', expected='at least one bin', found=str(bins))
    outside = np.flatnonzero((values < 0.0) | (values > 1.0))
    if outside.size:
        raise MetricError(
            where=f'metrics: rollout {outside[0]}',
            expected='a probability in [0, 1]',
            found=str(values[outside[0]]),
            advice='use this measure only for detectors whose score is a probability',
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
