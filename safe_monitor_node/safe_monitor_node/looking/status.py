# SPDX-License-Identifier: Apache-2.0
"""Prints one line for each robot, and computes an exit status, for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from safe_monitor_node.looking.board import RobotView
from safe_monitor_node.looking.words import number, printable

NO_ROBOT = 1
"""Exit status if no robot was found."""

EXIT_STATUS = {
    'NOMINAL': 0,
    'UNKNOWN': 3,
    'WARNING': 4,
    'STALE': 5,
    'INVALID': 6,
    'GONE': 7,
    'ALARM': 8,
}
"""Exit status by the word of a state; a larger number is worse."""


def exit_status(views: Iterable[RobotView]) -> int:
    """Return the exit status of the worst robot; ``NO_ROBOT`` without robots."""
    return max((EXIT_STATUS[view.state.word] for view in views), default=NO_ROBOT)


def status_line(view: RobotView) -> str:
    """Return the line of a robot: name, state, numbers, and the reason after a colon."""
    episode = printable(view.episode_id, 60)
    numbers = (
        f' episode {episode} step {view.step} score {number(view.score)} '
        f'threshold {number(view.threshold)} age {view.age:.1f} s'
        if view.step >= 0
        else ''
    )
    advice = f' advice {view.advice}' if view.advice else ''
    return f'{view.name} {view.state.word}{numbers}{advice}: {view.reason}'


def status_json(view: RobotView) -> str:
    """Return the JSON object of a robot in one line; unknown values are null.

    An infinite threshold, which allows no alarm, is the text ``"inf"``.
    """
    facts = {
        'robot': view.name,
        'state': view.state.word,
        'reason': view.reason,
        'advice': view.advice,
        'episode': view.episode_id,
        'step': view.step if view.step >= 0 else None,
        'score': _plain(view.score),
        'threshold': _plain(view.threshold),
        'probability': _plain(view.probability),
        'alarm_step': view.alarm_step,
        'age': _plain(view.age) if view.step >= 0 else None,
        'rate': _plain(view.rate),
        'detector': view.detector,
    }
    return json.dumps(facts, ensure_ascii=True, allow_nan=False)


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else 'inf' if value > 0 else '-inf'
