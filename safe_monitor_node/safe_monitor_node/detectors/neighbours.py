# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest stored steps, Euclidean or by angle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate, accumulated
from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.embedding import (
    SCORED_TOGETHER,
    ClassModel,
    EmbeddingDetector,
    centred,
    check_positive,
    checked_array,
    norm,
    times,
)
from vla_feature_bridge.rollout import Rollout

_REFINED_TOGETHER = 32
# Rows of a triangular factor in one product: large enough for BLAS, small enough to skip the zeros.
BLOCK = 256
# Candidates beyond the neighbours asked for, among which the exact distances decide.
_SPARE_CANDIDATES = 8


# --- nearest neighbours


def fingerprint(features: np.ndarray) -> int:
    """Return a 63-bit hash of a rollout's features, to know it again among training data."""
    data = np.ascontiguousarray(features, dtype='<f4').tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little') >> 1


class _Neighbours(ClassModel):
    """All training steps of one outcome; the distance is the mean of the k smallest.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y cancels when neighbours are close together (methods.md D46),
    so it only picks candidates, on vectors centred at fit; their distances are taken directly.
    """

    def __init__(
        self, centre: np.ndarray, rows: np.ndarray, rollouts: np.ndarray, count: int
    ) -> None:
        self._centre = centre
        self._rows = rows
        self._rollouts = rollouts
        self._half_squares = 0.5 * np.einsum('ij,ij->i', rows, rows)
        self._count = count
        self._candidates = min(count + _SPARE_CANDIDATES, len(rows))

    def _prepared(self, x: np.ndarray) -> np.ndarray:
        """Return feature vectors in the space of ``rows``."""
        return centred(x, self._centre)

    def _from_squares(self, squares: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Turn squared Euclidean distances ``(..., candidates)`` into the method's own."""
        return np.sqrt(squares)

    def distance(self, x: np.ndarray) -> float:
        z = self._prepared(x)
        order = self._half_squares - times(self._rows, z)
        chosen = self._pick(order)
        return float(self._mean_distance(z, chosen))

    def distances(self, x: np.ndarray, without: int | None = None) -> np.ndarray:
        """As :meth:`_ClassModel.distances`; ``without`` leaves out the rollout of a fingerprint."""
        out = np.empty(len(x))
        excluded = None if without is None else self._rollouts == without
        for start in range(0, len(x), SCORED_TOGETHER):
            z = self._prepared(x[start : start + SCORED_TOGETHER])
            order = self._half_squares - z @ self._rows.T
            if excluded is not None:
                order[:, excluded] = np.inf
            chosen = self._pick(order)
            for at in range(0, len(z), _REFINED_TOGETHER):
                part = slice(at, at + _REFINED_TOGETHER)
                allowed = None if excluded is None else ~excluded[chosen[part]]
                out[start : start + len(z)][part] = self._mean_distance(
                    z[part], chosen[part], allowed
                )
        return out

    def _pick(self, order: np.ndarray) -> np.ndarray:
        if self._candidates == len(self._rows):
            return np.broadcast_to(np.arange(len(self._rows)), order.shape)
        chosen = np.argpartition(order, self._candidates - 1, axis=-1)
        return chosen[..., : self._candidates]

    def _mean_distance(
        self, z: np.ndarray, chosen: np.ndarray, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        difference = (self._rows[chosen] - z[..., None, :]).astype(np.float64)
        squares = np.einsum('...i,...i->...', difference, difference)
        distances = self._from_squares(squares, z, chosen)
        if allowed is not None:
            distances = np.where(allowed, distances, np.inf)
        if self._count < distances.shape[-1]:
            distances = np.partition(distances, self._count - 1, axis=-1)[..., : self._count]
        return distances.mean(axis=-1)

    def state(self) -> dict[str, np.ndarray]:
        return {'centre': self._centre, 'rows': self._rows, 'rollouts': self._rollouts}


class _CosineNeighbours(_Neighbours):
    """The same on unit vectors: 1 - cos(x, y) = |x/|x| - y/|y||^2 / 2, without cancellation."""

    def __init__(
        self, centre: np.ndarray, rows: np.ndarray, rollouts: np.ndarray, count: int
    ) -> None:
        super().__init__(centre, rows, rollouts, count)
        # A zero vector has no direction: its cosine with anything is 0 and its distance 1.
        squares = 2 * self._half_squares + 2 * rows @ centre.astype(np.float32) + centre @ centre
        self._zero_rows = squares < 0.25

    def _prepared(self, x: np.ndarray) -> np.ndarray:
        return centred(unit_vectors(x), self._centre)

    def _from_squares(self, squares: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        zero = (norm(x + self._centre) < 0.5)[..., None]
        return 0.5 * (squares + zero + self._zero_rows[rows])


def unit_vectors(x: np.ndarray) -> np.ndarray:
    """Scale vectors ``(..., D)`` to length 1 in float64; those below 1e-8 become zero."""
    norms = norm(x)[..., None]
    return np.where(norms < 1e-8, 0.0, x / np.maximum(norms, 1e-8))


class NeighbourDetector(EmbeddingDetector):
    """What the two nearest-neighbour distances share."""

    arrays = ('centre', 'rows', 'rollouts')
    neighbours: int
    model: ClassVar[type[_Neighbours]]

    def __init__(
        self,
        *,
        neighbours: int = 10,
        success_only: bool = False,
        accumulate: Accumulate = 'mean',
    ) -> None:
        self.neighbours = neighbours
        self.success_only = success_only
        self.accumulate = accumulate

    def check_params(self) -> None:
        super().check_params()
        check_positive(self.name, neighbours=self.neighbours)

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> ClassModel:
        centre = checked_array(self.name, arrays, f'{outcome}.centre', (dim,), np.float64)
        rows = checked_array(self.name, arrays, f'{outcome}.rows', (None, dim), np.float32)
        name = f'{outcome}.rollouts'
        rollouts = checked_array(self.name, arrays, name, (len(rows),), np.int64)
        if len(rows) < self.neighbours:
            raise DetectorError(
                f'{self.name}: {self.neighbours} neighbours among {len(rows)} steps of {outcome}'
            )
        return self.model(centre, rows, rollouts, self.neighbours)

    def score_training(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Score rollouts that it was fitted on, each without its own steps among the neighbours.

        A training step is its own nearest neighbour at distance 0: scored like any other, the
        training part would look perfect on pure noise (methods.md D45). Its rollout's other steps
        are left out too, because neighbouring steps of one episode are nearly the same step.
        """
        self._require_fitted()
        scores = []
        for rollout in rollouts:
            features = self._checked_features(rollout)
            own = fingerprint(features)
            assert isinstance(self.success_, _Neighbours)
            values = self.success_.distances(features, without=own)
            if self.failure_ is not None:
                assert isinstance(self.failure_, _Neighbours)
                values = values - self.failure_.distances(features, without=own)
            scores.append(accumulated(values, self.accumulate))
        return scores


class EuclideanKnn(NeighbourDetector):
    """Mean Euclidean distance to the nearest successful training steps, minus that to failed ones.

    Parameters
    ----------
    neighbours : int
        How many nearest steps of each class are averaged.
    success_only : bool
        Leave out the distance to failures.
    accumulate : {'mean', 'sum', 'none'}
        Running mean over the episode so far, cumulative sum (the paper's), or the step alone.
    """

    name = 'euclidean_knn'
    model = _Neighbours


class CosineKnn(NeighbourDetector):
    """Mean cosine distance (1 - cos) to the nearest successful steps, minus that to failed ones.

    Parameters
    ----------
    neighbours : int
        How many nearest steps of each class are averaged.
    success_only : bool
        Leave out the distance to failures.
    accumulate : {'mean', 'sum', 'none'}
        Running mean over the episode so far, cumulative sum (the paper's), or the step alone.
    """

    name = 'cosine_knn'
    model = _CosineNeighbours
