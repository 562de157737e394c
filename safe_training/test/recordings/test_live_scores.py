# SPDX-License-Identifier: Apache-2.0
"""Scores that a monitor published are read from a recording of the session."""

import math

import pytest
from recorded_scores import make_score, write_scores

from safe_training.recordings.errors import DumpError
from safe_training.recordings.live_scores import read_live_scores
from safe_training.recordings.untrusted.cdr import SCORE, BagMessageError, check_definition
from safe_training.recordings.untrusted.score_cdr import score_from_cdr


def test_scores_come_by_episode_in_the_order_of_arrival(tmp_path):
    scores = [make_score('a', 0), make_score('b', 0), make_score('a', 1, 2.5, alarm=True)]
    write_scores(tmp_path / 'bag', {'/robot1/safe/score': scores})
    found = read_live_scores(tmp_path / 'bag')
    assert list(found) == ['a', 'b']
    assert found['a'] == [scores[0], scores[2]]
    assert found['b'] == [scores[1]]


def test_a_step_that_was_not_scored_stays_nan(tmp_path):
    write_scores(tmp_path / 'bag', {'/safe/score': [make_score('a', 0, math.nan)]})
    (score,) = read_live_scores(tmp_path / 'bag')['a']
    assert math.isnan(score.score)


def test_an_episode_that_began_again_has_its_last_scores(tmp_path):
    scores = [make_score('a', t, 1.0) for t in range(3)] + [make_score('a', 0, 2.0)]
    write_scores(tmp_path / 'bag', {'/safe/score': scores})
    assert [s.score for s in read_live_scores(tmp_path / 'bag')['a']] == [2.0]


def test_scores_that_were_played_aside_are_not_those_of_the_monitor(tmp_path):
    topics = {
        '/recorded/safe/score': [make_score('a', 0, 1.0)],
        '/safe/score': [make_score('a', 0, 2.0)],
    }
    write_scores(tmp_path / 'bag', topics)
    assert read_live_scores(tmp_path / 'bag')['a'][0].score == 2.0
    chosen = read_live_scores(tmp_path / 'bag', '/recorded/safe/score')
    assert chosen['a'][0].score == 1.0


@pytest.mark.parametrize(
    ('topics', 'topic', 'message'),
    [
        (
            [],
            '',
            r'expected scores on one topic .../safe/score, found no scores; record safe/score',
        ),
        (
            ['/a/safe/score', '/b/safe/score'],
            '',
            "found scores on '/a/safe/score', '/b/safe/score'",
        ),
        (['/safe/score'], '/b/safe/score', 'expected scores on the topic /b/safe/score, found'),
        (['/safe/probe/score'], '', "found scores on '/safe/probe/score'; choose one"),
    ],
)
def test_a_recording_without_the_scores_of_one_monitor_is_refused(tmp_path, topics, topic, message):
    write_scores(tmp_path / 'bag', {name: [make_score('a', 0)] for name in topics})
    with pytest.raises(DumpError, match=message):
        read_live_scores(tmp_path / 'bag', topic)


def test_scores_of_another_definition_are_refused(tmp_path):
    write_scores(
        tmp_path / 'bag', {'/safe/score': [make_score('a', 0)]}, definition='float64 score\n'
    )
    with pytest.raises(DumpError, match='expected the definition of safe_msgs/msg/FailureScore'):
        read_live_scores(tmp_path / 'bag')


@pytest.mark.parametrize('text', ['x' * 70_000, 'float64', '====', 'int33 x\n', '\x00'])
def test_a_manipulated_definition_is_refused_and_never_run(text):
    with pytest.raises(BagMessageError, match=f'expected the definition of {SCORE}'):
        check_definition(SCORE, 'ros2msg', text)


@pytest.mark.parametrize('data', [b'', b'\x00\x01\x00\x00', b'\x00\x01\x00\x00' + b'\xff' * 200])
def test_other_bytes_are_no_score(data):
    with pytest.raises(BagMessageError, match=f'expected a message of type {SCORE}'):
        score_from_cdr(data)
