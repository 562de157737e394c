# SPDX-License-Identifier: Apache-2.0
"""Checks whether the ROS clock of a node has stopped or gone back, with the steady clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from rclpy.node import Node

STANDS_STILL = 2.0
"""If the ROS time does not change for this time, the ROS clock has stopped [s]."""


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
    """Watches the clock of a node. The node must call a method at least every second.

    Without ``use_sim_time``, the ROS clock is the system clock. It never stops, but a person or NTP
    can set it back. With ``use_sim_time``, the ROS clock has the last time on ``/clock``. It stops
    if no node publishes ``/clock`` or if the simulation is paused. It goes back if a recording
    starts again.

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
        """Return for how long the clock has not changed [s]."""
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
        """Return by how much the clock went back since the last call [s]; otherwise 0."""
        return self.look().ran_back

    def problem(self) -> str:
        """Return a text that the clock has stopped, and since when; empty if it runs."""
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
