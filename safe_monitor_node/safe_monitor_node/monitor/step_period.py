# SPDX-License-Identifier: Apache-2.0
"""Learns the period of steps, and the time without a step after which steps count as stopped.

No ROS.
"""

from __future__ import annotations

from collections import deque

SHORTEST_SILENCE = 2.0
"""Shortest learned silence [s]: shorter pauses are normal on a busy machine."""

LONGEST_SILENCE = 30.0
"""Longest learned silence [s]."""

PERIODS = 3
"""The learned silence, in periods."""

_KEPT = 20
_QUANTILE = 0.9


class StepPeriod:
    """The usual time between two steps of an episode.

    A policy that emits action chunks infers every few seconds, another policy ten times a second.
    The period is the 0.9 quantile of the last 20 intervals. The longest interval is ignored, unless
    it is the only interval, because a policy may have been blocked once.
    """

    def __init__(self) -> None:
        self._intervals: deque[float] = deque(maxlen=_KEPT)

    def add(self, interval: float) -> None:
        """Add the time between two consecutive steps of an episode [s]."""
        if interval >= 0.0:
            self._intervals.append(interval)

    @property
    def period(self) -> float | None:
        """The usual time between two steps [s]; None before the second step."""
        if not self._intervals:
            return None
        ordered = sorted(self._intervals)
        return ordered[int(_QUANTILE * (len(ordered) - 1))]

    @property
    def silence(self) -> float:
        """The time without a step after which the steps count as stopped [s]."""
        return min(max(PERIODS * (self.period or 0.0), SHORTEST_SILENCE), LONGEST_SILENCE)

    def explain(self) -> str:
        """Return an explanation of `silence`, for a person."""
        if self.period is None:
            return 'no period is known yet'
        return f'{PERIODS} times the period of {self.period:.3g} s' + (
            f', but at least {SHORTEST_SILENCE:g} s'
            if self.silence == SHORTEST_SILENCE
            else f', but at most {LONGEST_SILENCE:g} s'
            if self.silence == LONGEST_SILENCE
            else ''
        )
