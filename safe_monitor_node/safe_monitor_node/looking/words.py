# SPDX-License-Identifier: Apache-2.0
"""Words, marks and severities of the states of a robot, and text that a terminal can print."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from enum import Enum

from safe_monitor_node.monitor.alarm import AlarmState


class Severity(Enum):
    """Meaning of a colour. A word and a mark are always shown with the colour."""

    OK = 'ok'
    CAUTION = 'caution'
    DANGER = 'danger'
    UNKNOWN = 'unknown'


@dataclass(frozen=True)
class StateWord:
    """Word, mark and severity of a state.

    Attributes
    ----------
    word : str
        At most 7 letters.
    mark : str
        One character, different for each state.
    ascii_mark : str
        The mark for a terminal without Unicode.
    severity : Severity
    """

    word: str
    mark: str
    ascii_mark: str
    severity: Severity


_WORDS = {
    AlarmState.UNKNOWN: StateWord('UNKNOWN', '?', '?', Severity.UNKNOWN),
    AlarmState.NOMINAL: StateWord('NOMINAL', '✓', '+', Severity.OK),
    AlarmState.WARNING: StateWord('WARNING', '▲', '!', Severity.CAUTION),
    AlarmState.ALARM: StateWord('ALARM', '✖', 'X', Severity.DANGER),
    AlarmState.STALE: StateWord('STALE', '◷', '~', Severity.CAUTION),
    AlarmState.INVALID: StateWord('INVALID', '∅', '0', Severity.DANGER),
}
GONE = StateWord('GONE', '⊘', '-', Severity.DANGER)
"""No monitor of this robot is running."""

ORDER = (Severity.DANGER, Severity.CAUTION, Severity.UNKNOWN, Severity.OK)
"""The most urgent first."""

ADVICE = ('', 'slow', 'stop', 'backtrack', 'ask')
"""Words for ``FailureAlarm.ADVICE_...``."""


def state_word(state: int) -> StateWord:
    """Return the words for a state; a state of a later version is UNKNOWN."""
    try:
        return _WORDS[AlarmState(state)]
    except ValueError:
        return _WORDS[AlarmState.UNKNOWN]


def advice_word(advice: int) -> str:
    """Return the word for an advice; empty for none and for advice of a later version."""
    return ADVICE[advice] if 0 <= advice < len(ADVICE) else ''


def printable(text: str, limit: int = 300) -> str:
    """Return a text without control characters, shortened to a number of characters.

    An id comes from the network and may contain codes that move the cursor of a terminal or change
    the direction of writing. Each such character becomes ``?``; a line break becomes a space.
    """
    cut = text[: limit + 1]
    clean = ''.join(c if c.isprintable() else ' ' if c in '\n\t' else '?' for c in cut)
    return clean if len(clean) <= limit else clean[: limit - 1] + '…'


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text needs."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in 'WF' else 1


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """Return a text cut or filled with spaces to exactly this many columns of a terminal."""
    if width_of(text) > width:
        kept = ''
        for character in text:
            if width_of(kept + character) > width - 1:
                break
            kept += character
        text = kept + '…'
    space = ' ' * (width - width_of(text))
    return space + text if right else text + space


def number(value: float, width: int = 7) -> str:
    """Return a number in at most this many characters; ``-`` if there is no number.

    An infinite threshold means that no alarm is possible: ``none``.
    """
    if math.isnan(value):
        return '-'
    if math.isinf(value):
        return 'none' if value > 0 else '-inf'
    for digits in (4, 3, 2, 1):
        text = f'{value:.{digits}g}'
        if len(text) <= width:
            return text
    return text
