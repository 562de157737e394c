# SPDX-License-Identifier: Apache-2.0
"""Pairs the requests and the replies of a connection while their bytes are forwarded.

A watch runs in the threads that forward. It divides the bytes into messages, and puts them into the
queue of the worker, which decodes them. A watch never disturbs the connection: if the bytes do not
follow the protocol, they are still forwarded, but the connection is no longer watched.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vla_feature_bridge.relays.byte_stream import Body, Cutter, StreamError
from vla_feature_bridge.relays.http_stream import HttpMessage, ReplyCutter, RequestCutter
from vla_feature_bridge.relays.websocket_stream import WebsocketCutter, WebsocketMessage
from vla_feature_bridge.relays.zmtp_stream import ZmtpCutter, ZmtpMessage

#: If a client sends more requests without waiting for replies, it is no longer watched.
_MOST_WAITING = 64

Kind = Literal['reply', 'error', 'compressed']


@dataclass
class Request:
    """A request that was seen completely.

    Attributes
    ----------
    body : Body
    path : str
        ``POST /act`` of HTTP; empty for other protocols.
    stamp : int
        When its last byte arrived [ns since 1970].
    clock : int
        The same on the monotonic clock [ns].
    """

    body: Body
    path: str = ''
    stamp: int = field(default_factory=time.time_ns)
    clock: int = field(default_factory=time.monotonic_ns)


@dataclass
class Asked:
    """A request was sent; its exchange follows when it is answered."""

    peer: str
    connection: int
    clock: int


@dataclass
class Exchange:
    """A request and its reply.

    Attributes
    ----------
    peer : str
        Address of the client.
    connection : int
        Number of the connection.
    request : Request
    reply : Body
    kind : str
        ``'error'`` if the protocol marks the reply as an error; ``'compressed'`` if its body is
        compressed; otherwise ``'reply'``.
    clock : int
        When the last byte of the reply arrived, on the monotonic clock [ns].
    """

    peer: str
    connection: int
    request: Request
    reply: Body
    kind: Kind = 'reply'
    clock: int = field(default_factory=time.monotonic_ns)

    @property
    def seconds(self) -> float:
        """From the last byte of the request to the last byte of the reply [s]."""
        return (self.clock - self.request.clock) * 1e-9


@dataclass
class Closed:
    """A connection has ended."""

    peer: str
    connection: int


@dataclass
class Unwatched:
    """The rest of a connection is not watched."""

    peer: str
    connection: int
    reason: str


@dataclass
class Blocked:
    """A request was answered by the relay and did not reach the server."""

    peer: str
    connection: int


Seen = Asked | Exchange | Closed | Unwatched | Blocked
#: Function that receives the items of a watch.
Report = Callable[[Seen], None]


class Watching(ABC):
    """Base class of the watches: pairs requests and replies in their order.

    Parameters
    ----------
    peer : str
        Address of the client.
    connection : int
        Number of the connection.
    report : callable
        Called with each item.
    wake : callable
        Called when the worker may begin. This is only after the bytes were sent, so that the worker
        does not slow down the thread that sends.
    """

    def __init__(
        self, peer: str, connection: int, report: Report, wake: Callable[[], None]
    ) -> None:
        self._peer, self._connection, self._report, self._wake = peer, connection, report, wake
        self._has_news = False
        self._lock = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._is_watched = True

    def from_client(self, data: bytes) -> Sequence[bytes]:
        self._look(self._take_request_bytes, data)
        return (data,)

    def from_server(self, data: bytes) -> Sequence[bytes]:
        self._look(self._take_reply_bytes, data)
        return (data,)

    def for_client(self) -> Sequence[bytes]:
        return ()

    def sent(self) -> None:
        if self._has_news:
            self._has_news = False
            self._wake()

    def server_ended(self) -> bool:
        return bool(self._waiting)

    def closed(self) -> None:
        self._report(Closed(self._peer, self._connection))
        self._wake()

    @abstractmethod
    def _take_request_bytes(self, data: bytes) -> None: ...

    @abstractmethod
    def _take_reply_bytes(self, data: bytes) -> None: ...

    def _look(self, take: Callable[[bytes], None], data: bytes) -> None:
        with self._lock:
            if not self._is_watched:
                return
            try:
                take(data)
            except Exception as error:
                # Any error in this code must not stop the bytes.
                self._is_watched = False
                self._waiting.clear()
                text = str(error) if isinstance(error, StreamError) else repr(error)
                self._report(Unwatched(self._peer, self._connection, text))

    def _asked(self, body: Body, path: str = '') -> None:
        if len(self._waiting) >= _MOST_WAITING:
            raise StreamError(
                expected=f'at most {_MOST_WAITING} requests without a reply', found='more'
            )
        request = Request(body, path)
        self._waiting.append(request)
        self._report(Asked(self._peer, self._connection, request.clock))

    def _answered(self, body: Body, kind: Kind = 'reply') -> None:
        if self._waiting:
            request = self._waiting.popleft()
            self._report(Exchange(self._peer, self._connection, request, body, kind))
            self._has_news = True


class HttpWatching(Watching):
    """Watches HTTP/1.1: each request with its reply."""

    def __init__(
        self, peer: str, connection: int, report: Report, wake: Callable[[], None]
    ) -> None:
        super().__init__(peer, connection, report, wake)
        methods: deque[str] = deque()
        self._requests: Cutter = RequestCutter(self._on_request, methods)
        self._replies: Cutter = ReplyCutter(self._on_reply, methods)

    def server_ended(self) -> bool:
        self._look(lambda _: self._replies.end(), b'')
        return super().server_ended()

    def _take_request_bytes(self, data: bytes) -> None:
        self._requests.feed(data)

    def _take_reply_bytes(self, data: bytes) -> None:
        self._replies.feed(data)

    def _on_request(self, message: HttpMessage) -> None:
        self._asked(message.body, f'{message.method} {message.path}')

    def _on_reply(self, message: HttpMessage) -> None:
        kind: Kind = 'reply' if message.status == 200 else 'error'
        if message.headers.get('content-encoding', 'identity') != 'identity':
            kind = 'compressed'
        self._answered(message.body, kind)


class WebsocketWatching(HttpWatching):
    """Watches a WebSocket connection: each binary message of the client with the next reply.

    The server's messages before the first request are its metadata.
    """

    _is_websocket = False
    _client_says_goodbye = False

    def server_ended(self) -> bool:
        # The server also ends the connection after the close frame of the client.
        return not self._client_says_goodbye if self._is_websocket else super().server_ended()

    def _on_reply(self, message: HttpMessage) -> None:
        if message.status != 101:
            super()._on_reply(message)
            return
        self._waiting.clear()
        self._is_websocket = True
        before = self._requests.incoming, self._replies.incoming
        self._requests = WebsocketCutter(self._on_client_message)
        self._replies = WebsocketCutter(self._on_server_message)
        for incoming, cutter in zip(before, (self._requests, self._replies), strict=True):
            cutter.feed(incoming.rest())

    def _on_client_message(self, message: WebsocketMessage) -> None:
        if message.kind == 'binary':
            self._asked(message.body)
        elif message.kind == 'close':
            self._client_says_goodbye = True

    def _on_server_message(self, message: WebsocketMessage) -> None:
        if message.kind != 'close':
            self._answered(message.body, 'reply' if message.kind == 'binary' else 'error')


class ZmtpWatching(Watching):
    """Watches a ZeroMQ connection of a REQ socket."""

    def __init__(
        self, peer: str, connection: int, report: Report, wake: Callable[[], None]
    ) -> None:
        super().__init__(peer, connection, report, wake)
        self._requests = ZmtpCutter(self._on_request)
        self._replies = ZmtpCutter(self._on_reply)

    def server_ended(self) -> bool:
        return True  # A ZeroMQ server keeps its connections until it ends.

    def _take_request_bytes(self, data: bytes) -> None:
        self._requests.feed(data)

    def _take_reply_bytes(self, data: bytes) -> None:
        self._replies.feed(data)

    def _on_request(self, message: ZmtpMessage) -> None:
        if content := message.content():  # A REP socket drops messages without an empty frame.
            self._asked(content[0])

    def _on_reply(self, message: ZmtpMessage) -> None:
        content = message.content()
        self._answered(content[0] if content else Body())
