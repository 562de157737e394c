# SPDX-License-Identifier: Apache-2.0
"""Reads the rows of the parameter ``alarm_policy``. No ROS."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from safe_monitor_node.monitor.alarm import SCORED, AlarmState
from safe_monitor_node.monitor.alarm_policy import Advice, AdviceError, Row, place, refuse
from safe_monitor_node.monitor.rules import nearest

_NUMBER = r'[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?'
_ROW = re.compile(
    r'(?P<state>[^\s:]*)(?P<conditions>[^:]*):\s*(?P<advice>\S*)'
    r'(?:\s+for\s+task\s+(?P<task>.*\S))?\s*',
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(
    rf'\s+(?:and\s+)?(?:margin(?:\s+of\s+(?P<detector>\w+))?\s*>\s*(?P<margin>{_NUMBER})'
    rf'|after\s+(?:(?P<steps>\d+)\s+steps?|(?P<seconds>{_NUMBER})\s*s))(?=\s|$)',
    re.IGNORECASE,
)
_FORM = (
    "a row such as 'ALARM: STOP', 'ALARM after 10 steps: ASK', 'STALE after 5 s: ASK', 'ALARM "
    "margin > 2.0: BACKTRACK' or 'ALARM: SLOW for task NAME'"
)


def read_rows(texts: Sequence[str]) -> tuple[Row, ...]:
    """Return the rows of the parameter ``alarm_policy``; empty texts are left out.

    Raises
    ------
    AdviceError
        One or more rows are wrong; the message has one sentence for each of them.
    """
    rows, problems = [], []
    for text in texts:
        if not text.strip():
            continue
        try:
            rows.append(_read_row(text))
        except AdviceError as error:
            problems.append(error)
    refuse(problems)
    return tuple(rows)


def _read_row(text: str) -> Row:
    match = _ROW.fullmatch(text.strip())
    if match is None:
        _, colon, rest = text.partition(':')
        found = f'{rest.strip()!r} after the colon' if colon else 'no colon'
        raise AdviceError(where=place(text), expected=_FORM, found=found)
    state = AlarmState[_known(match['state'], AlarmState.__members__, 'a state', text)]
    advice = Advice[_known(match['advice'], Advice.__members__, 'an advice', text)]
    task = ' '.join(match['task'].split()) if match['task'] else None
    row = Row(state, advice, task=task, text=' '.join(text.split()))
    row = _with_conditions(row, match['conditions'])
    if row.margin != -math.inf and state not in SCORED:
        raise AdviceError(
            where=place(text),
            expected='a margin only with NOMINAL, WARNING or ALARM',
            found=f'a margin with {state.name}, which has no score',
        )
    return row


def _with_conditions(row: Row, text: str) -> Row:
    """Return the row with the conditions in a text."""
    position, seen = 0, set()
    while text[position:].strip():
        match = _CONDITION.match(text, position)
        if match is None:
            rest = text[position:].strip()
            raise AdviceError(
                where=place(row.text),
                expected="a condition such as 'margin > 2.0', 'after 10 steps' or 'after 5 s'",
                found=repr(rest),
                advice=nearest(rest.split()[0], ['after', 'margin']),
            )
        kind = next(name for name in ('margin', 'steps', 'seconds') if match[name])
        if kind in seen:
            raise AdviceError(
                where=place(row.text), expected='each condition once', found=repr(match[0].strip())
            )
        if not math.isfinite(float(match[kind])):
            raise AdviceError(
                where=place(row.text), expected='a finite number', found=repr(match[0].strip())
            )
        seen.add(kind)
        if kind == 'margin':
            margin, detector = float(match['margin']), match['detector'] or ''
            row = replace(row, margin=margin, detector=detector)
        elif kind == 'steps':
            row = replace(row, steps=int(match['steps']))
        else:
            row = replace(row, seconds=float(match['seconds']))
        position = match.end()
    return row


def _known(name: str, known: Iterable[str], what: str, row: str) -> str:
    """Return a name in capital letters, if it is known."""
    if name.upper() in known:
        return name.upper()
    raise AdviceError(
        where=place(row),
        expected=f'{what} ({", ".join(known)})',
        found=repr(name) if name else 'none',
        advice=nearest(name, tuple(known)),
    )
