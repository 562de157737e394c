# SPDX-License-Identifier: Apache-2.0
"""Alarm rates and detection times as functions of the threshold or of the promised rate.

A rollout raises an alarm at its first step with `score > threshold`, within its true length. The
published curves differ in three ways: scores are first scaled into [0, 1], an alarm needs `score >=
threshold`, and the reported threshold is not the inverse of the scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.band import Band
from safe_training.metrics.alarms import alarm_report, band_alarms
from safe_training.metrics.scored import MetricError, ScoredRollout, labels

PERCENTILES = np.linspace(0, 100, 101)


@dataclass(frozen=True, eq=False)
class OperatingCurve:
    """Alarm rates and detection times of K constant thresholds.

    Attributes
    ----------
    thresholds : (K,) float64 array
        Ascending.
    detection_rate, false_alarm_rate, balanced_accuracy : (K,) float64 arrays
        As in `AlarmRates`: NaN if a class is absent.
    accuracy, f1 : (K,) float64 arrays
        Share of rollouts classified correctly; F1 of the failures, 0 if no failure is detected,
        NaN without failures.
    detection_time : (K,) float64 array
        Mean over failures of first alarm step / length, 1.0 for a failure without an alarm; NaN
        without failures.
    """

    thresholds: NDArray[np.float64]
    detection_rate: NDArray[np.float64]
    false_alarm_rate: NDArray[np.float64]
    balanced_accuracy: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    f1: NDArray[np.float64]
    detection_time: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AlphaCurve:
    """Alarm rates and detection times of a band, for each of its K promised rates.

    They are measured at the end of the rollouts.

    Arrays have shape (K,); `alphas` ascends. The promise holds if `false_alarm_rate` is not above
    `alphas`, except for random variation.
    """

    alphas: NDArray[np.float64]
    detection_rate: NDArray[np.float64]
    false_alarm_rate: NDArray[np.float64]
    balanced_accuracy: NDArray[np.float64]
    detection_time: NDArray[np.float64]


def default_thresholds(scored: Sequence[ScoredRollout]) -> NDArray[np.float64]:
    """Return thresholds at which the alarms change, shape (K,), in ascending order.

    The thresholds are: the percentiles of all scores; the largest score of each rollout (with a
    higher threshold the rollout has no alarm); and one value below all scores (every rollout has an
    alarm at step 0).
    """
    everything = np.concatenate([rollout.scores for rollout in some(scored)])
    return np.unique(
        np.concatenate(
            [
                [np.nextafter(everything.min(), -np.inf)],
                np.percentile(everything, PERCENTILES),
                [rollout.scores.max() for rollout in scored],
            ]
        )
    )


def operating_curve(
    scored: Sequence[ScoredRollout], thresholds: ArrayLike | None = None
) -> OperatingCurve:
    """Return alarm rates and detection time at each constant threshold.

    Parameters
    ----------
    scored : sequence of ScoredRollout
        At least one rollout.
    thresholds : (K,) array, optional
        In any order; the default is `default_thresholds`.

    """
    chosen = default_thresholds(scored) if thresholds is None else np.asarray(thresholds, float)
    if chosen.ndim != 1 or chosen.size == 0 or np.isnan(chosen).any():
        raise MetricError(
            where='metrics',
            expected='thresholds of shape (K,) with K >= 1 and without NaN',
            found=f'shape {chosen.shape} with {np.isnan(chosen).sum()} NaN',
        )
    chosen = np.sort(chosen)
    lengths = np.array([len(rollout) for rollout in some(scored)])
    failed = labels(scored)
    # The score and its running maximum first exceed a threshold at the same step.
    first = np.stack(
        [
            np.searchsorted(np.maximum.accumulate(rollout.scores), chosen, side='right')
            for rollout in scored
        ]
    )
    alarmed = first < lengths[:, None]
    detected, false = alarmed[failed], alarmed[~failed]
    detection_rate, false_alarm_rate = _column_means(detected), _column_means(false)
    true_positives = detected.sum(axis=0)
    positives = alarmed.sum(axis=0) + failed.sum()
    return OperatingCurve(
        thresholds=chosen,
        detection_rate=detection_rate,
        false_alarm_rate=false_alarm_rate,
        balanced_accuracy=(detection_rate + 1.0 - false_alarm_rate) / 2,
        accuracy=(alarmed == failed[:, None]).mean(axis=0),
        f1=2 * true_positives / positives if failed.any() else np.full(chosen.size, np.nan),
        # If no score is above the threshold, `first` is the length, so that the detection time is
        # 1.
        detection_time=_column_means((first / lengths[:, None])[failed]),
    )


def alpha_curve(scored: Sequence[ScoredRollout], band: Band) -> AlphaCurve:
    """Return alarm rates and detection time of a band at each of its promised rates.

    Alarms count until the true end of each rollout. A rollout is compared with the band of its
    task if the band has one. Raises `BandError` if a rollout is longer than the band.
    """
    rates = [alarm_report(scored, band_alarms(scored, band, alpha)).pooled for alpha in band.alphas]
    return AlphaCurve(
        alphas=np.array(band.alphas),
        detection_rate=np.array([rate.detection_rate for rate in rates]),
        false_alarm_rate=np.array([rate.false_alarm_rate for rate in rates]),
        balanced_accuracy=np.array([rate.balanced_accuracy for rate in rates]),
        detection_time=np.array([rate.detection_time for rate in rates]),
    )


def some(scored: Sequence[ScoredRollout]) -> Sequence[ScoredRollout]:
    """Return the rollouts; raises `MetricError` if there are none."""
    if not scored:
        raise MetricError(
            where='metrics', expected='at least one rollout for a curve', found='no rollouts'
        )
    return scored


def _column_means(values: NDArray[np.bool_] | NDArray[np.float64]) -> NDArray[np.float64]:
    if values.shape[0] == 0:
        return np.full(values.shape[1], np.nan)
    return np.asarray(values.mean(axis=0), dtype=np.float64)
