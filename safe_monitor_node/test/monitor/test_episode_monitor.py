# SPDX-License-Identifier: Apache-2.0
"""Episodes scored step by step: the order of events, and every problem of a step."""

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
from safe_monitor_node.detectors.signal_history import HISTORY
from safe_monitor_node.monitor.alarm import AlarmConfig, Latch
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.scoring import scored_alone
from safe_monitor_node.monitor.steps import Publication, StepId
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


def test_repeated_steps_are_ignored_and_counted():
    live = Live()
    for index in range(3):
        live.step(index)
    before = live.monitor.verdict
    assert live.step(2) is None
    assert live.step(1) is None
    assert live.monitor.verdict == before
    assert live.monitor.counts.repeated == 2
    assert live.state(3) == NOMINAL


@pytest.mark.parametrize('changes', [{'score': RAISED}, {'features': np.ones(WIDTH) / 3}])
@pytest.mark.parametrize('index', [0, 1, 2])
def test_a_step_that_comes_again_with_other_content_is_no_repetition(index, changes):
    live = Live(max_missing_steps=100)
    for step in range(3):
        live.step(step)
    result = live.step(index, **changes)
    assert result.verdict.state == INVALID
    assert f'step {index} of episode' in result.problem
    assert 'arrived twice, with different features or signals' in result.problem
    assert ('START' in result.problem) == (index == 0)
    assert live.monitor.counts.misplaced == 1
    assert live.state(3) == INVALID, 'two streams of steps are mixed'
    assert live.monitor.verdict.reason == result.problem
    assert live.state(0, episode='b') == NOMINAL


def test_a_second_episode_of_a_constant_id_and_stamp_is_never_taken_for_the_first():
    live = Live()
    for index in range(3):
        live.step(index, stamp=0)
    again = [live.step(index, features=np.full(WIDTH, 0.1 * index + 0.1)) for index in range(6)]
    assert {result.verdict.state for result in again} == {INVALID}, 'also the steps 3 to 5'
    assert 'use a different episode_id' in live.monitor.verdict.reason


def test_a_large_raw_array_is_told_from_another_one():
    raw = np.arange(1, 300 * WIDTH * 50 + 1, dtype=np.float32).reshape(-1, WIDTH)
    live = Live(recurrent())
    live.step(0, features=raw)
    assert live.step(0, features=raw.copy()) is None
    assert live.state(0, features=raw + 1) == INVALID


@pytest.mark.parametrize('first', [0, 3])
def test_a_missing_step_that_comes_late_is_ignored(first):
    live = Live()
    for index in (0, 1, 2, 4):
        live.step(index)
    assert live.step(3) is None
    assert live.state(5) == INVALID
    assert live.monitor.verdict.reason == '1 step of the episode is missing (3)'


# --- who is speaking


def play_messages(messages, **config):
    """Play (index, sequence) pairs of one episode; returns the states."""
    live = Live(**config)
    states = []
    for index, sequence in messages:
        step = make_step(index, stamp=index + 1)
        step_id = StepId.of(step, Publication(sequence))
        if live.monitor.begins(step_id):
            live.monitor.begin('a', live.now)
        result = scored_alone(live.monitor.scoring(step, live.now, step_id))
        states.append(None if result is None else result.verdict.state)
    return states, live.monitor


@pytest.mark.parametrize(
    ('messages', 'states'),
    [
        (
            [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3)],
            [NOMINAL, None, NOMINAL, INVALID, INVALID, INVALID],
        ),
        (
            [(0, 1), (0, 500), (1, 2), (1, 501), (2, 3)],
            [NOMINAL, None, NOMINAL, None, INVALID],
        ),
        ([(0, 500), (1, 1), (2, 501), (3, 2)], [NOMINAL] * 3 + [INVALID]),
    ],
    ids=['equal numbers', 'far apart', 'turn by turn'],
)
def test_an_episode_of_two_publishers_is_invalid(messages, states):
    found, monitor = play_messages(messages, max_missing_steps=9)
    assert found == states
    assert 'expected one publisher of all steps, found another' in monitor.verdict.reason


def test_a_restarted_bridge_goes_on_with_the_episode():
    found, monitor = play_messages([(0, 500), (1, 501), (2, 1), (3, 2), (4, 3)])
    assert found == [NOMINAL] * 5
    assert monitor.order.changed_at == 2


def test_one_publisher_may_publish_something_else_or_repeat_itself():
    found, _ = play_messages([(0, 1), (1, 5), (1, 6), (2, 7)])
    assert found == [NOMINAL, NOMINAL, None, NOMINAL]


def test_a_publisher_without_numbers_is_not_accused():
    found, _ = play_messages([(0, None), (1, None), (2, 3), (3, None), (4, 1)])
    assert found == [NOMINAL] * 5


def test_a_restarted_publisher_may_begin_the_episode_anew():
    live = Live()
    for index, sequence, stamp in ((0, 10, 1), (1, 11, 2), (0, 1, 30), (1, 2, 40)):
        step = make_step(index, stamp=stamp)
        step_id = StepId.of(step, Publication(sequence))
        if live.monitor.begins(step_id):
            live.monitor.begin('a', live.now)
        assert scored_alone(live.monitor.scoring(step, live.now, step_id)).verdict.state == NOMINAL


# --- steps of no episode


def test_a_step_without_an_id_is_invalid_from_the_first_one_on():
    live = Live(stale_after=5.0)
    result = live.step(0, episode='')
    assert result.verdict.state == INVALID
    assert 'expected an episode_id, found an empty text' in result.problem
    assert live.state(1, episode='') == INVALID
    assert live.monitor.tick(live.now + 6.0).state == STALE, 'an episode runs, whatever its name'
    assert live.state(0, episode='b') == NOMINAL


def test_a_monitor_that_joins_an_episode_without_an_id_is_invalid():
    assert Live().state(5, episode='') == INVALID


def test_a_step_without_an_id_breaks_the_running_episode_and_releases_no_alarm():
    live = Live()
    live.step(0)
    assert live.state(1, episode='') == INVALID
    assert live.state(1) == INVALID
    assert live.monitor.episode_id == 'a'
    live.step(0, HIGH, episode='b')
    assert live.state(1, episode='') == ALARM


@pytest.mark.parametrize(('index', 'stamp'), [(2, 30), (5, 59)])
def test_a_late_step_of_an_earlier_episode_is_not_scored_as_the_next_step(index, stamp):
    live = Live()
    for earlier in range(6):
        live.step(earlier, stamp=10 * earlier + 10)
    for later in range(index):
        assert live.state(later, stamp=10 * later + 100) == NOMINAL
    result = live.step(index, stamp=stamp)
    assert result.verdict.state == INVALID
    assert 'a late step of an earlier episode with the same episode_id' in result.problem
    assert live.state(index + 1, stamp=10 * index + 110) == INVALID, 'until the episode ends'
    assert live.state(0, stamp=1000) == NOMINAL


def test_steps_may_be_stamped_before_the_first_one_if_the_clock_was_set_back():
    live = Live()
    live.step(0, stamp=100)
    live.monitor.clock_ran_back()
    assert live.state(1, stamp=20) == NOMINAL
    assert live.state(2, stamp=30) == NOMINAL
    assert live.state(3, stamp=0) == NOMINAL, 'a stamp of 0 says nothing'


@pytest.mark.parametrize('stamp', [0, 10, 25])
def test_a_second_episode_of_a_constant_id_after_end_is_invalid(stamp):
    """Stamps of 0, or stamps that count from the start of each episode."""
    live = Live()
    for index in range(3):
        live.step(index, stamp=10 * index + 10)
    live.monitor.end('a')
    result = live.step(0, stamp=stamp)
    assert result.verdict.state == INVALID
    assert 'after the END of this episode' in result.problem
    assert 'for a new episode, use a different episode_id' in result.problem
    assert ('is 0' in result.problem) == (stamp == 0)
    assert live.state(1, stamp=stamp) == INVALID
    assert not live.monitor.running
    live.monitor.start('a', live.now)
    assert live.state(0, stamp=stamp) == NOMINAL, 'START says that it is another one'


def test_steps_after_end_are_invalid_as_long_as_they_come():
    live = Live()
    for index in range(3):
        live.step(index)
    live.monitor.end('a')
    result = live.step(3, HIGH)
    assert result.verdict.state == INVALID
    assert math.isnan(result.score)
    assert 'step 3' in result.problem and 'increase end_grace' in result.problem
    assert live.monitor.counts.misplaced == 1
    assert live.monitor.tick(live.now + 1.0).state == INVALID
    assert live.monitor.tick(live.now + 10.0).state == UNKNOWN


def test_steps_after_end_break_the_next_episode_unless_they_come_in_the_grace():
    live = Live()
    live.step(0, stamp=1)
    assert live.monitor.end_after_grace('a', live.now + 1.5)
    live.monitor.start('b', live.now)
    assert live.step(1) is None, 'the next START may be delivered before the last step'
    assert live.monitor.counts.repeated == 1
    assert live.state(0, episode='b') == NOMINAL
    result = live.step(2)
    assert result.verdict.state == INVALID
    assert live.state(1, episode='b') == INVALID
    assert live.monitor.episode_id == 'b'


def test_a_step_that_was_published_before_end_is_late_and_no_contradiction():
    live = Live()
    live.step(0)
    live.monitor.end_after_grace('a', live.now + 0.1, ended_at=1000)
    order = live.monitor.order
    times = (0, 999, 1000, 1001)
    assert [order.waits_after(Publication(1, t)) for t in times] == [False, True, True, False]
    live.monitor.finish()
    assert not order.waits_after(Publication(1, 999)), 'the grace is over'
    late, later = (
        StepId.of(make_step(index), Publication(index, time))
        for index, time in ((1, 999), (2, 1001))
    )
    assert scored_alone(live.monitor.scoring(make_step(1), live.now + 5.0, late)) is None
    assert live.monitor.verdict.state == UNKNOWN
    result = scored_alone(live.monitor.scoring(make_step(2), live.now + 5.0, later))
    assert result.verdict.state == INVALID, 'the policy goes on after END'


def test_an_unreadable_message_has_a_place_as_every_other():
    live = Live()
    live.step(0)
    live.monitor.end('a')
    assert live.unreadable('a', 1).verdict.state == INVALID
    assert not live.monitor.running
    assert live.unreadable('', 0).verdict.reason.startswith('step 0: expected an episode_id')


# --- step numbers that are not those of inferences


@pytest.mark.parametrize('first', [0, 49])
@pytest.mark.parametrize('stride', [2, 50])
def test_numbers_of_environment_steps_are_told_from_missing_steps(stride, first):
    live = Live(scripted(make_band(length=40)))
    states = [live.state(first + stride * k) for k in range(4)]
    assert states[1:] == [INVALID] * 3
    reason = live.monitor.verdict.reason
    assert 'missing' in reason, 'and not: calibrate a longer band'
    assert f'each step number is {stride} larger' in reason
    assert 'number the inferences' in reason
    if first == 0:
        assert f'(1 to {stride - 1})' in reason or stride == 2
    assert live.state(0, episode='b') == NOMINAL


def test_single_gaps_are_no_stride():
    live = Live()
    for index in (0, 2, 3, 5, 9):
        live.step(index)
    assert live.monitor.verdict.reason == '1 step of the episode is missing (1)'


def test_a_gap_is_counted_and_makes_the_episode_invalid():
    live = Live()
    live.step(0)
    result = live.step(3)
    assert result.verdict.state == INVALID
    assert result.verdict.reason == '2 steps of the episode are missing (1 to 2)'
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
    assert live.state(0, stamp=stamp) == INVALID
    assert not live.monitor.running


def test_another_detector_takes_over_what_ended_and_what_was_counted():
    live = Live()
    live.step(0)
    live.monitor.end('a')
    counts = live.monitor.counts
    following = EpisodeMonitor(scripted())
    following.take_over(live.monitor)
    live.monitor = following
    assert live.state(1) == INVALID, 'a late step of an ended episode starts no ghost'
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
        ({'features': np.zeros(WIDTH, np.float32)}, 'not all 0, found only zeros'),
        ({'features': np.zeros((3, WIDTH), np.float32)}, 'not all 0, found only zeros'),
        ({'features': np.full(WIDTH, 1e30, np.float32)}, r'at most 1e\+09, found 1e\+30'),
        ({'features': np.arange(WIDTH, dtype=np.int32)}, 'float64, found int32; .*token ids'),
        ({'features': np.ones(WIDTH, np.uint8)}, 'found uint8'),
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
    assert live.unreadable('a', 4, 'unreadable').verdict.state == INVALID
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


@pytest.mark.parametrize(
    ('exec_horizon', 'score', 'warned'), [(4, 0.2, True), (3, 0.2, False), (4, None, False)]
)
def test_a_constant_score_of_chunks_without_overlap_is_a_warning(exec_horizon, score, warned):
    live = Live()
    for index in range(12):
        assert live.monitor.checks.warning == '' or index > 9
        # The score is the norm of the chunk.
        chunk = np.full((1, 4, 1), (score or index / 100) / 2)
        assert live.state(index, actions=chunk, exec_horizon=exec_horizon) == NOMINAL
    expected = 'the score is 0.2 at 12 steps in succession, and the chunks do not overlap (exec_hor'
    assert live.monitor.checks.warning.startswith(expected) == warned
    assert bool(live.monitor.checks.warning) == warned
    live.monitor.begin('b', live.now)
    assert live.monitor.checks.warning == ''


def test_features_without_a_name_are_scored_with_a_warning():
    live = Live(recurrent())
    assert live.state(0, feature_name='') == NOMINAL
    assert 'without a name' in live.monitor.checks.warning
    assert str(SPEC) in live.monitor.checks.warning
    assert live.state(1) == NOMINAL
    assert live.monitor.checks.warning == ''


def test_a_detector_that_reads_no_features_accepts_any():
    live = Live(max_identical_features=2)
    nothing = np.zeros(0, np.float32)
    frozen = [live.state(index, features=nothing, feature_name='') for index in range(4)]
    assert frozen == [NOMINAL] * 4
    assert live.monitor.checks.warning == ''
    assert live.state(4, features=np.zeros(WIDTH, np.int32)) == NOMINAL
    assert live.state(5, features=nothing, feature_name='none') == NOMINAL, 'a black box'


@pytest.mark.parametrize('raw', [False, True], ids=['pooled', 'raw'])
def test_frozen_features_are_invalid_beyond_the_allowed_number(raw):
    shape = (3, WIDTH) if raw else (WIDTH,)
    frozen = np.full(shape, 0.5, np.float32)
    live = Live(recurrent(), max_identical_features=3)
    live.step(0)
    states = [live.state(index, features=frozen.copy()) for index in range(1, 6)]
    assert states == [NOMINAL] * 3 + [INVALID] * 2
    assert (
        'step 4: expected at most 3 steps in succession with identical features'
        in live.monitor.verdict.reason
    )
    assert 'max_identical_features' in live.monitor.verdict.reason
    assert live.state(0, episode='b', features=frozen) == NOMINAL, 'counted anew'


def test_any_number_of_identical_features_is_accepted_if_a_person_says_so():
    live = Live(recurrent(), max_identical_features=0)
    frozen = np.full(WIDTH, 0.5, np.float32)
    assert {live.state(index, features=frozen) for index in range(20)} == {NOMINAL}


def test_features_that_are_identical_now_and_then_are_not_frozen():
    live = Live(recurrent(), max_identical_features=2)
    values = (1, 1, 2, 2, 1, 1, 3, 3)
    states = {live.state(i, features=np.full(WIDTH, v, np.float32)) for i, v in enumerate(values)}
    assert states == {NOMINAL}


# --- a detector with a fault


class FailingProbe(type(make_detector('action_norm'))):
    """A detector whose code has a fault: at some steps, or already when an episode begins."""

    at = 'step 1'

    def stream(self):
        if self.at == 'stream':
            raise AttributeError('no weights')
        good = super().stream()

        class Failing:
            def step(self, step):
                if step.step:
                    raise KeyError('gripper')
                return good.step(step)

        return Failing()


def failing(at):
    detector = FailingProbe()
    detector.load_state({}, WIDTH)
    detector.at = at
    return Live(dataclasses.replace(scripted(), detector=detector))


def test_an_exception_of_a_detector_is_an_invalid_step_with_its_text():
    live = failing('step 1')
    assert live.state(0) == NOMINAL
    assert live.monitor.faults.take() == []
    for index in (1, 2):
        result = live.step(index)
        assert result.verdict.state == INVALID
        assert (
            result.problem == f"step {index}: detector action_norm failed with KeyError: 'gripper'"
        )
    assert live.state(0, episode='b') == NOMINAL
    (text,) = live.monitor.faults.take()
    assert text.startswith("step 1: detector action_norm failed with KeyError: 'gripper'; ")
    assert "raise KeyError('gripper')" in text, 'the traceback shows the line'
    live.step(1, episode='b')
    assert live.monitor.faults.take() == [], 'once'


def test_a_detector_that_cannot_begin_an_episode_makes_its_steps_invalid():
    live = failing('stream')
    live.monitor.start('a', live.now)
    for index in (0, 1):
        result = live.step(index)
        assert result.verdict.state == INVALID
        assert result.problem.endswith('action_norm failed with AttributeError: no weights')
    (text,) = live.monitor.faults.take()
    assert "raise AttributeError('no weights')" in text


# --- an alarm that a person has to reset


def test_a_latched_alarm_outlives_the_next_detector_and_a_deactivation():
    live = Live(latch=Latch.RESET)
    live.step(0, HIGH)
    live.monitor.end('a')
    following = EpisodeMonitor(scripted(), config=AlarmConfig(latch=Latch.RESET))
    following.take_over(live.monitor)
    assert following.verdict.state == ALARM
    assert "of episode 'a'" in following.verdict.reason
    assert following.abandon().state == ALARM
    live.monitor = following
    assert live.state(0, episode='b') == ALARM
    assert following.reset().state == UNKNOWN
    assert live.state(1, episode='b') == NOMINAL


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
