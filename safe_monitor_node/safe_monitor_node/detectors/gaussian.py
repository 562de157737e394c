# SPDX-License-Identifier: Apache-2.0
"""Mahalanobis distance to the steps of failures and successes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.embedding import (
    ClassModel,
    EmbeddingDetector,
    centred,
    checked_array,
    norm,
    times,
)
from safe_monitor_node.detectors.neighbours import BLOCK

# --- Mahalanobis


class _Gaussian(ClassModel):
    """Mean and a triangular L, L^T L = (covariance + ridge I)^-1, so that d(x) = |L (x - mean)|."""

    def __init__(self, mean: np.ndarray, factor: np.ndarray) -> None:
        self._mean = mean
        self._factor = factor
        starts = range(0, len(mean), BLOCK)
        self._blocks = [factor[i : i + BLOCK, : i + BLOCK] for i in starts]

    def distance(self, x: np.ndarray) -> float:
        z = centred(x, self._mean)
        # By blocks of rows, without most zeros above the diagonal: half the memory to read.
        return float(norm(np.concatenate([times(b, z[: b.shape[1]]) for b in self._blocks])))

    def distances(self, x: np.ndarray) -> np.ndarray:
        return norm(centred(x, self._mean) @ self._factor.T)

    def state(self) -> dict[str, np.ndarray]:
        return {'mean': self._mean, 'factor': self._factor}


class Mahalanobis(EmbeddingDetector):
    """Mahalanobis distance to the successful training steps, minus that to the failed ones.

    d(x) = sqrt((x - m)^T (S + ridge I)^-1 (x - m)), m and S (ddof 1) mean and covariance of one.

    Parameters
    ----------
    success_only : bool
        Leave out the distance to failures.
    accumulate : {'mean', 'sum', 'none'}
        Running mean over the episode so far, cumulative sum (the paper's), or the step alone.
    ridge : float
        Added to the variances; with fewer steps than features it alone makes S invertible.
    """

    name = 'mahalanobis'
    arrays = ('mean', 'factor')

    def __init__(
        self,
        *,
        success_only: bool = False,
        accumulate: Accumulate = 'mean',
        ridge: float = 1e-4,
    ) -> None:
        self.success_only = success_only
        self.accumulate = accumulate
        self.ridge = ridge

    def check_params(self) -> None:
        super().check_params()
        if not isinstance(self.ridge, (int, float)) or not 0 < self.ridge < np.inf:
            raise DetectorError(f'{self.name}: ridge must be above 0, found {self.ridge!r}')

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> ClassModel:
        mean = checked_array(self.name, arrays, f'{outcome}.mean', (dim,), np.float64)
        name = f'{outcome}.factor'
        factor = checked_array(self.name, arrays, name, (dim, dim), np.float32)
        if (np.diag(factor) <= 0).any() or any(factor[i, i + 1 :].any() for i in range(dim)):
            raise DetectorError(
                f'{self.name}: array {name!r} should be lower triangular with a positive diagonal'
            )
        return _Gaussian(mean, factor)
