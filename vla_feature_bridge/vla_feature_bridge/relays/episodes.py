# SPDX-License-Identifier: Apache-2.0
"""Finds the begin and end of episodes in the messages of a policy server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vla_feature_bridge.errors import SafeError

#: The words of ``--episode`` that each server's messages allow.
WORDS: dict[str, tuple[str, ...]] = {
    'openpi': ('instruction', 'gap', 'connection', 'none'),
    'groot': ('reset', 'instruction', 'gap', 'connection', 'none'),
    # Its clients may open a connection for each request.
    'openvla': ('instruction', 'gap', 'none'),
}


class EpisodeOptionError(SafeError):
    """The words of ``--episode`` are not valid."""


class _Sink(Protocol):
    def start(self, *, task: str = '', instruction: str = '', episode_id: str = '') -> str: ...

    def skip(self, reason: str) -> None: ...

    def end(self, success: bool | None = None, reason: str = '') -> None: ...


@dataclass(frozen=True)
class EpisodeRules:
    """Rules that end an episode. The next inference begins the next episode.

    Attributes
    ----------
    instruction : bool
        An inference with another instruction.
    gap : float
        No request for this time after a reply [s]; 0 is never.
    connection : bool
        The end of the client's connection.
    reset : bool
        The request ``reset`` of a GR00T client.
    """

    instruction: bool = False
    gap: float = 0.0
    connection: bool = False
    reset: bool = False


def parse_episode(words: Sequence[str], policy: str) -> EpisodeRules:
    """Return the rules of ``--episode WORD ...``; ``gap`` is followed by its seconds.

    Raises
    ------
    EpisodeOptionError
        A word is not one of :data:`WORDS`, or ``none`` is not alone.
    """
    left, chosen, gap = list(words), set(), 0.0
    while left:
        word = left.pop(0)
        if word not in WORDS[policy]:
            raise EpisodeOptionError(
                where='--episode',
                expected=f'words among {", ".join(WORDS[policy])}',
                found=repr(word),
            )
        chosen.add(word)
        if word == 'gap':
            gap = _seconds(left.pop(0) if left else '')
    if not chosen or ('none' in chosen and len(chosen) > 1):
        raise EpisodeOptionError(
            where='--episode',
            expected='what ends an episode, or none alone',
            found=' '.join(words) or 'nothing',
        )
    return EpisodeRules('instruction' in chosen, gap, 'connection' in chosen, 'reset' in chosen)


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise EpisodeOptionError(
            where='--episode gap',
            expected='a number of seconds above 0, such as --episode gap 5',
            found=repr(word),
        )
    return seconds


class Episodes:
    """Begins and ends the episodes of one client.

    Parameters
    ----------
    rules : EpisodeRules
    sink : StepSink
    """

    def __init__(self, rules: EpisodeRules, sink: _Sink) -> None:
        self._rules, self._sink = rules, sink
        self._runs = False
        self._instruction = ''
        self._connection = -1
        self._last = 0
        self._is_asked: set[int] = set()
        self._missed = ''

    def asked(self, connection: int, clock: int) -> None:
        """Handle a request that came at a time [ns]. Until its reply, there is no gap."""
        self.tick(clock)
        self._is_asked.add(connection)

    def answered(self, connection: int, clock: int) -> None:
        """Handle a reply that came at a time [ns]."""
        self._is_asked.discard(connection)
        self._last = max(self._last, clock)

    def before_step(self, connection: int, instruction: str) -> None:
        """Begin an episode before a step that does not belong to the running episode."""
        if self._rules.connection and connection != self._connection:
            self.end('another client connected')
        if self._rules.instruction and instruction != self._instruction:
            self.end('the instruction changed')
        if not self._runs:
            self._sink.start(instruction=instruction)
            self._runs = True
            if self._missed:
                self._sink.skip(self._missed)
        self._missed = ''
        self._instruction, self._connection = instruction, connection

    def miss(self, reason: str) -> None:
        """Handle an inference without a step, so that the reader of the steps notices the gap."""
        if self._runs:
            self._sink.skip(reason)
        if not self._runs or self._rules.instruction:
            # It may have been the first inference of the next episode.
            self._missed = reason

    def reset(self) -> None:
        """Handle the request ``reset``."""
        if self._rules.reset:
            self.end('the client reset the policy')
            self._missed = ''

    def closed(self, connection: int) -> None:
        """Handle the end of a connection."""
        self._is_asked.discard(connection)
        if self._rules.connection and connection == self._connection:
            self.end('the client disconnected')

    def tick(self, clock: int) -> None:
        """End the episode if there was no request for too long at this time [ns]."""
        gap = self._rules.gap
        if gap and not self._is_asked and (clock - self._last) * 1e-9 > gap:
            self.end(f'no inference for {gap:g} s')

    def end(self, reason: str) -> None:
        """End the episode if one runs."""
        if self._runs:
            self._sink.end(reason=reason)
            self._runs = False
