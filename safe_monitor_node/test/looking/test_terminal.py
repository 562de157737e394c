# SPDX-License-Identifier: Apache-2.0
"""The table of robots in a terminal: never too wide, safe with any name, without colour too."""

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_monitor_node.looking.terminal import Style, style_of, table
from safe_monitor_node.looking.words import fitted, number, printable, width_of
from safe_monitor_node.monitor.alarm import AlarmState

HOSTILE = 'a\x1b[2Jb\x1b]0;owned\x07c\u202ed\r\ne\x9bf'


def board_of(count, *, episode='e', reason='score 0.9 is above the threshold 0.8', score=0.9):
    board = RobotBoard()
    for index in range(count):
        name = f'/robot{index}'
        board.add(name)
        state = AlarmState.ALARM if index == 2 else AlarmState.NOMINAL
        sample = ScoreSample(episode, 4, score, 0.8, math.nan, int(state), 'd')
        board.take_score(name, sample, 0.0)
        board.take_alarm(name, AlarmSample(episode, 4, int(state), 2, reason))
    return board


def test_each_robot_has_a_line_with_its_state_in_words():
    lines = table(board_of(4).views(0.1), Style())
    assert lines[0] == 'SAFE: 4 robots: 1 ALARM, 3 NOMINAL'
    assert [line.split()[0] for line in lines[2:6]] == [f'/robot{k}' for k in range(4)]
    assert '✖ ALARM' in lines[4]
    assert '✓ NOMINAL' in lines[3]
    assert lines[6] == '/robot2 ALARM: score 0.9 is above the threshold 0.8 (advice: stop)'


def test_without_a_robot_it_says_what_is_missing():
    text = ' '.join(table([], Style()))
    assert 'no robot yet' in text
    assert 'ROS_DOMAIN_ID' in text


def test_without_unicode_everything_is_ascii():
    text = '\n'.join(table(board_of(3, episode='ünïcode' * 9).views(0.0), Style(unicode=False)))
    assert text.isascii()
    assert 'X ALARM' in text
    assert '#' in text


def test_colour_is_added_and_nothing_else_is_changed():
    views = board_of(3).views(0.0)
    plain, coloured = table(views, Style()), table(views, Style(colour=True))
    assert '\x1b[1;31m✖ ALARM' in coloured[4]
    assert [re.sub(r'\x1b\[[0-9;]*m', '', line) for line in coloured] == plain


def test_a_hostile_name_cannot_move_the_cursor():
    text = ''.join(table(board_of(3, episode=HOSTILE, reason=HOSTILE).views(0.0), Style()))
    assert text.isprintable()
    assert 'a?[2Jb' in text


def test_robots_that_do_not_fit_are_counted_and_the_urgent_ones_stay():
    lines = table(board_of(40).views(0.0), Style(height=10))
    assert len(lines) == 9
    assert lines[2].startswith('/robot2 ')
    assert lines[8] == 'and 34 more robots; enlarge the terminal window'


def test_reasons_that_do_not_fit_are_counted():
    views = board_of(6, reason='a long reason ' * 20).views(0.0)
    whole, cut = table(views, Style()), table(views, Style(height=12))
    assert len(cut) == 11
    assert cut[:10] == whole[:10]
    assert cut[10] == f'and {len(whole) - 10} more lines; enlarge the terminal window'


@pytest.mark.parametrize('score', [0.0, -3.0, math.nan, math.inf, -math.inf, 1e30, -1e-30])
@pytest.mark.parametrize('threshold', [0.8, -2.0, math.nan, math.inf, 0.0])
def test_any_score_and_threshold_make_a_bar_of_the_same_width(score, threshold):
    board = RobotBoard()
    board.add('/r')
    board.take_score('/r', ScoreSample('e', 0, score, threshold, math.nan, 1), 0.0)
    line = table(board.views(0.0), Style())[2]
    assert width_of(line) == 80
    assert width_of(line[23:36]) == 13


@given(
    episode=st.text(max_size=40),
    reason=st.text(max_size=200),
    width=st.integers(20, 200),
    unicode=st.booleans(),
)
def test_no_line_is_wider_than_the_terminal(episode, reason, width, unicode):
    views = board_of(3, episode=episode, reason=reason).views(0.0)
    for line in table(views, Style(width=width, unicode=unicode)):
        assert width_of(line) <= width
        assert line.isprintable()


@given(st.text(max_size=30), st.integers(1, 40))
def test_a_fitted_text_has_exactly_its_width(text, width):
    assert width_of(fitted(printable(text), width)) == width


@given(st.floats(width=32))
def test_a_number_fits_its_column(value):
    assert len(number(value)) <= 7


def test_a_pipe_gets_no_colour_and_80_columns():
    style = style_of(io.StringIO(), {'TERM': 'xterm'})
    assert (style.colour, style.width, style.height) == (False, 80, 0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ('environment', 'colour'),
    [
        ({'TERM': 'xterm'}, True),
        ({'TERM': 'dumb'}, False),
        ({}, False),
        ({'TERM': 'xterm', 'NO_COLOR': '1'}, False),
        ({'TERM': 'xterm', 'NO_COLOR': ''}, True),
    ],
)
def test_colour_follows_the_terminal_and_no_color(environment, colour):
    assert style_of(Terminal(), environment).colour is colour
    assert style_of(Terminal(), environment, colour=False).colour is False
