# SPDX-License-Identifier: Apache-2.0
"""Base class of the distances in feature space: Mahalanobis, nearest neighbours, clusters.

Score of a step (Gu et al., arXiv 2506.09937, baselines): d(x, successes) - d(x, failures), or the
first term alone. The expensive computation is in the fit; a live step is one matrix-vector product
per outcome.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from safe_monitor_node.detectors.accumulation import (
    Accumulate,
    AccumulatingDetector,
    Accumulator,
    accumulated,
)
from safe_monitor_node.detectors.base import ArraySpec, Stream, checked_vector
from safe_monitor_node.detectors.together import Answer, in_one_batch, one_by_one
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

# Steps in one matrix product when whole rollouts are scored. The number is large enough for speed,
# and small enough to limit memory.
STEPS_PER_PRODUCT = 512


def centred(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return ``features - mean`` as float32."""
    # Compute the difference in float64: float32 loses precision if the features are far from zero.
    return (features.astype(np.float64) - mean).astype(np.float32)


def norm(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms of vectors (..., D) as float64 (...)."""
    wide = vectors.astype(np.float64)
    return np.sqrt(np.einsum('...i,...i->...', wide, wide))


class OutcomeModel(ABC):
    """Model of the training steps of one outcome."""

    @abstractmethod
    def distance(self, x: np.ndarray) -> float:
        """Return the distance of one feature vector, float32 of shape (D,)."""

    @abstractmethod
    def distances(self, x: np.ndarray) -> np.ndarray:
        """Return the distances of many feature vectors (n, D) as float64 (n,)."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays of the model."""


@dataclass(kw_only=True, eq=False)
class EmbeddingDetector(AccumulatingDetector):
    """A difference of distances to the training steps of both outcomes.

    Parameters
    ----------
    success_only : bool
        Leave out the distance to failures.
    """

    needs = frozenset({'features'})

    success_only: bool = False
    accumulate: Accumulate = 'mean'

    success_: OutcomeModel = field(init=False, repr=False)
    failure_: OutcomeModel | None = field(init=False, repr=False)

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_flag('success_only')

    @abstractmethod
    def array_specs(self, dim: int) -> dict[str, ArraySpec]:
        """Return shape and type of the arrays of one outcome."""

    @abstractmethod
    def model_of(self, arrays: Mapping[str, np.ndarray], outcome: str) -> OutcomeModel:
        """Return the model of one outcome; raises :class:`DetectorError` for wrong values."""

    def outcomes(self) -> tuple[str, ...]:
        """Return the outcomes that have a model."""
        return ('success',) if self.success_only else ('success', 'failure')

    def load_state(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Restore the arrays of :meth:`state`, named ``OUTCOME.ARRAY``."""
        self.check_params()
        specs = {
            f'{outcome}.{name}': spec
            for outcome in self.outcomes()
            for name, spec in self.array_specs(dim).items()
        }
        checked = self.checked_state(state, specs)
        models = {
            outcome: self.model_of(
                {name: checked[f'{outcome}.{name}'] for name in self.array_specs(dim)}, outcome
            )
            for outcome in self.outcomes()
        }
        self.success_ = models['success']
        self.failure_ = models.get('failure')
        self.dim_ = dim

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the arrays of all models."""
        self._require_fitted()
        models = {'success': self.success_, 'failure': self.failure_}
        return {
            f'{outcome}.{name}': np.array(array)
            for outcome, model in models.items()
            if model is not None
            for name, array in model.state().items()
        }

    def compared(self) -> tuple[OutcomeModel, OutcomeModel | None]:
        """Return the models of successes and failures whose distances make the score."""
        return self.success_, self.failure_

    def score(self, rollout: Rollout) -> np.ndarray:
        """Return the scores of a whole rollout, float32 of shape (T,)."""
        return self.score_all([rollout])[0]

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Return the scores of many rollouts, some of them in one matrix product."""
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
        """Return a stream that scores a new episode step by step."""
        self._require_fitted()
        return _DistanceStream(self)


def _groups(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Yield groups of rollouts.

    A group is complete when it has :data:`STEPS_PER_PRODUCT` steps or more.
    """
    groups: list[list[Rollout]] = []
    steps = STEPS_PER_PRODUCT
    for rollout in rollouts:
        if steps >= STEPS_PER_PRODUCT:
            groups.append([])
            steps = 0
        groups[-1].append(rollout)
        steps += len(rollout)
    return groups


class _DistanceStream(Stream):
    def __init__(self, detector: EmbeddingDetector) -> None:
        self._name = detector.name
        self._dim = detector.dim_
        self._success, self._failure = detector.compared()
        self._accumulator = Accumulator(detector.accumulate)

    def vector(self, step: PolicyStep) -> np.ndarray:
        return checked_vector(step, self._dim, self._name)

    def step(self, step: PolicyStep) -> float:
        x = self.vector(step)
        value = self._success.distance(x)
        if self._failure is not None:
            value -= self._failure.distance(x)
        return self._accumulator.add(float(value))


def step_distances(
    streams: Sequence[Stream],
    steps: Sequence[PolicyStep],
    values: Callable[[np.ndarray], np.ndarray],
) -> list[Answer]:
    """Score the next step of streams of one detector together; see `Detector.step_many`.

    Parameters
    ----------
    streams, steps
    values : callable
        Returns the values (n,) of checked feature vectors, float32 of shape (n, D).
    """
    ours = [stream for stream in streams if isinstance(stream, _DistanceStream)]
    if len(ours) != len(streams):
        return one_by_one(streams, steps)

    def score(vectors: np.ndarray, positions: list[int]) -> list[float]:
        found = zip(positions, values(vectors).tolist(), strict=True)
        return [ours[position]._accumulator.add(value) for position, value in found]

    return in_one_batch(steps, ours[0].vector, score)
