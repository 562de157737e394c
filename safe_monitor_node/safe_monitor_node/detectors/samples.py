# SPDX-License-Identifier: Apache-2.0
"""Variances of the action chunks that a policy samples in one step.

Baselines of Gu et al. (arXiv 2506.09937, section 5), in float64.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from safe_monitor_node.detectors.base import DetectorError, StepError, checked_chunk
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep

_LARGEST_ACTION = 1e30


def checked_samples(step: PolicyStep, detector: str, instead: str = '') -> np.ndarray:
    """Return the sampled chunks as finite float64, shape (samples >= 2, horizon, action_dim).

    Parameters
    ----------
    instead : str
        Name of the signal that the detector uses if there are no samples; used in the error text.

    Raises
    ------
    StepError
        The step has fewer than two samples, or the actions have the wrong shape or are not finite.
    """
    checked_chunk(step, detector)
    assert step.actions is not None
    samples = np.asarray(step.actions, dtype=np.float64)
    if len(samples) < 2:
        alternative = f', or the signal {instead!r}' if instead else ''
        raise StepError(
            where=f'step {step.step}',
            expected=f'at least 2 sampled action chunks for detector {detector}{alternative}',
            found='1 action chunk',
            advice='configure the policy to sample 2 or more action chunks at each step',
        )
    # NaN fails this comparison too. The squares of larger actions would overflow.
    if not (np.abs(samples) < _LARGEST_ACTION).all():
        raise StepError(
            where=f'step {step.step}',
            expected=f'sampled action chunks with finite values below {_LARGEST_ACTION:g}',
            found='NaN, infinity or a larger value',
        )
    return samples


@dataclass(kw_only=True, eq=False)
class SpreadDetector(StepwiseDetector):
    """Base class of detectors that measure the spread of the sampled chunks of one step.

    OpenVLA dumps with several samples contain the spreads, but not the samples. If a step has no
    samples, the recorded signal is the score.
    """

    needs = frozenset({'sampled_actions'})

    @abstractmethod
    def recorded_as(self) -> str:
        """Return the name of the signal that contains the quantity in rollouts without samples."""

    @abstractmethod
    def spread(self, samples: np.ndarray) -> float:
        """Return the spread of samples of shape (samples, horizon, action_dim)."""

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the spread of the samples, or the recorded signal if there are none."""
        signal = self.recorded_as()
        if signal in step.signals and (step.actions is None or step.actions.shape[:1] == (1,)):
            value = step.signals[signal]
            if not math.isfinite(value):
                raise StepError(
                    where=f'step {step.step}',
                    expected=f'a finite signal {signal!r}',
                    found=str(value),
                )
            return value
        samples = checked_samples(step, self.name, signal)
        try:
            return self.spread(samples)
        except DetectorError as error:
            raise StepError(f'step {step.step}: {error}') from error


@dataclass(kw_only=True, eq=False)
class ActionTotalVar(SpreadDetector):
    """Total variance: the trace of the unbiased covariance of the flattened chunks."""

    name = 'action_total_var'

    def recorded_as(self) -> str:
        """Return the name of the signal in recordings without samples."""
        return 'total_var'

    def spread(self, samples: np.ndarray) -> float:
        """Return the sum of the variances of all numbers in a chunk."""
        return float(samples.var(axis=0, ddof=1).sum())


@dataclass(kw_only=True, eq=False)
class ActionGeneralVar(SpreadDetector):
    """Generalised variance: the volume of the distribution of the samples.

    The published score is the determinant of the covariance. It is 0 if the number of samples is
    not larger than the number of values in a chunk. This is always the case for action chunks
    (departures.md D30). The default is ``log det(I + covariance / floor)``: it is 0 for equal
    samples and finite for any number of samples. For many samples and a floor near 0, it is a
    monotone function of the determinant.

    Parameters
    ----------
    floor : float
        Variances below this value count as zero, in squared action units.
    reference_compatible : bool
        Return the published determinant.
    """

    name = 'action_general_var'

    floor: float = 1e-6
    reference_compatible: bool = False

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_number('floor', above=0)
        self._check_flag('reference_compatible')

    def recorded_as(self) -> str:
        """Return the name of the signal in recordings without samples."""
        return 'general_var'

    def spread(self, samples: np.ndarray) -> float:
        """Return the generalised variance of the flattened chunks."""
        flat = samples.reshape(len(samples), -1)
        centred = (flat - flat.mean(axis=0)) / math.sqrt(len(flat) - 1)
        if self.reference_compatible:
            if len(flat) - 1 < flat.shape[1]:
                return 0.0
            return float(np.linalg.det(centred.T @ centred))
        # det(I + X'X) = det(I + XX'): take the smaller matrix.
        few = len(flat) < flat.shape[1]
        product = centred @ centred.T if few else centred.T @ centred
        return float(np.linalg.slogdet(np.eye(len(product)) + product / self.floor)[1])


@dataclass(kw_only=True, eq=False)
class _PartVariance(SpreadDetector):
    """Variance of some dimensions of the action, summed over these dimensions and the horizon.

    Parameters
    ----------
    dimensions : list of int or None
        Action dimensions that are summed; None uses the default dimensions of this detector.
    reference_compatible : bool
        Compute the published quantity, which uses other values of a chunk (departures.md D29).
    """

    signal: ClassVar[str]
    published: ClassVar[slice]
    """The published choice, in the flattened chunk."""
    usual: ClassVar[tuple[int, ...]]
    """The dimensions of an action (x, y, z, roll, pitch, yaw, ..., gripper)."""

    dimensions: list[int] | None = None
    reference_compatible: bool = False

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_flag('reference_compatible')
        chosen = self.dimensions
        if chosen is None:
            return
        if not isinstance(chosen, list) or not chosen or any(type(d) is not int for d in chosen):
            raise self._refused('dimensions', 'None or a list of action dimensions')
        if self.reference_compatible:
            raise self._refused(
                'dimensions',
                'None (reference_compatible is true, and the published quantity has fixed '
                'dimensions)',
                advice='remove dimensions or reference_compatible',
            )

    def recorded_as(self) -> str:
        """Return the name of the signal in recordings without samples."""
        return self.signal

    def spread(self, samples: np.ndarray) -> float:
        """Return the sum of the variances over the chosen dimensions of a chunk."""
        variance = samples.var(axis=0, ddof=1)
        if self.reference_compatible:
            return float(variance.ravel()[self.published].sum())
        action_dim = samples.shape[2]
        chosen = self.dimensions or [d % action_dim if d < 0 else d for d in self.usual]
        if min(chosen) < 0 or max(chosen) >= action_dim:
            raise DetectorError(
                where=f'detector {self.name}: parameter dimensions',
                expected=f'action dimensions from 0 to {action_dim - 1}',
                found=str(chosen),
                advice='choose the dimensions for your actions with dimensions=[...]',
            )
        return float(variance[:, chosen].sum())


@dataclass(kw_only=True, eq=False)
class ActionTranslationVar(_PartVariance):
    """Variance of the translation: action dimensions 0 to 2, summed over the horizon.

    The published quantity uses only these dimensions of the first action of a chunk.
    """

    name = 'action_translation_var'
    signal = 'pos_var'
    published = slice(0, 3)
    usual = (0, 1, 2)


@dataclass(kw_only=True, eq=False)
class ActionRotationVar(_PartVariance):
    """Variance of the rotation: action dimensions 3 to 5, summed over the horizon.

    The published quantity uses only these dimensions of the first action of a chunk.
    """

    name = 'action_rotation_var'
    signal = 'rot_var'
    published = slice(3, 6)
    usual = (3, 4, 5)


@dataclass(kw_only=True, eq=False)
class ActionGripperVar(_PartVariance):
    """Variance of the gripper: the last action dimension, summed over the horizon.

    The published quantity uses all values of the flattened chunk from index 6 on: the gripper of
    the first action and all dimensions of all later actions.
    """

    name = 'action_gripper_var'
    signal = 'gripper_var'
    published = slice(6, None)
    usual = (-1,)
