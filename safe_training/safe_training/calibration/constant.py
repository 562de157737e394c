# SPDX-License-Identifier: Apache-2.0
"""One threshold for all steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.band import Band, BandShape
from safe_training.calibration.curves import (
    ALPHAS,
    Quantile,
    Successes,
    checked_alphas,
    checked_curves,
    infinite_note,
)
from safe_training.calibration.quantile import conformal_quantile

KIND = 'split_conformal'


def constant_band(
    scores: Sequence[ArrayLike] | Successes,
    alphas: Sequence[float] = ALPHAS,
    *,
    max_steps: int,
    quantile: Quantile = 'finite_sample',
) -> Band:
    """Return a band with one threshold, calibrated on the largest score of each success.

    All rollouts are ranked, because no rollout is needed for the shape of the band. Therefore nine
    successes are enough for alpha 0.1. A functional band
    (:func:`safe_training.calibration.functional.calibrate`) needs twelve. However, a constant
    threshold is worse if scores usually rise or fall with time.

    The promise is the same as for a functional band. A new success raises an alarm if and only if
    its largest score is above the threshold. The probability of this is at most alpha.

    Parameters
    ----------
    scores, alphas, max_steps
        As in :func:`safe_training.calibration.functional.calibrate`.
    quantile
        As in :func:`conformal_quantile`; the promise holds for 'finite_sample'.
    """
    successes = scores if isinstance(scores, Successes) else Successes(scores)
    curves = checked_curves(successes.scores, max_steps)
    levels = checked_alphas(alphas)
    peaks = np.sort([float(curve.max()) for curve in curves])
    thresholds = [conformal_quantile(peaks, alpha, quantile) for alpha in levels]
    upper: NDArray[np.float64] = np.repeat(np.array(thresholds)[:, None], max_steps, axis=1)
    provenance: dict[str, Any] = {
        'alphas': levels,
        'quantile': quantile,
        'max_steps': max_steps,
        'n_center': 0,
        'n_calibration': len(curves),
        'calibrated_on': successes.described,
        'n_successes': len(curves),
    }
    if successes.episodes:
        provenance['calibration_rollouts'] = list(successes.episodes)
    note = infinite_note(levels, upper, len(curves))
    if note:
        provenance['note'] = note
    return Band(
        alphas=np.array(levels),
        upper=upper,
        kind=KIND,
        n_calibration=len(curves),
        n_center=0,
        provenance=provenance,
        shape=BandShape(
            center=np.zeros(max_steps),
            width=np.ones((len(levels), max_steps)),
            nonconformity=np.tile(peaks, (len(levels), 1)),
        ),
    )
