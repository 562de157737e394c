# SPDX-License-Identifier: Apache-2.0
"""The rule that combines the states of several detectors. No ROS.

::

    any                       one detector in ALARM is enough
    all                       every detector must be in ALARM
    2 of 3                    so many of the detectors must be in ALARM
    all within 5 steps        all must have been above their thresholds in the last 5 steps
    2 of 3 within 5 steps     so many must have been
    rnd and entropy within 5 steps    as `all within`, with the names written out

ALARM of a detector is latched. Therefore `all` means that each detector was above its threshold at
some step of the episode so far, and `all within 5 steps` that these steps are near each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from safe_monitor_node.monitor.alarm import AlarmState
from vla_feature_bridge.errors import SafeError

ANY = 'any'
BLIND = (AlarmState.INVALID, AlarmState.STALE, AlarmState.UNKNOWN)
"""States without a result for the episode; the first is the most urgent."""

_RAISED = (AlarmState.WARNING, AlarmState.ALARM)
_FORMS = "'any', 'all', '2 of 3', 'all within 5 steps' or 'NAME and NAME within 5 steps'"
_WHERE = 'parameter detector_rule'
_WINDOW = re.compile(r'(?P<who>.*?)(?:\s+within\s+(?P<window>\d{1,6})\s+steps?)?', re.IGNORECASE)
_COUNT = re.compile(r'(\d{1,3})\s+of\s+(\d{1,3})', re.IGNORECASE)
_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*')
# Words of a rule. `safe` is also reserved, because safe/safe/score would look like the score of a
# robot in the namespace `safe`.
_NO_NAMES = {'all', 'and', 'any', 'of', 'safe', 'steps', 'within'}


class RuleError(SafeError):
    """The rule of several detectors, or the name of a detector, is not valid."""


@dataclass(frozen=True)
class Rule:
    """The number of detectors that must agree, and the window of steps.

    Attributes
    ----------
    needed : int
        Number of detectors that are needed for an alarm, at least 1.
    count : int
        Number of detectors.
    window : int or None
        Number of successive steps in which these detectors must be above their thresholds; 1 is the
        same step. None: the whole episode.
    text : str
        The rule as it was written.
    """

    needed: int
    count: int
    window: int | None = None
    text: str = ANY

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> Rule:
        """Return the rule of a text.

        Parameters
        ----------
        text : str
            In one of the forms at the beginning of this module.
        names : sequence of str
            Name of each detector.

        Raises
        ------
        RuleError
            The text has no such form, or does not fit the detectors.
        """
        text = ' '.join(text.split())
        match = _WINDOW.fullmatch(text)
        assert match is not None
        window = int(match['window']) if match['window'] else None
        if window == 0:
            raise RuleError(
                where=_WHERE,
                expected='a window of at least 1 step (1: the same step)',
                found=repr(text),
            )
        needed = _needed(text, match['who'], names)
        if window is not None and needed == 1:
            raise RuleError(
                where=_WHERE,
                expected='no window, because one detector is enough for an alarm',
                found=repr(text),
                advice=f'write {match["who"]!r}',
            )
        return cls(needed, len(names), window, text)

    def state(
        self, states: Sequence[AlarmState], raised_at: Sequence[int | None], step: int
    ) -> AlarmState:
        """Return the state of all detectors together.

        If the detectors give no alarm, and a detector is INVALID, STALE or UNKNOWN, this is the
        combined state. It is then never NOMINAL.

        Parameters
        ----------
        states : sequence of AlarmState
            State of each detector.
        raised_at : sequence of int or None
            The last step at which each detector was above its threshold (k of n).
        step : int
            The present step.
        """
        if sum(self.votes(states, raised_at, step)) >= self.needed:
            return AlarmState.ALARM
        for blind in BLIND:
            if blind in states:
                return blind
        if sum(state in _RAISED for state in states) >= self.needed or AlarmState.ALARM in states:
            return AlarmState.WARNING
        return AlarmState.NOMINAL

    def votes(
        self, states: Sequence[AlarmState], raised_at: Sequence[int | None], step: int
    ) -> list[bool]:
        """Return for each detector whether it is for an alarm; parameters as in `state`."""
        if self.window is None:
            return [state == AlarmState.ALARM for state in states]
        return [raised is not None and step - raised < self.window for raised in raised_at]


def _needed(text: str, who: str, names: Sequence[str]) -> int:
    """Return the number of needed detectors from the part of a rule before `within`."""
    if who.lower() == ANY:
        return 1
    if who.lower() == 'all':
        return len(names)
    if count := _COUNT.fullmatch(who):
        needed, of = int(count[1]), int(count[2])
        if of != len(names) or not 1 <= needed <= of:
            raise RuleError(
                where=_WHERE,
                expected=f'a number from 1 to {len(names)} of {len(names)}, because the detectors '
                f'are {", ".join(names)}',
                found=repr(text),
            )
        return needed
    named = re.split(r'\s+and\s+', who, flags=re.IGNORECASE)
    if len(named) < 2:
        raise RuleError(where=_WHERE, expected=_FORMS, found=repr(text), advice=_nearest_word(who))
    for name in named:
        if name not in names:
            raise RuleError(
                where=_WHERE,
                expected=f'names of the detectors ({", ".join(names)})',
                found=repr(name),
                advice=nearest(name, names),
            )
    if sorted(named) != sorted(names):
        raise RuleError(
            where=_WHERE,
            expected=f'each detector once ({", ".join(names)}), because a detector that is not in '
            'the rule would never count',
            found=repr(text),
            advice="write 'all' for every detector, or remove the other detectors from "
            'more_detectors',
        )
    return len(names)


def _nearest_word(who: str) -> str:
    first = who.split()[0] if who else ''
    return nearest(first, [ANY, 'all']) or 'without several detectors, leave it out'


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a sentence with the nearest known word; empty if no word is similar."""
    found = get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.5)
    by_lower = {name.lower(): name for name in known}
    return f'the nearest name is {by_lower[found[0]]}' if found else ''


def checked_names(detectors: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of detectors: the given names, or the names of their kinds.

    Parameters
    ----------
    detectors : sequence of str
        Names of the kinds of the detectors.
    names : sequence of str
        Names from the parameter ``detector_names``; empty if none were given.

    Raises
    ------
    RuleError
        The number of names is wrong, two names are equal, or a name cannot be a part of a topic.
    """
    where = 'parameter detector_names'
    if names and len(names) != len(detectors):
        raise RuleError(
            where=where,
            expected=f'{len(detectors)} names, one for detector_folder and one for each folder of '
            'more_detectors, or none',
            found=f'{len(names)} ({", ".join(names)})',
        )
    used = tuple(names or detectors)
    for name in used if len(used) > 1 else names:
        if not _NAME.fullmatch(name) or name.lower() in _NO_NAMES:
            raise RuleError(
                where=where,
                expected='a name of letters, digits and _ that begins with a letter and is not a '
                "word of detector_rule or 'safe'",
                found=repr(name),
                advice='the name becomes a part of the topic safe/NAME/score',
            )
    if len(set(used)) < len(used):
        raise RuleError(
            where=where,
            expected='a different name for each detector',
            found=', '.join(used),
            advice=f'set detector_names, for example to {_numbered(used)}',
        )
    return used


def _numbered(names: Sequence[str]) -> list[str]:
    """Return different names: equal names get a number."""
    return [
        f'{name}_{names[:i].count(name) + 1}' if name in names[:i] else name
        for i, name in enumerate(names)
    ]
