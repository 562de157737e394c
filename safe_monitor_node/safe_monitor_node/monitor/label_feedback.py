# SPDX-License-Identifier: Apache-2.0
"""Label feedback: each labelled episode updates the adaptive thresholds once."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from enum import Enum

import numpy as np

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.bands.adaptive_threshold import KEPT_BEYOND_WINDOW, Observation

KEPT_EPISODES = KEPT_BEYOND_WINDOW
"""Number of finished episodes that can be labelled, also with a different label than before."""


class LabelEffect(Enum):
    """Effect of a label. The value is a text for users."""

    UPDATED = 'the thresholds are updated from the next episode on'
    UNDONE = 'the update by the earlier label of this episode is undone from the next episode on'
    PENDING = 'the thresholds are updated when the episode ends'
    FAILURE = 'the thresholds do not change: a failure does not change them'
    UNKNOWN_OUTCOME = 'the thresholds do not change: this episode has not changed the thresholds'
    UNCHANGED = 'the thresholds do not change: the episode already had this label'
    UNUSABLE = (
        'the thresholds do not change: steps of the episode are missing or could not be scored, or '
        'the monitor stopped before the end of the episode'
    )
    UNKNOWN_EPISODE = (
        f'the thresholds do not change: the episode is not among the last {KEPT_EPISODES} '
        'episodes that this detector scored'
    )
    OFF = 'the thresholds do not change: adaptation_step is 0'


@dataclass(slots=True)
class _Episode:
    """Data of an episode that an update needs.

    ``nonconformity`` is known after the end of the episode, if all steps were scored;
    ``observation`` is the update that the episode caused.
    """

    episode_id: str
    scored: int = 0
    alarmed: bool = False
    invalid: bool = False
    label: bool | None = None
    task: str = ''
    nonconformity: float | None = None
    observation: Observation | None = None


class LabelFeedback:
    """Stores the last episodes and updates an adaptive band when they are labelled.

    A false alarm is a success with a score above the threshold that was used while the episode ran.
    With k of n debouncing, not every false alarm in this sense raises the alarm of the monitor. If
    the START of an episode arrives late, the band of its task is updated as if it had been used
    from the first step. Otherwise alarms of a different band would count, and the promise of this
    band would not hold. A label that arrives while its episode runs updates the band when the
    episode ends, because only then all alarms are known.

    Parameters
    ----------
    adaptation : AdaptiveBand
    steps : int
        Length of the longest episode that can be scored.
    """

    def __init__(self, adaptation: AdaptiveBand, steps: int) -> None:
        self._adaptation = adaptation
        # One array for all episodes, so that a step does not allocate memory. It stores the scores
        # and not their maximum, because a late START can change the band.
        self._scores = np.empty(steps)
        self._running: _Episode | None = None
        self._in_force = math.inf
        self._past: dict[str, _Episode] = {}

    def begin(self, episode_id: str) -> None:
        """Begin an episode; the previous episode must be finished."""
        self._running = _Episode(episode_id)

    def use(self, task: str) -> None:
        """Record the band in use. Its current threshold is used until the end of the episode."""
        self._in_force = self._adaptation.of(task).threshold

    def scored(self, index: int, score: float) -> None:
        """Store the score of a step within the band."""
        assert self._running is not None
        self._scores[index] = score
        self._running.scored += 1

    def invalidate(self) -> None:
        """Record that a step of the running episode is missing or could not be scored."""
        if self._running is not None:
            self._running.invalid = True

    def finish(self, task: str) -> None:
        """Finish the running episode, which was of this task, and update the band by its label."""
        if (episode := self._running) is None:
            return
        self._running = None
        if episode.scored and not episode.invalid:
            episode.task = self._adaptation.task_of(task)
            # No step is missing. Therefore the array contains the scores of this episode from step
            # 0 on.
            value = self._adaptation.nonconformity(task, self._scores[: episode.scored])
            episode.nonconformity = value if math.isfinite(value) else None
            episode.alarmed = value > self._in_force
        self._past.pop(episode.episode_id, None)
        self._past[episode.episode_id] = episode
        if len(self._past) > KEPT_EPISODES:
            del self._past[next(iter(self._past))]
        if episode.label:
            self._update(episode)

    def forget(self, tasks: Set[str]) -> None:
        """Forget the data of episodes of these tasks, because their bands have changed."""
        for episode in self._past.values():
            if episode.task in tasks:
                episode.nonconformity = episode.observation = None

    def label(self, episode_id: str, success: bool | None) -> LabelEffect:
        """Handle the outcome of a running or finished episode; None withdraws an earlier label."""
        running = self._running
        if running is not None and running.episode_id == episode_id:
            running.label = success
            return LabelEffect.UNUSABLE if running.invalid else LabelEffect.PENDING
        episode = self._past.get(episode_id)
        if episode is None:
            return LabelEffect.UNKNOWN_EPISODE
        if episode.label == success:
            return LabelEffect.UNCHANGED
        episode.label = success
        if episode.observation is not None:
            self._adaptation.undo(episode.task, episode.observation)
            episode.observation = None
            return LabelEffect.UNDONE
        if success:
            return self._update(episode)
        return LabelEffect.UNKNOWN_OUTCOME if success is None else LabelEffect.FAILURE

    def _update(self, episode: _Episode) -> LabelEffect:
        if episode.nonconformity is None:
            return LabelEffect.UNUSABLE
        episode.observation = self._adaptation.observe(
            episode.task, episode.nonconformity, episode.alarmed
        )
        return LabelEffect.UPDATED
