# SPDX-License-Identifier: Apache-2.0
"""A robot as one line and as an exit status."""

import json
import math

import pytest

from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_monitor_node.looking.status import EXIT_STATUS, exit_status, status_json, status_line
from safe_monitor_node.looking.words import GONE, state_word
from safe_monitor_node.monitor.alarm import AlarmState


def views_of(*states, reason='because', threshold=0.8):
    board = RobotBoard()
    for number, state in enumerate(states):
        name = f'/robot{number}'
        board.add(name)
        sample = ScoreSample('pick/3', 4, 0.5, threshold, math.nan, int(state), 'probe')
        board.take_score(name, sample, 0.0)
        board.take_alarm(name, AlarmSample('pick/3', 4, int(state), 2, reason))
    return board.views(0.25)


def test_every_state_has_its_own_exit_status():
    words = {*(state_word(state).word for state in AlarmState), GONE.word}
    assert set(EXIT_STATUS) == words
    assert len(set(EXIT_STATUS.values())) == len(words)
    assert not {1, 2} & set(EXIT_STATUS.values()), '1 is a failure, 2 is wrong usage'


@pytest.mark.parametrize('state', list(AlarmState))
def test_the_worst_robot_counts(state):
    views = views_of(AlarmState.NOMINAL, state, AlarmState.NOMINAL)
    assert exit_status(views) == EXIT_STATUS[state.name]


def test_an_alarm_is_worse_than_everything_and_nominal_is_zero():
    assert exit_status(views_of(*AlarmState)) == EXIT_STATUS['ALARM'] == max(EXIT_STATUS.values())
    assert exit_status(views_of(AlarmState.NOMINAL)) == 0
    assert exit_status([]) == 1


def test_a_monitor_that_is_gone_is_not_nominal():
    board = RobotBoard()
    board.add('/r')
    board.take_alarm('/r', AlarmSample('e', 0, int(AlarmState.NOMINAL), 0, 'fine'))
    board.set_alive('/r', False, 1.0)
    assert exit_status(board.views(2.0)) == EXIT_STATUS['GONE']


def test_a_line_has_name_state_numbers_and_reason():
    (view,) = views_of(AlarmState.ALARM, reason='score 0.9 is above\nthe threshold')
    assert status_line(view) == (
        '/robot0 ALARM episode pick/3 step 4 score 0.5 threshold 0.8 age 0.2 s advice stop: '
        'score 0.9 is above the threshold'
    )


def test_json_is_strict_and_says_null_for_what_is_not_known():
    (view,) = views_of(AlarmState.NOMINAL, threshold=math.inf)
    facts = json.loads(status_json(view), parse_constant=pytest.fail)
    assert facts['robot'] == '/robot0' and facts['state'] == 'NOMINAL'
    assert facts['threshold'] == 'inf' and facts['probability'] is None
    board = RobotBoard()
    board.add('/new')
    facts = json.loads(status_json(board.views(0.0)[0]), parse_constant=pytest.fail)
    assert facts['step'] is facts['score'] is facts['age'] is None
