# SPDX-License-Identifier: Apache-2.0
"""The history of action signals in an episode, which the linear probe reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

HISTORY = ('value', 'mean', 'max', 'recent')
"""Inputs from one signal at a step: its value, and three summaries of the episode so far."""

# Weight of the past in the exponential moving average of a signal.
_RECENT = 0.7
# Rollouts whose histories are computed together.
_TOGETHER = 256


class SignalHistory:
    """Computes the history of S signals step by step: the compressed value and three summaries.

    A signal v is compressed to ``sign(v) log(1 + |v| / scale)``. Each signal has its own scale.
    """

    def __init__(self, scale: np.ndarray) -> None:
        self._scale = scale
        self._steps = 0
        self._total = np.zeros(len(scale))
        self._largest = np.full(len(scale), -np.inf)
        self._recent = np.zeros(len(scale))

    def add(self, values: np.ndarray) -> np.ndarray:
        """Return the history (S, 4), columns as :data:`HISTORY`, after a step's signals (S,)."""
        squashed = np.sign(values) * np.log1p(np.abs(values) / self._scale)
        past = _RECENT if self._steps else 0.0
        self._steps += 1
        self._total += squashed
        np.maximum(self._largest, squashed, out=self._largest)
        self._recent = past * self._recent + (1.0 - past) * squashed
        mean = self._total / self._steps
        return np.stack([squashed, mean, self._largest, self._recent], axis=1)


def signal_histories(
    values: np.ndarray, lengths: Sequence[int] | np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Return the history (N, S, 4) of the signals (N, S) of concatenated rollouts.

    Equal to the steps of :class:`SignalHistory`, and many times faster.

    Parameters
    ----------
    values : ndarray, shape (N, S)
        Signals of all steps.
    lengths : sequence of int
        Steps of each rollout; their sum is N.
    scale : ndarray, shape (S,)
    """
    squashed = np.sign(values) * np.log1p(np.abs(values) / scale)
    result = np.empty((*squashed.shape, len(HISTORY)))
    result[:, :, 0] = squashed
    counts = np.asarray(lengths)
    ends = np.cumsum(counts)
    # Rollouts of similar length are padded to one array, so that there are few padded steps.
    order = np.argsort(counts, kind='stable')
    for group in np.array_split(order, range(_TOGETHER, len(order), _TOGETHER)):
        inside = np.arange(counts[group].max()) < counts[group, None]
        place = np.where(inside, np.arange(inside.shape[1]) + (ends - counts)[group, None], 0)
        padded = squashed[place]
        rows = place[inside]
        steps = np.arange(1, inside.shape[1] + 1)[:, None]
        result[rows, :, 1] = (np.cumsum(padded, axis=1) / steps)[inside]
        result[rows, :, 2] = np.maximum.accumulate(padded, axis=1)[inside]
        for t in range(1, padded.shape[1]):
            padded[:, t] = _RECENT * padded[:, t - 1] + (1.0 - _RECENT) * padded[:, t]
        result[rows, :, 3] = padded[inside]
    return result


def smoothed(raw: np.ndarray, smoothing: float) -> np.ndarray:
    """Return the exponential moving average (T,) that starts at the first value."""
    if smoothing == 0.0:
        return raw
    new = 1.0 - smoothing
    # Python numbers: a loop over the entries of an array takes several times as long.
    averages = itertools.accumulate(raw.tolist(), lambda past, now: smoothing * past + new * now)
    return np.fromiter(averages, np.float64, len(raw))
