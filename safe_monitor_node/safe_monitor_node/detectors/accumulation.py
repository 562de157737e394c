# SPDX-License-Identifier: Apache-2.0
"""Accumulated scores, computed from the values of single steps.

The score is the value itself, the sum, the running mean, or two successive exponential averages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from safe_monitor_node.detectors.base import Detector

Accumulate = Literal['none', 'sum', 'mean']
ACCUMULATE: tuple[Accumulate, ...] = ('none', 'sum', 'mean')


@dataclass(kw_only=True, eq=False)
class AccumulatingDetector(Detector):
    """A detector that accumulates one value per step over the episode.

    Parameters
    ----------
    accumulate : {'none', 'sum', 'mean'}
        'none': value of the current step. 'sum' or 'mean': sum or mean of the values from step 0 to
        the current step.
    """

    accumulate: Accumulate = 'none'

    def check_params(self) -> None:
        """Raise :class:`DetectorError` if a parameter has an impossible value."""
        super().check_params()
        self._check_choice('accumulate', ACCUMULATE)

    def step_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the value of each single step, float64 (T,), from the scores (T,) of a rollout."""
        return unaccumulated(scores, self.accumulate)


def unaccumulated(scores: np.ndarray, accumulate: Accumulate) -> np.ndarray:
    """Return the values of single steps (T,) that :func:`accumulated` turns into scores (T,)."""
    values = np.asarray(scores, dtype=np.float64)
    if accumulate == 'mean':
        values = values * np.arange(1, len(values) + 1)
    return values if accumulate == 'none' else np.diff(values, prepend=0.0)


def unsmoothed(averages: np.ndarray, past: float) -> np.ndarray:
    """Return the values (T,) of an exponential average (T,) that starts at its first value.

    Parameters
    ----------
    past : float
        Weight of the past, at least 0 and below 1.
    """
    values = np.array(averages, dtype=np.float64)
    values[1:] = (values[1:] - past * values[:-1]) / (1.0 - past)
    return values


def accumulated(values: np.ndarray, accumulate: Accumulate) -> np.ndarray:
    """Return the scores as float32, shape (T,), from the values of single steps, shape (T,)."""
    values = np.asarray(values, dtype=np.float64)
    if accumulate != 'none':
        values = np.cumsum(values)
    if accumulate == 'mean':
        values = values / np.arange(1, len(values) + 1)
    return values.astype(np.float32)


class Accumulation(Protocol):
    """Turns the values of an episode into scores, one step at a time."""

    def add(self, value: float) -> float:
        """Return the score after a step with this value."""
        ...


class Accumulator:
    """Accumulates values step by step, as :func:`accumulated` does for a whole rollout."""

    def __init__(self, accumulate: Accumulate) -> None:
        self._accumulate = accumulate
        self._total = 0.0
        self._steps = 0

    def add(self, value: float) -> float:
        """Return the score after a step with this value."""
        if self._accumulate == 'none':
            return value
        self._total += value
        self._steps += 1
        return self._total / self._steps if self._accumulate == 'mean' else self._total


SLOW, FAST = 0.85, 0.7
"""Weights of the past in the first and in the second average of :class:`SmoothAccumulator`."""


class SmoothAccumulator:
    """Two successive exponential averages of the compressed value.

    The compressed value is ``q_t = sign(x_t) log(1 + |x_t| / scale)``. The averages are
    ``u_t = 0.85 u_(t-1) + 0.15 q_t`` and ``y_t = 0.7 y_(t-1) + 0.3 u_t``. Both start at their first
    value: ``y_0 = u_0 = q_0``. The score is ``y_t``.

    Parameters
    ----------
    scale : float
        Typical size of a value that is not 0; positive.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._first: float | None = None
        self._second = 0.0

    def add(self, value: float) -> float:
        """Return the score after a step with this value."""
        compressed = math.copysign(math.log1p(abs(value) / self._scale), value)
        if self._first is None:
            self._first = self._second = compressed
        else:
            self._first = SLOW * self._first + (1.0 - SLOW) * compressed
            self._second = FAST * self._second + (1.0 - FAST) * self._first
        return self._second
