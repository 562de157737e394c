# SPDX-License-Identifier: Apache-2.0
"""Episodes scored step by step: the order of things, and all that may go wrong with a step."""

import dataclasses
import math
import re

import numpy as np
import pytest
from rollout_factory import make_rollout
from scripted_episodes import (
    ALARM,
    HIGH,
    INVALID,
    LOW,
    NOMINAL,
    RAISED,
    SPEC,
    STALE,
    UNKNOWN,
    WARNING,
    WIDTH,
    Live,
    make_band,
    make_step,
    recurrent,
    scripted,
)

from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.detectors.probe import HISTORY
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.steps import StepId
from safe_monitor_node.monitor.thresholds import CalibratedThresholds

# --- one episode


def test_every_step_is_scored_against_both_bands():
    live = Live()
    live.monitor.start('a', live.now)
    result = live.step(0)
    assert (result.score, result.threshold) == (pytest.approx(LOW), 1.0)
    assert result.problem == ''
    assert result.verdict.state == NOMINAL
    assert live.state(1, RAISED) == WARNING
    assert live.state(2, HIGH) == ALARM
    assert live.state(3, LOW) == ALARM
    assert live.monitor.reset().state == UNKNOWN
    assert live.state(4, LOW) == NOMINAL
    assert live.monitor.end('a').state == UNKNOWN
    assert not live.monitor.running
    assert live.monitor.counts.scored == 5


@pytest.mark.parametrize('seed', range(4))
def test_an_episode_is_scored_as_its_whole_rollout_would_be(seed):
    rng = np.random.default_rng(seed)
    loaded = recurrent()
    live = Live(loaded)
    for episode in range(3):
        rollout = make_rollout(episode, steps=12, dim=WIDTH, rng=rng, feature_name=str(SPEC))
        score = loaded.detector.score(rollout)
        upper = np.full((1, 12), np.sort(score)[9])
        loaded = dataclasses.replace(loaded, band=Band(np.array([0.1]), upper, 'any', 19))
        live.monitor.calibrated = loaded
        live.monitor.thresholds = CalibratedThresholds(loaded)
        results = [live.monitor.step(rollout.step(t), live.now + t) for t in range(12)]
        np.testing.assert_allclose([j.score for j in results], score, atol=1e-5)
        states = [result.verdict.state for result in results]
        crossing = live.monitor.threshold.first_crossing([j.score for j in results])
        assert states.index(ALARM) == crossing
        live.monitor.end(rollout.episode_id)


def test_a_step_may_begin_an_episode_before_its_start_is_delivered():
    live = Live(recurrent())
    first = live.step(0, features=np.ones(WIDTH, np.float32))
    before = live.monitor.verdict
    assert live.monitor.start('a', live.now) == before, 'a late start changes nothing'
    second = live.step(1, features=np.ones(WIDTH, np.float32))
    assert second.problem == ''
    assert second.verdict.state == first.verdict.state == NOMINAL
    assert second.score != first.score, 'the first step is remembered'
    assert live.monitor.counts.episodes == 1
    assert live.monitor.counts.missing == 0


def test_a_repeated_start_counts_once():
    live = Live()
    live.monitor.start('a', live.now)
    live.monitor.start('a', live.now + 1.0)
    assert live.monitor.counts.episodes == 1
    assert live.state(0) == NOMINAL


def test_a_late_start_does_not_release_an_alarm():
    live = Live()
    live.state(0, HIGH)
    assert live.monitor.start('a', live.now).state == ALARM


# --- order


def test_repeated_and_late_steps_are_ignored():
    live = Live()
    for index in range(3):
        live.step(index)
    before = live.monitor.verdict
    assert live.step(2, HIGH) is None
    assert live.step(1, HIGH) is None
    assert live.monitor.verdict == before
    assert live.monitor.counts.out_of_order == 2
    assert live.state(3) == NOMINAL


def test_a_gap_is_counted_and_makes_the_episode_invalid():
    live = Live()
    live.step(0)
    result = live.step(3)
    assert result.verdict.state == INVALID
    assert 'in this episode is 2' in result.verdict.reason
    assert live.monitor.counts.missing == 2
    assert live.state(4) == INVALID
    assert live.state(5, HIGH) == INVALID, 'no alarm from a score that was never calibrated'


def test_an_episode_joined_in_the_middle_is_invalid():
    live = Live()
    assert live.state(5) == INVALID
    assert live.monitor.counts.missing == 5


def test_a_gap_within_the_allowance_is_scored():
    live = Live(max_missing_steps=2)
    live.step(0)
    assert live.state(3) == NOMINAL
    assert live.state(5) == INVALID


def test_a_later_step_zero_starts_the_episode_again():
    live = Live(recurrent())
    ones = np.ones(WIDTH, np.float32)
    first = live.step(0, features=ones, stamp=10)
    live.step(1, features=ones, stamp=20)
    again = live.step(0, features=ones, stamp=30)
    assert again.score == first.score
    assert again.problem == ''
    assert live.monitor.counts.episodes == 2


@pytest.mark.parametrize('stamp', [0, 10, 20])
def test_a_repeated_step_zero_is_ignored_and_releases_no_alarm(stamp):
    live = Live()
    live.step(0, stamp=10)
    assert live.state(1, HIGH, stamp=20) == ALARM
    assert live.step(0, stamp=stamp) is None
    assert live.monitor.verdict.state == ALARM
    live.monitor.end('a')
    assert live.step(0, stamp=stamp) is None
    assert not live.monitor.running


def test_another_detector_takes_over_what_ended_and_what_was_counted():
    live = Live()
    live.step(0)
    live.monitor.end('a')
    counts = live.monitor.counts
    following = EpisodeMonitor(scripted())
    following.take_over(live.monitor)
    live.monitor = following
    assert live.step(1) is None, 'a late step of an ended episode starts no ghost'
    assert not following.running
    assert following.counts is counts
    assert live.state(0, episode='b') == NOMINAL


def test_a_late_step_of_the_last_episode_begins_nothing():
    live = Live()
    live.step(0, stamp=10)
    live.monitor.end('a')
    live.step(0, episode='b', stamp=20)
    assert not live.monitor.begins(StepId('a', 1, 15))
    assert not live.monitor.begins(StepId('a', 0, 15))
    assert not live.monitor.begins(StepId('b', 1, 30))
    assert live.monitor.begins(StepId('a', 0, 40))
    assert live.monitor.begins(StepId('c', 3, 0))


@pytest.mark.parametrize('score', [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_said_and_counted(score):
    loaded = scripted()

    class Overflowing:
        def step(self, step):
            return float(score)

    live = Live(loaded)
    live.step(0)
    live.monitor._stream = Overflowing()
    result = live.step(1)
    assert result.verdict.state == INVALID
    assert str(float(score)) in result.problem
    assert live.monitor.counts.invalid == 1


def test_a_step_of_another_episode_begins_that_one():
    live = Live(recurrent())
    ones = np.ones(WIDTH, np.float32)
    first = live.step(0, features=ones)
    live.step(1, features=ones)
    assert live.step(0, episode='b', features=ones).score == first.score
    assert live.monitor.episode_id == 'b'


def test_the_end_of_another_episode_changes_nothing():
    live = Live()
    live.step(0, HIGH)
    assert live.monitor.end('b').state == ALARM
    assert live.monitor.running


def test_late_steps_of_an_ended_episode_are_ignored():
    live = Live()
    for index in range(3):
        live.step(index)
    live.monitor.end('a')
    assert live.step(3, HIGH) is None
    assert live.monitor.verdict.state == UNKNOWN
    assert not live.monitor.running
    live.monitor.start('b', live.now)
    assert live.step(4, HIGH) is None, 'the next start may be delivered before the last step'
    assert live.monitor.episode_id == 'b'
    assert live.state(0, episode='b') == NOMINAL
    assert live.step(5, HIGH) is None
    assert live.state(1, episode='b') == NOMINAL
    assert live.monitor.counts.out_of_order == 3


def test_an_ended_episode_may_be_played_again():
    live = Live()
    live.step(0)
    live.step(1)
    live.monitor.end('a')
    assert live.state(0, stamp=5) == NOMINAL
    assert live.state(1, stamp=6) == NOMINAL
    live.monitor.end('a')
    live.monitor.start('a', live.now)
    assert live.state(0) == NOMINAL
    assert live.monitor.counts.episodes == 3


def test_an_abandoned_episode_is_not_scored_any_further():
    live = Live()
    live.step(0)
    live.step(1, HIGH)
    assert live.monitor.abandon().state == UNKNOWN
    assert not live.monitor.running
    assert live.state(2) == INVALID, 'its first steps are forgotten'


# --- steps that cannot be scored


@pytest.mark.parametrize(
    ('changes', 'problem'),
    [
        ({'features': np.array([0.0, np.nan, 0.0, 0.0], np.float32)}, 'NaN'),
        ({'features': np.zeros(5, np.float32)}, r'features of shape \(4,\) for'),
        ({'features': np.zeros((2, 2, WIDTH), np.float32)}, r'features of shape \(4,\) for'),
        (
            {'features': np.zeros((0, WIDTH), np.float32)},
            'expected at least one position on axis -2',
        ),
        ({'features': np.zeros((3, 5), np.float32)}, 'pooled width of 4, found 5'),
        ({'feature_name': 'logits[token=last]'}, "'hidden_states.*fitted on, found 'logits"),
        ({'feature_name': 'hidden_states[token=mean]'}, 'the same feature and the same pooling'),
    ],
)
def test_a_step_that_cannot_be_scored_is_invalid_and_says_why(changes, problem):
    live = Live(recurrent())
    live.step(0)
    result = live.step(1, **changes)
    assert result.verdict.state == INVALID
    assert math.isnan(result.score)
    assert math.isnan(result.threshold)
    assert re.search(problem, result.problem)
    assert result.verdict.reason == result.problem
    assert live.monitor.counts.invalid == 1
    assert live.state(2) == INVALID
    assert live.state(0, episode='b') == NOMINAL, 'the next episode is scored again'


def test_a_step_that_cannot_be_scored_leaves_the_others_scores_alone():
    ones = np.ones(WIDTH, np.float32)
    live, undisturbed = Live(recurrent(), max_missing_steps=1), Live(recurrent())
    live.step(0, features=ones)
    assert live.state(1, features=np.full(WIDTH, np.inf, np.float32)) == INVALID
    result = live.step(2, features=2 * ones)
    assert result.verdict.state == NOMINAL
    undisturbed.step(0, features=ones)
    assert result.score == undisturbed.step(1, features=2 * ones).score


def test_past_the_end_of_the_band_nothing_is_nominal():
    live = Live(scripted(make_band(length=3)))
    assert [live.state(index) for index in range(3)] == [NOMINAL] * 3
    result = live.step(3)
    assert result.verdict.state == INVALID
    assert 'number of steps of the band: 3' in result.problem
    assert result.score == pytest.approx(LOW), 'there is a score, but nothing to hold it against'
    assert math.isnan(result.threshold)


def test_an_alarm_outlives_the_end_of_the_band():
    live = Live(scripted(make_band(length=1)))
    assert [live.state(0, HIGH), live.state(1)] == [ALARM, ALARM]


def test_a_message_that_cannot_be_read_is_an_invalid_step():
    live = Live()
    live.step(0)
    result = live.unreadable('a', 1, 'shape (3,) needs 12 bytes')
    assert result.verdict.state == INVALID
    assert result.problem == 'shape (3,) needs 12 bytes'
    assert live.state(2) == INVALID


def test_unreadable_messages_keep_the_order_as_readable_ones_do():
    live = Live(max_missing_steps=2)
    live.step(0)
    assert live.unreadable('a', 2, 'unreadable').verdict.state == INVALID
    assert live.monitor.counts.missing == 1
    assert live.state(3) == NOMINAL, 'two steps without a score are allowed'
    assert live.unreadable('a', 3, 'unreadable') is None
    live.monitor.end('a')
    assert live.unreadable('a', 4, 'unreadable') is None
    assert not live.monitor.running
    assert live.unreadable('b', 0, 'unreadable').verdict.state == INVALID
    assert live.monitor.episode_id == 'b'


def test_three_steps_without_a_score_are_too_many_where_two_are_allowed():
    live = Live(max_missing_steps=2)
    live.step(0)
    live.unreadable('a', 3, 'unreadable')
    assert live.state(4) == INVALID


def test_silence_is_stale_and_the_next_step_goes_on():
    live = Live(stale_after=2.0)
    live.step(0)
    assert live.monitor.tick(live.now + 1.0).state == NOMINAL
    assert live.monitor.tick(live.now + 3.0).state == STALE
    assert live.state(1) == NOMINAL


# --- what the features are


def test_raw_features_are_pooled_as_the_detector_was_trained():
    raw = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)
    pooled = Live(recurrent()).step(0, features=raw[-1])
    for name in ('hidden_states', 'hidden_states[token=last]', ''):
        step = make_step(0, features=raw, feature_name=name)
        result = Live(recurrent()).monitor.step(step, 0.0)
        assert result.problem == ''
        assert result.score == pooled.score
        assert step.features is raw, "the step is the sender's"


def test_features_without_a_name_are_taken_at_their_word():
    assert Live(recurrent()).state(0, feature_name='') == NOMINAL


# --- what the actions are


@pytest.mark.parametrize('accepted', ['robot', ''])
def test_actions_in_another_space_are_invalid(accepted):
    live = Live(dataclasses.replace(scripted(), action_space='robot'))
    assert live.state(0, action_space=accepted) == NOMINAL
    result = live.step(1, action_space='normalized')
    assert result.verdict.state == INVALID
    assert math.isnan(result.score)
    assert re.search(
        "step 1: .*space 'robot' .*fitted on, found .*space 'normalized'", result.problem
    )
    assert live.state(0, episode='b', action_space=accepted) == NOMINAL


def test_any_action_space_is_accepted_if_that_of_the_detector_is_unknown():
    assert Live(scripted()).state(0, action_space='normalized') == NOMINAL


def test_a_detector_that_reads_no_actions_accepts_any_action_space():
    live = Live(dataclasses.replace(recurrent(), action_space='robot'))
    assert live.state(0, action_space='normalized') == NOMINAL


@pytest.mark.parametrize(
    ('inputs', 'method', 'reads'),
    [('both', 'linear', True), ('features', 'linear', False), ('both', 'distance', False)],
)
def test_a_probe_reads_actions_if_its_score_depends_on_signals(inputs, method, reads):
    signals = ['action_norm']
    weights = np.full((1, len(HISTORY)), 1.0 if inputs == 'both' else 0.0)
    probe = make_detector('linear_probe')
    assert probe.reads_actions, 'before fitting, it can choose them'
    choice = {'inputs': inputs, 'method': method, 'l2': 1.0, 'smoothing': 0.0, 'signals': signals}
    probe.set_probe(choice, np.ones((1, WIDTH)), np.zeros(1), np.ones(1), weights)
    live = Live(dataclasses.replace(scripted(), detector=probe, action_space='robot'))
    result = live.step(0, action_space='normalized')
    assert (result.problem != '') == reads
    quiet, loud = (probe.stream().step(make_step(0, score)) for score in (LOW, HIGH))
    assert (quiet != loud) == reads
