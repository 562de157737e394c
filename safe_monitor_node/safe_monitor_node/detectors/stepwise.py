# SPDX-License-Identifier: Apache-2.0
"""Base class of detectors without training: the score is one quantity of each step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from safe_monitor_node.detectors.accumulation import (
    Accumulate,
    AccumulatingDetector,
    Accumulation,
    Accumulator,
    unaccumulated,
)
from safe_monitor_node.detectors.base import Detector, DetectorError, StepError, Stream
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

# A quantity reads data of the current step and of the previous step. Therefore the first two steps
# show if a rollout contains the data.
_STEPS_CHECKED_AT_FIT = 2
LARGEST = 1e30
"""Scores are float32; a larger quantity would overflow the sum over an episode."""


class Plan(NamedTuple):
    """The action chunks of a step, and how many of their actions were executed."""

    chunks: np.ndarray
    executed: int


class Before(NamedTuple):
    """Data of the episode before a step.

    Attributes
    ----------
    steps : int
        Number of previous steps.
    quantity : float or None
        Quantity of the previous step, before any accumulation; None at the first step. With this
        quantity, a detector can remember more than one step: the running maximum of x is
        ``max(x, before.quantity)``.
    plan : Plan or None
        What :meth:`UntrainedDetector.plan` returned for the previous step; None at the first step.
    """

    steps: int = 0
    quantity: float | None = None
    plan: Plan | None = None


class UntrainedDetector(Detector):
    """A detector that scores one quantity per step, which may depend on earlier steps.

    Nothing is learned, so a subclass needs no fitter. :meth:`fit` checks that the rollouts contain
    the data that the quantity needs. Therefore unsuitable data is already refused offline.
    """

    accumulate: Accumulate = 'none'

    @abstractmethod
    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the quantity of a step; raise :class:`StepError` if the step lacks its data.

        The score is this quantity, or its sum or mean if the detector has ``accumulate``.
        """

    def plan(self, step: PolicyStep) -> Plan | None:
        """Return the data of this step that the quantity of the next step needs.

        This step is already scored.
        """
        return None

    def accumulation(self) -> Accumulation:
        """Return the accumulation that computes scores from the quantities of a new episode."""
        return Accumulator(self.accumulate)

    def step_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the quantity of each step (T,)."""
        return unaccumulated(scores, self.accumulate)

    def _fitter(self) -> Callable[..., None]:
        return fit_untrained

    def score(self, rollout: Rollout) -> np.ndarray:
        """Return the scores of a whole rollout, float32 of shape (T,)."""
        stream = self.stream()
        try:
            scores = [stream.step(rollout.step(t)) for t in range(len(rollout))]
        except StepError as error:
            raise StepError(f'rollout {rollout.episode_id!r}: {error}') from error
        return np.array(scores, dtype=np.float32)

    def stream(self) -> Stream:
        """Return a stream that scores a new episode step by step."""
        self._require_fitted()
        return _StepwiseStream(self, self.accumulation())


@dataclass(kw_only=True, eq=False)
class StepwiseDetector(AccumulatingDetector, UntrainedDetector):
    """An untrained detector with the parameter ``accumulate``."""


def fit_untrained(
    detector: UntrainedDetector,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    progress: Progress | None = None,
) -> None:
    """Check the first steps of every rollout and store the feature width; nothing is learned.

    Raises
    ------
    DetectorError
        A rollout lacks the data that the quantity needs.
    """
    check_data(detector, rollouts)
    detector.load_state({}, rollouts[0].features.shape[-1])


def check_data(detector: UntrainedDetector, rollouts: Sequence[Rollout]) -> None:
    """Raise :class:`DetectorError` if a rollout lacks the data that the quantity needs."""
    for rollout in rollouts if detector.needs else ():
        stream = _StepwiseStream(detector, Accumulator('none'))
        try:
            for t in range(min(_STEPS_CHECKED_AT_FIT, len(rollout))):
                stream.step(rollout.step(t))
        except StepError as error:
            raise DetectorError(f'rollout {rollout.episode_id!r}: {error}') from error


class _StepwiseStream(Stream):
    def __init__(self, detector: UntrainedDetector, accumulation: Accumulation) -> None:
        self._detector = detector
        self._before = Before()
        self._accumulation = accumulation

    def step(self, step: PolicyStep) -> float:
        value = self._detector.quantity(step, self._before)
        if not abs(value) < LARGEST:
            raise StepError(
                where=f'step {step.step}',
                expected=f'a quantity below {LARGEST:g} for detector {self._detector.name}',
                found=f'{value:g}',
                advice='check the actions and the signals of the policy',
            )
        self._before = Before(self._before.steps + 1, value, self._detector.plan(step))
        return float(np.float32(self._accumulation.add(value)))
