# SPDX-License-Identifier: Apache-2.0
"""The thread of a sender: connects, sends a hello and the waiting frames, and connects again."""

from __future__ import annotations

import atexit
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.wire.address import Address
from vla_feature_bridge.wire.frame import Frame, FrameError, FrameReader
from vla_feature_bridge.wire.messages import (
    BridgeStatus,
    Hello,
    decode_refusal,
    decode_status,
    encode_hello,
)
from vla_feature_bridge.wire.send_queue import Outgoing, SendQueue

LOGGER = logging.getLogger('vla_feature_bridge')
#: The command that starts the bridge, for error texts: with ROS 2 installed, or in a checkout.
START_BRIDGE = 'ros2 run vla_feature_bridge bridge, or ./dev run vla_feature_bridge bridge'
#: Time for connecting, and time for the first answer of the bridge [s].
CONNECT_TIMEOUT = 2.0
#: Pauses between attempts to connect [s]: the first, the longest, and after a refusal.
FIRST_PAUSE, LONGEST_PAUSE, PAUSE_AFTER_REFUSAL = 0.1, 2.0, 5.0
#: The bridge sends short frames only [bytes].
_MAX_ANSWER = 1 << 18
#: How long a closing sender waits until the bridge has read everything [s].
_CLOSING = 0.5

_OPEN: set[Link] = set()


class RefusedError(SafeError):
    """The bridge refuses this sender."""


class Link:
    """Connection to the bridge, kept by a thread.

    Parameters
    ----------
    address : Address
    hello : Hello
    queue : SendQueue
    problem : callable
        Takes the kind and the text of a problem.

    Attributes
    ----------
    state : str
        ``'connecting'``, ``'connected'``, ``'refused'`` or ``'closed'``.
    status : BridgeStatus
        The last report of the bridge over the present connection.
    sent_steps : int
        Number of steps that were completely passed to the system.
    """

    def __init__(
        self,
        address: Address,
        hello: Hello,
        queue: SendQueue,
        problem: Callable[[object, str], None],
    ) -> None:
        self.state = 'connecting'
        self.status = BridgeStatus(False)
        self.sent_steps = 0
        self._address, self._hello, self._queue, self._problem = address, hello, queue, problem
        self._socket: socket.socket | None = None
        self._outgoing: Outgoing | None = None
        self._rest = memoryview(b'')
        self._last_event: Outgoing | None = None
        self._is_repeating = False
        self._reported = ''
        self._deadline: float | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        _OPEN.add(self)
        self._thread = threading.Thread(target=self._run, name='safe_step_sender', daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of frames that wait to be sent, or are being sent."""
        return len(self._queue) + (self._outgoing is not None)

    def wake(self) -> None:
        """Notify the thread that frames wait."""
        # An error means that the thread has not yet read earlier calls, or has ended.
        with suppress(OSError):
            self._wake_write.send(b'x')

    def close(self, timeout: float) -> None:
        """Send the waiting frames for at most ``timeout`` seconds, and end the thread."""
        if self.state == 'closed':
            return
        self._deadline = time.monotonic() + timeout
        self.wake()
        self._thread.join(timeout + _CLOSING)
        if lost := self.waiting:
            self._report(f'closed, but {lost} steps and events were not sent: they are lost')
        self._set_closed()

    def release(self) -> None:
        """Close the sockets in a forked child; the connection of the parent stays open."""
        for end in (self._socket, self._wake_read, self._wake_write):
            if end is not None:
                end.close()  # not shutdown: this would end the connection of the parent
        self._set_closed()

    def _set_closed(self) -> None:
        self.state, self.status = 'closed', BridgeStatus(False)
        _OPEN.discard(self)

    def _is_over(self) -> bool:
        deadline = self._deadline
        if deadline is None:
            return False
        return not self.waiting or time.monotonic() >= deadline

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._is_over():
            try:
                self._connect()
                pause = FIRST_PAUSE
                self._exchange()
            except SafeError as error:  # refused, or the answer is not from a bridge
                self._report(str(error))
                self._disconnect('refused')
                self._sleep(PAUSE_AFTER_REFUSAL)
            except Exception as error:
                self._report(
                    f'no connection to the bridge ({error or type(error).__name__}); the newest '
                    f'steps wait, and the sender tries again; start the bridge: {START_BRIDGE}'
                )
                self._disconnect('connecting')
                self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self._disconnect('closed')
        self._wake_read.close()
        self._wake_write.close()
        self._set_closed()

    def _report(self, text: str) -> None:
        """Report a problem once until the next connection."""
        if text != self._reported:
            self._reported = text
            self._problem(('link', text), text)

    def _connect(self) -> None:
        """Connect and send the hello of the sender. Return when the bridge accepts the sender."""
        self._socket = self._address.connect(CONNECT_TIMEOUT)
        self._address.keep_alive(self._socket)
        self._socket.sendall(encode_hello(self._hello))
        self._reader = FrameReader(_MAX_ANSWER, 0)
        answer_by = time.monotonic() + CONNECT_TIMEOUT
        while self.state != 'connected':
            self._socket.settimeout(max(0.01, answer_by - time.monotonic()))
            self._receive()
        self._socket.setblocking(False)
        self._say_connected()
        if self._last_event is not None:
            self._is_repeating = True
            self._rest = memoryview(self._last_event.again)

    def _say_connected(self) -> None:
        """Log the connection; after a problem as a warning, so that the log shows its end."""
        level = logging.WARNING if self._reported else logging.INFO
        text = f'connected as {self._hello.source!r}'
        if self.waiting:
            text += f'; {self.waiting} steps and events that waited are sent now'
        LOGGER.log(level, '%s: %s', self._address, text)
        self._reported = ''

    def _exchange(self) -> None:
        """Send and receive until the connection or the sender ends."""
        assert self._socket is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            selector.register(self._socket, selectors.EVENT_READ)
            while not self._is_over():
                try:
                    blocked = self._send()
                except OSError:
                    self._read_last_answer()
                    raise
                if self._is_over():
                    break
                interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
                selector.modify(self._socket, interest)
                for key, events in selector.select(self._time_left()):
                    if key.fileobj is self._wake_read:
                        self._empty_wake()
                    elif events & selectors.EVENT_READ:
                        self._receive()
        self._finish_sending()

    def _send(self) -> bool:
        """Send the waiting frames. Return True if the system takes no more bytes before the end."""
        assert self._socket is not None
        while self._rest or self._next():
            try:
                count = self._socket.send(self._rest)
            except BlockingIOError:
                return True
            self._rest = self._rest[count:]
            if not self._rest:
                self._sent()
        return False

    def _next(self) -> bool:
        if self._outgoing is None:
            self._outgoing = self._queue.take()
        if self._outgoing is None:
            return False
        self._rest = memoryview(self._outgoing.data)
        return True

    def _sent(self) -> None:
        done = self._outgoing
        if self._is_repeating:
            self._is_repeating = False
            return
        assert done is not None
        self._outgoing = None
        if done.kind == 'step':
            self.sent_steps += 1
        elif done.again:
            self._last_event = done

    def _receive(self) -> bool:
        """Read a part of a frame of the bridge. Return False if no byte has arrived."""
        assert self._socket is not None
        try:
            count = self._socket.recv_into(self._reader.space())
        except BlockingIOError:
            return False
        if count == 0:
            raise ConnectionError('the bridge closed the connection')
        frame = self._reader.filled(count)
        if frame is not None:
            self._handle(frame)
        return True

    def _handle(self, frame: Frame) -> None:
        if frame.kind == 'status':
            self.status = decode_status(frame)
            self.state = 'connected'
        elif frame.kind == 'refused':
            raise RefusedError(
                f'the bridge refuses {self._hello.source!r}: {decode_refusal(frame)}'
            )
        else:
            raise FrameError(
                where='answer of the bridge', expected='status or refused', found=frame.kind
            )

    def _read_last_answer(self) -> None:
        """Read the last frames of a bridge that closed the connection; raises its refusal."""
        with suppress(OSError):
            while self._receive():
                pass

    def _finish_sending(self) -> None:
        """Wait until the bridge has read everything. An earlier close could destroy frames."""
        assert self._socket is not None
        self._socket.settimeout(_CLOSING)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._read_last_answer()

    def _disconnect(self, state: str) -> None:
        self.state, self.status = state, BridgeStatus(False)
        self._rest, self._is_repeating = memoryview(b''), False
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _sleep(self, seconds: float) -> None:
        """Pause; a sender that closes tries again soon."""
        if self._deadline is not None:
            time.sleep(FIRST_PAUSE)
            return
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0 and self._deadline is None:
                selector.select(left)
                self._empty_wake()

    def _time_left(self) -> float | None:
        """Return how long a closing sender may wait [s]; None if it is not closing."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _empty_wake(self) -> None:
        """Read all bytes of :meth:`wake`."""
        with suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass


def _close_all() -> None:
    for link in list(_OPEN):
        link.close(timeout=1.0)


atexit.register(_close_all)
