# SPDX-License-Identifier: Apache-2.0
"""Controls: scores without knowledge of the policy. Every other detector must be better.

A learned detector that is not better than the clock has learned the time limit. A detector that is
not better than the random score has learned nothing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from safe_monitor_node.detectors.base import StepError, checked_chunk
from safe_monitor_node.detectors.stepwise import Before, UntrainedDetector
from vla_feature_bridge.step import PolicyStep


@dataclass(kw_only=True, eq=False)
class Clock(UntrainedDetector):
    """Number of steps so far.

    Failures run until the time limit. Therefore the number of steps separates the outcomes
    perfectly at the end of an episode.
    """

    name = 'clock'
    needs = frozenset()

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the number of steps before this one."""
        return float(before.steps)


@dataclass(kw_only=True, eq=False)
class Constant(UntrainedDetector):
    """Zero at every step: the score of a monitor that ignores its input."""

    name = 'constant'
    needs = frozenset()

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return 0."""
        return 0.0


@dataclass(kw_only=True, eq=False)
class Random(UntrainedDetector):
    """Uniform noise in [0, 1).

    The noise depends only on seed, episode id and step, so that live and offline scores are equal.

    Parameters
    ----------
    seed : int
        Seed of the noise.
    """

    name = 'random'
    needs = frozenset()

    seed: int = 0

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        self._check_integer('seed', least=0)

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the random number of this episode and step."""
        episode = zlib.crc32(step.episode_id.encode())
        return float(np.random.default_rng((self.seed, episode, before.steps)).random())


@dataclass(kw_only=True, eq=False)
class ActionNorm(UntrainedDetector):
    """Euclidean norm of the executed action chunk: the size of the commanded motion."""

    name = 'action_norm'
    needs = frozenset({'actions'})

    def quantity(self, step: PolicyStep, before: Before) -> float:
        """Return the norm, or the recorded signal of this name if the step has no actions."""
        if step.actions is None and self.name in step.signals:
            norm = step.signals[self.name]
            if not np.isfinite(norm):
                raise StepError(
                    where=f'step {step.step}',
                    expected=f'a finite signal {self.name!r}',
                    found=str(norm),
                )
            return norm
        return float(np.linalg.norm(checked_chunk(step, self.name)))
