# SPDX-License-Identifier: Apache-2.0
"""Divides one direction of a WebSocket connection (RFC 6455) into messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_feature_bridge.relays.byte_stream import Body, Cutter, StreamError, Wait

_CONTINUATION, _TEXT, _BINARY, _CLOSE = 0x0, 0x1, 0x2, 0x8
_CONTROL = (_CLOSE, 0x9, 0xA)
_MAX_CONTROL = 125


@dataclass
class WebsocketMessage:
    """One message of any number of frames, or the close frame. Pings and pongs are left out."""

    kind: Literal['binary', 'text', 'close']
    body: Body


class WebsocketCutter(Cutter):
    """Delivers a :class:`WebsocketMessage` for each message of one direction."""

    def _messages(self) -> Wait:
        message: WebsocketMessage | None = None
        while True:
            first, second = yield from self.incoming.exactly(2)
            code, final = first & 0x0F, bool(first & 0x80)
            if first & 0x70:
                raise StreamError(
                    where='WebSocket',
                    expected='frames without an extension',
                    found='a frame of an extension such as permessage-deflate',
                    advice='connect with compression=None',
                )
            size = yield from self._size(second & 0x7F)
            mask = (yield from self.incoming.exactly(4)) if second & 0x80 else b''
            if code in _CONTROL:
                yield from self._control(code, size, mask)
                continue
            message = _continued(message, code)
            yield from self.incoming.into(message.body, size, mask)
            if final:
                self._deliver(message)
                message = None

    def _size(self, short: int) -> Wait:
        if short < 126:
            return short
        return int.from_bytes((yield from self.incoming.exactly(2 if short == 126 else 8)), 'big')

    def _control(self, code: int, size: int, mask: bytes) -> Wait:
        if size > _MAX_CONTROL:
            raise StreamError(
                where='WebSocket',
                expected=f'a control frame of at most {_MAX_CONTROL} bytes',
                found=str(size),
            )
        body = Body()
        yield from self.incoming.into(body, size, mask)
        if code == _CLOSE:
            self._deliver(WebsocketMessage('close', body))


def _continued(message: WebsocketMessage | None, code: int) -> WebsocketMessage:
    """Return the message that a data frame belongs to."""
    if message is None and code in (_TEXT, _BINARY):
        return WebsocketMessage('text' if code == _TEXT else 'binary', Body())
    if message is not None and code == _CONTINUATION:
        return message
    raise StreamError(
        where='WebSocket', expected='a frame that starts or continues a message', found=f'{code}'
    )
