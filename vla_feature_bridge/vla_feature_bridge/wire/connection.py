# SPDX-License-Identifier: Apache-2.0
"""One connection of a sender, on the side of the bridge: a thread that reads its frames."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire.budget import Budget
from vla_feature_bridge.wire.frame import (
    MAX_HEADER,
    MAX_PAYLOAD,
    Frame,
    FrameError,
    FrameReader,
)
from vla_feature_bridge.wire.messages import (
    DECODERS,
    BridgeStatus,
    Hello,
    Image,
    decode_hello,
    encode_refusal,
    encode_status,
)

Message = PolicyStep | EpisodeEventRecord | Image
#: Time for the first frame of a connection [s], and its largest size [bytes].
HELLO_TIMEOUT = 5.0
_MAX_HELLO = 1 << 18
#: Time and number of bytes that a refused sender may still send before the connection is closed.
_DISCARD_TIME, _MAX_DISCARD = 1.0, 1 << 26
#: Events of poll if the other side has closed the connection.
_GONE = select.POLLHUP | select.POLLERR | getattr(select, 'POLLRDHUP', 0)


class Connection:
    """Reads frames until the connection ends.

    Parameters
    ----------
    channel : socket.socket
        A connected socket.
    name : str
        Its address, for errors.
    budget : Budget
        Memory for the frames of all connections.
    on_hello : callable
        ``on_hello(connection, hello)`` accepts the sender, or raises a ``SafeError``.
    on_frame : callable
        ``on_frame(connection, frame, message)`` takes one decoded message.
    on_end : callable
        ``on_end(connection, error, is_refused)`` is called once. ``error`` is empty if there was no
        error.

    Attributes
    ----------
    hello : Hello or None
        How the sender introduced itself.
    is_aborted : bool
        True if no more messages may be delivered.
    """

    def __init__(
        self,
        channel: socket.socket,
        name: str,
        budget: Budget,
        on_hello: Callable[[Connection, Hello], None],
        on_frame: Callable[[Connection, Frame, Message], None],
        on_end: Callable[[Connection, str, bool], None],
    ) -> None:
        self.name = name
        self.hello: Hello | None = None
        self._socket, self._budget = channel, budget
        self._on_hello, self._on_frame, self._on_end = on_hello, on_frame, on_end
        self.is_aborted = False
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name='safe_step_receiver', daemon=True)

    def start(self) -> None:
        """Start to read."""
        self._thread.start()

    def send_status(self, status: BridgeStatus) -> None:
        """Send a status; never waits."""
        self._send(encode_status(status))

    def refuse(self, reason: str) -> None:
        """Send the reason why the connection is closed."""
        self._send(encode_refusal(reason))
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def peer_is_gone(self) -> bool:
        """Return True if the sender has closed the connection, or has ended."""
        poll = select.poll()
        try:
            poll.register(self._socket, _GONE)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # closed on this side
            return True

    def finish(self, timeout: float) -> None:
        """Wait until everything that the sender has sent is read; then end the connection."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
            self.abort()

    def abort(self) -> None:
        """End the connection. No message is delivered any more, except a message in delivery."""
        self.is_aborted = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        error, is_refused = '', False
        reader = FrameReader(_MAX_HELLO, 0, self._budget)
        try:
            self._read(reader)
        except SafeError as found:
            error, is_refused = str(found), True
            self.refuse(error)
            self._discard_rest()
        except OSError as found:
            error = f'the connection ended: {found}'
        except Exception as found:
            error = repr(found)
        finally:
            self._budget.give_back(reader.reserved)
            self._socket.close()
            self._on_end(self, error, is_refused)

    def _read(self, reader: FrameReader) -> None:
        self._socket.settimeout(HELLO_TIMEOUT)
        hello_until = time.monotonic() + HELLO_TIMEOUT
        while not self.is_aborted:
            try:
                count = self._socket.recv_into(reader.space())
            except ConnectionResetError:  # The sender has ended without reading our last status.
                count = 0
            if count == 0:
                if not reader.is_between_frames and not self.is_aborted:
                    raise ConnectionError('in the middle of a frame')
                return
            frame = reader.filled(count)
            if self.hello is None and frame is None and time.monotonic() > hello_until:
                raise FrameError(
                    where='first frame',
                    expected=f'the whole frame within {HELLO_TIMEOUT:g} s',
                    found='a part of the frame',
                )
            if frame is not None:
                self._take(frame, reader)

    def _take(self, frame: Frame, reader: FrameReader) -> None:
        if self.hello is None:
            hello = decode_hello(frame)
            self._on_hello(self, hello)
            self.hello = hello
            reader.max_header, reader.max_payload = MAX_HEADER, MAX_PAYLOAD
            self._socket.settimeout(None)
            return
        try:
            decode = DECODERS.get(frame.kind)
            if decode is None:
                raise FrameError(
                    where='kind of a frame', expected=', '.join(DECODERS), found=frame.kind
                )
            self._on_frame(self, frame, decode(frame))
        finally:
            self._budget.give_back(frame.payload)

    def _send(self, data: bytes) -> None:
        """Send without waiting.

        If the sender does not read, the connection ends, because half a frame would be wrong.
        """
        with self._sending:
            try:
                is_sent = self._socket.send(data, socket.MSG_DONTWAIT) == len(data)
            except BlockingIOError:
                is_sent = False
            except OSError:
                return  # The sender has gone; what it sent before is still read.
            if not is_sent:
                self.abort()

    def _discard_rest(self) -> None:
        """Read for a short time: closing a socket with unread bytes would destroy the refusal."""
        left, until = _MAX_DISCARD, time.monotonic() + _DISCARD_TIME
        with suppress(OSError):
            while left > 0 and (seconds := until - time.monotonic()) > 0:
                self._socket.settimeout(seconds)
                count = len(self._socket.recv(1 << 16))
                if count == 0:
                    return
                left -= count
