# SPDX-License-Identifier: Apache-2.0
"""Keeps the messages of the last seconds and writes a recording for each alarm.

Files are written in a separate thread, so that a slow disk does not delay the messages.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from safe_monitor_node.black_box.folder import (
    RecordingFolder,
    RecordingFolderError,
    recording_name,
)
from safe_monitor_node.black_box.window import Entry, Memory, Window
from vla_feature_bridge.mcap_writer import Channel, McapWriter

LIBRARY = 'safe_monitor_node black_box'
FACTS = 'safe_black_box'
"""Name of the metadata record with the facts of a recording."""

_SECOND = 1_000_000_000
#: Time between two looks at the folder [s]. A problem must be reported before the next alarm.
_LOOK_AGAIN = 2.0
#: Number of recordings that wait for the disk, without the recording that is being written.
_WAITING = 2
#: Size of a file without its messages [bytes]: definitions, and the index of each message.
_FIXED_BYTES, _BYTES_A_MESSAGE = 64 * 1024, 64
_LONGEST_TEXT = 2000


@dataclass(frozen=True)
class Span:
    """What a recording contains.

    Attributes
    ----------
    before, after : float
        Time before and after the alarm [s].
    whole_episodes : bool
        Begin with the start of the episode that was running ``before`` seconds before the alarm.
    """

    before: float
    after: float
    whole_episodes: bool = True


@dataclass
class Pending:
    """A recording that still collects messages.

    Attributes
    ----------
    episode, cause : str
        Episode of the alarm, and why there is a recording.
    triggered, start, end : int
        Steady times of the first alarm, of the first message and of the end [ns].
    alarms : int
    """

    episode: str
    cause: str
    triggered: int
    start: int
    end: int
    alarms: int = 1


@dataclass
class _Job:
    pending: Pending
    name: str
    facts: dict[str, str]
    entries: list[Entry]
    #: System time minus steady time [ns].
    offset: int


@dataclass
class Counts:
    """Numbers of written and lost recordings, for ``/diagnostics``.

    Attributes
    ----------
    written, lost : int
        Number of recordings.
    last : str
        Path of the last recording.
    problem : str
        Why the latest recording was lost; empty if the latest recording was written.
    """

    written: int = 0
    lost: int = 0
    last: str = ''
    problem: str = ''
    news: list[tuple[bool, str]] = field(default_factory=list)


class BlackBox:
    """Keeps the last serialized messages, and writes them when an alarm is raised.

    An alarm within ``after`` seconds of the first alarm of a recording belongs to the same
    recording, which then ends ``after`` seconds after the last of these alarms. A later alarm gets
    its own recording.

    Parameters
    ----------
    channels : sequence of Channel
        The topics; messages name them by their position.
    latched : frozenset of int
        Positions of the latched topics.
    span : Span
    memory : int
        Largest size of all messages in memory, including messages that are being written [bytes].
    folder : RecordingFolder
        Opened.

    Attributes
    ----------
    counts : Counts
    memory : Memory
    window : Window
    pending : list of Pending
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        latched: frozenset[int],
        span: Span,
        memory: int,
        folder: RecordingFolder,
    ) -> None:
        self._channels, self._span, self._folder = channels, span, folder
        self.memory = Memory(memory)
        before = int(span.before * _SECOND)
        self.window = Window(before, self.memory, span.whole_episodes, latched)
        self.pending: list[Pending] = []
        self.counts = Counts()
        self._writing = threading.Event()
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name='black box', daemon=True)
        self._thread.start()

    # --- messages

    def take(self, topic: int, data: bytes, published: int, now: int) -> None:
        """Keep a message.

        Parameters
        ----------
        topic : int
            Position in ``channels``.
        data : bytes
        published : int
            Time at which the message was sent [ns of the system clock]; 0 if it is not known.
        now : int
            Steady time [ns].
        """
        self.window.add(Entry(topic, now, published, data), self._keep_from())

    def _keep_from(self) -> int | None:
        return min((pending.start for pending in self.pending), default=None)

    def trigger(self, episode: str, cause: str, now: int) -> None:
        """Begin a recording, or extend the recording of a recent alarm."""
        after = int(self._span.after * _SECOND)
        for pending in self.pending:
            if now <= pending.triggered + after:
                pending.end = now + after
                pending.alarms += 1
                return
        start = self.window.beginning(now)
        self.pending.append(Pending(episode, cause, now, start, now + after))

    def tick(self, now: int) -> None:
        """Pass complete recordings to the thread; call this method often."""
        for pending in [pending for pending in self.pending if pending.end <= now]:
            self.pending.remove(pending)
            self._hand_over(pending)
        self.window.forget(now, self._keep_from())

    def _hand_over(self, pending: Pending) -> None:
        entries = self.window.take(pending.start)
        offset = time.time_ns() - time.monotonic_ns()
        triggered = pending.triggered + offset
        missing = self.window.dropped_until >= pending.start
        facts = {
            'episode_id': pending.episode[:_LONGEST_TEXT],
            'cause': pending.cause[:_LONGEST_TEXT],
            'triggered_at_ns': str(triggered),
            'alarms': str(pending.alarms),
            'seconds_before': f'{self._span.before:g}',
            'seconds_after': f'{self._span.after:g}',
            'complete': 'no: memory_mb was too small' if missing else 'yes',
        }
        name = recording_name(pending.episode, triggered / _SECOND)
        try:
            self._jobs.put_nowait(_Job(pending, name, facts, entries, offset))
        except queue.Full:
            self.memory.release(entries)
            self._lose(
                f'{self._folder.path / name}: expected a disk that writes a recording before the '
                f'next alarms, found {_WAITING + 1} recordings that are not written yet; the '
                'recording is lost'
            )

    def close(self, timeout: float = 5.0) -> None:
        """Write all pending recordings immediately, and end the thread.

        Parameters
        ----------
        timeout : float
            Longest time [s]; a disk that hangs must not keep the process alive.
        """
        deadline = time.monotonic() + timeout
        for pending in self.pending:
            self._hand_over(pending)
        self.pending = []
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=timeout)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._lose(f'{self._folder.path}: the disk did not finish within {timeout:g} s')
        self.window.clear()

    @property
    def writing(self) -> bool:
        """Whether a file is being written."""
        return self._writing.is_set() or not self._jobs.empty()

    # --- the thread

    def _write_all(self) -> None:
        while (job := self._next_job()) is not None:
            self._writing.set()
            try:
                self._write(job)
            except RecordingFolderError as error:
                self._lose(str(error))
            except Exception as error:  # The thread must keep running for the next recording.
                self._lose(f'{self._folder.path / job.name}: {type(error).__name__}: {error}')
            finally:
                self.memory.release(job.entries)
                del job
                self._writing.clear()

    def _next_job(self) -> _Job | None:
        """Wait for the next job, and look at the folder meanwhile; None at the end."""
        while True:
            try:
                return self._jobs.get(timeout=_LOOK_AGAIN)
            except queue.Empty:
                self._folder.look()

    def _write(self, job: _Job) -> None:
        size = sum(len(entry.data) + _BYTES_A_MESSAGE for entry in job.entries) + _FIXED_BYTES
        path: Path = self._folder.store(job.name, size, self._writer_of(job))
        self.counts.written += 1
        self.counts.last, self.counts.problem = str(path), ''
        text = f'wrote {path}: {len(job.entries)} messages, {job.pending.cause[:200]}'
        self.counts.news.append((True, text))

    def _writer_of(self, job: _Job) -> Callable[[BinaryIO], None]:
        def write(stream: BinaryIO) -> None:
            writer = McapWriter(stream, LIBRARY)
            for channel in self._channels:
                writer.add_channel(channel)
            for entry in job.entries:
                received = entry.time + job.offset
                writer.write(entry.topic, received, entry.published or received, entry.data)
            # rosbag2 warns if it does not find this record.
            writer.add_metadata('rosbag2', {'serialized_metadata': ''})
            writer.add_metadata(FACTS, job.facts)
            writer.close()

        return write

    def _lose(self, problem: str) -> None:
        self.counts.lost += 1
        self.counts.problem = problem
        self.counts.news.append((False, problem))
