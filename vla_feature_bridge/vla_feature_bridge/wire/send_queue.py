# SPDX-License-Identifier: Apache-2.0
"""The queue of frames to send. A full queue drops its oldest steps first, and events last."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Outgoing:
    """One frame that waits to be sent.

    Attributes
    ----------
    kind : str
        ``'step'``, ``'image'``, ``'start'``, ``'end'`` or ``'label'``.
    data : bytes
        The whole frame.
    again : bytes
        The frame of an event for sending it again over another connection; empty for others.
    """

    kind: str
    data: bytes
    again: bytes = b''


#: Order in which kinds are dropped. Without events, a reader could not distinguish episodes.
_DROP_ORDER = (('image',), ('step',), ('start', 'end', 'label'))


class SendQueue:
    """Frames in the order in which they were made.

    Parameters
    ----------
    depth : int
        Largest number of frames.
    size : int
        Largest number of bytes.

    Attributes
    ----------
    dropped : Counter
        Number of frames of each kind that were dropped.
    """

    def __init__(self, depth: int, size: int) -> None:
        self.depth, self.size = depth, size
        self.dropped: Counter[str] = Counter()
        self._frames: deque[Outgoing] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def bytes(self) -> int:
        """Number of bytes that wait."""
        return self._bytes

    def put(self, frame: Outgoing) -> None:
        """Append a frame. If the queue is then too long, drop the oldest frames."""
        with self._lock:
            self._frames.append(frame)
            self._bytes += len(frame.data)
            while len(self._frames) > 1 and (
                len(self._frames) > self.depth or self._bytes > self.size
            ):
                self._drop_one()

    def take(self) -> Outgoing | None:
        """Return and remove the oldest frame; None if nothing waits."""
        with self._lock:
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._bytes -= len(frame.data)
            return frame

    def _drop_one(self) -> None:
        for kinds in _DROP_ORDER:
            for place, frame in enumerate(self._frames):
                if frame.kind in kinds:
                    del self._frames[place]
                    self._bytes -= len(frame.data)
                    self.dropped[frame.kind] += 1
                    return
