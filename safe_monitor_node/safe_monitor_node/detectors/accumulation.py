# SPDX-License-Identifier: Apache-2.0
"""How the values of single steps become the score so far: as they are, summed or averaged."""

from __future__ import annotations

from typing import Literal

import numpy as np

from safe_monitor_node.detectors.base import DetectorError

Accumulate = Literal['none', 'sum', 'mean']


def check_accumulate(detector: str, accumulate: object) -> None:
    """Raise :class:`DetectorError` unless ``accumulate`` is one of :data:`Accumulate`."""
    if accumulate not in ('none', 'sum', 'mean'):
        raise DetectorError(
            f'{detector}: accumulate must be one of none, sum, mean, found {accumulate!r}'
        )


def accumulated(values: np.ndarray, accumulate: Accumulate) -> np.ndarray:
    """Return the scores ``(T,)`` as float32 from the values ``(T,)`` of single steps."""
    values = np.asarray(values, dtype=np.float64)
    if accumulate != 'none':
        values = np.cumsum(values)
    if accumulate == 'mean':
        values = values / np.arange(1, len(values) + 1)
    return values.astype(np.float32)


class Accumulator:
    """The same, one step at a time."""

    def __init__(self, accumulate: Accumulate) -> None:
        self._accumulate = accumulate
        self._total = 0.0
        self._steps = 0

    def add(self, value: float) -> float:
        """Take the value of the next step and return the score so far."""
        if self._accumulate == 'none':
            return value
        self._total += value
        self._steps += 1
        return self._total / self._steps if self._accumulate == 'mean' else self._total
