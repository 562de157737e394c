# SPDX-License-Identifier: Apache-2.0
"""Bands for the tests of this package, made without ``safe_training``, as a robot has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from safe_monitor_node.bands.adaptive_threshold import conformal_rank
from safe_monitor_node.bands.band import Band, BandShape


def constant_band(peaks: ArrayLike, alphas: Sequence[float], steps: int) -> Band:
    """Return a band with one threshold for all steps, the conformal quantile of the peaks."""
    ranked = np.tile(np.sort(np.asarray(peaks, dtype=np.float64)), (len(alphas), 1))
    width = np.ones((len(alphas), steps))
    return _band(alphas, np.zeros(steps), width, ranked, 'split_conformal', n_center=0)


def functional_band(
    curves: Sequence[np.ndarray], alphas: Sequence[float], steps: int, modulation: str = 'std'
) -> Band:
    """Return a band around the mean of the first third of the curves, ranked on the others."""
    extended = np.stack([np.pad(curve, (0, steps - curve.size), mode='edge') for curve in curves])
    n_center = max(1, len(curves) // 3)
    center_curves, others = extended[:n_center], extended[n_center:]
    center = center_curves.mean(axis=0)
    spread = {
        'std': center_curves.std(axis=0),
        'max_deviation': np.abs(center_curves - center).max(axis=0),
        'constant': np.full(steps, 1.0 / steps),
    }[modulation]
    # A wider band for each alpha, so that no test passes with the row of another alpha.
    width = np.stack([np.maximum(spread, 0.01) * (1.0 + row) for row in range(len(alphas))])
    nonconformity = [np.sort(((others - center) / row).max(axis=1)) for row in width]
    return _band(alphas, center, width, np.stack(nonconformity), f'by_hand_{modulation}', n_center)


def _band(
    alphas: Sequence[float],
    center: np.ndarray,
    width: np.ndarray,
    ranked: np.ndarray,
    kind: str,
    n_center: int,
) -> Band:
    count, upper = ranked.shape[1], []
    for alpha, row_width, values in zip(alphas, width, ranked, strict=True):
        rank = conformal_rank(count, alpha)
        if rank > count:
            upper.append(np.full(center.size, np.inf))
            continue
        scaled = values[rank - 1] * row_width
        rounding = 8 * np.finfo(np.float64).eps * (np.abs(center) + np.abs(scaled))
        upper.append(center + scaled + rounding)
    return Band(
        np.array(alphas),
        np.stack(upper),
        kind,
        count,
        n_center,
        shape=BandShape(center, width, ranked),
    )
