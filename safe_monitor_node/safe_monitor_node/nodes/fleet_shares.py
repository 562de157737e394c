# SPDX-License-Identifier: Apache-2.0
"""How much time of a process each robot of a fleet uses, and who has used more than its share.

No ROS.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

K = TypeVar('K', bound=Hashable)

BURST = 0.05
"""Time that a robot may use beyond its share before it has to wait [s]."""

_SHARES = 1.5
"""Robots that need equal times get equal times; one that needs more may have this many shares."""


class TimeShares:
    """The time that robots use beyond their share of the time of a process.

    It is not CPU time: on a busy machine, a process has less of it than time goes by. What a robot
    uses becomes its debt. The debt falls at the rate of its share: 1.5 of the time of
    the process divided by the number of robots. A robot with more debt than :data:`BURST` waits
    while others have messages. It gets the time that the others leave.

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
        # A limit, so that a robot is not punished for long.
        debt = min(max(left, 0.0), 2 * BURST)
        self._debts[robot] = debt, now
        return debt

    def first(self, waiting: Sequence[K], robots: int) -> list[K]:
        """Return those of the waiting robots whose turn it is, out of a number of robots.

        These are all that have no more debt than :data:`BURST`. If all have more, it is the one
        with the least debt.
        """
        debts = [self.debt(robot, robots) for robot in waiting]
        within = [robot for robot, debt in zip(waiting, debts, strict=True) if debt <= BURST]
        if within or not waiting:
            return within
        return [waiting[debts.index(min(debts))]]
