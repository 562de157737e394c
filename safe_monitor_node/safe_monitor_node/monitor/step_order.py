# SPDX-License-Identifier: Apache-2.0
"""Finds the place of a step: in the running episode, in a new episode, or in no episode. No ROS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

from safe_monitor_node.monitor.steps import Publication, StepId

_KEPT_CONTENTS = 10_000
_NEW_EPISODE = (
    'for a new episode, use a different episode_id, or send END and START, or stamp the steps with '
    'the ROS time'
)
_ONE_NODE = 'let only one node publish the steps of an episode'
_SHOWN_OF_ID = 60
#: Shorter pauses are normal on a busy machine [ns].
_PAUSE = 2_000_000_000
#: The middleware can deliver a step as late as this [s].
_LATEST = 10.0


class Placement(Enum):
    """Kind of the place of a step."""

    NEXT = auto()
    """It is the next step of the running episode."""
    REPEATED = auto()
    """It came before, or it belongs to an episode whose END has just come; it is ignored."""
    NOWHERE = auto()
    """It belongs to no episode, or it contradicts an earlier step."""


@dataclass(frozen=True)
class Place:
    """The place of a step.

    Attributes
    ----------
    placement : Placement
    problem : str
        Why the episode can no longer be scored, for any `placement`; empty if it can be scored.
    missing : int
        Number of steps that are missing before this step.
    gap : str
        Text about the missing steps; empty if no step is missing.
    hint : str
        Probable reason, to be added to a sentence; empty if it is not known.
    """

    placement: Placement
    problem: str = ''
    missing: int = 0
    gap: str = ''
    hint: str = ''


_REPEATED = Place(Placement.REPEATED)


def shown(episode_id: str) -> str:
    """Return an episode id in quotes, shortened, because an id can be as long as a message."""
    if len(episode_id) > _SHOWN_OF_ID:
        return f'{episode_id[:_SHOWN_OF_ID]!r}... ({len(episode_id)} characters)'
    return repr(episode_id)


class StepOrder:
    """Keeps the order of the steps of one episode after another.

    Attributes
    ----------
    episode_id : str
        The running episode, or the last episode; empty before the first episode.
    ended_id : str
        The episode that ended last; empty if this episode has begun again.
    running : bool
    ending : bool
        Whether the END of the running episode has come.
    next_index : int
        Index of the next step of the running episode.
    changed_at : int or None
        Step at which another publisher took over the running episode; None if the publisher did not
        change.
    """

    def __init__(self) -> None:
        self.episode_id = self.ended_id = ''
        self.running = self.ending = self._lacks_end = False
        self._last_stamp = -1
        self._late_until, self._ended_at = -math.inf, 0
        self._begin_steps()

    def _begin_steps(self) -> None:
        self.next_index = 0
        self._stride = 0
        self._first_stamp = 0
        self._last_number: int | None = None
        self._first_published = self._last_published = 0
        self._changes = 0
        self.changed_at: int | None = None
        self._contents: dict[int, int] = {}

    # --- begin and end

    def begins(self, step_id: StepId) -> bool:
        """Return True if a step begins an episode.

        A step with a new episode id begins an episode. A step with the id of the running or the
        last episode begins an episode if it is step 0 and later than all previous steps, or if a
        recording is played again. Every other step 0 is a repetition and must not clear an alarm.
        The last steps of an episode can arrive after END, or after the START of the next episode. A
        step without an id begins an episode only if no episode is running. The rest of the new
        episode is INVALID.
        """
        if not step_id.episode_id:
            return not self.running
        again = step_id.index == 0 and (
            step_id.stamp > self._last_stamp or self._is_played_again(step_id)
        )
        if self.running and step_id.episode_id == self.episode_id:
            return again and self.next_index > 0
        return again or step_id.episode_id != self.ended_id

    def _is_played_again(self, step_id: StepId) -> bool:
        """Return True if a recording of the last episode is played again.

        A restarted player numbers its messages from the beginning. Its step 0 has the same stamp
        and the same content as before, and comes after a pause. If a middleware or a bridge sends a
        step twice, there is no such pause.
        """
        number, last = step_id.publication.number, self._last_number
        return (
            number is not None
            and last is not None
            and number <= last
            and step_id.episode_id == self.episode_id
            and step_id.content == self._contents.get(0, -1) != 0
            and 0 < self._last_published < step_id.publication.time - _PAUSE
        )

    def begin(self, episode_id: str) -> None:
        """Begin an episode."""
        self._lacks_end = self.running and episode_id == self.episode_id
        self.episode_id, self.running, self.ending = episode_id, True, False
        if episode_id == self.ended_id:
            self.ended_id = ''
        self._begin_steps()

    def expect_end(self, until: float, ended_at: int = 0) -> None:
        """Handle the END of the running episode, and accept late steps after the episode.

        Parameters
        ----------
        until : float
            Late steps are accepted until this time.
        ended_at : int
            Time of publication of END [ns]; 0 if it is not known. Steps that were published before
            this time are accepted for 10 s longer. No longer, because clocks can be wrong.
        """
        self.ending = True
        self._late_until, self._ended_at = until, ended_at

    def is_before_begin(self, episode_id: str, published_at: int) -> bool:
        """Return whether a START of another episode is older than the running episode.

        ``published_at`` is the time of its publication [ns]; 0 if it is not known.
        """
        another = self.running and episode_id != self.episode_id
        return another and 0 < published_at < self._first_published

    def take_end_of_last(self, episode_id: str, published_at: int) -> bool:
        """Return True for the late END of the last episode, which had the id of the running one.

        It was published before the first step of the running episode. No time is compared if the
        last episode had its END, because clocks can be wrong. Only one END can be such a late END.
        """
        late = self.running and self._lacks_end and episode_id == self.episode_id
        late = late and 0 < published_at < self._first_published
        self._lacks_end = self._lacks_end and not late
        return late

    def waits_after(self, publication: Publication) -> bool:
        """Return whether the end of the episode must wait, because of a late step.

        If a step that was published before END arrives after END, more such steps may arrive.
        """
        return self.ending and self._is_before_end(publication)

    def _is_before_end(self, publication: Publication) -> bool:
        return 0 < publication.time <= self._ended_at

    def end(self) -> None:
        """End the running episode."""
        self.running = self.ending = False
        self.ended_id = self.episode_id

    def forget(self) -> None:
        """Forget all episodes."""
        self.running = self.ending = False
        self.episode_id = self.ended_id = ''
        self.accept_earlier_stamps()

    def accept_earlier_stamps(self) -> None:
        """From now on, a step 0 starts a new episode even if its stamp is earlier than others."""
        self._last_stamp = -1
        self._first_stamp = 0

    def take_over(self, previous: StepOrder) -> None:
        """Continue with the last episode of another order."""
        self.ended_id, self._last_stamp = previous.ended_id, previous._last_stamp
        self._late_until, self._ended_at = previous._late_until, previous._ended_at

    # --- steps

    def place(self, step_id: StepId, now: float) -> Place:
        """Return the place of a step that begins no episode, and record the step."""
        if not step_id.episode_id:
            return Place(
                Placement.NOWHERE,
                f'step {step_id.index}: expected an episode_id, found an empty text; give '
                'each episode its own id',
            )
        if self.running and step_id.episode_id == self.episode_id:
            return self._place_in_running(step_id)
        late = _LATEST if self._is_before_end(step_id.publication) else 0.0
        if now < self._late_until + late:
            return _REPEATED
        return Place(Placement.NOWHERE, self._after_end(step_id))

    def _after_end(self, step_id: StepId) -> str:
        episode = shown(step_id.episode_id)
        if step_id.index == 0:
            stamp = 'is 0' if step_id.stamp == 0 else 'is not later than the stamps before'
            return (
                f'step 0 of episode {episode} arrived after the END of this episode, and its stamp '
                f'{stamp}: the step can be a repetition or the begin of a new episode; '
                f'{_NEW_EPISODE}'
            )
        return (
            f'step {step_id.index} of episode {episode} arrived after the END of this episode; '
            'send END after the last step, or increase end_grace'
        )

    def _place_in_running(self, step_id: StepId) -> Place:
        problem = self._second_speaker(step_id)
        index = step_id.index
        if index < self.next_index:
            problem = problem or self._contradiction(step_id)
            return Place(Placement.NOWHERE, problem) if problem else _REPEATED
        place = self._place_of_next(index, problem or self._of_earlier_episode(step_id))
        self.next_index = index + 1
        self._first_stamp = self._first_stamp or step_id.stamp
        self._last_published = step_id.publication.time
        self._first_published = self._first_published or step_id.publication.time
        self._last_stamp = max(step_id.stamp, self._last_stamp)
        if len(self._contents) < _KEPT_CONTENTS:
            self._contents[index] = step_id.content
        return place

    def _place_of_next(self, index: int, problem: str) -> Place:
        first, missing = self.next_index, index - self.next_index
        # Difference to the previous step; not known without a previous step.
        stride, before = missing + 1 if first else 0, self._stride
        self._stride = stride
        if not missing:
            return Place(Placement.NEXT, problem)
        numbers = str(first) if missing == 1 else f'{first} to {index - 1}'
        gap = f'{steps(missing)} of the episode {"is" if missing == 1 else "are"} missing'
        hint = (
            f'; each step number is {stride} larger than the number before: `step` seems to count '
            'control cycles or time steps of the environment; number the inferences 0, 1, 2, ...'
        )
        return Place(
            Placement.NEXT,
            problem,
            missing,
            f'{gap} ({numbers})',
            hint if stride and stride == before else '',
        )

    def _second_speaker(self, step_id: StepId) -> str:
        """Return the problem that the episode comes from two publishers; empty without evidence.

        Each publisher numbers its messages, and connections keep their order. If a number does not
        increase, the message is from another publisher. One such change can be a restarted
        publisher, for example a bridge. A second change shows that two publishers are active.
        """
        number = step_id.publication.number
        last, self._last_number = self._last_number, number
        if last is None or number is None or number > last:
            return ''
        self._changes += 1
        self.changed_at = step_id.index
        if self._changes < 2:
            return ''
        return (
            f'episode {shown(step_id.episode_id)}: expected one publisher of all steps, found '
            f'another publisher at step {step_id.index}; {_ONE_NODE}'
        )

    def _of_earlier_episode(self, step_id: StepId) -> str:
        """Return that a step was made before its episode began; empty if nothing shows this.

        If an id is used again, a late step of the earlier episode can have the number that comes
        next in this episode.
        """
        early = self._first_stamp - step_id.stamp
        if step_id.stamp <= 0 or early <= 0:
            return ''
        return (
            f'step {step_id.index} of episode {shown(step_id.episode_id)}: expected a stamp that '
            f'is later than that of the first step, found one that is {early * 1e-9:.3g} s '
            'earlier: it is a late step of an earlier episode with the same episode_id, or the '
            'clock of the policy was set back; give each episode its own id'
        )

    def _contradiction(self, step_id: StepId) -> str:
        """Return the problem that a step came twice with different content; else empty."""
        known = self._contents.get(step_id.index, 0)
        if not known or not step_id.content or known == step_id.content:
            return ''
        text = (
            f'step {step_id.index} of episode {shown(step_id.episode_id)} arrived twice, with '
            'different features or signals'
        )
        if step_id.index == 0:
            return f'{text}; {_NEW_EPISODE}'
        return f'{text}; {_ONE_NODE}, and publish each step once'


def steps(count: int) -> str:
    """Return a number of steps in words."""
    return f'{count} step' if count == 1 else f'{count} steps'
