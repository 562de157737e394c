# SPDX-License-Identifier: Apache-2.0
"""Split conformal prediction on one value per rollout: by class, and as a constant alarm band.

After Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), and the split
conformal table of SAFE (arXiv 2506.09937, 5). The value of a rollout is normally its largest score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from safe_monitor_node.bands.adaptive_threshold import conformal_rank
from safe_training.calibration.curves import CalibrationError, Quantile


def conformal_quantile(
    nonconformity: ArrayLike, alpha: float, quantile: Quantile = 'finite_sample'
) -> float:
    """Return what the next exchangeable nonconformity exceeds with probability at most alpha.

    Parameters
    ----------
    nonconformity : (N,) array
        Values of the calibration rollouts.
    alpha : float
        In (0, 1).
    quantile : {'finite_sample', 'published'}
        'finite_sample': the ceil((N + 1)(1 - alpha))-th smallest, +inf where there are fewer.
        'published': that rank in float32, clipped to 1..N, which covers too little for small N
        (0.825 instead of 0.98 at N = 5); +inf only without any value.
    """
    values = np.sort(np.asarray(nonconformity).ravel())
    if np.isnan(values).any():
        raise CalibrationError('calibration: a nonconformity is NaN')
    if not 0.0 < alpha < 1.0:
        raise CalibrationError(f'calibration: an alpha must lie inside (0, 1), found {alpha}')
    if values.size == 0:
        return math.inf
    if quantile == 'finite_sample':
        rank = conformal_rank(values.size, alpha)
        return float(values[rank - 1]) if rank <= values.size else math.inf
    product = np.float32(values.size + 1) * np.float32(1 - alpha)
    return float(values[int(np.clip(np.ceil(product), 1, values.size)) - 1])


@dataclass(frozen=True)
class SplitConformal:
    """Thresholds on one value per rollout, one for each class at its own error rate alpha.

    Attributes
    ----------
    alpha : float
        A success lies above ``above_successes``, and a failure below ``below_failures``, with
        probability at most alpha each (for values exchangeable with those calibrated on).
    above_successes : float
        +inf where there are too few successes for alpha.
    below_failures : float
        -inf where there are too few failures for alpha.
    n_successes, n_failures : int
    """

    alpha: float
    above_successes: float
    below_failures: float
    n_successes: int
    n_failures: int

    def outcomes(self, values: ArrayLike) -> list[tuple[int, ...]]:
        """Return for each value which outcomes it may have: 0 success, 1 failure, both or none."""
        return [
            tuple(
                outcome
                for outcome, fits in (
                    (0, value <= self.above_successes),
                    (1, value >= self.below_failures),
                )
                if fits
            )
            for value in np.asarray(values).ravel()
        ]


def split_conformal(values: ArrayLike, failed: ArrayLike, alpha: float) -> SplitConformal:
    """Calibrate by class: successes on their values, failures on the negative of theirs.

    The published code uses 1 - value for failures, which loses values below 1e-7 in float32.

    Parameters
    ----------
    values : (N,) array
        One finite value per rollout; higher means more likely failing.
    failed : (N,) bool array
    alpha : float
        Error rate of each class, in (0, 1).
    """
    scores = np.asarray(values, dtype=np.float64)
    positive = np.asarray(failed, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise CalibrationError(
            'calibration: values and outcomes must have the same shape (N,), found '
            f'{scores.shape} and {positive.shape}'
        )
    return SplitConformal(
        alpha=alpha,
        above_successes=conformal_quantile(scores[~positive], alpha),
        below_failures=-conformal_quantile(-scores[positive], alpha),
        n_successes=int((~positive).sum()),
        n_failures=int(positive.sum()),
    )
