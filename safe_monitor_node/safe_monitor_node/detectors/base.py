# SPDX-License-Identifier: Apache-2.0
"""What a detector is: the contract that training, evaluation and the live monitor all rely on."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout import Rollout, RolloutError
from vla_feature_bridge.step import PolicyStep


class DetectorError(SafeError):
    """A detector was configured, fitted or fed wrongly; the message says what was expected."""


class StepError(DetectorError):
    """One step cannot be scored (NaN, wrong width, missing data); the monitor reports INVALID."""


class Stream(ABC):
    """The live scoring of one episode. Constant time and memory per step."""

    @abstractmethod
    def step(self, step: PolicyStep) -> float:
        """Score the next step of the episode.

        Returns
        -------
        float
            The failure score; higher: more likely failing. Equal to ``score(rollout)[t]`` to 1e-5.

        Raises
        ------
        StepError
            The step lacks what the detector needs, or holds NaN or another width. The stream's
            memory is unchanged: the step counts as not seen.
        """


class Detector(ABC):
    """Base of all failure detectors, after scikit-learn's estimators.

    The constructor stores its parameters and does nothing else; fitted state ends in ``_``. The
    fitting itself lives in ``safe_training``, because a robot does not need it; :meth:`fit` finds
    it by an entry point of the group ``safe_monitor_node.fitters``.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    """Subset of ``features``, ``actions``, ``sampled_actions``, ``tokens``, ``signals``."""

    dim_: int

    def get_params(self) -> dict[str, Any]:
        """Return the constructor's parameters by name; all are JSON values."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def gives_probability(self) -> bool:
        """True if the score claims to be the probability that the rollout fails."""
        return False

    @property
    def fitted(self) -> bool:
        """True once the detector can score."""
        return hasattr(self, 'dim_')

    def fit(self, rollouts: Sequence[Rollout], **options: Any) -> Detector:
        """Fit on labelled rollouts and return self.

        Parameters
        ----------
        rollouts : sequence of Rollout
            Training rollouts, both outcomes.
        **options
            Passed to the fitter; every fitter takes ``validation`` (rollouts) and ``progress``
            (called with (done, total, note)).

        Raises
        ------
        DetectorError
            No fitter is registered, or the rollouts cannot be fitted on.
        """
        from safe_monitor_node.detectors.registry import fitter_of

        try:
            fitter_of(self.name)(self, rollouts, **options)
        except RolloutError as error:  # an unlabelled rollout
            raise DetectorError(f'{self.name}: {error}') from error
        return self

    @abstractmethod
    def score(self, rollout: Rollout) -> np.ndarray:
        """Score a whole rollout; entry t depends on steps 0 to t only.

        Returns
        -------
        ndarray of float32, shape (T,)
        """

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Score many rollouts, as :meth:`score` does each; faster where they can be batched."""
        return [self.score(rollout) for rollout in rollouts]

    def score_training(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Score rollouts that it was fitted on, as :meth:`score_all` does.

        A detector that stores its training steps overrides this, so that no step recognises itself.
        """
        return self.score_all(rollouts)

    @abstractmethod
    def stream(self) -> Stream:
        """Start scoring a new episode step by step."""

    def state(self) -> dict[str, np.ndarray]:
        """Return the fitted arrays for the detector folder."""
        self._require_fitted()
        return {}

    def load_state(self, state: dict[str, np.ndarray], dim: int) -> None:
        """Restore what :meth:`state` returned; raises :class:`DetectorError` if it does not fit."""
        if state:
            raise DetectorError(
                f'{self.name}: unexpected arrays {sorted(state)}; this detector has none'
            )
        self.dim_ = dim

    def _require_fitted(self) -> None:
        if not self.fitted:
            raise DetectorError(f'{self.name} is not fitted; call fit() or load a detector folder')

    def _checked_features(self, rollout: Rollout) -> np.ndarray:
        """Return the rollout's features as finite float32 (T, dim_)."""
        self._require_fitted()
        # A copy: the arrays of a rollout set are read-only memory maps, which torch must not alias.
        features = np.array(rollout.features, dtype=np.float32, order='C')
        if features.ndim != 2 or features.shape[1] != self.dim_:
            raise StepError(
                f'rollout {rollout.episode_id!r}: detector {self.name} was fitted on '
                f'{self.dim_} features, found shape {features.shape}; '
                'pool the features as the detector was trained'
            )
        if not np.isfinite(features).all():
            bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise StepError(
                f'rollout {rollout.episode_id!r}: the features of step {bad} hold NaN or infinity; '
                'find out why the policy or the recorder produced them, or leave the rollout out'
            )
        return features


def checked_vector(step: PolicyStep, dim: int, detector: str) -> np.ndarray:
    """Return a live step's features as finite float32 ``(dim,)`` or raise :class:`StepError`."""
    if step.features.shape != (dim,):
        raise StepError(
            f'step {step.step}: detector {detector} expects features of shape ({dim},), '
            f'found {step.features.shape}'
        )
    vector = np.array(step.features, dtype=np.float32)
    # One pass of BLAS, not an element-wise test: NaN and infinity both survive the dot product.
    # A finite vector can only overflow it beyond 1e19, where the element-wise test decides.
    if not np.isfinite(vector.dot(vector)) and not np.isfinite(vector).all():
        raise StepError(f'step {step.step}: the features hold NaN or infinity')
    return vector


def checked_chunk(step: PolicyStep, detector: str) -> np.ndarray:
    """Return the executed chunk as finite float64 ``(horizon, action_dim)``, or raise StepError."""
    if step.actions is None:
        raise StepError(
            f'step {step.step}: detector {detector} needs action chunks, this step has none'
        )
    if step.actions.ndim != 3 or 0 in step.actions.shape:
        raise StepError(
            f'step {step.step}: detector {detector} expects actions of shape (samples, horizon, '
            f'action_dim), found {step.actions.shape}'
        )
    chunk = np.asarray(step.actions[0], dtype=np.float64)
    if not np.isfinite(chunk).all():
        raise StepError(f'step {step.step}: the executed action chunk holds NaN or infinity')
    return chunk
