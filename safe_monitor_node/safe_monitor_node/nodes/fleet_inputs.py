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
    """As `PublicationOrder`, but for a limited time: then neither events nor the step are given.

    Parameters
    ----------
    longest : float
        The limit [s].
    now : callable
        The steady time [s].

    Attributes
    ----------
    late : bool
        Whether something was not given because the time was over.
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
        """Begin the time. The first event is given in any case."""
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
        """Return `step`, which is given now; None if it is not known, or has to wait."""
        return None if self.late else super().take_step()


class FleetInputs(MonitorInputs):
    """As `MonitorInputs`, but the events of one robot do not keep the others waiting.

    After 2 ms, the rest of the events, and the step that comes after them, wait for the next turn.
    `holds` is true then.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._order: LimitedOrder = LimitedOrder()

    @property
    def publishers(self) -> tuple[int, ...]:
        """How many publishers the topics of this robot have, and how many of those are alive.

        It takes a tenth of the time of `findings`, which cannot be new while this is the same,
        except if one publisher takes the place of another one.
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
