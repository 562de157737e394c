# SPDX-License-Identifier: Apache-2.0
"""The loop of a fleet: a monitor loop with many monitors, in which no robot delays the others.

If a robot sends more messages than the process can handle, the robots that need less time go first.
Services have a time limit. Another thread loads detectors while the loop continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from functools import partial

from rclpy.node import Node

from safe_monitor_node.monitor.scoring import Scoring, Wanted
from safe_monitor_node.nodes.fleet_shares import TimeShares
from safe_monitor_node.nodes.monitor_loop import MonitorLoop
from safe_monitor_node.nodes.monitor_node import MonitorNode
from safe_monitor_node.nodes.schedule import Schedule

_MOST_LOADS = 8


class FleetLoop(MonitorLoop):
    """Runs the monitors of a fleet in one thread.

    Parameters
    ----------
    schedule : Schedule
        Periodic calls of the robots; the loop makes them.
    """

    _longest_handling = 0.003

    def __init__(self, schedule: Schedule) -> None:
        self._shares = TimeShares(time.monotonic)
        # Sum of the times that were charged to single robots [s].
        self._charged = 0.0
        # Nodes whose requests are handled now: several, if the loop waits for a detector.
        self._handling: set[int] = set()
        super().__init__(schedule)

    # --- shares of the time

    def _score(self, monitors: Iterable[MonitorNode]) -> None:
        waiting = list(monitors)
        first = self._shares.first(waiting, len(self._monitors))
        began, charged = time.monotonic(), self._charged
        super()._score(first)
        # The time of the batches, which belongs to all robots.
        shared = time.monotonic() - began - (self._charged - charged)
        for monitor in first:
            self._shares.charge(monitor, shared / len(first))
        held = (monitor for monitor in waiting if monitor.inputs.holds)
        self._behind = list({id(m): m for m in (*self._behind, *held)}.values())

    def _charge(self, monitor: MonitorNode, began: float) -> None:
        seconds = time.monotonic() - began
        self._charged += seconds
        self._shares.charge(monitor, seconds)

    def _next_scoring(self, monitor: MonitorNode) -> Scoring[None] | None:
        began = time.monotonic()
        scoring = super()._next_scoring(monitor)
        self._charge(monitor, began)
        return None if scoring is None else self._timed(monitor, scoring)

    def _timed(
        self, monitor: MonitorNode, scoring: Scoring[None]
    ) -> Generator[Wanted, float, None]:
        """Run a scoring, and charge its time to the robot."""
        go_on: Callable[[], Wanted] = partial(next, scoring)
        while True:
            began = time.monotonic()
            try:
                wanted = go_on()
            except StopIteration:
                return
            finally:
                self._charge(monitor, began)
            try:
                score = yield wanted
            except Exception as error:  # The scoring handles the error.
                go_on = partial(scoring.throw, error)
            else:
                go_on = partial(scoring.send, score)

    # --- everything else of a node

    def _look_at(self, node: Node) -> None:
        # While a node waits for its detector, its next request waits.
        if id(node) in self._handling or len(self._handling) >= _MOST_LOADS:
            return
        self._handling.add(id(node))
        try:
            super()._look_at(node)
        finally:
            self._handling.discard(id(node))
