# SPDX-License-Identifier: Apache-2.0
"""Untrained detectors: one quantity of each step, accumulated over the episode."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from safe_monitor_node.detectors.accumulation import Accumulate, Accumulator, check_accumulate
from safe_monitor_node.detectors.base import Detector, DetectorError, StepError, Stream
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

# The longest look-back is one step: two steps show whether a rollout has what a detector needs.
_STEPS_CHECKED_AT_FIT = 2
# Scores are float32: what an episode could not even sum up to is no score.
_LARGEST = 1e30


class Before(NamedTuple):
    """What is kept of the previous step: its chunks, and how many of their actions were done."""

    actions: np.ndarray
    executed: int


class StepwiseDetector(Detector):
    """A quantity of each step (or of two consecutive ones), raw, summed or averaged so far.

    Nothing is learned. Fitting only makes sure that the rollouts hold what the quantity needs, so
    that a wrong data set fails offline and not on the robot.
    """

    accumulate: Accumulate

    def quantity(self, step: PolicyStep, before: Before | None) -> float:
        """Return this step's quantity; raises :class:`StepError` where there is none."""
        raise AssertionError('each stepwise detector defines its quantity')

    def keep(self, step: PolicyStep) -> Before | None:
        """Return what the next step's quantity needs of this (already judged) step."""
        return None

    def check_parameters(self) -> None:
        """Raise :class:`DetectorError` for a parameter that has no meaning."""
        check_accumulate(self.name, self.accumulate)

    def check_inputs(self, rollout: Rollout) -> None:
        """Raise :class:`DetectorError`, naming the rollout, if its first steps cannot be scored."""
        stream = _StepwiseStream(self)
        try:
            for t in range(min(_STEPS_CHECKED_AT_FIT, len(rollout))):
                stream.step(rollout.step(t))
        except StepError as error:
            raise DetectorError(f'rollout {rollout.episode_id!r}: {error}') from error

    def load_state(self, state: dict[str, np.ndarray], dim: int) -> None:
        self.check_parameters()
        super().load_state(state, dim)

    def score(self, rollout: Rollout) -> np.ndarray:
        stream = self.stream()
        try:
            scores = [stream.step(rollout.step(t)) for t in range(len(rollout))]
        except StepError as error:
            raise StepError(f'rollout {rollout.episode_id!r}: {error}') from error
        return np.array(scores, dtype=np.float32)

    def stream(self) -> Stream:
        self._require_fitted()
        return _StepwiseStream(self)


class _StepwiseStream(Stream):
    def __init__(self, detector: StepwiseDetector) -> None:
        self._detector = detector
        self._before: Before | None = None
        self._accumulator = Accumulator(detector.accumulate)

    def step(self, step: PolicyStep) -> float:
        value = self._detector.quantity(step, self._before)
        if not abs(value) < _LARGEST:
            raise StepError(
                f'step {step.step}: the quantity of detector {self._detector.name} is {value:g}, '
                'too large to be real; look at the actions and signals of the policy'
            )
        self._before = self._detector.keep(step)
        return float(np.float32(self._accumulator.add(value)))
