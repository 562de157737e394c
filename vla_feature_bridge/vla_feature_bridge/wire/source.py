# SPDX-License-Identifier: Apache-2.0
"""What the receiver remembers of a source: its connection, its last event, its statistics."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire.frame import Frame
from vla_feature_bridge.wire.messages import Hello, dropped_before, is_resent

if TYPE_CHECKING:
    from vla_feature_bridge.wire.connection import Connection


@dataclass(frozen=True)
class SourceStatistics:
    """What a receiver knows about a source.

    Attributes
    ----------
    hello : Hello
        How it introduced itself last.
    connected : bool
    address : str
        Where it connected last.
    connections : int
        Number of connections up to now.
    frames, steps, bytes : int
        Number of complete frames, of steps among them, and of their bytes.
    missing : int
        Number of steps that did not arrive, by the numbers of the steps that did.
    dropped : int
        Number of steps that the present sender reports as dropped.
    last_error : str
        Empty if there was none.
    last_frame : float or None
        Time of the last frame by ``time.monotonic()`` [s]; None if none has arrived.
    """

    hello: Hello
    connected: bool = False
    address: str = ''
    connections: int = 0
    frames: int = 0
    steps: int = 0
    bytes: int = 0
    missing: int = 0
    dropped: int = 0
    last_error: str = ''
    last_frame: float | None = None


class Source:
    """A policy process, over all its connections.

    Parameters
    ----------
    hello : Hello
        How it introduced itself first.

    Attributes
    ----------
    connection : Connection or None
        The present connection.
    turn : threading.Lock
        Held while a message is handed on, so that messages of two connections do not mix.
    """

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.connection: Connection | None = None
        self.turn = threading.Lock()
        self.address, self.last_error = '', ''
        self._connections = self._frames = self._steps = self._bytes = 0
        self._missing = self._dropped = 0
        self._last_frame: float | None = None
        self._episode_id, self._expected = '', 0
        self._last_event: tuple[str, str] | None = None

    def connect(self, hello: Hello, connection: Connection) -> None:
        """Note a new connection."""
        self.hello, self.connection, self.address = hello, connection, connection.name
        self._connections += 1

    def note(self, frame: Frame) -> None:
        """Count a frame.

        Raises
        ------
        FrameError
            It lacks the count of dropped steps.
        """
        self._frames += 1
        self._bytes += frame.size
        self._last_frame = time.monotonic()
        self._dropped = dropped_before(frame)

    def note_step(self, step: PolicyStep) -> None:
        """Count a step, and the steps that are missing before it."""
        if step.episode_id != self._episode_id:
            self._episode_id, self._expected = step.episode_id, 0
        self._steps += 1
        self._missing += max(0, step.step - self._expected)
        self._expected = step.step + 1

    def is_new(self, frame: Frame, event: EpisodeEventRecord) -> bool:
        """Return False if an event that is sent again was received before.

        Raises
        ------
        FrameError
            The frame does not say whether the event is sent again.
        """
        key = (event.kind, event.episode_id)
        if is_resent(frame) and key == self._last_event:
            return False
        if event.kind in ('start', 'end'):
            self._last_event = key
        return True

    def statistics(self) -> SourceStatistics:
        """Return what is known now."""
        return SourceStatistics(
            hello=self.hello,
            connected=self.connection is not None,
            address=self.address,
            connections=self._connections,
            frames=self._frames,
            steps=self._steps,
            bytes=self._bytes,
            missing=self._missing,
            dropped=self._dropped,
            last_error=self.last_error,
            last_frame=self._last_frame,
        )
