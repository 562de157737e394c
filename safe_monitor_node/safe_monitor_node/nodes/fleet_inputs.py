# SPDX-License-Identifier: Apache-2.0
"""The subscriptions of one robot of a fleet, with a limit of time for the events of one turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from safe_monitor_node.nodes.monitor_inputs import MonitorInputs
from safe_monitor_node.nodes.publication_order import PublicationOrder, Taken
from safe_msgs.msg import PolicyStep

_LONGEST = 0.002
_MOST_HELD = 50


class LimitedOrder(PublicationOrder):
    """A `PublicationOrder` with a time limit, after which it returns neither events nor the step.

    Parameters
    ----------
    longest : float
        The limit [s].
    now : callable
        The steady time [s].

    Attributes
    ----------
    late : bool
        True if a message was not returned because the time was over.
    """

    def __init__(
        self, longest: float = _LONGEST, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._longest, self._now = longest, now
        self.begin()

    @property
    def held(self) -> int:
        """Number of events that wait."""
        return len(self._events)

    def begin(self) -> None:
        """Begin the time. The first event is always returned."""
        self._until = self._now() + self._longest
        self._given = self.late = False

    def next_event(self) -> Taken | None:
        """Return the next event, if it comes before `step` and the time is not over."""
        event = super().next_event()
        if event is None:
            return None
        if self._given and self._now() > self._until:
            self.late = True
            self._events.appendleft((event, 0))
            return None
        self._given = True
        return event

    def take_step(self) -> Taken | None:
        """Return `step` and forget it; None if it is not known or must wait."""
        return None if self.late else super().take_step()


class FleetInputs(MonitorInputs):
    """A `MonitorInputs` whose events do not delay the other robots.

    After 2 ms, the other events and the step after them wait for the next turn. Then `holds` is
    true.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._order: LimitedOrder = LimitedOrder()

    @property
    def publishers(self) -> tuple[int, ...]:
        """The number of publishers of each topic, and of publishers that are alive.

        To count takes a tenth of the time of `findings`. While the numbers are the same, the
        findings are the same, unless one publisher takes the place of another publisher.
        """
        topics = [watch.topic for watch in self._inputs]
        topics += [watch.topic for watch in self._outputs]
        counts = (self._node.count_publishers(topic) for topic in topics)
        return (*counts, *(output.alive for output in self._outputs))

    def next_step(self) -> tuple[PolicyStep, Mapping[str, Any]] | None:
        """Return the next step after its events; None if there is none, or if events are left."""
        self._order.begin()
        return super().next_step()

    def _waiting_events(self) -> list[Taken]:
        return super()._waiting_events() if self._order.held < _MOST_HELD else []
