# SPDX-License-Identifier: Apache-2.0
"""Events of the board for a browser: first everything, then only changes."""

from __future__ import annotations

import json
import math
from typing import Any

from safe_monitor_node.looking.board import LONGEST_ID, RobotBoard, RobotView
from safe_monitor_node.looking.words import number, printable

_DIGITS = 6


class BoardStream:
    """The events that one browser has received, and the next event.

    A browser that connects again gets a new stream, which begins with everything. A stream stores
    only a few numbers and texts for each robot.

    Parameters
    ----------
    board : RobotBoard
    """

    def __init__(self, board: RobotBoard) -> None:
        self._board = board
        self._seen: dict[str, tuple[int, int]] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def next(self, now: float) -> dict[str, Any]:
        """Return the next event.

        Returns
        -------
        dict
            JSON values. ``history``: number of points to keep. ``robots``: one entry for each
            robot; other robots must be removed. ``points`` are the new points ``[step, score,
            threshold]``, with null for numbers that are not finite. ``restart`` means that earlier
            points must be removed. ``facts`` is only present if it changed.
        """
        views = self._board.views(now)
        names = {view.name for view in views}
        for name in self._seen.keys() - names:
            del self._seen[name], self._facts[name]
        return {'history': self._board.history, 'robots': [self._row(view) for view in views]}

    def _row(self, view: RobotView) -> dict[str, Any]:
        serial, total = self._seen.get(view.name, (-1, 0))
        restart = serial != view.serial
        new = len(view.points) if restart else min(view.total - total, len(view.points))
        self._seen[view.name] = view.serial, view.total
        row: dict[str, Any] = {
            'name': view.name,
            'restart': restart,
            'points': [
                [step, _finite(score), _finite(threshold)]
                for step, score, threshold in view.points[len(view.points) - new :]
            ],
            'score': number(view.score),
            'threshold': number(view.threshold),
            'age': _finite(view.age, 2),
            'rate': _finite(view.rate, 2),
        }
        facts = _facts(view)
        if facts != self._facts.get(view.name):
            row['facts'] = self._facts[view.name] = facts
        return row


def _facts(view: RobotView) -> dict[str, Any]:
    """Return the values that rarely change."""
    return {
        'word': view.state.word,
        'mark': view.state.mark,
        'severity': view.state.severity.value,
        'reason': view.reason,
        'advice': view.advice,
        'detector': view.detector,
        'episode': _id(view.episode_id),
        'previous': _id(view.previous_id),
        'alarm': view.alarm_step,
    }


def _id(episode_id: str) -> dict[str, Any]:
    """Return an id, its text, and whether it is complete: only a complete id can be labelled."""
    whole = len(episode_id) <= LONGEST_ID
    return {
        'id': episode_id if whole else '',
        'shown': printable(episode_id, 80),
        'whole': whole and bool(episode_id),
    }


def _finite(value: float, digits: int = _DIGITS) -> float | None:
    return float(f'{value:.{digits}g}') if math.isfinite(value) else None


def event_text(event: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b'data: ' + json.dumps(event, allow_nan=False, separators=(',', ':')).encode() + b'\n\n'
