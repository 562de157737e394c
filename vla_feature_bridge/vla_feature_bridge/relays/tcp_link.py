# SPDX-License-Identifier: Apache-2.0
"""Forwards one TCP connection to a server byte by byte, and shows a copy of the bytes to a watch.

All bytes between client and server are forwarded unchanged: headers, pings, close codes. A reset on
one side becomes a reset on the other side, and the end of a stream becomes the end of the stream.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

_CHUNK = 64 << 10
#: If a client sends nothing after the server has closed, the relay closes the connection after this
#: time [s], like the kernel of the server (tcp_fin_timeout).
_SILENT_CLIENT = 60.0
_LINGER_ZERO = struct.pack('ii', 1, 0)


class Watch(Protocol):
    """Interface that reads the bytes of one connection.

    Its methods are called before the bytes are sent.
    """

    def from_client(self, data: bytes) -> Sequence[bytes]:
        """Return the bytes that the server gets instead of ``data``.

        Raises
        ------
        RefusedError
            The connection must end.
        """

    def from_server(self, data: bytes) -> Sequence[bytes]:
        """Return the bytes that the client gets instead of ``data``."""

    def for_client(self) -> Sequence[bytes]:
        """Return bytes of the relay itself that the client gets now."""

    def sent(self) -> None:
        """Note that the bytes of the last call were sent."""

    def server_ended(self) -> bool:
        """Handle the end of the server's stream. Return True if the server may have died."""

    def closed(self) -> None:
        """Handle the end of the connection."""


class RefusedError(Exception):
    """A watch refuses to forward the bytes of a client."""


class Link:
    """The two sockets of one connection, and the two threads that forward.

    Parameters
    ----------
    client, server : socket.socket
        Both connected and blocking. The link closes them.
    watch : Watch
    run : callable
        Runs a function in another thread.
    server_lost : callable
        Called if the server may have died, before the connection of the client ends.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        watch: Watch,
        run: Callable[[Callable[[], None]], None],
        server_lost: Callable[[], None],
    ) -> None:
        self._client, self._server, self._watch = client, server, watch
        self._run, self._server_lost = run, server_lost
        self._sending_to_client = threading.Lock()
        self._reset = False
        self._ended_first: socket.socket | None = None
        self._requests_done, self._replies_done = threading.Event(), threading.Event()
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        """Forward until both directions have ended, then close."""
        ended = threading.Event()
        try:
            self._run(partial(self._replies, ended))
        except RuntimeError:  # The system cannot start another thread.
            self._reset = True
            ended.set()
        try:
            self._forward_requests()
        finally:
            self._requests_done.set()
            ended.wait()
            for end in (self._client, self._server):
                close(end, self._reset)
            self._watch.closed()

    def reset(self) -> None:
        """End both directions; each side sees a reset."""
        self._reset = True
        for end in (self._client, self._server):
            _shut_down(end, socket.SHUT_RD)  # wakes the thread that receives, and sends nothing

    def stop(self) -> None:
        """End both directions; each side sees the end of the stream."""
        self._ended_first = self._client
        for end in (self._client, self._server):
            _shut_down(end, socket.SHUT_RDWR)

    def _replies(self, ended: threading.Event) -> None:
        try:
            self._forward_replies()
        finally:
            ended.set()

    def _forward_requests(self) -> None:
        while data := self._received(self._client):
            try:
                pieces = self._watch.from_client(data)
            except RefusedError:
                self.reset()
                return
            try:
                for piece in pieces:
                    self._server.sendall(piece)
            except OSError:
                # The other thread still reads what the server sent before it closed, and then
                # sees the reset.
                if self._replies_done.is_set():
                    self.reset()
                return
            self._send(self._watch.for_client)
            self._watch.sent()
        if not self._reset:
            _shut_down(self._server, socket.SHUT_WR)

    def _forward_replies(self) -> None:
        while data := self._received(self._server):
            if not self._send(partial(self._watch.from_server, data)):
                return
            self._watch.sent()
        if self._watch.server_ended() and self._ended_first is self._server:
            self._server_lost()
        self._replies_done.set()
        if not self._reset:
            _shut_down(self._client, socket.SHUT_WR)
            if not self._requests_done.wait(_SILENT_CLIENT):
                self.reset()

    def _received(self, source: socket.socket) -> bytes:
        """Return the next bytes; no bytes at the end of the stream and after a reset."""
        try:
            data = source.recv(_CHUNK)
        except OSError:
            data = b''
            self._ended_first = self._ended_first or source
            self.reset()
        self._ended_first = self._ended_first or (None if data else source)
        return b'' if self._reset else data

    def _send(self, pieces: Callable[[], Sequence[bytes]]) -> bool:
        """Send to the client. Return False if the client has disconnected."""
        with self._sending_to_client:
            try:
                for piece in pieces():
                    self._client.sendall(piece)
            except OSError:
                self.reset()
                return False
        return True


def close(end: socket.socket, reset: bool = False) -> None:
    """Close a socket; with ``reset`` the other side sees a reset instead of an end."""
    with contextlib.suppress(OSError):
        if reset:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        end.close()


def _shut_down(end: socket.socket, direction: int) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(direction)
