# SPDX-License-Identifier: Apache-2.0
"""Interface of a detector, for training, evaluation and the live monitor."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from safe_monitor_node.detectors.together import Answer, one_by_one
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout, RolloutError
from vla_feature_bridge.step import PolicyStep

LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""Largest value that a number among the parameters of a detector may have."""

_SAME_FEATURE = 'use the same feature and the same pooling as for the fit'


class DetectorError(SafeError):
    """A detector has an invalid parameter, or cannot be fitted, loaded or used."""


class StepError(DetectorError):
    """One step cannot be scored (NaN, wrong width, missing data); the monitor reports INVALID."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of a fitted array. None in the shape stands for any positive length."""

    shape: tuple[int | None, ...]
    dtype: type[np.generic]

    @classmethod
    def of(cls, array: np.ndarray) -> ArraySpec:
        """Return the shape and type of an array."""
        return cls(array.shape, array.dtype.type)

    def fits(self, array: np.ndarray) -> bool:
        """Return whether an array has this shape and type."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(
                found == wanted or (wanted is None and found > 0)
                for found, wanted in zip(array.shape, self.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        lengths = ', '.join('any' if length is None else str(length) for length in self.shape)
        return f'{np.dtype(self.dtype)} of shape ({lengths}{"," * (len(self.shape) == 1)})'


class Stream(ABC):
    """Scores one episode live, in constant time and memory per step."""

    @abstractmethod
    def step(self, step: PolicyStep) -> float:
        """Return the failure score after the next step of the episode.

        Returns
        -------
        float
            Higher means that a failure is more likely. Equal to ``score(rollout)[t]`` to 1e-5.

        Raises
        ------
        StepError
            The step lacks data that the detector needs, contains NaN, or has the wrong width. The
            stream does not change: the next step is scored without the refused step.
        """


class Detector(ABC):
    """Base class of all failure detectors. The interface is similar to scikit-learn estimators.

    A detector is a keyword-only dataclass; its fields are its parameters. The constructor stores
    the parameters and does nothing else. :meth:`fit` and :meth:`load_state` call
    :meth:`check_params` first. Attributes that exist only after fitting end in ``_``.

    The functions that fit detectors are in ``safe_training``, because a robot does not need them.
    :meth:`fit` finds them by the entry points ``safe_monitor_node.fitters``.
    """

    name: ClassVar[str]
    """Name on the command line, in files and in the registry."""
    needs: ClassVar[frozenset[str]]
    """Subset of ``features``, ``actions``, ``sampled_actions``, ``tokens``, ``signals``."""

    dim_: int
    """Number of features that the detector was fitted on."""

    def get_params(self) -> dict[str, Any]:
        """Return the parameters by name; all values can be written as JSON."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def trains_over_epochs(cls) -> bool:
        """Return True if fitting trains a network over epochs, which takes a long time."""
        return 'epochs' in inspect.signature(cls).parameters

    def check_params(self) -> None:  # noqa: B027  (a detector without parameters checks nothing)
        """Raise :class:`DetectorError` if a parameter has an impossible value."""

    @property
    def reads_actions(self) -> bool:
        """True if the score depends on actions, or on signals of actions."""
        return not self.needs.isdisjoint({'actions', 'sampled_actions', 'signals'})

    @property
    def fitted(self) -> bool:
        """True if the detector can score."""
        return hasattr(self, 'dim_')

    def fit(
        self,
        rollouts: Sequence[Rollout],
        *,
        validation: Sequence[Rollout] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Detector:
        """Fit on labelled rollouts and return the detector itself.

        Parameters
        ----------
        rollouts : sequence of Rollout
            Training rollouts, usually of both outcomes.
        validation : sequence of Rollout, optional
            Rollouts for early stopping; most fitters ignore them.
        progress : callable, optional
            Called with (done, total, note).
        **options
            Further options of the fitter.

        Raises
        ------
        DetectorError
            A parameter is invalid, no fitter is installed, or the rollouts are not suitable for
            fitting.
        """
        self.check_params()
        require_rollouts(rollouts)
        try:
            self._fitter()(self, rollouts, validation=validation, progress=progress, **options)
        except RolloutError as error:  # an unlabelled rollout
            raise DetectorError(f'detector {self.name}: {error}') from error
        return self

    def _fitter(self) -> Callable[..., None]:
        """Return the function that fits this detector.

        Detectors without training override this method.
        """
        from safe_monitor_node.detectors.registry import fitter_of

        return fitter_of(self.name)

    @abstractmethod
    def score(self, rollout: Rollout) -> np.ndarray:
        """Return the scores of a whole rollout; entry t depends on steps 0 to t only.

        Returns
        -------
        ndarray of float32, shape (T,)
        """

    def score_all(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Return the scores of many rollouts, equal to :meth:`score` of each; may be faster."""
        return [self.score(rollout) for rollout in rollouts]

    def score_training(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Return the scores of rollouts that the detector was fitted on.

        Equal to :meth:`score_all`, except for a detector that stores its training steps: such a
        detector ignores the stored steps of the rollout that it scores.
        """
        return self.score_all(rollouts)

    @abstractmethod
    def stream(self) -> Stream:
        """Return a stream that scores a new episode step by step."""

    def step_many(self, streams: Sequence[Stream], steps: Sequence[PolicyStep]) -> list[Answer]:
        """Return the score of the next step of each stream, or the exception that refuses it.

        The scores equal those of :meth:`Stream.step` to 1e-6. The streams must all be different.
        """
        return one_by_one(streams, steps)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the fitted arrays, for the detector folder."""
        self._require_fitted()
        return {}

    def load_state(self, state: Mapping[str, np.ndarray], dim: int) -> None:
        """Restore the arrays of :meth:`state`.

        Raises
        ------
        DetectorError
            A parameter is invalid, or an array is missing or has the wrong shape, dtype or name.
        """
        self.check_params()
        self.checked_state(state, {})
        self.dim_ = dim

    def step_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the value of each single step, float64 (T,), from the scores (T,) of a rollout.

        A detector that accumulates or smooths inverts this here. Default: the scores.
        """
        return np.asarray(scores, dtype=np.float64)

    def checked_state(
        self, state: Mapping[str, np.ndarray], expected: Mapping[str, ArraySpec]
    ) -> dict[str, np.ndarray]:
        """Check names, shapes, dtypes and values of loaded arrays; return copies of the arrays.

        Raises
        ------
        DetectorError
            An array is missing or unexpected, has the wrong shape or dtype, or is not finite.
        """
        for key in sorted(expected.keys() | state.keys()):
            spec, array = expected.get(key), state.get(key)
            if spec is None or array is None or not spec.fits(array):
                raise DetectorError(
                    where=f'detector {self.name}: array {key!r}',
                    expected='no such array' if spec is None else str(spec),
                    found='no such array' if array is None else str(ArraySpec.of(array)),
                    advice='fit the detector again with these parameters',
                )
            if not np.isfinite(array).all():
                raise DetectorError(
                    where=f'detector {self.name}: array {key!r}',
                    expected='finite numbers',
                    found='NaN or infinity',
                    advice='fit the detector again',
                )
        return {key: np.array(state[key], order='C') for key in expected}

    def _refused(self, parameter: str, expected: str, advice: str = '') -> DetectorError:
        """Return the error for a parameter with an impossible value."""
        return DetectorError(
            where=f'detector {self.name}: parameter {parameter}',
            expected=expected,
            found=repr(getattr(self, parameter)),
            advice=advice,
        )

    def _check_choice(self, parameter: str, choices: Sequence[str]) -> None:
        if getattr(self, parameter) not in choices:
            raise self._refused(parameter, f'one of {", ".join(choices)}')

    def _check_flag(self, *parameters: str) -> None:
        for parameter in parameters:
            if not isinstance(getattr(self, parameter), bool):
                raise self._refused(parameter, 'true or false')

    def _check_integer(self, *parameters: str, least: int = 1) -> None:
        for parameter in parameters:
            value = getattr(self, parameter)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise self._refused(parameter, f'an integer of at least {least}')

    def _check_number(
        self, *parameters: str, least: float = -LARGEST_NUMBER, above: float = -np.inf
    ) -> None:
        """Check that a parameter is a finite number of at least ``least`` or above ``above``."""
        for parameter in parameters:
            value = getattr(self, parameter)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not least <= value <= LARGEST_NUMBER or not value > above:
                lowest = f'above {above:g}' if np.isfinite(above) else f'of at least {least:.2g}'
                raise self._refused(
                    parameter, f'a number {lowest} and at most {LARGEST_NUMBER:.2g}'
                )

    def _require_fitted(self) -> None:
        if not self.fitted:
            raise DetectorError(
                where=f'detector {self.name}',
                expected='a fitted detector',
                found='a detector that is not fitted',
                advice='call fit(), or load a detector folder',
            )

    def _checked_features(self, rollout: Rollout) -> np.ndarray:
        """Return the features of a rollout as finite float32, shape (T, dim_)."""
        self._require_fitted()
        # Copy the array: the arrays of a rollout set are read-only memory maps. Torch must not
        # share their memory.
        features = np.array(rollout.features, dtype=np.float32, order='C')
        if features.ndim != 2 or features.shape[1] != self.dim_:
            raise StepError(
                where=f'rollout {rollout.episode_id!r}',
                expected=f'features of shape (T, {self.dim_}) for detector {self.name}',
                found=f'shape {features.shape}',
                advice=_SAME_FEATURE,
            )
        if not np.isfinite(features).all():
            bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise StepError(
                where=f'rollout {rollout.episode_id!r}',
                expected='finite features',
                found=f'NaN or infinity at step {bad}',
                advice='find the cause in the policy or in the recorder, or remove the rollout '
                'from the set',
            )
        return features


def require_rollouts(rollouts: Sequence[Rollout]) -> None:
    """Raise :class:`DetectorError` if there are no training rollouts."""
    if not rollouts:
        raise DetectorError(
            expected='one or more training rollouts',
            found='none',
            advice='check the split and the rollout set',
        )


def checked_vector(step: PolicyStep, dim: int, detector: str) -> np.ndarray:
    """Return the features of a live step as finite float32, shape (dim,).

    Raises
    ------
    StepError
        The features have the wrong shape, or contain NaN or infinity.
    """
    if step.features.shape != (dim,):
        raise StepError(
            where=f'step {step.step}',
            expected=f'features of shape ({dim},) for detector {detector}',
            found=f'shape {step.features.shape}',
            advice=_SAME_FEATURE,
        )
    vector = np.array(step.features, dtype=np.float32)
    # The dot product is one pass of BLAS and faster than a test of each element. It is NaN or
    # infinite if an element is NaN or infinite. It is also infinite if a finite element is beyond
    # 1e19: therefore a test of each element follows.
    if not np.isfinite(vector.dot(vector)) and not np.isfinite(vector).all():
        raise StepError(
            where=f'step {step.step}', expected='finite features', found='NaN or infinity'
        )
    return vector


def missing_signal(
    where: str, name: str, detector: str, signals: Iterable[str], advice: str
) -> StepError:
    """Return the error for a rollout or a step without a signal that the detector needs."""
    present = ', '.join(sorted(signals))
    return StepError(
        where=where,
        expected=f'the signal {name!r} for detector {detector}',
        found=f'the signals {present}' if present else 'no signals',
        advice=advice,
    )


def checked_chunk(step: PolicyStep, detector: str) -> np.ndarray:
    """Return the executed action chunk as finite float64, shape (horizon, action_dim).

    Raises
    ------
    StepError
        The step has no actions, or the actions have the wrong shape or contain NaN or infinity.
    """
    if step.actions is None:
        raise StepError(
            where=f'step {step.step}',
            expected=f'action chunks for detector {detector}',
            found='none',
            advice='publish the action chunks with each step',
        )
    if step.actions.ndim != 3 or 0 in step.actions.shape:
        raise StepError(
            where=f'step {step.step}',
            expected='action chunks of shape (samples, horizon, action_dim) for detector '
            f'{detector}',
            found=f'shape {step.actions.shape}',
        )
    chunk = np.asarray(step.actions[0], dtype=np.float64)
    if not np.isfinite(chunk).all():
        raise StepError(
            where=f'step {step.step}',
            expected='a finite executed action chunk',
            found='NaN or infinity',
        )
    return chunk
