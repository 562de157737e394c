# SPDX-License-Identifier: Apache-2.0
"""The subscriptions of one robot of a fleet, with a limit of time for the events of one turn."""

from __future__ import annotations

import time
from typing import Any

from safe_monitor_node.nodes.monitor_inputs import MonitorInputs
from safe_msgs.msg import PolicyStep

_LONGEST = 0.002
_MOST_HELD = 50


class FleetInputs(MonitorInputs):
    """As `MonitorInputs`, but the events of one robot do not keep the others waiting.

    After 2 ms, the rest of the events, and the step that comes after them, wait for the next turn.
    `holds` is true then.
    """

    _until = 0.0
    _handled = False
    _stopped = False

    def next_step(self) -> tuple[PolicyStep, dict[str, Any]] | None:
        """Return the next step after its events; None if there is none, or if events are left."""
        self._until, self._handled = time.monotonic() + _LONGEST, False
        self._stopped = False
        step = super().next_step()
        if self._stopped and step is not None:
            self._step = step
            self._taken -= 1
            return None
        return step

    def _take_events(self) -> None:
        if len(self._events) < _MOST_HELD:
            super()._take_events()

    def _event_is_next(self) -> bool:
        if not super()._event_is_next():
            return False
        if self._handled and time.monotonic() > self._until:
            self._stopped = True
            return False
        self._handled = True
        return True
