# SPDX-License-Identifier: Apache-2.0
"""Periodic calls of many robots in one list, instead of a ROS timer for each. No ROS."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable


class Call:
    """A periodic call. It has the methods of a ROS timer that the monitor uses.

    Parameters
    ----------
    schedule : Schedule
    period : float
        Time between two calls [s].
    callback : callable
    """

    def __init__(self, schedule: Schedule, period: float, callback: Callable[[], object]) -> None:
        self._schedule = schedule
        self.period, self.callback = period, callback
        self.due = math.inf

    def reset(self) -> None:
        """Begin the period again."""
        self._schedule.put(self, self._schedule.now() + self.period)

    def cancel(self) -> None:
        """End the calls."""
        self.due = math.inf


class Schedule:
    """Calls functions when they are due.

    Parameters
    ----------
    now : callable
        The steady time [s].
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._heap: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()

    def every(self, period: float, callback: Callable[[], object]) -> Call:
        """Return a new periodic call, the first time after one period [s]."""
        call = Call(self, period, callback)
        call.reset()
        return call

    def put(self, call: Call, due: float) -> None:
        """Set the next time of a call; an earlier time of the same call counts no more."""
        call.due = due
        heapq.heappush(self._heap, (due, next(self._numbers), call))

    def next_due(self) -> float:
        """Return the time of the next call; infinity if there is none."""
        while self._heap and self._heap[0][0] != self._heap[0][2].due:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take_due(self) -> Call | None:
        """Return a call that is due, and set its next time; None if none is due."""
        now = self.now()
        if self.next_due() > now:
            return None
        _, _, call = heapq.heappop(self._heap)
        # Calls that were missed during a long pause are not made up for.
        following = call.due + call.period
        self.put(call, following if following > now else now + call.period)
        return call
