# SPDX-License-Identifier: Apache-2.0
"""Receives the steps of several policies on sockets, for the bridge."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.problem_log import ProblemLog
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire.address import parse_address
from vla_feature_bridge.wire.budget import Budget
from vla_feature_bridge.wire.connection import Connection, Message
from vla_feature_bridge.wire.frame import Frame, FrameError
from vla_feature_bridge.wire.listener import Listener
from vla_feature_bridge.wire.messages import BridgeStatus, Hello
from vla_feature_bridge.wire.source import Source, SourceStatistics

LOGGER = logging.getLogger('vla_feature_bridge')
MAX_CONNECTIONS = 32
#: Number of sources that are remembered after their connections ended.
MAX_SOURCES = 64
#: How long a new connection waits until the old one of the same source is read to its end [s].
_REPLACE_TIMEOUT = 1.0
#: Memory for the frames that are being read [bytes].
MAX_MEMORY = 1 << 30
#: How long closing waits for a callback that still runs [s].
_CLOSE_TIMEOUT = 5.0


class StepReceiver:
    """Listens for senders, and gives their messages to a function.

    One thread for each connection reads, decodes and calls ``on_message``. While a call runs, this
    connection is not read. Therefore the receiver holds no queue of frames. If the function is
    slow, the sender drops its oldest steps.

    Parameters
    ----------
    addresses : sequence of str
        Where to listen: ``unix:/path`` or ``tcp://host:port``. TCP has no protection. Listen on
        127.0.0.1 unless every machine of the network may send.
    on_message : callable
        ``on_message(source, message)`` takes the name of the source and a
        :class:`~vla_feature_bridge.step.PolicyStep`, an
        :class:`~vla_feature_bridge.episode_steps.EpisodeEventRecord` or an
        :class:`~vla_feature_bridge.wire.messages.Image`. Messages of one source come one at a time
        and in order. For different sources, the function can be called by several threads at once.
    on_source : callable, optional
        ``on_source(hello, connected)`` is called when a source connects and when it disconnects. If
        a source connects again before its old connection has ended, there is one call, for the new
        connection.
    log : callable, optional
        Takes the text of a problem.

    Raises
    ------
    SafeError
        An address is wrong, or the system does not let this process listen on it.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_source: Callable[[Hello, bool], None] | None = None,
        log: Callable[[str], None] = LOGGER.warning,
    ) -> None:
        self._on_message, self._on_source, self._log = on_message, on_source, log
        self._status = BridgeStatus(False)
        self._statuses: dict[str, BridgeStatus] = {}
        self._budget = Budget(MAX_MEMORY)
        self._lock = threading.RLock()
        self._connections: set[Connection] = set()
        self._sources: dict[str, Source] = {}
        self._refusals, self._last_refusal = 0, ''
        self._problems = ProblemLog(log)
        self._is_closed = False
        self._listeners: list[Listener] = []
        try:
            for text in addresses:
                self._listeners.append(Listener(parse_address(text)))
        except SafeError:
            for listener in self._listeners:
                listener.close()
            raise
        for listener in self._listeners:
            if not listener.address.is_local:
                log(f'{listener.address}: every machine that reaches this address can send steps')
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name='safe_receiver', daemon=True)
        self._thread.start()

    @property
    def addresses(self) -> list[str]:
        """Where the receiver listens, with the ports that the system chose."""
        return [str(listener.address) for listener in self._listeners]

    @property
    def refusals(self) -> int:
        """Number of connections that were refused or ended by a wrong frame."""
        return self._refusals

    @property
    def last_refusal(self) -> str:
        """Why the last refused connection was refused; empty if no connection was refused."""
        return self._last_refusal

    def statistics(self) -> dict[str, SourceStatistics]:
        """Return the statistics of every source, by its name."""
        with self._lock:
            return {name: source.statistics() for name, source in self._sources.items()}

    def set_status(self, monitor: bool, detail: str = '', source: str | None = None) -> None:
        """Tell senders, present and future, whether steps reach a monitor.

        Parameters
        ----------
        monitor : bool
        detail : str
            Explanation for a person.
        source : str, optional
            The source whose senders get the status; default: all senders.
        """
        status = BridgeStatus(bool(monitor), detail)
        with self._lock:
            if source is None:
                is_news = status != self._status or bool(self._statuses)
                self._status = status
                self._statuses.clear()
            else:
                is_news = status != self._statuses.get(source, self._status)
                self._statuses[source] = status
            for connection in self._connections if is_news else ():
                if connection.hello is not None and source in (None, connection.hello.source):
                    connection.send_status(status)

    def close(self) -> None:
        """End all connections and stop listening; waits up to 5 s for callbacks that still run."""
        with self._lock:
            self._is_closed = True
            connections = list(self._connections)
        self._wake_write.close()
        self._thread.join()
        self._wake_read.close()
        for listener in self._listeners:
            listener.close()
        for connection in connections:
            connection.abort()
        until = time.monotonic() + _CLOSE_TIMEOUT
        for connection in connections:
            connection.join(max(0.0, until - time.monotonic()))

    def __enter__(self) -> StepReceiver:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            for listener in self._listeners:
                listener.socket.setblocking(False)
                selector.register(listener.socket, selectors.EVENT_READ, listener)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    self._accept_one(key.data)

    def _accept_one(self, listener: Listener) -> None:
        try:
            channel, _ = listener.socket.accept()
        except BlockingIOError:
            return
        except OSError as error:  # for example, no file descriptor is left
            self._problems.add('accept', f'{listener.address}: cannot accept a sender: {error}')
            time.sleep(0.1)
            return
        connection = Connection(
            channel,
            str(listener.address),
            self._budget,
            self._accept_source,
            self._deliver,
            self._end_connection,
        )
        with self._lock:
            is_full = len(self._connections) >= MAX_CONNECTIONS
            if not is_full:
                self._connections.add(connection)
        if is_full:
            self._count_refusal(f'{listener.address}: more than {MAX_CONNECTIONS} connections')
            connection.refuse(f'expected at most {MAX_CONNECTIONS} connections, found more')
            channel.close()
            return
        with suppress(OSError):  # The sender may have gone already; then the thread notices it.
            listener.address.keep_alive(channel)
        connection.start()

    def _accept_source(self, connection: Connection, hello: Hello) -> None:
        """Accept a sender, or raise why it is refused."""
        with self._lock:
            source = self._sources.setdefault(hello.source, Source(hello))
            old = source.connection
            if old is not None and self._is_another(old, hello):
                raise FrameError(
                    where=f'source {hello.source!r}',
                    expected='a name that no connected sender has',
                    found=f'one that process {source.hello.pid} has',
                    advice='give every StepSender another source, or end the other sender',
                )
            source.connect(hello, connection)
            self._forget_old_sources()
        if old is not None:
            old.finish(_REPLACE_TIMEOUT)
        with self._lock:
            connection.hello = hello
            connection.send_status(self._statuses.get(hello.source, self._status))
        if self._on_source is not None:
            self._call(source, self._on_source, hello, True)

    @staticmethod
    def _is_another(old: Connection, hello: Hello) -> bool:
        """Return True if another living sender has the name."""
        same = old.hello is not None and old.hello.instance == hello.instance
        return not same and not old.peer_is_gone()

    def _deliver(self, connection: Connection, frame: Frame, message: Message) -> None:
        assert connection.hello is not None
        source = self._sources[connection.hello.source]
        with source.turn:
            if connection.is_aborted:
                return
            source.note(frame)
            if isinstance(message, PolicyStep):
                source.note_step(message)
            elif isinstance(message, EpisodeEventRecord) and not source.is_new(frame, message):
                return
            self._call(source, self._on_message, connection.hello.source, message)

    def _call(self, source: Source, callback: Callable[..., None], *arguments: object) -> None:
        """Call into the bridge. Its errors end no connection."""
        try:
            callback(*arguments)
        except Exception as error:
            source.last_error = f'the bridge could not take a message: {error!r}'
            name = source.hello.source
            self._problems.add((name, type(error)), f'source {name!r}: {source.last_error}')

    def _end_connection(self, connection: Connection, error: str, is_refused: bool) -> None:
        """Note that a connection has ended."""
        hello = connection.hello
        with self._lock:
            self._connections.discard(connection)
            source = self._sources.get(hello.source) if hello else None
            is_present = source is not None and source.connection is connection
            if source is not None and is_present:
                source.connection = None
                source.last_error = error or source.last_error
            if self._is_closed:
                return
        name = f'source {hello.source!r}' if hello else connection.name
        if is_refused:
            self._count_refusal(f'{name}: {error}')
        elif error:
            self._problems.add(name, f'{name}: {error}')
        if source is not None and is_present and self._on_source is not None:
            self._call(source, self._on_source, hello, False)

    def _count_refusal(self, text: str) -> None:
        with self._lock:
            self._refusals += 1
            self._last_refusal = text
        self._problems.add(text, text)

    def _forget_old_sources(self) -> None:
        for name in list(self._sources):
            if len(self._sources) <= MAX_SOURCES:
                return
            if self._sources[name].connection is None:
                del self._sources[name]
