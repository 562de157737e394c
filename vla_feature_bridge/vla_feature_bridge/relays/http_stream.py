# SPDX-License-Identifier: Apache-2.0
"""Divides one direction of an HTTP/1.1 connection (RFC 9112) into messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vla_feature_bridge.relays.byte_stream import Body, Cutter, StreamError, Wait

_MAX_HEAD = 64 << 10
_MAX_CHUNK_LINE = 4096
_NO_BODY = (204, 304)


@dataclass
class HttpMessage:
    """One request or reply.

    Attributes
    ----------
    first_line : str
        The request line or the status line.
    headers : dict of str to str
        By lower-case name.
    body : Body
        The body, without the frames of the chunked coding.
    """

    first_line: str
    headers: dict[str, str]
    body: Body = field(default_factory=Body)

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.first_line.split(' ')[0]

    @property
    def path(self) -> str:
        """The path of a request, without the query."""
        return (self.first_line.split(' ') + [''])[1].partition('?')[0]

    @property
    def status(self) -> int:
        """The status of a reply; 0 if it is not a number."""
        word = (self.first_line.split(' ') + [''])[1]
        return int(word) if word.isdecimal() and len(word) == 3 else 0


class RequestCutter(Cutter):
    """Delivers an :class:`HttpMessage` for each request; stops where the protocol changes.

    Parameters
    ----------
    deliver : callable
        Called with each complete request.
    methods : deque of str
        Gets the method of each request as soon as its head is there; the cutter of the replies
        needs it.
    """

    def __init__(self, deliver: Callable[[Any], None], methods: deque[str]) -> None:
        super().__init__(deliver)
        self._methods = methods

    def _messages(self) -> Wait:
        while True:
            message = yield from _head(self)
            self._methods.append(message.method)
            if 'upgrade' in message.headers:
                # The next bytes are HTTP only if the server declines.
                self._deliver(message)
                return
            yield from _sized_body(self, message)
            self._deliver(message)


class ReplyCutter(Cutter):
    """Delivers an :class:`HttpMessage` for each final reply; stops after 101.

    Parameters
    ----------
    deliver : callable
        Called with each complete reply.
    methods : deque of str
        The methods of the requests without a reply, oldest first.
    """

    def __init__(self, deliver: Callable[[Any], None], methods: deque[str]) -> None:
        super().__init__(deliver)
        self._methods = methods
        self._until_end: HttpMessage | None = None

    def _messages(self) -> Wait:
        while True:
            message = yield from _head(self)
            if message.status == 101:
                self._deliver(message)
                return
            if 100 <= message.status < 200:
                continue
            method = self._methods.popleft() if self._methods else ''
            if method != 'HEAD' and message.status not in _NO_BODY:
                if not {'content-length', 'transfer-encoding'} & message.headers.keys():
                    self._until_end = message
                    yield from self.incoming.into(message.body, 1 << 62)
                yield from _sized_body(self, message)
            self._deliver(message)

    def end(self) -> None:
        if self._until_end is not None:
            self._deliver(self._until_end)
            self._until_end = None


def _head(cutter: Cutter) -> Wait:
    text = ''
    while not text:  # empty lines before a request are allowed
        text = str((yield from cutter.incoming.until(b'\r\n', _MAX_HEAD)), 'latin-1')
    if 'HTTP/1.' not in text:
        raise StreamError(where='HTTP', expected='HTTP/1.1', found='another protocol')
    message = HttpMessage(text, {})
    left = _MAX_HEAD
    while line := (yield from cutter.incoming.until(b'\r\n', left)):
        left = max(1, left - len(line))
        name, _, value = str(line, 'latin-1').partition(':')
        message.headers[name.strip().lower()] = value.strip()
    return message


def _sized_body(cutter: Cutter, message: HttpMessage) -> Wait:
    if 'chunked' in message.headers.get('transfer-encoding', '').lower():
        yield from _chunks(cutter, message)
        return
    word = message.headers.get('content-length', '0')
    if not (word.isdecimal() and len(word) < 20):
        raise StreamError(where='HTTP', expected='Content-Length as a number', found=word[:40])
    yield from cutter.incoming.into(message.body, int(word))


def _chunks(cutter: Cutter, message: HttpMessage) -> Wait:
    while True:
        line = yield from cutter.incoming.until(b'\r\n', _MAX_CHUNK_LINE)
        word = line.partition(b';')[0].strip()
        try:
            size = int(word, 16) if len(word) <= 16 else -1
        except ValueError:
            size = -1
        if size < 0:
            raise StreamError(where='HTTP', expected='the size of a chunk', found=repr(word[:40]))
        if size == 0:
            break
        yield from cutter.incoming.into(message.body, size)
        yield from cutter.incoming.exactly(2)
    while (yield from cutter.incoming.until(b'\r\n', _MAX_HEAD)):  # trailers
        pass
