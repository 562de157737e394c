# SPDX-License-Identifier: Apache-2.0
"""Sorts events and steps by their time of publication, and finds lost events. No ROS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

Taken = tuple[Any, Mapping[str, Any]]
"""A message, and its information from the middleware: ``source_timestamp`` [ns], 0 if unknown."""

_KEPT_NUMBERS = 100


class EventNumbers:
    """Finds lost events by the numbers that each publisher gives to its messages: 1, 2, 3, ...

    The middleware does not say which publisher has sent a message. Therefore a message continues
    any publisher whose last number is one less. A publisher can be found after its first messages.
    """

    def __init__(self) -> None:
        self._last: list[int] = []

    def shows_loss(self, number: int | None, publishers: Callable[[], int]) -> bool:
        """Return whether messages before this message are lost.

        Parameters
        ----------
        number : int or None
            Number of the message; None if the middleware has no numbers.
        publishers : callable
            Returns the number of publishers that are connected.
        """
        if number is None:
            return False
        lost, last = False, self._last
        if number - 1 in last:
            last.remove(number - 1)
        elif number > 1 and last and len(last) >= publishers():
            lost = True
            if earlier := [one for one in last if one < number]:
                last.remove(max(earlier))
        self._last = [*last, number][-_KEPT_NUMBERS:]
        return lost


class PublicationOrder:
    """Returns each event after all steps that were published before it, and before all other steps.

    Steps and events are two topics, and a subscriber gets the messages of two topics in any order.
    After a pause of its process, the END of an episode and the last steps of this episode wait at
    the same time.

    The clocks of two computers can differ. Therefore an event waits for no more steps than could
    wait when it came.

    Attributes
    ----------
    step : tuple or None
        The step that comes next; None if it is not known.
    """

    def __init__(self) -> None:
        self.step: Taken | None = None
        # Each event, and the number of returned steps after which the event waits no longer.
        self._events: deque[tuple[Taken, int]] = deque()
        self._steps_returned = 0

    @property
    def holds(self) -> bool:
        """True if a message waits here."""
        return bool(self._events) or self.step is not None

    def clear(self) -> None:
        """Forget all messages."""
        self.step = None
        self._events.clear()

    def put_events(self, events: list[Taken], most_steps: int) -> None:
        """Add events that have come, in the order of their arrival.

        Parameters
        ----------
        events : list of tuple
        most_steps : int
            Largest number of steps for which each event waits.
        """
        if not events:
            return
        latest = self._steps_returned + most_steps
        self._events.extend((event, latest) for event in events)
        if len(self._events) > 1:
            # Events of several publishers can arrive in another order.
            by_time = sorted(self._events, key=lambda entry: _time_of(entry[0]))
            self._events = deque(by_time)

    def next_event(self) -> Taken | None:
        """Return the next event, if it comes before `step`; otherwise None."""
        if not self._events:
            return None
        event, latest = self._events[0]
        if (
            self.step is not None
            and self._steps_returned < latest
            and _time_of(self.step) < _time_of(event)
        ):
            return None
        self._events.popleft()
        return event

    def take_step(self) -> Taken | None:
        """Return `step` and forget it; None if it is not known."""
        step, self.step = self.step, None
        if step is not None:
            self._steps_returned += 1
        return step


def _time_of(taken: Taken) -> int:
    return int(taken[1]['source_timestamp'])
