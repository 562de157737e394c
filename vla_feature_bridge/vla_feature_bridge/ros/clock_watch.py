# SPDX-License-Identifier: Apache-2.0
"""Checks whether the ROS clock of a node has stopped or gone back, with the steady clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.node import Node

STANDS_STILL = 2.0
"""If the ROS time does not change for this time, the ROS clock has stopped [s]."""


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
        if ros_time != self._last:
            self._last, self._moved_at = ros_time, self._now()
        return self._now() - self._moved_at

    def ran_back(self) -> float:
        """Return by how much the clock went back since the last call [s]; otherwise 0."""
        self._look()
        ran_back, self._ran_back = self._ran_back, 0
        return ran_back * 1e-9

    def problem(self) -> str:
        """Return a text that the clock has stopped, and since when; empty if it runs."""
        still = self._look()
        if still < STANDS_STILL:
            return ''
        cause = (
            '/clock repeats the same time, for example because the simulation is paused'
            if self._node.count_publishers('/clock')
            else 'no node publishes /clock'
        )
        return f'no /clock for {still:.0f} s: use_sim_time is true, and {cause}'
