# SPDX-License-Identifier: Apache-2.0
"""Mahalanobis distance to the training steps of successes and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_monitor_node.detectors.base import ArraySpec, DetectorError, Stream
from safe_monitor_node.detectors.embedding import (
    EmbeddingDetector,
    OutcomeModel,
    centred,
    norm,
    step_distances,
)
from safe_monitor_node.detectors.together import Answer, one_by_one
from vla_feature_bridge.step import PolicyStep

# Rows of the triangular factor in one product: large enough for BLAS, small enough to skip zeros.
_ROWS_PER_PRODUCT = 256
# With 4096 features, a product of matrices takes as long as five products of a matrix and a vector,
# and not much longer for 20 steps.
_FEWEST_TOGETHER = 6


class _Gaussian(OutcomeModel):
    """Mean and a triangular L, L^T L = (covariance + ridge I)^-1, so that d(x) = |L (x - mean)|."""

    def __init__(self, mean: np.ndarray, factor: np.ndarray) -> None:
        self._mean = mean
        self._factor = factor
        ends = range(_ROWS_PER_PRODUCT, len(mean) + _ROWS_PER_PRODUCT, _ROWS_PER_PRODUCT)
        self._blocks = [factor[end - _ROWS_PER_PRODUCT : end, :end] for end in ends]

    def distance(self, x: np.ndarray) -> float:
        return float(norm(self._products(x)))

    def distances(self, x: np.ndarray) -> np.ndarray:
        return norm(self._products(x))

    def _products(self, x: np.ndarray) -> np.ndarray:
        """Return L (x - mean) of one vector (D,) or of many (n, D)."""
        z = centred(x, self._mean)
        # Multiply block by block and skip most zeros above the diagonal. This halves the memory
        # that is read.
        parts = [z[..., : block.shape[1]] @ block.T for block in self._blocks]
        return np.concatenate(parts, axis=-1)

    def state(self) -> dict[str, np.ndarray]:
        return {'mean': self._mean, 'factor': self._factor}


@dataclass(kw_only=True, eq=False)
class Mahalanobis(EmbeddingDetector):
    """Mahalanobis distance to the successful training steps, minus the distance to the failed ones.

    ``d(x) = sqrt((x - m)^T (S + ridge I)^-1 (x - m))`` with mean m and covariance S (ddof 1) of the
    steps of one outcome.

    Parameters
    ----------
    ridge : float
        Value added to the variances. If there are fewer steps than features, S is only invertible
        because of this value.
    """

    name = 'mahalanobis'

    ridge: float = 1e-4

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_number('ridge', above=0)

    def array_specs(self, dim: int) -> dict[str, ArraySpec]:
        """Return shape and type of the mean and the factor."""
        return {
            'mean': ArraySpec((dim,), np.float64),
            'factor': ArraySpec((dim, dim), np.float32),
        }

    def model_of(self, arrays: Mapping[str, np.ndarray], outcome: str) -> OutcomeModel:
        """Return the Gaussian of one outcome."""
        factor = arrays['factor']
        above = any(row[i + 1 :].any() for i, row in enumerate(factor))
        if above or (np.diag(factor) <= 0).any():
            raise DetectorError(
                where=f'detector {self.name}: array {f"{outcome}.factor"!r}',
                expected='a lower triangular matrix with a positive diagonal',
                found='a value above the diagonal' if above else 'a diagonal that is not positive',
                advice='fit the detector again',
            )
        return _Gaussian(arrays['mean'], factor)

    def step_many(self, streams: Sequence[Stream], steps: Sequence[PolicyStep]) -> list[Answer]:
        """Score the next step of each stream; six or more are one product for each outcome.

        A score is a difference of two distances. Its rounding is that of the distances.
        """
        if len(streams) < _FEWEST_TOGETHER:
            return one_by_one(streams, steps)
        return step_distances(streams, steps, self._values)
