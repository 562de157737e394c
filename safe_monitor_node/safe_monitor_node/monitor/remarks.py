# SPDX-License-Identifier: Apache-2.0
"""Warnings about accepted events and steps that are probably mistakes. No ROS."""

from __future__ import annotations

from safe_monitor_node.monitor.step_order import shown, steps

RECENT = 10.0
"""How long a remark is shown after the last occurrence of its cause [s]."""

_KEPT_IDS = 1000
_SAME_ID = 'use the same episode_id in vla/episode and in vla/policy_step'


class Remarks:
    """Remarks about the events and steps of the last seconds, for a person.

    A START without steps, or an END without START, usually means that one of the two topics has a
    wrong episode id. A repeated step is ignored, but it means that a node publishes it twice.
    """

    def __init__(self) -> None:
        self._remarks: dict[str, tuple[float, str]] = {}
        self._new: list[str] = []
        # Hashes, because an id can be as long as a message.
        self._known: dict[int, None] = {}
        self._started = ''
        # Whether the episode of the last START waits for its first step.
        self._waits = False
        self._repeated = 0

    def _say(self, about: str, text: str, now: float) -> None:
        if about not in self._remarks:
            self._new.append(text)
        self._remarks[about] = now, text

    def tick(self, now: float) -> None:
        """Forget old remarks."""
        self._remarks = {
            about: (seen, text)
            for about, (seen, text) in self._remarks.items()
            if now - seen < RECENT
        }

    @property
    def texts(self) -> list[str]:
        """The remarks of the last seconds."""
        return [text for _, text in self._remarks.values()]

    def take_new(self) -> list[str]:
        """Return the remarks that were not returned before, for the log."""
        new, self._new = self._new, []
        return new

    def knows(self, episode_id: str) -> bool:
        """Return whether a START or a step of the episode has arrived."""
        return hash(episode_id) in self._known

    def know(self, episode_id: str) -> None:
        """Record that a START or a step of the episode has arrived."""
        self._known[hash(episode_id)] = None
        if len(self._known) > _KEPT_IDS:
            del self._known[next(iter(self._known))]

    def started(self, episode_id: str, now: float, *, has_steps: bool) -> None:
        """Handle the START of an episode; its first steps may have come earlier."""
        if self._waits and episode_id != self._started:
            self._remark_start(f'START of episode {shown(episode_id)}', now)
        self._started, self._waits = episode_id, not has_steps
        self.know(episode_id)

    def start_came_late(self, episode_id: str, running_id: str, now: float) -> None:
        """Handle a START that was published before the first step of the running episode."""
        text = (
            f'START of episode {shown(episode_id)} was ignored: it was published before the first '
            f'step of the running episode {shown(running_id)}, and arrived after it; if the clocks '
            'of two computers differ, synchronise them'
        )
        self._say('late', text, now)

    def end_came_late(self, episode_id: str, now: float) -> None:
        """Handle the END of the last episode, which had the id of the running episode."""
        text = (
            f'END of episode {shown(episode_id)} was ignored, and its outcome too: it was '
            'published before the first step of the running episode, and belongs to the last '
            'episode, which had the same episode_id; give each episode its own id; if the clocks '
            'of two computers differ, synchronise them'
        )
        self._say('late end', text, now)

    def stepped(self, episode_id: str, now: float) -> None:
        """Handle a step of the running episode."""
        if self._waits and episode_id != self._started:
            self._remark_start(f'a step of episode {shown(episode_id)}', now)
        self._waits = False
        self.know(episode_id)

    def _remark_start(self, instead: str, now: float) -> None:
        episode = shown(self._started)
        text = (
            f'START of episode {episode}: expected a step of this episode next, found {instead}; '
            f'{_SAME_ID}'
        )
        self._say('start', text, now)

    def ended(self, episode_id: str, now: float) -> None:
        """Handle the END of an episode."""
        episode = shown(episode_id)
        if not self.knows(episode_id):
            text = f'expected START or a step with this id before END, found none; {_SAME_ID}'
            self._say('end', f'END of episode {episode}: {text}', now)
        elif self._waits and episode_id == self._started:
            self._waits = False
            text = f'expected a step with this id before END, found none; {_SAME_ID}'
            self._say('end', f'END of episode {episode}: {text}', now)

    def repeated(self, episode_id: str, index: int, now: float) -> None:
        """Handle a step that came again and is ignored."""
        if 'repeated' not in self._remarks:
            self._repeated = 0
        self._repeated += 1
        self._say(
            'repeated',
            f'{steps(self._repeated)} {_was(self._repeated)} ignored, because of repetition or '
            f'late arrival; the last ignored step is step {index} of episode {shown(episode_id)}',
            now,
        )

    def publisher_changed(self, episode_id: str, index: int, now: float) -> None:
        """Handle the step at which another publisher takes over an episode."""
        text = (
            f'episode {shown(episode_id)}: the publisher of the steps has changed at step {index}'
        )
        self._say('publisher', text, now)


def _was(count: int) -> str:
    return 'was' if count == 1 else 'were'
