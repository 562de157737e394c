# SPDX-License-Identifier: Apache-2.0
"""Divides a copy of a byte stream into messages: the base class for the three protocols.

A cutter is a generator that yields when it needs more bytes. It keeps references to the received
bytes and copies only the headers, because it runs in the thread that forwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError

#: A message above this size is forwarded, but not decoded [bytes].
LONGEST_MESSAGE = 64 << 20
_MOST_PIECES = 1 << 16
#: Largest number of bytes that wait after the header of a request to change the protocol.
_MOST_BEHIND = 1 << 16

#: Types that the generator of a cutter yields, receives and returns.
Wait = Generator[None, None, Any]


class StreamError(SafeError):
    """Bytes do not follow the protocol that the relay was started for."""


class Body:
    """The bytes of one message, in the pieces in which they arrived.

    Attributes
    ----------
    size : int
        Number of bytes, also if the bytes of the message were not kept.
    complete : bool
        False if the message is longer than :data:`LONGEST_MESSAGE`, or arrived in very many pieces;
        its bytes were not kept.
    """

    def __init__(self) -> None:
        self.size = 0
        self.complete = True
        self._pieces: list[tuple[bytes, memoryview]] = []

    @property
    def kept(self) -> int:
        """Number of kept bytes."""
        return self.size if self.complete else 0

    def add(self, piece: memoryview, mask: bytes = b'') -> None:
        """Append bytes.

        ``mask`` is the mask of a WebSocket frame, rotated so that its first byte belongs to the
        first byte of ``piece``.
        """
        self.size += len(piece)
        if self.size > LONGEST_MESSAGE or len(self._pieces) >= _MOST_PIECES:
            self.complete = False
            self._pieces.clear()
        elif self.complete:
            self._pieces.append((mask, piece))

    def joined(self) -> bytes:
        """Return the bytes of the message, without masks."""
        return b''.join(_unmasked(piece, mask) for mask, piece in self._pieces)


def _unmasked(piece: memoryview, mask: bytes) -> bytearray | memoryview:
    if not mask:
        return piece
    found = bytearray(piece)
    words = len(found) // 4
    np.frombuffer(found, np.uint32, words)[:] ^= np.frombuffer(mask, np.uint32)
    for place in range(4 * words, len(found)):
        found[place] ^= mask[place % 4]
    return found


class Incoming:
    """Bytes that have arrived and were not consumed yet.

    Attributes
    ----------
    consumed : int
        How many bytes were consumed since the start of the stream.
    """

    def __init__(self) -> None:
        self.consumed = 0
        self._size = 0
        self._pieces: deque[memoryview] = deque()

    def put(self, data: bytes) -> None:
        """Append received bytes."""
        if data:
            self._pieces.append(memoryview(data))
            self._size += len(data)

    @property
    def arrived(self) -> int:
        """Number of bytes that have arrived since the start of the stream."""
        return self.consumed + self._size

    def rest(self) -> bytes:
        """Return everything that was not consumed."""
        return b''.join(self.some(len(piece)) for piece in list(self._pieces))

    def some(self, most: int) -> memoryview:
        """Return the next bytes, at least one and at most ``most``."""
        piece = self._pieces.popleft()
        if len(piece) > most:
            self._pieces.appendleft(piece[most:])
            piece = piece[:most]
        self._size -= len(piece)
        self.consumed += len(piece)
        return piece

    def exactly(self, count: int) -> Wait:
        """Wait for ``count`` bytes and return them."""
        while self._size < count:
            yield
        found = b''
        while len(found) < count:
            found += bytes(self.some(count - len(found)))
        return found

    def into(self, body: Body, count: int, mask: bytes = b'') -> Wait:
        """Move the next ``count`` bytes into a body while they arrive."""
        moved = 0
        while moved < count:
            while not self._pieces:
                yield
            turn = moved % 4
            piece = self.some(count - moved)
            body.add(piece, mask[turn:] + mask[:turn])
            moved += len(piece)

    def until(self, end: bytes, most: int) -> Wait:
        """Wait for a separator and return the bytes before it.

        Raises
        ------
        StreamError
            The separator did not come within ``most`` bytes.
        """
        found = bytearray()
        while True:
            while not self._pieces:
                yield
            start = max(0, len(found) - len(end) + 1)
            piece = self._pieces[0][:most]
            found += piece
            place = found.find(end, start)
            if place >= 0:
                self.some(len(piece) - (len(found) - place - len(end)))
                return bytes(found[:place])
            self.some(len(piece))
            if len(found) >= most:
                raise StreamError(expected=f'{end!r} within {most} bytes', found='none')


class Cutter(ABC):
    """Base class: feeds a generator that divides the stream, and delivers each message.

    Parameters
    ----------
    deliver : callable
        Called with each message as soon as it is complete.
    """

    def __init__(self, deliver: Callable[[Any], None]) -> None:
        self.incoming = Incoming()
        self._deliver = deliver
        self._run = self._messages()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream.

        Raises
        ------
        StreamError
            The bytes do not follow the protocol. The rest of the stream cannot be divided.
        """
        self.incoming.put(data)
        try:
            next(self._run)
        except StopIteration:
            if self.incoming.arrived - self.incoming.consumed > _MOST_BEHIND:
                raise StreamError(
                    expected='the answer to a request to change the protocol', found='more bytes'
                ) from None

    def end(self) -> None:  # noqa: B027  (most streams have nothing to do then)
        """Handle the end of the stream."""

    @abstractmethod
    def _messages(self) -> Wait: ...
