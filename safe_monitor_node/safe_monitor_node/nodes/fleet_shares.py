# SPDX-License-Identifier: Apache-2.0
"""Measures the time that each robot of a fleet uses. Does not use ROS."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

K = TypeVar('K', bound=Hashable)

BURST = 0.05
"""Time that a robot may use beyond its share before it has to wait [s]."""

_SHARES = 1.5
"""A robot that needs more time than the others may have this many equal shares."""


class TimeShares:
    """The time that robots use beyond their share of the time of a process.

    The time is wall time, not CPU time. The time that a robot uses is added to its debt. The debt
    decreases with the share of the robot: 1.5 times the elapsed time, divided by the number of
    robots. A robot with a debt above :data:`BURST` waits while other robots have messages. It gets
    the time that the other robots do not need.

    Parameters
    ----------
    now : callable
        The steady time [s].
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._debts: dict[Hashable, tuple[float, float]] = {}

    def charge(self, robot: Hashable, seconds: float) -> None:
        """Record that a robot has used time [s]."""
        debt, since = self._debts.get(robot, (0.0, self._now()))
        self._debts[robot] = debt + seconds, since

    def debt(self, robot: Hashable, robots: int) -> float:
        """Return the debt of a robot [s] in a process with a number of robots."""
        now = self._now()
        debt, since = self._debts.get(robot, (0.0, now))
        left = debt - _SHARES / robots * (now - since)
        # A limit, so that the robot does not wait for long after a flood.
        debt = min(max(left, 0.0), 2 * BURST)
        self._debts[robot] = debt, now
        return debt

    def first(self, waiting: Sequence[K], robots: int) -> list[K]:
        """Return the waiting robots that may go on now.

        These are all robots with a debt of at most :data:`BURST`. If all debts are larger, it is
        the robot with the smallest debt. ``robots`` is the number of robots of the process.
        """
        debts = [self.debt(robot, robots) for robot in waiting]
        within = [robot for robot, debt in zip(waiting, debts, strict=True) if debt <= BURST]
        if within or not waiting:
            return within
        return [waiting[debts.index(min(debts))]]
