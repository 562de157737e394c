# SPDX-License-Identifier: Apache-2.0
"""Distance to the nearest training steps, Euclidean or by angle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from safe_monitor_node.detectors.accumulation import accumulated
from safe_monitor_node.detectors.base import ArraySpec, DetectorError
from safe_monitor_node.detectors.embedding import (
    STEPS_PER_PRODUCT,
    EmbeddingDetector,
    OutcomeModel,
    centred,
    norm,
)
from vla_feature_bridge.rollout import Rollout

# Number of steps that are processed together. The number is small to limit memory.
_STEPS_REFINED_AT_ONCE = 32
# Number of additional candidates. The exact distances select the neighbours among all candidates.
_SPARE_CANDIDATES = 8


def fingerprint(features: np.ndarray) -> int:
    """Return a 63-bit hash of a rollout's features, to find the rollout in the training data."""
    data = np.ascontiguousarray(features, dtype='<f4').tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little') >> 1


class _Neighbours(OutcomeModel):
    """All training steps of one outcome; the distance is the mean over the k nearest steps.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y loses precision if neighbours are close together
    (departures.md D46). Therefore this formula only selects candidates, on centred vectors. The
    distances of the candidates are computed directly.
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
        """Return the distances of this detector.

        The input is squared Euclidean distances (..., candidates).
        """
        return np.sqrt(squares)

    def distance(self, x: np.ndarray) -> float:
        z = self._prepared(x)
        order = self._half_squares - self._rows @ z
        chosen = self._pick(order)
        return float(self._mean_distance(z, chosen))

    def distances(self, x: np.ndarray, without: int | None = None) -> np.ndarray:
        """Return distances (n,).

        Steps of the rollout with the fingerprint ``without`` are excluded.
        """
        out = np.empty(len(x))
        excluded = None if without is None else self._rollouts == without
        for start in range(0, len(x), STEPS_PER_PRODUCT):
            z = self._prepared(x[start : start + STEPS_PER_PRODUCT])
            order = self._half_squares - z @ self._rows.T
            if excluded is not None:
                order[:, excluded] = np.inf
            chosen = self._pick(order)
            for at in range(0, len(z), _STEPS_REFINED_AT_ONCE):
                part = slice(at, at + _STEPS_REFINED_AT_ONCE)
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
    """Nearest neighbours on unit vectors: 1 - cos(x, y) = |x/|x| - y/|y||^2 / 2."""

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
    """Return vectors (..., D) scaled to length 1, float64; vectors shorter than 1e-8 become 0."""
    norms = norm(x)[..., None]
    return np.where(norms < 1e-8, 0.0, x / np.maximum(norms, 1e-8))


@dataclass(kw_only=True, eq=False)
class NeighbourDetector(EmbeddingDetector):
    """A distance to the nearest training steps.

    Parameters
    ----------
    neighbours : int
        Number of nearest steps of each outcome that are averaged.
    """

    neighbours: int = 10

    model: ClassVar[type[_Neighbours]]

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_integer('neighbours')

    def array_specs(self, dim: int) -> dict[str, ArraySpec]:
        """Return shape and type of the stored steps of one outcome."""
        return {
            'centre': ArraySpec((dim,), np.float64),
            'rows': ArraySpec((None, dim), np.float32),
            'rollouts': ArraySpec((None,), np.int64),
        }

    def model_of(self, arrays: Mapping[str, np.ndarray], outcome: str) -> OutcomeModel:
        """Return the stored steps of one outcome, ready to be searched."""
        count = len(arrays['rows'])
        if len(arrays['rollouts']) != count:
            raise DetectorError(
                where=f'detector {self.name}: array {f"{outcome}.rollouts"!r}',
                expected=f'{count} entries, one for each row of {f"{outcome}.rows"!r}',
                found=f'{len(arrays["rollouts"])} entries',
                advice='fit the detector again',
            )
        if count < self.neighbours:
            raise self._refused(
                'neighbours',
                f'at most {count} (the number of stored steps of {outcome})',
                advice='fit the detector again with fewer neighbours, or on more rollouts',
            )
        return self.model(arrays['centre'], arrays['rows'], arrays['rollouts'], self.neighbours)

    def score_training(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Return the scores of training rollouts, each without its own steps as neighbours.

        The nearest neighbour of a training step is the step itself, at distance 0. Without this
        method, the scores of the training part would be perfect even for pure noise (departures.md
        D45). The other steps of the rollout are left out too, because consecutive steps are nearly
        equal.
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


@dataclass(kw_only=True, eq=False)
class EuclideanKnn(NeighbourDetector):
    """Mean Euclidean distance to the nearest successful steps, minus that distance for failures."""

    name = 'euclidean_knn'
    model = _Neighbours


@dataclass(kw_only=True, eq=False)
class CosineKnn(NeighbourDetector):
    """Mean cosine distance to the nearest successful steps, minus that distance for failures."""

    name = 'cosine_knn'
    model = _CosineNeighbours
