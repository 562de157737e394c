# SPDX-License-Identifier: Apache-2.0
"""Periodic calls of one or many monitors in one list, instead of a ROS timer for each. No ROS."""

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
    slack : float
        The call may be made by this time earlier [s], if nothing else has to be done.
    """

    def __init__(
        self,
        schedule: Schedule,
        period: float,
        callback: Callable[[], object],
        slack: float = 0.0,
    ) -> None:
        self._schedule = schedule
        self.period, self.callback, self.slack = period, callback, slack
        self.due = math.inf

    def reset(self) -> None:
        """Begin the period again."""
        self._schedule.put(self, self._schedule.now() + self.period)

    def cancel(self) -> None:
        """End the calls."""
        self.due = math.inf


class Schedule:
    """Calls functions when they are due.

    If several calls are due, the call with the earliest end of its period comes first. Therefore
    ``safe/stop`` with its short period does not wait for diagnostics on a busy machine.

    Parameters
    ----------
    now : callable
        The steady time [s].
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._numbers = itertools.count()
        # Entries (time, number, due, call). If `due` differs from the call, the entry is old.
        self._later: list[tuple[float, int, float, Call]] = []
        self._ready: list[tuple[float, int, float, Call]] = []

    def every(self, period: float, callback: Callable[[], object], slack: float = 0.0) -> Call:
        """Return a new periodic call, the first time after one period [s]; see `Call`."""
        call = Call(self, period, callback, slack)
        call.reset()
        return call

    def put(self, call: Call, due: float) -> None:
        """Set the next time of a call; an earlier time of the same call counts no more."""
        call.due = due
        heapq.heappush(self._later, (due, next(self._numbers), due, call))

    def next_due(self) -> float:
        """Return the time of the next call; infinity if there is none."""
        for heap in (self._ready, self._later):
            while heap and heap[0][2] != heap[0][3].due:
                heapq.heappop(heap)
            if heap:
                return heap[0][2]
        return math.inf

    def take_early(self) -> Call | None:
        """Return the next call if it may be made now, before it is due; otherwise None.

        Its next time does not change: the calls do not drift.
        """
        self.next_due()
        if self._ready or not self._later:
            return self.take_due()
        _, _, due, call = self._later[0]
        if due - call.slack > self.now():
            return None
        heapq.heappop(self._later)
        self.put(call, due + call.period)
        return call

    def take_due(self) -> Call | None:
        """Return a call that is due, and set its next time; None if none is due."""
        now = self.now()
        while self._later and self._later[0][0] <= now:
            _, number, due, call = heapq.heappop(self._later)
            heapq.heappush(self._ready, (due + call.period, number, due, call))
        while self._ready:
            _, _, due, call = heapq.heappop(self._ready)
            if due != call.due:
                continue
            # Calls that were missed during a long pause are not repeated.
            following = due + call.period
            self.put(call, following if following > now else now + call.period)
            return call
        return None
