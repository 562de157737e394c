# SPDX-License-Identifier: Apache-2.0
"""Split conformal thresholds for each class, which tests compare with the published ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from safe_training.calibration.curves import CalibrationError
from safe_training.calibration.quantile import conformal_quantile


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
