# SPDX-License-Identifier: Apache-2.0
"""Disagreement of sampled actions: variances, cluster entropy, and consistency over time (STAC).

Baselines of Gu et al. (arXiv 2506.09937, section 5): action variances; the entropy of clusters
after Kuhn et al. (semantic entropy, ICLR 2023); STAC and STAC-Single after Agia et al. ("Unpacking
Failure Modes of Generative Policies", CoRL 2024). All work in float64 on NumPy alone.
"""

from __future__ import annotations

import math

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate
from safe_monitor_node.detectors.base import DetectorError, StepError, checked_chunk
from safe_monitor_node.detectors.stepwise import Before, StepwiseDetector
from vla_feature_bridge.step import PolicyStep

_LARGEST_ACTION = 1e30


def checked_samples(step: PolicyStep, detector: str, instead: str = '') -> np.ndarray:
    """Return the sampled chunks as finite float64 ``(samples >= 2, horizon, action_dim)``.

    Raises :class:`StepError` for anything else; ``instead`` names a signal that would also do.
    """
    checked_chunk(step, detector)
    assert step.actions is not None
    samples = np.asarray(step.actions, dtype=np.float64)
    if len(samples) < 2:
        alternative = f', or the signal {instead!r}' if instead else ''
        raise StepError(
            f'step {step.step}: detector {detector} compares sampled action chunks and needs at '
            f'least 2 a step{alternative}, found 1; let the policy draw more'
        )
    # Written so that NaN fails it. Squares of larger actions overflow, and mean nothing on a robot.
    if not (np.abs(samples) < _LARGEST_ACTION).all():
        raise StepError(
            f'step {step.step}: a sampled action chunk holds NaN, infinity or a value beyond '
            f'{_LARGEST_ACTION:g}'
        )
    return samples


class SpreadDetector(StepwiseDetector):
    """How far the sampled chunks of one step lie apart.

    OpenVLA's multi-sample recordings hold these quantities but not the samples: where a step has
    no samples, the recorded signal is taken as it is.
    """

    needs = frozenset({'sampled_actions'})

    def recorded_as(self) -> str:
        """Return the signal that holds the quantity in recordings without samples."""
        raise AssertionError('each spread names its signal')

    def spread(self, samples: np.ndarray) -> float:
        """Return the quantity of samples ``(samples, horizon, action_dim)``."""
        raise AssertionError('each spread is defined')

    def quantity(self, step: PolicyStep, before: Before | None) -> float:
        signal = self.recorded_as()
        if signal in step.signals and (step.actions is None or step.actions.shape[:1] == (1,)):
            value = step.signals[signal]
            if not math.isfinite(value):
                raise StepError(f'step {step.step}: the signal {signal!r} is {value}')
            return value
        samples = checked_samples(step, self.name, signal)
        try:
            return self.spread(samples)
        except DetectorError as error:
            raise StepError(f'step {step.step}: {error}') from error


class ActionTotalVar(SpreadDetector):
    """Total variance: the trace of the unbiased covariance of the flattened chunks.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    """

    name = 'action_total_var'

    def __init__(self, *, accumulate: Accumulate = 'none') -> None:
        self.accumulate = accumulate

    def recorded_as(self) -> str:
        return 'total_var'

    def spread(self, samples: np.ndarray) -> float:
        return float(samples.var(axis=0, ddof=1).sum())


class ActionGeneralVar(SpreadDetector):
    """Generalised variance: the volume that the samples spread over, in all directions at once.

    The published determinant of the covariance is 0 whenever there are no more samples than
    numbers in a chunk, which is always the case for chunks (methods.md D30). The default is
    ``log det(I + covariance / floor)``: 0 for equal samples, finite for any number of them, and
    for enough samples a monotone function of the determinant as the floor goes to 0.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    floor : float
        Variance below which a direction counts as not spread, in squared action units.
    reference_compatible : bool
        The published determinant.
    """

    name = 'action_general_var'

    def __init__(
        self,
        *,
        accumulate: Accumulate = 'none',
        floor: float = 1e-6,
        reference_compatible: bool = False,
    ) -> None:
        self.accumulate = accumulate
        self.floor = floor
        self.reference_compatible = reference_compatible

    def check_parameters(self) -> None:
        super().check_parameters()
        if not self.floor > 0:
            raise DetectorError(f'{self.name}: floor must be positive, found {self.floor!r}')

    def recorded_as(self) -> str:
        return 'general_var'

    def spread(self, samples: np.ndarray) -> float:
        flat = samples.reshape(len(samples), -1)
        centred = (flat - flat.mean(axis=0)) / math.sqrt(len(flat) - 1)
        if self.reference_compatible:
            if len(flat) - 1 < flat.shape[1]:
                return 0.0
            return float(np.linalg.det(centred.T @ centred))
        # det(I + X'X) = det(I + XX'): take the smaller one.
        few = len(flat) < flat.shape[1]
        product = centred @ centred.T if few else centred.T @ centred
        return float(np.linalg.slogdet(np.eye(len(product)) + product / self.floor)[1])


class _PartVariance(SpreadDetector):
    """Variance of some dimensions of the action, summed over them and over the horizon."""

    signal: str
    published: slice
    """The published choice, in the flattened chunk."""

    def __init__(
        self,
        *,
        accumulate: Accumulate = 'none',
        dimensions: list[int] | None = None,
        reference_compatible: bool = False,
    ) -> None:
        self.accumulate = accumulate
        self.dimensions = dimensions
        self.reference_compatible = reference_compatible

    def check_parameters(self) -> None:
        super().check_parameters()
        chosen = self.dimensions
        if chosen is None:
            return
        if not isinstance(chosen, list) or not chosen or any(type(d) is not int for d in chosen):
            raise DetectorError(
                f'{self.name}: dimensions must be a list of action dimensions, found {chosen!r}'
            )
        if self.reference_compatible:
            raise DetectorError(
                f'{self.name}: the published quantity has fixed dimensions; leave out '
                'dimensions or reference_compatible'
            )

    def recorded_as(self) -> str:
        return self.signal

    def conventional(self, action_dim: int) -> list[int]:
        """Return the dimensions of an action (x, y, z, roll, pitch, yaw, ..., gripper)."""
        raise AssertionError('each part knows its place')

    def spread(self, samples: np.ndarray) -> float:
        variance = samples.var(axis=0, ddof=1)
        if self.reference_compatible:
            return float(variance.ravel()[self.published].sum())
        action_dim = samples.shape[2]
        chosen = self.dimensions or self.conventional(action_dim)
        if min(chosen) < 0 or max(chosen) >= action_dim:
            raise DetectorError(
                f'{self.name} takes the action dimensions {chosen}, but an action has '
                f'{action_dim}; give the right ones (dimensions=[...])'
            )
        return float(variance[:, chosen].sum())


class ActionTranslationVar(_PartVariance):
    """Variance of the translation: action dimensions 0 to 2, summed over the horizon.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    dimensions : list of int or None
        Other action dimensions.
    reference_compatible : bool
        The published quantity, which of a chunk takes the first action only (methods.md D29).
    """

    name = 'action_translation_var'
    signal = 'pos_var'
    published = slice(0, 3)

    def conventional(self, action_dim: int) -> list[int]:
        return [0, 1, 2]


class ActionRotationVar(_PartVariance):
    """Variance of the rotation: action dimensions 3 to 5, summed over the horizon.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    dimensions : list of int or None
        Other action dimensions.
    reference_compatible : bool
        The published quantity, which of a chunk takes the first action only (methods.md D29).
    """

    name = 'action_rotation_var'
    signal = 'rot_var'
    published = slice(3, 6)

    def conventional(self, action_dim: int) -> list[int]:
        return [3, 4, 5]


class ActionGripperVar(_PartVariance):
    """Variance of the gripper: the last action dimension, summed over the horizon.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        The quantity itself, its sum or its running mean over the episode.
    dimensions : list of int or None
        Other action dimensions.
    reference_compatible : bool
        The published quantity, which of a chunk takes everything from number 6 on: all dimensions
        of all later actions (methods.md D29).
    """

    name = 'action_gripper_var'
    signal = 'gripper_var'
    published = slice(6, None)

    def conventional(self, action_dim: int) -> list[int]:
        return [action_dim - 1]
