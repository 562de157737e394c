# SPDX-License-Identifier: Apache-2.0
"""Notices that the ROS time stands still, because nobody publishes ``/clock``."""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.node import Node

_STANDS_STILL = 3.0


class ClockWatch:
    """Compares the clock of a node with the steady clock.

    Parameters
    ----------
    node : rclpy.node.Node
    steady : callable
        Returns the time of a clock that always moves [s].
    """

    def __init__(self, node: Node, steady: Callable[[], float] = time.monotonic) -> None:
        self._node, self._steady = node, steady
        self._last, self._moved_at = -1, steady()

    def problem(self) -> str:
        """Return that the clock stands still and since when; empty if it moves."""
        now, ros_time = self._steady(), int(self._node.get_clock().now().nanoseconds)
        if ros_time != self._last:
            self._last, self._moved_at = ros_time, now
        if now - self._moved_at < _STANDS_STILL:
            return ''
        return (
            f'use_sim_time is true, and /clock has not moved for {now - self._moved_at:.0f} s: '
            'stamps of topics without a header, and of events, stand still'
        )
