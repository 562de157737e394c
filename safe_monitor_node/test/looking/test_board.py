# SPDX-License-Identifier: Apache-2.0
"""What is known about robots: the last episode, the state, the age, and never too much."""

import math

import pytest

from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample, by_urgency
from safe_monitor_node.looking.words import Severity
from safe_monitor_node.monitor.alarm import AlarmState


def score(step, episode='a', value=0.5, state=AlarmState.NOMINAL):
    return ScoreSample(episode, step, value, 0.8, math.nan, int(state), 'safe_lstm')


def alarm(state, episode='a', step=0, reason='because'):
    return AlarmSample(episode, step, int(state), 2, reason)


@pytest.fixture
def board():
    made = RobotBoard(history=10, most_robots=3)
    assert made.add('/r')
    return made


def test_a_new_robot_is_unknown_and_says_that_nothing_has_arrived(board):
    (view,) = board.views(0.0)
    assert (view.state.word, view.step, view.age) == ('UNKNOWN', -1, math.inf)
    assert 'nothing' not in view.reason
    assert 'has arrived yet' in view.reason


def test_a_robot_is_silent_until_its_first_state_or_score(board):
    board.add('/scores')
    board.take_score('/scores', score(0), 1.0)
    assert (board.silent(), board.silent('/r')) == (True, True)
    assert (board.silent('/scores'), board.silent('/missing')) == (False, False)
    board.take_alarm('/r', AlarmSample('', 0, 0, 0, ''))
    assert not board.silent()


def test_rate_and_age_are_of_the_arrivals(board):
    for k in range(5):
        board.take_score('/r', score(k), 10.0 + 0.25 * k)
    view = board.view('/r', 11.5)
    assert view.rate == pytest.approx(4.0)
    assert view.age == pytest.approx(0.5)
    assert math.isnan(board.view('/r', 30.0).rate), 'the scores have ceased'


def test_the_history_is_bounded_and_counts_on(board):
    for k in range(1000):
        board.take_score('/r', score(k), float(k))
    view = board.view('/r', 1000.0)
    assert [step for step, *_ in view.points] == list(range(990, 1000))
    assert view.total == 1000


def test_another_episode_begins_a_new_history_and_keeps_the_id_before(board):
    board.take_score('/r', score(0), 0.0)
    board.take_score('/r', score(0, 'b'), 1.0)
    view = board.view('/r', 1.0)
    assert (view.episode_id, view.previous_id, view.serial, view.total) == ('b', 'a', 2, 1)
    board.take_score('/r', score(0, 'b'), 2.0)
    view = board.view('/r', 2.0)
    assert (view.previous_id, view.serial, view.total) == ('a', 3, 1), 'the episode began again'


def test_the_state_of_the_alarm_counts_for_it_also_comes_without_a_step(board):
    board.take_score('/r', score(0), 0.0)
    assert board.view('/r', 0.0).state.word == 'NOMINAL'
    board.take_alarm('/r', alarm(AlarmState.STALE))
    view = board.view('/r', 0.0)
    assert (view.state.word, view.reason, view.advice) == ('STALE', 'because', 'stop')


def test_the_alarm_is_marked_in_its_own_episode_only(board):
    board.take_alarm('/r', alarm(AlarmState.ALARM, step=3))
    board.take_score('/r', score(3), 0.0)
    assert board.view('/r', 0.0).alarm_step == 3
    board.take_score('/r', score(0, 'b'), 1.0)
    assert board.view('/r', 1.0).alarm_step is None


def test_without_a_monitor_a_robot_is_gone_whatever_it_said_last(board):
    board.take_score('/r', score(0), 0.0)
    board.set_alive('/r', False, 1.0)
    view = board.view('/r', 1.0)
    assert (view.state.word, view.state.severity) == ('GONE', Severity.DANGER)
    assert 'NOMINAL' in view.reason
    board.set_alive('/r', True, 2.0)
    assert board.view('/r', 2.0).state.word == 'NOMINAL'


def test_a_state_of_a_later_version_is_not_nominal(board):
    board.take_score('/r', score(0, state=77), 0.0)
    assert board.view('/r', 0.0).state.word == 'UNKNOWN'


def test_more_robots_replace_only_those_that_are_gone(board):
    assert board.add('/s')
    assert board.add('/t')
    assert not board.add('/u')
    board.set_alive('/s', False, 5.0)
    board.set_alive('/t', False, 4.0)
    assert board.add('/u')
    assert board.names() == ['/r', '/s', '/u'], 'the one that was gone first is forgotten'
    assert board.add('/r'), 'a robot that is known is no new one'


def test_scores_of_a_forgotten_robot_are_ignored(board):
    board.take_score('/nobody', score(0), 0.0)
    board.take_alarm('/nobody', alarm(AlarmState.ALARM))
    board.set_alive('/nobody', False, 0.0)
    assert board.names() == ['/r']


def test_the_most_urgent_robot_comes_first(board):
    for name, state in (('/s', AlarmState.NOMINAL), ('/t', AlarmState.ALARM)):
        board.add(name)
        board.take_alarm(name, alarm(state))
    assert [view.name for view in sorted(board.views(0.0), key=by_urgency)] == ['/t', '/r', '/s']
