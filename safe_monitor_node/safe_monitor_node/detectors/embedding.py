# SPDX-License-Identifier: Apache-2.0
"""Distances of a hidden state to those seen in training: Mahalanobis, nearest neighbours, clusters.

Score of a step (Gu et al., arXiv 2506.09937, baselines): d(x, successes) - d(x, failures), or the
first term alone. What is expensive happens at fit; a live step is a matrix-vector product a class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch

from safe_monitor_node.detectors.accumulation import (
    Accumulate,
    Accumulator,
    accumulated,
    check_accumulate,
)
from safe_monitor_node.detectors.base import Detector, DetectorError, Stream, checked_vector
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

# Steps in one matrix product when whole rollouts are scored, and in one look at their candidates:
# enough to fill the product, few enough to bound memory.
SCORED_TOGETHER = 512


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


def centred(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    # The difference in float64: float32 features far from zero would lose what tells them apart.
    return (features.astype(np.float64) - mean).astype(np.float32)


def norm(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return np.sqrt(np.einsum('...i,...i->...', wide, wide))


class ClassModel(ABC):
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
    success_: ClassModel
    failure_: ClassModel | None

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter is impossible."""
        check_accumulate(self.name, self.accumulate)
        if not isinstance(self.success_only, bool):
            raise DetectorError(
                f'{self.name}: success_only must be true or false, found {self.success_only!r}'
            )

    def model_from(self, arrays: Mapping[str, np.ndarray], outcome: str, dim: int) -> ClassModel:
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

    def compared(self) -> tuple[ClassModel, ClassModel | None]:
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
    steps = SCORED_TOGETHER
    for rollout in rollouts:
        if steps >= SCORED_TOGETHER:
            groups.append([])
            steps = 0
        groups[-1].append(rollout)
        steps += len(rollout)
    return groups


def times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Multiply in PyTorch: the monitor's parameter ``threads`` limits it, and not NumPy's BLAS."""
    return torch.mv(torch.from_numpy(matrix), torch.from_numpy(vector)).numpy()


class _DistanceStream(Stream):
    def __init__(
        self,
        name: str,
        dim: int,
        models: tuple[ClassModel, ClassModel | None],
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
