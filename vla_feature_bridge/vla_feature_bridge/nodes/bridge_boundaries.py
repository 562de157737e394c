# SPDX-License-Identifier: Apache-2.0
"""Finds the begin and end of episodes if the policy does not report them. Does not use ROS.

Each rule reads one kind of data: values of a topic, the goals of an action, or the language
instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vla_feature_bridge.errors import SafeError


class BoundaryError(SafeError):
    """A message does not contain the field or the value that shows an episode."""


@dataclass(frozen=True)
class Boundary:
    """An episode begins or ends.

    Attributes
    ----------
    kind : str
        ``'start'`` or ``'end'``.
    episode_id, task, instruction : str
        Of an episode that begins; empty if unknown.
    success : bool or None
        Outcome of an episode that ends; None if unknown.
    reason : str
        Why, for people.
    """

    kind: Literal['start', 'end']
    episode_id: str = ''
    task: str = ''
    instruction: str = ''
    success: bool | None = None
    reason: str = ''


@dataclass(frozen=True)
class EpisodeValues:
    """Which values of a topic begin and end an episode, as texts.

    Attributes
    ----------
    start, success, failure, end : tuple of str
        Values that begin an episode, and values that end it with success, with failure, or with
        unknown outcome. If ``start`` has no values, every change of the value begins an episode. In
        this case, false or an empty text ends the episode.
    """

    start: tuple[str, ...] = ()
    success: tuple[str, ...] = ()
    failure: tuple[str, ...] = ()
    end: tuple[str, ...] = ()


class ValueRule:
    """Finds boundaries in the values of a topic. A repeated value has no effect."""

    def __init__(self, values: EpisodeValues) -> None:
        self._values = values
        self._last: str | None = None
        self._running = False

    def take(self, value: Any) -> Boundary | None:
        """Return the boundary that a value means; None if it is not a boundary.

        Parameters
        ----------
        value : bool, int or str
            The value of the topic.

        Raises
        ------
        BoundaryError
            The value is of another type.
        """
        if not isinstance(value, (bool, int, str)):
            raise BoundaryError(
                where='episode_topic',
                expected='a bool, a whole number or a text in the field of episode_field',
                found=f'{type(value).__name__}',
            )
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text == self._last:
            return None
        self._last = text
        boundary = self._of(text, isinstance(value, bool))
        if boundary is not None:
            self._running = boundary.kind == 'start'
        return boundary

    def _of(self, text: str, is_bool: bool) -> Boundary | None:
        values = self._values
        reason = f'episode_topic is {text[:100]!r}'
        if text in values.success:
            return Boundary('end', success=True, reason=reason)
        if text in values.failure:
            return Boundary('end', success=False, reason=reason)
        if text in values.end:
            return Boundary('end', reason=reason)
        if values.start:
            begins = text in values.start
            # If values for the end are given, other values such as 'paused' have no effect.
            ends = self._running and not (values.end or values.success or values.failure)
        else:
            ends = not text or (is_bool and text == 'false')
            begins = not ends
        if begins:
            return Boundary('start', reason=reason)
        return Boundary('end', reason=reason) if ends else None


@dataclass(frozen=True)
class Goal:
    """A goal of an action and its state, from ``action_msgs/GoalStatusArray``.

    Attributes
    ----------
    goal_id : str
        Its UUID in hexadecimal.
    status : int
        One of ``GoalStatus.STATUS_...``.
    accepted : int
        When it was accepted [ns].
    """

    goal_id: str
    status: int
    accepted: int = 0


_EXECUTING, _CANCELING = 2, 3
_ENDED = {4: 'SUCCEEDED', 5: 'CANCELED', 6: 'ABORTED'}
_OUTCOMES = {4: True, 6: False}


class GoalRule:
    """Finds boundaries in the goals of an action: an episode is the time in which a goal executes.

    Parameters
    ----------
    gives_outcome : bool
        If true, SUCCEEDED is a success and ABORTED is a failure. If false, the outcome is unknown.
    """

    def __init__(self, gives_outcome: bool) -> None:
        self._gives_outcome = gives_outcome
        self._running = ''

    def take(self, goals: Sequence[Goal]) -> list[Boundary]:
        """Return the boundaries in the present states of all goals."""
        found: list[Boundary] = []
        states = {goal.goal_id: goal.status for goal in goals}
        if self._running and states.get(self._running) not in (_EXECUTING, _CANCELING):
            status = states.get(self._running, 0)
            found.append(
                Boundary(
                    'end',
                    success=_OUTCOMES.get(status) if self._gives_outcome else None,
                    reason=f'the goal of the action ended: {_ENDED.get(status, "it is gone")}',
                )
            )
            self._running = ''
        # A server may execute several goals at once: the episode belongs to its first goal.
        executing = [goal for goal in goals if goal.status == _EXECUTING]
        if executing and not self._running:
            self._running = max(executing, key=lambda goal: goal.accepted).goal_id
            found.append(Boundary('start', episode_id=self._running, reason='a goal is executed'))
        return found


class InstructionRule:
    """Finds boundaries in the instruction: a new text begins an episode, an empty text ends it."""

    def __init__(self) -> None:
        self._last = ''

    def take(self, instruction: str) -> Boundary | None:
        """Return the boundary that an instruction means; None if the instruction did not change."""
        if instruction == self._last:
            return None
        self._last = instruction
        if not instruction:
            return Boundary('end', reason='the instruction is empty')
        return Boundary('start', instruction=instruction, reason='the instruction changed')
