# SPDX-License-Identifier: Apache-2.0
"""Makes a table of all robots for a terminal of at least 80 columns."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from safe_monitor_node.looking.board import RobotView, by_urgency
from safe_monitor_node.looking.words import Severity, fitted, number, printable, width_of

_COLOURS = {
    Severity.OK: '32',
    Severity.CAUTION: '33',
    Severity.DANGER: '1;31',
    Severity.UNKNOWN: '2',
}
_LEAST_WIDTH = 80
NO_ROBOT_YET = (
    'no robot yet: no topic .../safe/score of type safe_msgs/FailureScore is known. Is a monitor '
    'active, with the same ROS_DOMAIN_ID? `ros2 safe doctor` says more.'
)
"""Text that is shown while no robot is known."""


@dataclass(frozen=True)
class Style:
    """Abilities of a terminal.

    Attributes
    ----------
    width : int
    height : int
        Number of lines; 0 for any.
    colour, unicode : bool
    """

    width: int = _LEAST_WIDTH
    height: int = 0
    colour: bool = False
    unicode: bool = True


def style_of(stream: TextIO, environment: Mapping[str, str], colour: bool = True) -> Style:
    """Return the abilities of the terminal of a stream.

    Colour needs a terminal that is not ``dumb``, and an empty ``NO_COLOR`` (https://no-color.org).

    Parameters
    ----------
    stream : file
    environment : mapping of str to str
        The environment variables.
    colour : bool
        False disables colour.
    """
    terminal = stream.isatty()
    able = terminal and environment.get('TERM', 'dumb') != 'dumb'
    width, height = _LEAST_WIDTH, 0
    if terminal:
        try:
            size = os.get_terminal_size(stream.fileno())
            width, height = size.columns or width, size.lines
        except OSError:
            pass
    return Style(
        width=width,
        height=height,
        colour=colour and able and not environment.get('NO_COLOR'),
        unicode='utf' in (stream.encoding or '').lower(),
    )


def table(views: Sequence[RobotView], style: Style) -> list[str]:
    """Return the lines of the table: a summary, one line for each robot, and the reasons.

    No line is wider than the style. If there is not enough space, only the most urgent robots are
    shown, and a line contains the number of the other robots.
    """
    if not views:
        return _wrapped(NO_ROBOT_YET, '', style.width)
    widths = _widths(style.width)
    lines = [_cut(_summary(views), style.width), _cut(_heading(widths), style.width)]
    shown, left_out = list(views), ''
    if style.height and len(views) > style.height - 3:
        shown = sorted(views, key=by_urgency)[: max(1, style.height - 4)]
        left_out = f'and {len(views) - len(shown)} more robots; enlarge the terminal window'
    lines += [_row(view, widths, style) for view in shown]
    lines += [_cut(left_out, style.width)] if left_out else []
    reasons: list[str] = []
    for view in sorted(views, key=by_urgency):
        if view.state.severity in (Severity.DANGER, Severity.CAUTION):
            advice = f' (advice: {view.advice})' if view.advice else ''
            text = f'{view.name} {view.state.word}: {view.reason}{advice}'
            reasons += _wrapped(_plain(text, style), '  ', style.width)
    if style.height:
        room = max(0, style.height - 1 - len(lines))
        if len(reasons) > room > 0:
            left_out = f'and {len(reasons) - room + 1} more lines; enlarge the terminal window'
            reasons = [*reasons[: room - 1], _cut(left_out, style.width)]
        reasons = reasons[:room]
    return [_plain(line, style) for line in [*lines, *reasons]]


def _plain(line: str, style: Style) -> str:
    """Return a line with only those characters that the terminal can print."""
    if style.unicode:
        return line
    return line.replace('…', '~').encode('ascii', 'replace').decode('ascii')


def _summary(views: Sequence[RobotView]) -> str:
    counts: dict[str, int] = {}
    for view in sorted(views, key=by_urgency):
        counts[view.state.word] = counts.get(view.state.word, 0) + 1
    states = ', '.join(f'{count} {word}' for word, count in counts.items())
    return f'SAFE: {len(views)} {"robot" if len(views) == 1 else "robots"}: {states}'


def _widths(width: int) -> dict[str, int]:
    more = max(0, width - _LEAST_WIDTH)
    return {
        'ROBOT': 12 + more // 5,
        'STATE': 9,
        'SCORE, BAND |': 13 + 2 * more // 5,
        'SCORE': 7,
        'BAND': 7,
        'STEP': 5,
        'EPISODE': 9 + more - more // 5 - 2 * more // 5,
        'HZ': 5,
        'AGE s': 5,
    }


def _heading(widths: Mapping[str, int]) -> str:
    right = ('SCORE', 'BAND', 'STEP', 'HZ', 'AGE s')
    cells = [fitted(name, width, right=name in right) for name, width in widths.items()]
    return ' '.join(cells)


def _row(view: RobotView, widths: Mapping[str, int], style: Style) -> str:
    mark = view.state.mark if style.unicode else view.state.ascii_mark
    state = f'{mark} {view.state.word}'
    rate = '-' if math.isnan(view.rate) else f'{view.rate:.1f}'
    age = '-' if math.isinf(view.age) else f'{view.age:.1f}' if view.age < 1000 else '>999'
    cells = {
        'ROBOT': fitted(view.name, widths['ROBOT']),
        'STATE': fitted(state, widths['STATE']),
        'SCORE, BAND |': _bar(view, widths['SCORE, BAND |'], style.unicode),
        'SCORE': fitted(number(view.score), widths['SCORE'], right=True),
        'BAND': fitted(number(view.threshold), widths['BAND'], right=True),
        'STEP': fitted('-' if view.step < 0 else str(view.step), widths['STEP'], right=True),
        'EPISODE': fitted(_plain(printable(view.episode_id, 200), style), widths['EPISODE']),
        'HZ': fitted(rate, widths['HZ'], right=True),
        'AGE s': fitted(age, widths['AGE s'], right=True),
    }
    line = _plain(_cut(' '.join(cells.values()), style.width), style)
    if not style.colour:
        return line
    # The colour is added last, because its codes have no width.
    start = widths['ROBOT'] + 1
    stop = start + widths['STATE'] + 1 + widths['SCORE, BAND |']
    before, coloured, after = _split(line, start, stop)
    return f'{before}\x1b[{_COLOURS[view.state.severity]}m{coloured}\x1b[0m{after}'


def _split(line: str, start: int, stop: int) -> tuple[str, str, str]:
    """Return a line divided at two columns of the terminal."""
    places = [len(line), len(line)]
    column = 0
    for index, character in enumerate(line):
        for which, wanted in enumerate((start, stop)):
            if column == wanted and places[which] == len(line):
                places[which] = index
        column += width_of(character)
    return line[: places[0]], line[places[0] : places[1]], line[places[1] :]


def _bar(view: RobotView, width: int, unicode: bool) -> str:
    """Return the score as a bar, with a mark at the threshold."""
    full, empty, edge = ('█', '·', '│') if unicode else ('#', '.', '|')
    numbers = [value for _, *pair in view.points for value in pair if math.isfinite(value)]
    if not numbers or not math.isfinite(view.score):
        return empty * width
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    # Leave space above the threshold, so that a score above the threshold can be distinguished from
    # an equal score.
    span = (high - low) * 1.1 or 1.0

    def place(value: float) -> int:
        return min(width - 1, max(0, int(width * (value - low) / span)))

    filled = place(view.score) + 1
    cells = [full] * filled + [empty] * (width - filled)
    if math.isfinite(view.threshold):
        cells[place(view.threshold)] = edge
    return ''.join(cells)


def _cut(line: str, width: int) -> str:
    return line if width_of(line) <= width else fitted(line, width)


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    """Return a text in lines of at most this width; all lines after the first are indented."""
    # textwrap counts characters, and a wide character needs two columns.
    room = max(2, width if width_of(text) == len(text) else width // 2)
    return textwrap.wrap(text, room, subsequent_indent=indent)
