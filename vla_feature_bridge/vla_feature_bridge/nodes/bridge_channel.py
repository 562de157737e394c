# SPDX-License-Identifier: Apache-2.0
"""A channel forwards the steps and episodes of one source to its topics. No ROS."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from secrets import token_hex
from typing import Protocol

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.bridge_boundaries import Boundary
from vla_feature_bridge.step import PolicyStep

_KEPT_TIMES = 50
_KEPT_IDS = 100


class ChannelError(SafeError):
    """A step or an event cannot be forwarded."""


class Outputs(Protocol):
    """Interface that publishes the steps and events of a channel."""

    def publish_step(self, step: PolicyStep) -> None:
        """Publish a step."""

    def publish_event(self, event: EpisodeEventRecord) -> None:
        """Publish an event of an episode."""


@dataclass
class ChannelCounts:
    """Numbers of received, published and refused steps of a channel.

    Attributes
    ----------
    received, published : int
    refused : int
        Steps that could not be published.
    repeated : int
        Steps that came twice; only the first message is published.
    lost : int
        Steps that never arrived: missing numbers.
    outside : int
        Steps that came while no episode ran; they are not published.
    episodes : int
    """

    received: int = 0
    published: int = 0
    refused: int = 0
    repeated: int = 0
    lost: int = 0
    outside: int = 0
    episodes: int = 0


@dataclass
class Pace:
    """Arrival times of the last steps.

    Attributes
    ----------
    last : float or None
        Time of the last step on the steady clock [s]; None before the first.
    age : float
        Time from the stamp of the last step to its arrival [s].
    """

    last: float | None = None
    age: float = 0.0
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))

    def step(self, now: float, age: float) -> None:
        """Handle the arrival of a step."""
        self.last, self.age = now, age
        self._times.append(now)

    def rate(self, now: float) -> float:
        """Return the steps per second of the last steps [Hz]; 0 after a long pause."""
        times = [moment for moment in self._times if now - moment < 30.0]
        if len(times) < 2 or now - times[-1] > 3 * (times[-1] - times[0]) / (len(times) - 1) + 1:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-6)


class Channel:
    """Base class of all channels.

    Parameters
    ----------
    name : str
        Name of the source; empty if there is only one source.
    outputs : Outputs
    clock : callable
        Returns the present ROS time [ns].

    Attributes
    ----------
    default_task : str
        Task of episodes that begin in this channel without a task.
    running : str
        Id of the running episode; empty if no episode runs.
    counts : ChannelCounts
    pace : Pace
    problem : str
        The first problem of the running episode. Without a running episode: the last problem. Empty
        if there is no problem.
    problem_at : float
        When the last problem was noticed, on the steady clock [s].
    outside_at : float or None
        Arrival time of the last step that came while no episode ran; None if there was no such
        step.
    running_since : float
        When the last episode of this channel began, on the steady clock [s].
    """

    def __init__(self, name: str, outputs: Outputs, clock: Callable[[], int]) -> None:
        self.name, self.default_task = name, ''
        self.counts, self.pace = ChannelCounts(), Pace()
        self.running = ''
        self.problem = ''
        self.problem_at = self.running_since = 0.0
        self.outside_at: float | None = None
        self._problem_in = ''
        self._outputs, self._clock = outputs, clock
        self._start_record: EpisodeEventRecord | None = None
        self._ids: deque[str] = deque(maxlen=_KEPT_IDS)

    @property
    def latest_id(self) -> str:
        """Id of the running or the last episode; empty before the first episode."""
        return self.running or (self._ids[-1] if self._ids else '')

    def knows(self, episode_id: str) -> bool:
        """Return True if this is one of the last episodes."""
        return episode_id in self._ids

    def note(self, problem: str) -> None:
        """Store a problem. The first problem of an episode is kept until the episode ends."""
        if not (self._problem_in and self._problem_in == self.running):
            self.problem, self._problem_in = problem, self.running
        self.problem_at = time.monotonic()

    def problem_is_current(self, now: float, recent: float) -> bool:
        """Return True if a problem belongs to the running episode, or is recent.

        Parameters
        ----------
        now : float
            Present time on the steady clock [s].
        recent : float
            [s]
        """
        in_episode = bool(self.running) and self._problem_in == self.running
        return in_episode or now - self.problem_at < recent

    def start(self, boundary: Boundary) -> str:
        """End the running episode, begin a new episode and return the id of the new episode."""
        event = EpisodeEventRecord(
            kind='start',
            episode_id=boundary.episode_id or f'{datetime.now():%Y%m%d-%H%M%S}-{token_hex(3)}',
            task=boundary.task or self.default_task,
            instruction=boundary.instruction,
            reason=boundary.reason,
            stamp=self._clock(),
        )
        self._begin(event)
        return event.episode_id

    def end(self, boundary: Boundary) -> bool:
        """End the running episode. Return False if no episode runs."""
        if not self.running or self._start_record is None:
            return False
        self._finish(
            replace(
                self._start_record,
                kind='end',
                success=boundary.success,
                reason=boundary.reason,
                stamp=self._clock(),
            )
        )
        return True

    def take_boundary(self, boundary: Boundary | None) -> None:
        """Begin or end an episode."""
        if boundary is None:
            return
        if boundary.kind == 'start':
            self.start(boundary)
        else:
            self.end(boundary)

    def label(self, episode_id: str, success: bool | None, reason: str) -> None:
        """Publish the outcome of an episode."""
        self._outputs.publish_event(
            EpisodeEventRecord(
                kind='label',
                episode_id=episode_id,
                success=success,
                reason=reason,
                stamp=self._clock(),
            )
        )

    def _begin(self, event: EpisodeEventRecord) -> None:
        if self.running:
            self.end(Boundary('end', reason='the next episode began'))
        self.running, self._start_record = event.episode_id, event
        self._ids.append(event.episode_id)
        self.counts.episodes += 1
        self.running_since = time.monotonic()
        self._outputs.publish_event(event)

    def _finish(self, event: EpisodeEventRecord) -> None:
        self.running = ''
        self._outputs.publish_event(event)

    def _arrived(self, stamp: int) -> None:
        self.counts.received += 1
        self.pace.step(time.monotonic(), (self._clock() - stamp) * 1e-9 if stamp else 0.0)

    def _publish(self, step: PolicyStep) -> None:
        try:
            self._outputs.publish_step(step)
        except SafeError:
            self.counts.refused += 1
            raise
        self.counts.published += 1

    def _outside(self) -> None:
        self.counts.outside += 1
        self.outside_at = time.monotonic()

    def _lost(self, number: int, where: str) -> None:
        if number > 0:
            self.counts.lost += number
            self.note(f'{number} {"step is" if number == 1 else "steps are"} missing {where}')
