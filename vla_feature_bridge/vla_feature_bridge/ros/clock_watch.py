# SPDX-License-Identifier: Apache-2.0
"""Compares the ROS clock of a node with the steady clock: the ROS clock can stop or run back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from rclpy.node import Node

STANDS_STILL = 2.0
"""Time without a new ROS time after which the ROS clock stands still [s]."""


class ClockLook(NamedTuple):
    """What one look at the clock has shown.

    Attributes
    ----------
    time : int
        The ROS time [ns].
    ran_back : float
        As `ClockWatch.ran_back` returns it [s].
    problem : str
        As `ClockWatch.problem` returns it.
    """

    time: int
    ran_back: float
    problem: str


class ClockWatch:
    """Looks at the clock of a node. The node must call a method at least every second.

    Without ``use_sim_time``, the ROS clock is the system clock. It never stands still, but a person
    or NTP can set it back. With ``use_sim_time``, the ROS clock shows the last time on ``/clock``:
    it stands still if no node publishes ``/clock`` or if the simulation is paused, and it runs back
    if a recording starts again.

    Parameters
    ----------
    node : rclpy.node.Node
    now : callable, optional
        The steady time [s].
    """

    def __init__(self, node: Node, now: Callable[[], float] = time.monotonic) -> None:
        self._node, self._now = node, now
        self._last, self._moved_at = self._ros_time(), now()
        self._ran_back = 0

    def _ros_time(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _look(self) -> float:
        """Return for how long the clock has stood still [s]."""
        ros_time = self._ros_time()
        self._ran_back = max(self._ran_back, self._last - ros_time)
        now = self._now()
        if ros_time != self._last:
            self._last, self._moved_at = ros_time, now
        return now - self._moved_at

    def look(self) -> ClockLook:
        """Return the time, and what :meth:`ran_back` and :meth:`problem` return, in one look."""
        still = self._look()
        ran_back, self._ran_back = self._ran_back, 0
        return ClockLook(self._last, ran_back * 1e-9, self._problem(still))

    def ran_back(self) -> float:
        """Return by how much the clock ran back since the last call [s]; 0 if it did not."""
        return self.look().ran_back

    def problem(self) -> str:
        """Return that the clock stands still and since when; empty if the clock moves."""
        return self._problem(self._look())

    def _problem(self, still: float) -> str:
        if still < STANDS_STILL:
            return ''
        cause = (
            '/clock repeats the same time, for example because the simulation is paused'
            if self._node.count_publishers('/clock')
            else 'no node publishes /clock'
        )
        return f'no /clock for {still:.0f} s: use_sim_time is true, and {cause}'
