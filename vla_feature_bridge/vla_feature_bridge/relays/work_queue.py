# SPDX-License-Identifier: Apache-2.0
"""Gives what was seen to one worker thread. The queue is bounded: a slow worker delays nothing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vla_feature_bridge.relays.exchanges import Exchange, Seen

_MOST_ITEMS = 256
_MOST_BYTES = 256 << 20
#: How often the worker looks at the clock if nothing happens [s].
_TICK = 0.1


@dataclass
class Lost:
    """An exchange was dropped, because the worker was behind."""

    peer: str
    connection: int


class Worker:
    """One thread that handles what was seen, in its order.

    Parameters
    ----------
    handle : callable
        Takes each item. It must not raise.
    tick : callable
        Called now and then, also if nothing was seen.
    """

    def __init__(self, handle: Callable[[Any], None], tick: Callable[[], None]) -> None:
        self._handle, self._tick = handle, tick
        self._items: deque[tuple[Seen | Lost, int]] = deque()
        self._bytes = 0
        self._exchanges = 0
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name='worker', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: Seen) -> None:
        """Queue an item without waking the worker.

        An exchange that does not fit is dropped, and :class:`Lost` is queued in its place.
        """
        queued: Seen | Lost = item
        size = 0
        with self._changed:
            if isinstance(item, Exchange):
                size = item.request.body.kept + item.reply.kept
                if self._exchanges >= _MOST_ITEMS or self._bytes + size > _MOST_BYTES:
                    queued, size = Lost(item.peer, item.connection), 0
                else:
                    self._exchanges += 1
            if isinstance(queued, Lost) and self._items and self._items[-1][0] == queued:
                return  # One gap is as long as two: the reader of the steps sees a gap.
            self._bytes += size
            self._items.append((queued, size))

    def wake(self) -> None:
        """Let the worker look at the queue now, and not only when it looks at the clock."""
        with self._changed:
            self._changed.notify()

    def close(self, patience: float = 10.0) -> None:
        """Handle what is queued, then end the thread."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(patience)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._items and not self._ending:
                    self._changed.wait(_TICK)
                if not self._items and self._ending:
                    return
                item, size = self._items.popleft() if self._items else (None, 0)
                self._bytes -= size
                self._exchanges -= isinstance(item, Exchange)
                is_last = not self._items
            if item is not None:
                self._handle(item)
            if is_last:  # else the clock would be ahead of what was seen
                self._tick()
