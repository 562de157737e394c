# SPDX-License-Identifier: Apache-2.0
"""The messages of the last seconds, bounded in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

#: Memory of a message in addition to its bytes: the object, and its place in the window.
_OVERHEAD = 250


@dataclass(slots=True, eq=False)
class Entry:
    """One received message.

    Attributes
    ----------
    topic : int
        Number of its topic.
    time : int
        Steady time of its arrival [ns].
    published : int
        Time at which its publisher sent it [ns of the system clock]; 0 if it is not known.
    data : bytes
        The serialized message.
    holders : int
        Number of holders of the message: the window, and recordings that are not written yet.
    """

    topic: int
    time: int
    published: int
    data: bytes
    holders: int = 0


class Memory:
    """Counts the bytes of all kept messages. Safe to use from several threads.

    Parameters
    ----------
    limit : int
        Largest number of bytes.

    Attributes
    ----------
    used : int
        Present number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()

    def hold(self, entries: Iterable[Entry]) -> None:
        """Count one more holder of each entry."""
        with self._lock:
            for entry in entries:
                if not entry.holders:
                    self.used += len(entry.data) + _OVERHEAD
                entry.holders += 1

    def release(self, entries: Iterable[Entry]) -> None:
        """Remove one holder of each entry."""
        with self._lock:
            for entry in entries:
                entry.holders -= 1
                if not entry.holders:
                    self.used -= len(entry.data) + _OVERHEAD


@dataclass(slots=True)
class _Episode:
    name: str
    begun: int
    last_step: int = -1
    ended: int | None = None


class Window:
    """Keeps messages as long as a recording may need them and the memory is sufficient.

    Parameters
    ----------
    span : int
        Time before an alarm that its recording needs [ns].
    memory : Memory
    whole_episodes : bool
        Keep the episode that was running ``span`` ago from its first message on.
    latched : set of int
        Topics whose last message is kept after it leaves the window, like latched topics.

    Attributes
    ----------
    dropped : int
        Number of messages younger than ``span`` that left the window, because the memory was full.
    dropped_until : int
        Time of the last message that was dropped for this reason [ns]. Recordings that begin
        earlier are incomplete.
    """

    def __init__(
        self, span: int, memory: Memory, whole_episodes: bool, latched: frozenset[int] = frozenset()
    ) -> None:
        self._span, self._memory, self._whole = span, memory, whole_episodes
        self._latched = latched
        self._entries: deque[Entry] = deque()
        self._episodes: deque[_Episode] = deque()
        self._left: dict[int, Entry] = {}
        self.dropped, self.dropped_until = 0, -1

    def __len__(self) -> int:
        return len(self._entries)

    def _latest(self, episode: str) -> _Episode | None:
        return next((known for known in reversed(self._episodes) if known.name == episode), None)

    def began(self, episode: str, now: int) -> None:
        """Note the START of an episode; its first step may have arrived earlier."""
        known = self._latest(episode)
        if known is None or known.last_step > 0 or known.ended is not None:
            self._episodes.append(_Episode(episode, now))

    def ended(self, episode: str, now: int) -> None:
        """Note the END of an episode."""
        for known in self._episodes:
            if known.name == episode and known.ended is None:
                known.ended = now

    def stepped(self, episode: str, step: int, now: int) -> None:
        """Note a step: an episode can begin without a START, and again with the same id."""
        known = self._latest(episode)
        if known is None or (step == 0 and known.last_step > 0):
            self._episodes.append(_Episode(episode, now, step))
        else:
            known.last_step = max(known.last_step, step)

    def add(self, entry: Entry, keep_from: int | None) -> None:
        """Keep a message, and remove messages that are too old.

        Parameters
        ----------
        entry : Entry
        keep_from : int or None
            Time from which running recordings need all messages [ns].
        """
        self._memory.hold((entry,))
        self._entries.append(entry)
        self.forget(entry.time, keep_from)
        while self._entries and self._memory.used > self._memory.limit:
            self.dropped_until = self._entries[0].time
            self.dropped += self.dropped_until >= entry.time - self._span
            self._let_go()

    def forget(self, now: int, keep_from: int | None) -> None:
        """Remove messages that no recording can need."""
        oldest = self.beginning(now)
        if keep_from is not None:
            oldest = min(oldest, keep_from)
        while self._entries and self._entries[0].time < oldest:
            self._let_go()
        while len(self._episodes) > 1 and self._episodes[1].begun <= oldest:
            self._episodes.popleft()

    def _let_go(self) -> None:
        entry = self._entries.popleft()
        if entry.topic in self._latched:
            self._left[entry.topic] = entry
        self._memory.release((entry,))

    def beginning(self, now: int) -> int:
        """Return the time [ns] at which the recording of an alarm at ``now`` begins."""
        start = now - self._span
        if self._whole:
            for episode in reversed(self._episodes):
                if episode.begun <= start:
                    running = episode.ended is None or episode.ended >= start
                    return episode.begun if running else start
        return start

    def take(self, start: int) -> list[Entry]:
        """Return the messages since a time, preceded by the last message of each latched topic.

        The caller must release the messages after use.
        """
        entries = [entry for entry in self._entries if entry.time >= start]
        before: dict[int, Entry] = dict(self._left)
        for entry in self._entries:
            if entry.time >= start:
                break
            if entry.topic in self._latched:
                before[entry.topic] = entry
        latched = [
            Entry(entry.topic, start, entry.published, entry.data) for entry in before.values()
        ]
        taken = latched + entries
        self._memory.hold(taken)
        return taken

    def clear(self) -> None:
        """Remove all messages."""
        self._memory.release(self._entries)
        self._entries.clear()
        self._episodes.clear()
        self._left.clear()
