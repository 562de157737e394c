# SPDX-License-Identifier: Apache-2.0
"""Distances of a hidden state to those seen in training: Mahalanobis, nearest neighbours, clusters.

Score of a step (Gu et al., arXiv 2506.09937, baselines): d(x, successes) - d(x, failures), or the
first term alone. What is expensive happens at fit; a live step is a matrix-vector product a class.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from safe_monitor_node.detectors.accumulation import (
    Accumulate,
    Accumulator,
    accumulated,
    check_accumulate,
)
from safe_monitor_node.detectors.base import (
    Detector,
    DetectorError,
    Stream,
    checked_vector,
    register,
)
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

# Steps in one matrix product when whole rollouts are scored, and in one look at their candidates:
# enough to fill the product, few enough to bound memory.
_SCORED_TOGETHER = 512
_REFINED_TOGETHER = 32
# Rows of a triangular factor in one product: large enough for BLAS, small enough to skip the zeros.
_BLOCK = 256
# Candidates beyond the neighbours asked for, among which the exact distances decide.
_SPARE_CANDIDATES = 8


def check_positive(detector: str, **values: object) -> None:
    """Raise :class:`DetectorError` unless all are integers of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DetectorError(
                f'{detector}: {name} must be an integer of at least 1, found {value!r}'
            )


def checked_array(
    detector: str,
    arrays: Mapping[str, np.ndarray],
    name: str,
    shape: tuple[int | None, ...],
    dtype: type,
) -> np.ndarray:
    """Return a checked copy of a loaded array; None in ``shape`` is any positive length."""
    array = arrays[name]
    fits = len(array.shape) == len(shape) and all(
        found == expected or (expected is None and found > 0)
        for found, expected in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ', '.join('any' if n is None else str(n) for n in shape)
        raise DetectorError(
            f'{detector}: array {name!r} should have shape ({wanted}), found {array.shape}'
        )
    if array.dtype != dtype:
        raise DetectorError(
            f'{detector}: array {name!r} should be {np.dtype(dtype)}, found {array.dtype}'
        )
    if not np.isfinite(array).all():
        raise DetectorError(f'{detector}: array {name!r} holds NaN or infinity; fit again')
    return np.array(array, order='C')


def _centred(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    # The difference in float64: float32 features far from zero would lose what tells them apart.
    return (features.astype(np.float64) - mean).astype(np.float32)


def _norm(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return np.sqrt(np.einsum('...i,...i->...', wide, wide))


class _ClassModel(ABC):
    """What is remembered of one outcome's training steps."""

    @abstractmethod
    def distance(self, x: np.ndarray) -> float:
        """Return the distance of one feature vector ``(D,)`` float32."""

    @abstractmethod
    def distances(self, x: np.ndarray) -> np.ndarray:
        """Return the distances of many ``(n, D)`` as float64 ``(n,)``."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that the model is made of."""


class EmbeddingDetector(Detector):
    """What the embedding distances share: a model of each outcome, and their difference."""

    needs = frozenset({'features'})
    arrays: ClassVar[tuple[str, ...]]
    """Names of one class model's arrays."""
    success_only: bool
    accumulate: Accumulate
    success_: _ClassModel
    failure_: _ClassModel | None

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter is impossible."""
        check_accumulate(self.name, self.accumulate)
        if not isinstance(self.success_only, bool):
            raise DetectorError(
                f'{self.name}: success_only must be true or false, found {self.success_only!r}'
            )

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> _ClassModel:
        """Make the model of one outcome from the arrays named ``outcome.*``, checking them."""
        raise AssertionError('each embedding distance makes its model')

    def adopt(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Check and take over fitted arrays."""
        self.check_params()
        outcomes = ('success',) if self.success_only else ('success', 'failure')
        expected = {f'{outcome}.{array}' for outcome in outcomes for array in self.arrays}
        if wrong := sorted(expected ^ set(state)):
            found = 'missing' if wrong[0] in expected else 'unexpected'
            raise DetectorError(
                f'{self.name}: array {wrong[0]!r} is {found}; it has {", ".join(sorted(expected))}'
            )
        models = [self.model_from(state, outcome, dim) for outcome in outcomes]
        self.success_ = models[0]
        self.failure_ = None if self.success_only else models[1]
        self.dim_ = dim

    def state(self) -> dict[str, np.ndarray]:
        self._require_fitted()
        models = {'success': self.success_, 'failure': self.failure_}
        return {
            f'{outcome}.{name}': np.array(array)
            for outcome, model in models.items()
            if model is not None
            for name, array in model.state().items()
        }

    def load_state(self, state: dict[str, np.ndarray], dim: int) -> None:
        self.adopt(state, dim)

    def compared(self) -> tuple[_ClassModel, _ClassModel | None]:
        """Return the models whose distances make the score: that of successes, and of failures."""
        return self.success_, self.failure_

    def score(self, rollout: Rollout) -> np.ndarray:
        return self.score_all([rollout])[0]

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        self._require_fitted()
        scores: list[np.ndarray] = []
        for group in _groups(rollouts):
            values = self._values(np.concatenate([self._checked_features(r) for r in group]))
            ends = np.cumsum([len(r) for r in group])[:-1]
            scores += [accumulated(v, self.accumulate) for v in np.split(values, ends)]
        return scores

    def _values(self, features: np.ndarray) -> np.ndarray:
        success, failure = self.compared()
        values = success.distances(features)
        return values if failure is None else values - failure.distances(features)

    def stream(self) -> Stream:
        self._require_fitted()
        return _DistanceStream(self.name, self.dim_, self.compared(), self.accumulate)


def _groups(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Put rollouts together until a group has :data:`_SCORED_TOGETHER` steps."""
    groups: list[list[Rollout]] = []
    steps = _SCORED_TOGETHER
    for rollout in rollouts:
        if steps >= _SCORED_TOGETHER:
            groups.append([])
            steps = 0
        groups[-1].append(rollout)
        steps += len(rollout)
    return groups


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Multiply in PyTorch: the monitor's parameter ``threads`` limits it, and not NumPy's BLAS."""
    return torch.mv(torch.from_numpy(matrix), torch.from_numpy(vector)).numpy()


class _DistanceStream(Stream):
    def __init__(
        self,
        name: str,
        dim: int,
        models: tuple[_ClassModel, _ClassModel | None],
        accumulate: Accumulate,
    ) -> None:
        self._name = name
        self._dim = dim
        self._success, self._failure = models
        self._accumulator = Accumulator(accumulate)

    def step(self, step: PolicyStep) -> float:
        x = checked_vector(step, self._dim, self._name)
        value = self._success.distance(x)
        if self._failure is not None:
            value -= self._failure.distance(x)
        return self._accumulator.add(float(value))


# --- Mahalanobis


class _Gaussian(_ClassModel):
    """Mean and a triangular L, L^T L = (covariance + ridge I)^-1, so that d(x) = |L (x - mean)|."""

    def __init__(self, mean: np.ndarray, factor: np.ndarray) -> None:
        self._mean = mean
        self._factor = factor
        starts = range(0, len(mean), _BLOCK)
        self._blocks = [factor[i : i + _BLOCK, : i + _BLOCK] for i in starts]

    def distance(self, x: np.ndarray) -> float:
        z = _centred(x, self._mean)
        # By blocks of rows, without most zeros above the diagonal: half the memory to read.
        return float(_norm(np.concatenate([_times(b, z[: b.shape[1]]) for b in self._blocks])))

    def distances(self, x: np.ndarray) -> np.ndarray:
        return _norm(_centred(x, self._mean) @ self._factor.T)

    def state(self) -> dict[str, np.ndarray]:
        return {'mean': self._mean, 'factor': self._factor}


@register
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

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> _ClassModel:
        mean = checked_array(self.name, arrays, f'{outcome}.mean', (dim,), np.float64)
        name = f'{outcome}.factor'
        factor = checked_array(self.name, arrays, name, (dim, dim), np.float32)
        if (np.diag(factor) <= 0).any() or any(factor[i, i + 1 :].any() for i in range(dim)):
            raise DetectorError(
                f'{self.name}: array {name!r} should be lower triangular with a positive diagonal'
            )
        return _Gaussian(mean, factor)


# --- nearest neighbours


def fingerprint(features: np.ndarray) -> int:
    """Return a 63-bit hash of a rollout's features, to know it again among training data."""
    data = np.ascontiguousarray(features, dtype='<f4').tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little') >> 1


class _Neighbours(_ClassModel):
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
        return _centred(x, self._centre)

    def _from_squares(self, squares: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Turn squared Euclidean distances ``(..., candidates)`` into the method's own."""
        return np.sqrt(squares)

    def distance(self, x: np.ndarray) -> float:
        z = self._prepared(x)
        order = self._half_squares - _times(self._rows, z)
        chosen = self._pick(order)
        return float(self._mean_distance(z, chosen))

    def distances(self, x: np.ndarray, without: int | None = None) -> np.ndarray:
        """As :meth:`_ClassModel.distances`; ``without`` leaves out the rollout of a fingerprint."""
        out = np.empty(len(x))
        excluded = None if without is None else self._rollouts == without
        for start in range(0, len(x), _SCORED_TOGETHER):
            z = self._prepared(x[start : start + _SCORED_TOGETHER])
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
        return _centred(unit_vectors(x), self._centre)

    def _from_squares(self, squares: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        zero = (_norm(x + self._centre) < 0.5)[..., None]
        return 0.5 * (squares + zero + self._zero_rows[rows])


def unit_vectors(x: np.ndarray) -> np.ndarray:
    """Scale vectors ``(..., D)`` to length 1 in float64; those below 1e-8 become zero."""
    norms = _norm(x)[..., None]
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

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> _ClassModel:
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


@register
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


@register
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


# --- PCA and k-means


class _Clusters(_ClassModel):
    """A principal subspace and centroids in it; the distance is that to the nearest centroid."""

    def __init__(self, mean: np.ndarray, components: np.ndarray, centroids: np.ndarray) -> None:
        self.mean = mean
        self.components = components
        self.centroids = centroids

    def distance(self, x: np.ndarray) -> float:
        return float(self._nearest(_times(self.components, _centred(x, self.mean))))

    def distances(self, x: np.ndarray) -> np.ndarray:
        return self._nearest(_centred(x, self.mean) @ self.components.T)

    def _nearest(self, projected: np.ndarray) -> np.ndarray:
        return _norm(projected[..., None, :].astype(np.float64) - self.centroids).min(axis=-1)

    def state(self) -> dict[str, np.ndarray]:
        return {
            'mean': self.mean,
            'components': self.components,
            'centroids': self.centroids,
        }


@register
class PcaKmeans(EmbeddingDetector):
    """Distance to the nearest k-means centroid of successful steps, minus that of failed ones.

    Each class is clustered in its own principal subspace, and a step is compared with each in that
    space. The published code looks for the failures' centroids in the successes' subspace, where
    they mean nothing (methods.md D2).

    Parameters
    ----------
    pca_dim : int
        Principal components of each class.
    clusters : int
        Centroids of each class.
    success_only : bool
        Leave out the distance to failures.
    accumulate : {'mean', 'sum', 'none'}
        Running mean over the episode so far, cumulative sum (the paper's), or the step alone.
    reference_compatible : bool
        Mix up the subspaces as published; for comparison only.
    seed : int
        Of the clustering.
    """

    name = 'pca_kmeans'
    arrays = ('mean', 'components', 'centroids')

    def __init__(
        self,
        *,
        pca_dim: int = 64,
        clusters: int = 16,
        success_only: bool = False,
        accumulate: Accumulate = 'mean',
        reference_compatible: bool = False,
        seed: int = 0,
    ) -> None:
        self.pca_dim = pca_dim
        self.clusters = clusters
        self.success_only = success_only
        self.accumulate = accumulate
        self.reference_compatible = reference_compatible
        self.seed = seed

    def check_params(self) -> None:
        super().check_params()
        check_positive(self.name, pca_dim=self.pca_dim, clusters=self.clusters)

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> _ClassModel:
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            'mean': ((dim,), np.float64),
            'components': ((self.pca_dim, dim), np.float32),
            'centroids': ((self.clusters, self.pca_dim), np.float32),
        }
        return _Clusters(
            *(
                checked_array(self.name, arrays, f'{outcome}.{name}', shape, dtype)
                for name, (shape, dtype) in shapes.items()
            )
        )

    def compared(self) -> tuple[_ClassModel, _ClassModel | None]:
        success, failure = self.success_, self.failure_
        if failure is None or not self.reference_compatible:
            return success, failure
        assert isinstance(success, _Clusters)
        assert isinstance(failure, _Clusters)
        return success, _Clusters(success.mean, success.components, failure.centroids)
