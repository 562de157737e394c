# SPDX-License-Identifier: Apache-2.0
"""The conformal quantile of one value per rollout.

After Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), and the split
conformal table of SAFE (arXiv 2506.09937, 5). The value of a rollout is normally its largest score.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from safe_monitor_node.bands.adaptive_threshold import conformal_rank
from safe_training.calibration.curves import CalibrationError, Quantile


def conformal_quantile(
    nonconformity: ArrayLike, alpha: float, quantile: Quantile = 'finite_sample'
) -> float:
    """Return the conformal quantile.

    The next exchangeable nonconformity exceeds it with probability at most alpha.

    Parameters
    ----------
    nonconformity : (N,) array
        One value for each calibration rollout.
    alpha : float
        In (0, 1).
    quantile : {'finite_sample', 'published'}
        'finite_sample': the ceil((N + 1)(1 - alpha))-th smallest value, or +inf if there are fewer
        values. 'published': the rank of the published code, limited to 1..N. Its coverage is too
        low for small N (0.825 instead of 0.98 at N = 5). It is +inf only if there are no values.
    """
    values = np.sort(np.asarray(nonconformity).ravel())
    if np.isnan(values).any():
        raise CalibrationError(
            where='calibration', expected='nonconformities that are numbers', found='NaN'
        )
    if not 0.0 < alpha < 1.0:
        raise CalibrationError(
            where='calibration', expected='alpha inside (0, 1)', found=str(alpha)
        )
    if values.size == 0:
        return math.inf
    if quantile == 'finite_sample':
        rank = conformal_rank(values.size, alpha)
        return float(values[rank - 1]) if rank <= values.size else math.inf
    return float(values[published_rank(values.size, alpha) - 1])


def published_rank(count: int, alpha: float) -> int:
    """Return the rank, from 1 to ``count``, of the quantile 'published' among ``count`` values.

    The published code computes ``(count + 1)(1 - alpha)`` in double precision and rounds it once to
    float32 before it rounds up.
    """
    product = np.float32((count + 1) * (1 - alpha))
    return int(np.clip(np.ceil(product), 1, count))
