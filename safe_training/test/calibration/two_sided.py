# SPDX-License-Identifier: Apache-2.0
"""The two-sided functional band, which tests compare with the published one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.adaptive_threshold import conformal_rank
from safe_training.calibration.curves import ALPHAS, Quantile, checked_alphas
from safe_training.calibration.functional import (
    Modulation,
    checked_parts,
    floored_modulation,
    modulation_of,
)


def two_sided_band(
    center_curves: ArrayLike,
    calibration_curves: ArrayLike,
    alphas: Sequence[float] = ALPHAS,
    modulation: Modulation = 'max_deviation',
    quantile: Quantile = 'finite_sample',
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper edges (K, T) between which a new curve stays, for each alpha.

    A new curve leaves the band on either side, at any step, with probability at most alpha
    (Diquigiovanni, Fontana and Vantini, 2025): mu(t) -+ w M(t), w the finite-sample quantile of
    max_t |x(t) - mu(t)| / M(t). Where there are too few calibration curves the edges are -inf and
    +inf. Alarms need the upper edge only, of :func:`functional_band`, which is lower than this one.

    Parameters
    ----------
    center_curves, calibration_curves, alphas, modulation
        As in :func:`functional_band`; the rows follow the alphas in ascending order.
    quantile : {'finite_sample', 'published'}
        'published' differs in the modulation only, to which it adds 1e-8 instead of a floor.
    """
    center, calibration = checked_parts(center_curves, calibration_curves, modulation, quantile)
    mu = center.mean(axis=0)
    n2 = calibration.shape[0]
    edges = []
    for alpha in checked_alphas(alphas):
        rank = conformal_rank(n2, alpha)
        if rank > n2:
            edges.append((np.full(mu.size, -np.inf), np.full(mu.size, np.inf)))
            continue
        if quantile == 'published':
            n1 = center.shape[0]
            width = modulation_of(center, mu, int(np.ceil((n1 + 1) * (1 - alpha))), modulation)
            width = width + (0.0 if modulation == 'constant' else 1e-8)
        else:
            width = floored_modulation(center, mu, alpha, modulation)
        nonconformity = (np.abs(calibration - mu) / width).max(axis=1)
        scaled = float(np.partition(nonconformity, rank - 1)[rank - 1]) * width
        # A curve that ties with the k-th is not outside.
        rounding = 8 * np.finfo(np.float64).eps * (np.abs(mu) + scaled)
        edges.append((mu - scaled - rounding, mu + scaled + rounding))
    return np.stack([low for low, _ in edges]), np.stack([high for _, high in edges])
