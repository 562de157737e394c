# SPDX-License-Identifier: Apache-2.0
"""The alarm policy: a table that gives the advice for a supervisor. No ROS.

One row is one text::

    WARNING: SLOW
    ALARM: STOP
    ALARM after 10 steps: ASK
    ALARM margin > 2.0: BACKTRACK
    ALARM: SLOW for task pour the water

The last row that matches gives the advice. The parameters ``alarm_advice``, ``stop_when_blind`` and
``stop_when_unknown`` act like rows before the first row, so that the rows can change their advice.
The robot is stopped (``safe/stop``) while the advice is STOP, BACKTRACK or ASK.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.rules import nearest
from vla_feature_bridge.errors import SafeError

if TYPE_CHECKING:
    from safe_monitor_node.monitor.situation import Situation


class AdviceError(SafeError):
    """The table of advice is not valid."""


class Advice(IntEnum):
    """What a supervisor should do; the values are those of ``safe_msgs/FailureAlarm``."""

    NONE = 0
    SLOW = 1
    STOP = 2
    BACKTRACK = 3
    ASK = 4

    @property
    def halts(self) -> bool:
        """Whether ``safe/stop`` is true with this advice."""
        return self >= Advice.STOP


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    state : AlarmState
    advice : Advice
    steps : int
        Number of steps that must have come since the step that began the state.
    seconds : float
        Time for which the state must have lasted [s].
    margin : float
        Score minus threshold must have been larger than this since the state began; -inf: no
        condition.
    detector : str
        Name of the detector of this margin; empty: the only detector.
    task : str or None
        Task of the episode, with single spaces; None: every task.
    text : str
        The row as it was written.
    """

    state: AlarmState
    advice: Advice
    steps: int = 0
    seconds: float = 0.0
    margin: float = -math.inf
    detector: str = ''
    task: str | None = None
    text: str = ''

    def fits(self, now: Situation) -> bool:
        """Return whether the conditions are true, for a row of the present state."""
        if now.steps < self.steps or now.seconds < self.seconds:
            return False
        if self.task is not None and self.task != ' '.join(now.task.split()):
            return False
        return self.margin == -math.inf or now.margin(self.detector) > self.margin

    def covers(self, other: Row) -> bool:
        """Return whether this row matches whenever the other row matches."""
        same_margin = self.margin == -math.inf or (
            self.detector == other.detector and self.margin <= other.margin
        )
        return (
            self.state == other.state
            and self.steps <= other.steps
            and self.seconds <= other.seconds
            and self.task in (None, other.task)
            and same_margin
        )


@dataclass(frozen=True)
class AdviceTable:
    """The advice for each state.

    Attributes
    ----------
    rows : tuple of Row
        The last row that matches is used.
    alarm_advice : Advice
        The advice in the state ALARM if no row matches.
    stop_when_blind, stop_when_unknown : bool
        Whether the advice is at least STOP in the states STALE and INVALID, and in UNKNOWN.
    needs_margin : bool
        Whether a row depends on the margin.
    tasks : frozenset of str
        The tasks that have their own rows.
    """

    rows: tuple[Row, ...] = ()
    alarm_advice: Advice = Advice.STOP
    stop_when_blind: bool = True
    stop_when_unknown: bool = False
    needs_margin: bool = field(init=False, compare=False)
    tasks: frozenset[str] = field(init=False, compare=False)
    # By the value of the state, because the table is used at every step.
    _rows: list[tuple[Row, ...]] = field(init=False, repr=False, compare=False)
    _stops: list[bool] = field(init=False, repr=False, compare=False)
    _base: list[Advice] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the table as a whole."""
        refuse(self._problems())
        needs_margin = any(row.margin != -math.inf for row in self.rows)
        last_first = self.rows[::-1]
        rows = [tuple(row for row in last_first if row.state == state) for state in AlarmState]
        base = [Advice.NONE] * len(AlarmState)
        base[AlarmState.ALARM] = self.alarm_advice
        object.__setattr__(self, 'needs_margin', needs_margin)
        tasks = frozenset(row.task for row in self.rows if row.task is not None)
        object.__setattr__(self, 'tasks', tasks)
        object.__setattr__(self, '_rows', rows)
        object.__setattr__(self, '_stops', [self._demands_stop(state) for state in AlarmState])
        object.__setattr__(self, '_base', base)

    def advice(self, now: Situation) -> Advice:
        """Return the advice for the present situation."""
        state = now.state
        advice = self._base[state]
        for row in self._rows[state]:
            if row.fits(now):
                advice = row.advice
                break
        if self._stops[state] or (not now.known and self.stop_when_blind):
            return advice if advice.halts else Advice.STOP
        return advice

    def _demands_stop(self, state: AlarmState) -> bool:
        if state in (AlarmState.STALE, AlarmState.INVALID):
            return self.stop_when_blind
        return state == AlarmState.UNKNOWN and self.stop_when_unknown

    def _problems(self) -> list[AdviceError]:
        """Return the problems of the whole table."""
        problems = []
        for i, row in enumerate(self.rows):
            later = next((other for other in self.rows[i + 1 :] if other.covers(row)), None)
            if later is not None:
                problems.append(
                    AdviceError(
                        where=place(row.text),
                        expected='a row that has an effect',
                        found=f'the later row {later.text!r}, which fits whenever this row fits; '
                        'the last row that fits counts',
                        advice='write the general row first, or remove one of the two rows',
                    )
                )
            elif self._demands_stop(row.state) and not row.advice.halts:
                name = 'unknown' if row.state == AlarmState.UNKNOWN else 'blind'
                problems.append(
                    AdviceError(
                        where=place(row.text),
                        expected=f'STOP, BACKTRACK or ASK, because stop_when_{name} is true',
                        found=row.advice.name,
                        advice=f'remove the row, or set stop_when_{name} to false first',
                    )
                )
        problems += self._unused_advice()
        return problems

    def _unused_advice(self) -> list[AdviceError]:
        """Return the problem that a value of ``alarm_advice`` has no effect."""
        every = Row(AlarmState.ALARM, Advice.NONE)
        general = next((row for row in self.rows if row.covers(every)), None)
        if general is None or self.alarm_advice in (Advice.STOP, general.advice):
            return []
        return [
            AdviceError(
                where='parameter alarm_advice',
                expected=f"'stop' (the default), because the row {general.text!r} of alarm_policy "
                'gives the advice of every alarm',
                found=repr(self.alarm_advice.name.lower()),
                advice='change the row, or remove it',
            )
        ]

    def check_detectors(self, names: Sequence[str]) -> None:
        """Check that every margin belongs to one of these detectors.

        Raises
        ------
        AdviceError
            A detector is unknown, or a row contains no detector although there are several.
        """
        problems = []
        for row in self.rows:
            if row.margin == -math.inf:
                continue
            if not row.detector and len(names) > 1:
                problems.append(
                    AdviceError(
                        where=place(row.text),
                        expected='margin of NAME, because the scores of several detectors have '
                        'different units',
                        found='margin without a name',
                        advice=f'write margin of {names[0]}',
                    )
                )
            elif row.detector and row.detector not in names:
                problems.append(
                    AdviceError(
                        where=place(row.text),
                        expected=f'the name of a detector ({", ".join(names)})',
                        found=repr(row.detector),
                        advice=nearest(row.detector, names),
                    )
                )
        refuse(problems)


def place(row: str) -> str:
    """Return the place of a row, for an error."""
    return f'parameter alarm_policy, row {" ".join(row.split())!r}'


def refuse(problems: Sequence[AdviceError]) -> None:
    """Raise the problems, if there are any; several problems become one error."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise AdviceError('. '.join(str(problem) for problem in problems))
