# SPDX-License-Identifier: Apache-2.0
"""Divides one direction of a ZeroMQ connection (ZMTP 3, RFC 23 of ZeroMQ) into messages."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_feature_bridge.relays.byte_stream import Body, Cutter, StreamError, Wait

#: Length of the greeting of each side [bytes].
GREETING = 64
_MAX_FRAMES = 100
_MORE, _LONG, _COMMAND = 1, 2, 4


@dataclass
class ZmtpMessage:
    """The frames of one message.

    Attributes
    ----------
    frames : list of Body
        In their order; a request of a REQ socket has an empty frame before its content.
    start, end : int
        Number of bytes of the stream before the message, and up to its end.
    """

    frames: list[Body] = field(default_factory=list)
    start: int = 0
    end: int = 0

    def content(self) -> list[Body]:
        """Return the frames after the first empty frame."""
        for place, frame in enumerate(self.frames):
            if frame.size == 0:
                return self.frames[place + 1 :]
        return []


class ZmtpCutter(Cutter):
    """Delivers a :class:`ZmtpMessage` for each message; commands such as PING are left out.

    Attributes
    ----------
    boundary : int
        Number of bytes of the stream up to the end of the last message or command.
    """

    boundary = 0

    def _messages(self) -> Wait:
        greeting = yield from self.incoming.exactly(GREETING)
        mechanism = greeting[12:32].rstrip(b'\0')
        if greeting[:1] != b'\xff' or greeting[9:10] != b'\x7f' or greeting[10] < 3:
            raise StreamError(
                where='ZeroMQ', expected='the greeting of ZMTP 3', found='another protocol'
            )
        if mechanism not in (b'NULL', b'PLAIN'):
            raise StreamError(
                where='ZeroMQ',
                expected='a connection without encryption',
                found=f'the mechanism {mechanism[:20]!r}',
            )
        self.boundary = self.incoming.consumed
        message = ZmtpMessage()
        while True:
            (flags,) = yield from self.incoming.exactly(1)
            if flags & ~(_MORE | _LONG | _COMMAND):
                raise StreamError(
                    where='ZeroMQ', expected='the flags of a frame', found=f'0x{flags:02x}'
                )
            size = int.from_bytes(
                (yield from self.incoming.exactly(8 if flags & _LONG else 1)), 'big'
            )
            frame = Body()
            yield from self.incoming.into(frame, size)
            if flags & _COMMAND:
                if not message.frames:
                    self.boundary = self.incoming.consumed
                continue
            message.frames.append(frame)
            if len(message.frames) > _MAX_FRAMES:
                raise StreamError(
                    where='ZeroMQ', expected=f'at most {_MAX_FRAMES} frames', found='more'
                )
            if not flags & _MORE:
                message.start, message.end = self.boundary, self.incoming.consumed
                self.boundary = message.end
                self._deliver(message)
                message = ZmtpMessage()


def frames_of(*bodies: bytes) -> bytes:
    """Return the bytes of a message with these frames."""
    parts = []
    for place, body in enumerate(bodies):
        more = _MORE if place < len(bodies) - 1 else 0
        if len(body) < 256:
            parts.append(bytes([more, len(body)]) + body)
        else:
            parts.append(bytes([more | _LONG]) + len(body).to_bytes(8, 'big') + body)
    return b''.join(parts)
