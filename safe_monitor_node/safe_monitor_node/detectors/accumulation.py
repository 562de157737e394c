# SPDX-License-Identifier: Apache-2.0
"""Accumulated scores, computed from the values of single steps.

The value itself, the sum or the running mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


def accumulated(values: np.ndarray, accumulate: Accumulate) -> np.ndarray:
    """Return the scores as float32, shape (T,), from the values of single steps, shape (T,)."""
    values = np.asarray(values, dtype=np.float64)
    if accumulate != 'none':
        values = np.cumsum(values)
    if accumulate == 'mean':
        values = values / np.arange(1, len(values) + 1)
    return values.astype(np.float32)


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
