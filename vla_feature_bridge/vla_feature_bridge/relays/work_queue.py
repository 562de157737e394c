# SPDX-License-Identifier: Apache-2.0
"""The queue of one worker thread.

The queue is bounded, so a slow worker does not delay the connection.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vla_feature_bridge.relays.exchanges import Exchange, Seen

_MOST_ITEMS = 256
_MOST_BYTES = 256 << 20
#: How often the worker checks the time if the queue is empty [s].
_TICK = 0.1


@dataclass
class Lost:
    """An exchange was dropped, because the worker was too slow."""

    peer: str
    connection: int


class Worker:
    """One thread that handles the items of the queue in order.

    Parameters
    ----------
    handle : callable
        Takes each item. It must not raise.
    tick : callable
        Called regularly, also if the queue is empty.
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

        If the queue is full, an exchange is dropped, and :class:`Lost` is queued instead.
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
                # One Lost is enough for several exchanges: the reader only needs to notice a gap.
                return
            self._bytes += size
            self._items.append((queued, size))

    def wake(self) -> None:
        """Wake the worker, so that it handles the queue immediately."""
        with self._changed:
            self._changed.notify()

    def close(self, patience: float = 10.0) -> None:
        """Handle the queued items, then end the thread."""
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
            if is_last:  # otherwise the clock would be ahead of the handled items
                self._tick()
