# SPDX-License-Identifier: Apache-2.0
"""Controls that keep everybody honest: scores that know nothing about the policy's state.

A learned detector that does not beat the clock has learned the time limit; one that does not beat
the random score has learned nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from safe_monitor_node.detectors.base import (
    Detector,
    StepError,
    Stream,
    checked_chunk,
)
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep


class _StepwiseStream(Stream):
    """A stream whose score needs this step and a counter only."""

    def __init__(self, score: Callable[[PolicyStep, int], float]) -> None:
        self._score = score
        self._t = 0

    def step(self, step: PolicyStep) -> float:
        value = float(np.float32(self._score(step, self._t)))
        self._t += 1
        return value


class _Control(Detector):
    """A control: nothing to fit, nothing to store; the score of a step is one expression."""

    needs = frozenset()

    def _at(self, step: PolicyStep, t: int) -> float:
        raise AssertionError('each control defines its score')

    def score(self, rollout: Rollout) -> np.ndarray:
        self._require_fitted()
        stream = self.stream()
        try:
            scores = [stream.step(rollout.step(t)) for t in range(len(rollout))]
        except StepError as error:
            raise StepError(f'rollout {rollout.episode_id!r}: {error}') from error
        return np.array(scores, dtype=np.float32)

    def stream(self) -> Stream:
        self._require_fitted()
        return _StepwiseStream(self._at)


class Clock(_Control):
    """The number of steps so far.

    Failures run to the time limit, so by the end a clock always wins.
    """

    name = 'clock'

    def _at(self, step: PolicyStep, t: int) -> float:
        return float(t)


class Constant(_Control):
    """Zero at every step: the score of a monitor that never looks."""

    name = 'constant'

    def _at(self, step: PolicyStep, t: int) -> float:
        return 0.0


class Random(_Control):
    """Uniform noise in [0, 1), drawn from (seed, episode, step): the same live as offline."""

    name = 'random'

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def _at(self, step: PolicyStep, t: int) -> float:
        episode = zlib.crc32(step.episode_id.encode())
        return float(np.random.default_rng((self.seed, episode, t)).random())


class ActionNorm(_Control):
    """Euclidean norm of the executed action chunk: how much the robot is asked to move."""

    name = 'action_norm'
    needs = frozenset({'actions'})

    def _at(self, step: PolicyStep, t: int) -> float:
        if step.actions is None and self.name in step.signals:
            norm = step.signals[self.name]
            if not np.isfinite(norm):
                raise StepError(f'step {step.step}: the signal {self.name} is {norm}')
            return norm
        return float(np.linalg.norm(checked_chunk(step, self.name)))
