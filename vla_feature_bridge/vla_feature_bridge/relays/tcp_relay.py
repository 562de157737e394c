# SPDX-License-Identifier: Apache-2.0
"""Listens for clients, and connects each client to the server.

While the server cannot be reached, the relay does not listen, so that the kernel refuses clients as
it does without a relay.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from vla_feature_bridge.relays.addresses import Address, AddressError
from vla_feature_bridge.relays.crew import Crew
from vla_feature_bridge.relays.tcp_link import Link, Watch, close

_CONNECT_TIMEOUT = 10.0
_PROBE_TIMEOUT = 2.0
#: How often the relay checks a server that cannot be reached [s].
_PROBE_PERIOD = 0.5
_MOST_CONNECTIONS = 1000
_AFTER_AN_ERROR = 0.05
#: After these times, the relay checks a server that has ended a connection [s].
_DYING = (0.01, 0.04)


class TcpRelay:
    """Forwards every connection to one address to a server.

    Parameters
    ----------
    listen, server : Address
    open_watch : callable
        Takes the address of a client and returns the watch of its new connection.
    say : callable
        Takes a line for people.
    probe : bytes
        Bytes that the relay sends to test whether the server answers, so that the server does not
        log a broken connection; empty if the server does not log a connection without bytes.

    Raises
    ------
    AddressError
        The relay cannot use the address.
    """

    def __init__(
        self,
        listen: Address,
        server: Address,
        open_watch: Callable[[str], Watch],
        say: Callable[[str], None],
        probe: bytes = b'',
    ) -> None:
        if listen == server:
            raise AddressError(
                where='--listen',
                expected='another address than --server',
                found=str(listen),
                advice='give the relay a port of its own, and that port to the client',
            )
        self.listen, self.server = listen, server
        self._open_watch, self._say, self._probe = open_watch, say, probe
        self._links: set[Link] = set()
        self._crew = Crew()
        self._lock = threading.RLock()  # A signal handler calls close().
        self._closing = threading.Event()
        self._is_down, self._deaf = threading.Event(), threading.Event()
        self._socket = self._bound()
        self._wake_in, self._wake_out = socket.socketpair()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._links)

    def run(self) -> None:
        """Forward until :meth:`close` is called."""
        told = ''
        while not self._closing.is_set():
            reason = self._reason_why_down()
            if not reason:
                self._is_down.clear()
                self._accept()
                told = ''
                continue
            if not told:
                told = reason
                self._say(
                    f'the server {self.server} cannot be reached ({reason}); clients are refused '
                    'until it answers'
                )
            self._closing.wait(_PROBE_PERIOD)
        for end in (self._socket, self._wake_in, self._wake_out):
            end.close()

    def close(self) -> None:
        """Close all connections and stop :meth:`run`."""
        self._closing.set()
        self._wake()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.stop()

    def _bound(self) -> socket.socket:
        host, port = self.listen.host, self.listen.port
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise self._cannot_listen(error) from None
        return listener

    def _accept(self) -> None:
        """Accept clients until the server is lost or the relay is closed."""
        self._deaf.clear()
        self._listen()
        self._say(f'the server {self.server} answers; clients may connect to {self.listen}')
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not (self._closing.is_set() or self._is_down.is_set()):
                for key, _ in selector.select():
                    if key.fileobj is self._wake_out:
                        self._wake_out.recv(4096)
                    else:
                        self._accept_one()
        self._socket.close()
        if not self._closing.is_set():
            # The socket is bound, but does not listen: the port stays reserved, and the kernel
            # refuses clients.
            self._socket = self._bound()
        self._deaf.set()

    def _accept_one(self) -> None:
        try:
            client, peer = self._socket.accept()[:2]
        except OSError:  # The client has left, or this process has too many open files.
            self._closing.wait(_AFTER_AN_ERROR)
            return
        client.setblocking(True)
        self._start(client, str(Address(*peer[:2])))

    def _listen(self) -> None:
        try:
            self._socket.listen(128)
        except OSError as error:  # another program had also bound the address, and listens now
            raise self._cannot_listen(error) from None
        self._socket.setblocking(False)

    def _cannot_listen(self, error: OSError) -> AddressError:
        return AddressError(
            where=f'--listen {self.listen}',
            expected='an address of this machine with a free port',
            found=error.strerror or str(error),
            advice='end the other program, or choose another port for the relay',
        )

    def _start(self, client: socket.socket, peer: str) -> None:
        if len(self._links) >= _MOST_CONNECTIONS:
            self._say(f'{peer} was refused: {_MOST_CONNECTIONS} clients are connected')
            close(client, reset=True)
            return
        try:
            self._crew.run(partial(self._serve, client, peer))
        except RuntimeError as error:  # The system cannot start another thread.
            self._say(f'{peer} was refused: {error}')
            close(client, reset=True)

    def _serve(self, client: socket.socket, peer: str) -> None:
        try:
            server = self._connected(_CONNECT_TIMEOUT)
        except OSError:
            self._server_lost()
            close(client, reset=True)
            return
        link = Link(client, server, self._open_watch(peer), self._crew.run, self._server_lost)
        with self._lock:
            self._links.add(link)
        try:
            if self._closing.is_set():
                link.stop()
            link.run()
        finally:
            with self._lock:
                self._links.discard(link)

    def _connected(self, timeout: float) -> socket.socket:
        server = socket.create_connection((self.server.host, self.server.port), timeout)
        server.settimeout(None)
        return server

    def _reason_why_down(self) -> str:
        """Return why the server cannot be reached; empty if it can."""
        try:
            server = self._connected(_PROBE_TIMEOUT)
        except OSError as error:
            return error.strerror or str(error)
        self._crew.run(partial(self._take_leave, server))
        return ''

    def _take_leave(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError), server:
            server.settimeout(_PROBE_TIMEOUT)
            server.sendall(self._probe)
            while self._probe and server.recv(4096):
                pass

    def _server_lost(self) -> None:
        """Stop listening if the server does not answer. Return as soon as clients are refused."""
        # The kernel may end the connections of a process before its listening socket.
        for pause in (0.0, *_DYING):
            time.sleep(pause)
            if self._closing.is_set():
                return
            if self._reason_why_down():
                break
        else:
            return
        self._is_down.set()
        self._wake()
        self._deaf.wait(_PROBE_TIMEOUT)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(b'.')
