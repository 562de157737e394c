# SPDX-License-Identifier: Apache-2.0
"""Notices that the ROS time stands still, because nobody publishes ``/clock``."""

from __future__ import annotations

import time

from rclpy.node import Node

_STANDS_STILL = 3.0


class ClockWatch:
    """Compares the clock of a node with the steady clock.

    Parameters
    ----------
    node : rclpy.node.Node
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._last, self._moved_at = -1, time.monotonic()

    def problem(self) -> str:
        """Return that the clock stands still and since when; empty if it moves."""
        now, ros_time = time.monotonic(), int(self._node.get_clock().now().nanoseconds)
        if ros_time != self._last:
            self._last, self._moved_at = ros_time, now
        if now - self._moved_at < _STANDS_STILL:
            return ''
        return (
            f'use_sim_time is true, and /clock has not moved for {now - self._moved_at:.0f} s: '
            'stamps of topics without a header, and of events, stand still'
        )
