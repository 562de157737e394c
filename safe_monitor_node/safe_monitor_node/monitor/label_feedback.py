# SPDX-License-Identifier: Apache-2.0
"""What labelled episodes teach the thresholds: once each, and taken back when a label is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.bands.adaptive_threshold import TAKE_BACKS, Observation

KEPT_EPISODES = TAKE_BACKS
"""How many episodes that are over can still be labelled, and be labelled otherwise."""


class Lesson(Enum):
    """What became of a label; the value says it to a person."""

    LEARNED = 'learned from: the next episode has another threshold'
    TAKEN_BACK = 'what was learned from it is taken back, from the next episode on'
    NOTED = 'noted: what it teaches is learned when the episode ends'
    FAILURE = 'nothing is learned from it: failures do not move the threshold'
    UNKNOWN_OUTCOME = 'nothing was learned from it, and nothing is'
    UNCHANGED = 'it was labelled so before'
    UNUSABLE = (
        'nothing is learned from it: steps of it are missing, could not be judged, or were not '
        'watched to the end'
    )
    UNKNOWN_EPISODE = (
        f'nothing is learned from it: it is none of the last {KEPT_EPISODES} episodes that this '
        'detector judged'
    )
    OFF = 'nothing is learned from it: adaptation_step is 0'


@dataclass(slots=True)
class _Episode:
    """What is known of an episode; ``nonconformity`` once it is over and was judged as a whole."""

    episode_id: str
    judged: int = 0
    alarmed: bool = False
    spoiled: bool = False
    label: bool | None = None
    task: str = ''
    nonconformity: float | None = None
    observation: Observation | None = None


class Lessons:
    """Keeps what the last episodes can teach, and teaches it to an adaptive band.

    A false alarm is a success of which a score lay above the threshold of the band that learns from
    it, as that stood while the episode ran; with k of n debouncing not every one of them raises the
    alarm. Of an episode whose START came late the band of its task learns, as if it had judged the
    first steps too: what another band made of them would break what holds of its own sequence. A
    label that comes while its episode runs is learned when it ends: only then is it known whether
    there was an alarm.

    Parameters
    ----------
    adaptation : AdaptiveBand
    steps : int
        The longest episode that is judged.
    """

    def __init__(self, adaptation: AdaptiveBand, steps: int) -> None:
        self.adaptation = adaptation
        # One array for every episode: a step must not allocate. Scores and not their running
        # maximum, for a START that comes late may say that they belong to another band.
        self._scores = np.empty(steps)
        self._running: _Episode | None = None
        self._in_force = math.inf
        self._past: dict[str, _Episode] = {}

    def begin(self, episode_id: str) -> None:
        """Begin an episode; one that runs must have been finished."""
        self._running = _Episode(episode_id)

    def use(self, task: str) -> None:
        """Note which band judges from now on: its threshold stays in force until the end."""
        self._in_force = self.adaptation.of(task).threshold

    def judged(self, step: int, score: float) -> None:
        """Take the score of a step within the band."""
        assert self._running is not None
        self._scores[step] = score
        self._running.judged += 1

    def spoil(self) -> None:
        """Note that a step of the running episode is missing or could not be judged."""
        if self._running is not None:
            self._running.spoiled = True

    def finish(self, task: str) -> None:
        """Finish the running episode, which was one of this task, and learn from its label."""
        if (episode := self._running) is None:
            return
        self._running = None
        if episode.judged and not episode.spoiled:
            episode.task = self.adaptation.task_of(task)
            # Nothing is missing, so the scores of this episode fill the array from step 0 on.
            value = self.adaptation.nonconformity(task, self._scores[: episode.judged])
            episode.nonconformity = value if math.isfinite(value) else None
            episode.alarmed = value > self._in_force
        self._past.pop(episode.episode_id, None)
        self._past[episode.episode_id] = episode
        if len(self._past) > KEPT_EPISODES:
            del self._past[next(iter(self._past))]
        if episode.label:
            self._learn(episode)

    def label(self, episode_id: str, success: bool | None) -> Lesson:
        """Take the outcome of an episode, running or over; None takes an earlier label back."""
        running = self._running
        if running is not None and running.episode_id == episode_id:
            running.label = success
            return Lesson.UNUSABLE if running.spoiled else Lesson.NOTED
        episode = self._past.get(episode_id)
        if episode is None:
            return Lesson.UNKNOWN_EPISODE
        if episode.label == success:
            return Lesson.UNCHANGED
        episode.label = success
        if episode.observation is not None:
            self.adaptation.forget(episode.task, episode.observation)
            episode.observation = None
            return Lesson.TAKEN_BACK
        if success:
            return self._learn(episode)
        return Lesson.UNKNOWN_OUTCOME if success is None else Lesson.FAILURE

    def _learn(self, episode: _Episode) -> Lesson:
        if episode.nonconformity is None:
            return Lesson.UNUSABLE
        episode.observation = self.adaptation.observe(
            episode.task, episode.nonconformity, episode.alarmed
        )
        return Lesson.LEARNED
