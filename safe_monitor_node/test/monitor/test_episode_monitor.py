# SPDX-License-Identifier: Apache-2.0
"""Episodes scored step by step: the order of things, and all that may go wrong with a step."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from band_factory import constant_band

from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmState
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor, MonitorError, StepId
from safe_monitor_node.monitor.label_feedback import KEPT_EPISODES, LabelEffect
from safe_monitor_node.monitor.thresholds import CalibratedThresholds, choose_thresholds
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState

WIDTH = 4
SPEC = FeatureSpec('hidden_states', WIDTH, ('token',), (('token', 'last'),))
LOW, RAISED, HIGH = 0.2, 0.7, 1.2


def make_band(alphas=(0.1, 0.2), levels=(1.0, 0.5), length=20):
    return Band(np.array(alphas), np.repeat(np.array(levels)[:, None], length, axis=1), 'any', 19)


def scripted(band=None, alpha=0.1):
    """Return a detector folder whose score is whatever a step's signal says."""
    detector = make_detector('action_norm')
    detector.load_state({}, WIDTH)
    return CalibratedDetector(detector, SPEC, make_band() if band is None else band, alpha)


def recurrent():
    """Return a detector folder whose score depends on every step so far."""
    detector = make_detector('safe_lstm', hidden=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector.set_network(detector.build(WIDTH), WIDTH)
    return CalibratedDetector(detector, SPEC, make_band(levels=(0.9, 0.8)), 0.1)


def make_step(index, score=LOW, episode='a', **changes):
    values = {
        'features': np.zeros(WIDTH, np.float32),
        'feature_name': str(SPEC),
        'episode_id': episode,
        'step': index,
        'signals': {'action_norm': score},
    }
    return PolicyStep(**{**values, **changes})


class Live:
    """An episode monitor and a clock that runs one second a step."""

    def __init__(self, loaded=None, *, adaptation_step=0.0, **config):
        self.monitor = EpisodeMonitor(
            loaded or scripted(), config=AlarmConfig(**config), adaptation_step=adaptation_step
        )
        self.now = 50.0

    def step(self, *args, **changes):
        self.now += 1.0
        return self.monitor.step(make_step(*args, **changes), self.now)

    def unreadable(self, episode, index, problem='unreadable'):
        step_id = StepId(episode, index, 0)
        if self.monitor.begins(step_id):
            self.monitor.begin(episode, self.now)
        return self.monitor.continue_without(step_id, problem, self.now)

    def state(self, *args, **changes):
        result = self.step(*args, **changes)
        return None if result is None else result.verdict.state

    def play(self, episode, scores, success=None, task=''):
        """Play an episode from START to END and label it, if it is said how it went."""
        self.monitor.start(episode, self.now, task)
        states = [self.state(index, score, episode) for index, score in enumerate(scores)]
        self.monitor.end(episode)
        if success is not None:
            self.monitor.label(episode, success)
        return states


# --- which thresholds


def test_the_folders_own_alpha_and_twice_it_for_warnings_are_the_default():
    threshold, warning = choose_thresholds(scripted())
    assert (threshold.alpha, warning.alpha) == (0.1, 0.2)


def test_without_a_band_at_twice_alpha_there_is_no_warning_band():
    threshold, warning = choose_thresholds(scripted(), alpha=0.2)
    assert threshold.alpha == 0.2
    assert warning is threshold


def test_both_alphas_can_be_chosen():
    band = make_band((0.05, 0.1, 0.2, 0.4), (4.0, 3.0, 2.0, 1.0))
    threshold, warning = choose_thresholds(scripted(band), alpha=0.05, warning_alpha=0.4)
    assert (threshold.at(0), warning.at(0)) == (4.0, 1.0)
    threshold, warning = choose_thresholds(scripted(band), warning_alpha=0.1)
    assert threshold.at(0) == warning.at(0) == 3.0


@pytest.mark.parametrize(
    ('band', 'alpha', 'warning_alpha', 'message'),
    [
        (make_band(), 0.15, 0.0, r'not calibrated for alpha 0\.15; choose one of 0\.1, 0\.2'),
        (make_band(), 0.0, 0.3, r'not calibrated for alpha 0\.3'),
        (make_band(), 0.2, 0.1, r'warning_alpha \(0\.1\) must not be below alpha \(0\.2\)'),
        (make_band(levels=(math.inf, 0.5)), 0.0, 0.0, r'19 calibration.*choose alpha >= 0\.2'),
        (make_band(levels=(math.inf, math.inf)), 0.0, 0.0, 'calibrate on more rollouts'),
    ],
)
def test_thresholds_that_do_not_exist_are_refused_with_what_to_do(
    band, alpha, warning_alpha, message
):
    with pytest.raises(MonitorError, match=message) as caught:
        choose_thresholds(scripted(band), alpha, warning_alpha)
    assert 'action_norm' in str(caught.value) or 'warning_alpha' in str(caught.value)


def test_a_band_that_is_finite_later_is_accepted():
    upper = np.array([[math.inf, math.inf, 1.0]])
    threshold, _ = choose_thresholds(scripted(Band(np.array([0.1]), upper, 'any', 19)))
    assert threshold.at(0) == math.inf


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
        rollout = Rollout(
            rng.normal(size=(12, WIDTH)).astype(np.float32),
            task='t',
            episode_index=episode,
            feature_name=str(SPEC),
        )
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
    assert '2 steps' in result.verdict.reason
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
        ({'features': np.zeros(5, np.float32)}, r'expects features of shape \(4,\)'),
        ({'features': np.zeros((2, 2, WIDTH), np.float32)}, r'expects features of shape \(4,\)'),
        ({'features': np.zeros((0, WIDTH), np.float32)}, 'empty axis'),
        ({'features': np.zeros((3, 5), np.float32)}, 'pooled width of 4, found 5'),
        ({'feature_name': 'logits[token=last]'}, "are 'logits.*fitted on 'hidden_states"),
        ({'feature_name': 'hidden_states[token=mean]'}, 'same tensor and pooling'),
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
    assert 'band of 3 steps' in result.problem
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


# --- whose thresholds


def with_tasks():
    """Return a detector with bands of its own for two tasks, one of them infinite at alpha 0.1."""
    tasks = {'pour': make_band(levels=(3.0, 2.0)), 'rare': make_band(levels=(math.inf, 0.3))}
    return scripted(dataclasses.replace(make_band(), tasks=tasks))


@pytest.mark.parametrize(
    ('task', 'name', 'threshold', 'warning'),
    [
        ('pour', "the band of task 'pour'", 3.0, 2.0),
        ('rare', 'the band of all tasks', 1.0, 0.5),
        ('other', 'the band of all tasks', 1.0, 0.5),
        ('', 'the band of all tasks', 1.0, 0.5),
    ],
)
def test_the_thresholds_are_those_of_the_task_that_the_start_tells(task, name, threshold, warning):
    live = Live(with_tasks())
    live.monitor.start('a', live.now, task)
    assert live.step(0).threshold == threshold
    assert live.monitor.warning.at(0) == warning, 'a warning comes from the same band'
    assert live.monitor.band_name == name


def test_without_a_start_the_instruction_of_the_first_step_tells_the_task():
    live = Live(with_tasks())
    assert live.step(0, instruction='pour').threshold == 3.0
    assert live.step(0, episode='b').threshold == 1.0
    assert live.step(1, episode='b', instruction='pour').threshold == 1.0, 'not the first step'
    live.monitor.start('c', live.now)
    assert live.step(0, episode='c', instruction='pour').threshold == 3.0
    live.monitor.start('d', live.now, 'other')
    assert live.step(0, episode='d', instruction='pour').threshold == 1.0, 'the start counts'


def test_a_start_that_comes_late_changes_the_thresholds_from_then_on():
    live = Live(with_tasks())
    assert live.state(0, RAISED) == WARNING
    live.monitor.start('a', live.now, 'pour')
    assert live.state(1, RAISED) == NOMINAL
    assert live.monitor.counts.episodes == 1
    live.monitor.start('a', live.now)
    assert live.step(2).threshold == 3.0, 'a start that tells nothing changes nothing'
    assert live.step(0, episode='b').threshold == 1.0


def test_an_episode_that_begins_anew_under_its_name_keeps_its_task():
    live = Live(with_tasks())
    live.monitor.start('a', live.now, 'pour')
    live.step(0, stamp=10)
    assert live.step(0, stamp=20, instruction='other').threshold == 3.0
    live.monitor.end('a')
    assert live.step(0, stamp=30).threshold == 3.0
    live.monitor.start('a', live.now, 'other')
    assert live.step(1).threshold == 1.0
    live.monitor.abandon()
    assert live.step(0, stamp=40).threshold == 1.0


# --- label feedback


def adapting(peaks=39, rate=0.05, **config):
    """Return a monitor calibrated on peaks up to 1, and on peaks up to 2 for the task 'pour'."""
    levels = (np.arange(peaks) + 1) / peaks
    band = constant_band(levels, (0.1, 0.2), 20)
    own = constant_band(2 * levels, (0.1, 0.2), 20)
    band = dataclasses.replace(band, tasks={'pour': own})
    return Live(scripted(band), adaptation_step=rate, **config)


def level_of(live, task=''):
    return live.monitor.adaptation.of(task).level


def test_without_adaptation_labels_change_nothing_and_nothing_is_kept():
    live = Live(scripted(adapting().monitor.calibrated.band))
    before = live.monitor.threshold
    live.play('a', [HIGH], success=True)
    assert live.monitor.label('a', True) is LabelEffect.OFF
    live.play('b', [LOW])
    assert live.monitor.adaptation is None
    assert live.monitor.threshold.upper.base is before.upper.base, 'the array of the folder'


def test_a_false_alarm_raises_the_threshold_of_the_next_episode():
    live = adapting()
    first = live.monitor.threshold.at(0)
    assert live.play('a', [LOW, HIGH]) == [NOMINAL, ALARM]
    assert live.monitor.label('a', True) is LabelEffect.UPDATED
    live.monitor.start('b', live.now)
    assert live.monitor.threshold.at(0) > first
    assert live.monitor.adaptation.of('').false_alarms == 1
    assert live.monitor.label('a', True) is LabelEffect.UNCHANGED
    assert live.monitor.adaptation.of('').successes == 1


def test_quiet_successes_lower_the_threshold_and_failures_do_not_move_it():
    live = adapting()
    first = live.monitor.threshold.at(0)
    live.play('a', [HIGH])
    assert live.monitor.label('a', False) is LabelEffect.FAILURE
    assert level_of(live) == 0.1
    for index in range(20):
        live.play(f'b{index}', [LOW], success=True)
    live.monitor.start('c', live.now)
    assert live.monitor.threshold.at(0) < first
    assert live.monitor.warning.at(0) < live.monitor.threshold.at(0)


def test_a_label_moves_no_threshold_while_an_episode_runs():
    live = adapting()
    live.play('a', [HIGH])
    live.monitor.start('b', live.now)
    before = live.step(0, episode='b').threshold
    live.monitor.label('a', True)
    assert live.step(1, episode='b').threshold == before
    live.monitor.start('b', live.now, 'a task that the band of all tasks watches')
    assert live.step(2, episode='b').threshold == before
    assert live.step(0, episode='c').threshold > before


def test_a_label_that_comes_while_its_episode_runs_takes_effect_at_its_end():
    live = adapting()
    live.step(0)
    assert live.monitor.label('a', True) is LabelEffect.PENDING
    assert level_of(live) == 0.1, 'there may be an alarm yet'
    live.step(1, HIGH)
    live.monitor.end('a')
    assert live.monitor.adaptation.of('').false_alarms == 1
    assert live.monitor.label('a', True) is LabelEffect.UNCHANGED, 'as END may say it once more'


def test_an_episode_without_an_end_updates_when_the_next_one_begins():
    live = adapting()
    live.step(0, HIGH)
    live.monitor.label('a', True)
    live.step(0, episode='b')
    assert live.monitor.adaptation.of('').false_alarms == 1


@pytest.mark.parametrize('correction', [None, False])
def test_a_label_that_is_withdrawn_is_undone_exactly(correction):
    live = adapting()
    before = live.monitor.threshold.upper
    live.play('a', [HIGH], success=True)
    assert live.monitor.label('a', correction) is LabelEffect.UNDONE
    assert level_of(live) == 0.1
    live.monitor.start('b', live.now)
    # The folder's own thresholds are not rounded up, which the moving ones are.
    np.testing.assert_allclose(live.monitor.threshold.upper, before, rtol=1e-14)
    assert live.monitor.label('a', correction) is LabelEffect.UNCHANGED
    assert live.monitor.label('a', True) is LabelEffect.UPDATED


def test_a_label_can_be_withdrawn_before_any_update():
    live = adapting()
    live.step(0, HIGH)
    live.monitor.label('a', True)
    live.monitor.label('a', None)
    live.monitor.end('a')
    assert level_of(live) == 0.1
    live.monitor.label('a', False)
    assert live.monitor.label('a', None) is LabelEffect.UNKNOWN_OUTCOME


def test_a_late_label_counts_the_alarm_that_there_was():
    live = adapting(peaks=9)
    live.play('quiet', [0.95])
    live.play('alarmed', [HIGH])
    for index in range(40):
        live.play(f'q{index}', [LOW], success=True)
    live.monitor.start('x', live.now)
    assert live.monitor.threshold.at(0) < 0.95
    live.monitor.label('quiet', True)
    assert live.monitor.adaptation.of('').false_alarms == 0
    live.monitor.label('alarmed', True)
    assert live.monitor.adaptation.of('').false_alarms == 1


@pytest.mark.parametrize('how', ['gap', 'unreadable', 'nan', 'past', 'abandoned', 'empty'])
def test_nothing_is_updated_by_an_episode_that_was_not_scored_as_a_whole(how):
    live = adapting(max_missing_steps=1)
    live.monitor.start('a', live.now)
    if how != 'empty':
        live.step(0, HIGH)
    if how == 'gap':
        live.step(2)
    elif how == 'unreadable':
        live.unreadable('a', 1, 'unreadable')
    elif how == 'nan':
        live.step(1, math.nan)
    elif how == 'past':
        for index in range(1, 21):
            live.step(index)
    if how == 'abandoned':
        live.monitor.label('a', True)
        live.monitor.abandon()
        assert live.monitor.label('a', True) is LabelEffect.UNCHANGED
    else:
        live.monitor.end('a')
        assert live.monitor.label('a', True) is LabelEffect.UNUSABLE
    assert level_of(live) == 0.1
    live.monitor.label('a', None)
    assert level_of(live) == 0.1


def test_labels_of_unknown_episodes_are_said_to_be_so_and_memory_is_bounded():
    live = adapting()
    assert live.monitor.label('never', True) is LabelEffect.UNKNOWN_EPISODE
    for index in range(KEPT_EPISODES + 1):
        live.play(f'e{index}', [LOW])
    assert live.monitor.label('e0', True) is LabelEffect.UNKNOWN_EPISODE
    assert live.monitor.label('e1', True) is LabelEffect.UPDATED
    assert len(live.monitor.thresholds._feedback._past) == KEPT_EPISODES


def test_an_episode_played_again_under_its_name_updates_again():
    live = adapting()
    live.play('a', [HIGH], success=True)
    live.step(0, LOW, stamp=10)
    live.monitor.label('a', True)
    live.monitor.end('a')
    assert (live.monitor.adaptation.of('').successes, live.monitor.latest_id) == (2, 'a')
    live.monitor.label('a', None)
    assert live.monitor.adaptation.of('').successes == 1
    assert live.monitor.adaptation.of('').false_alarms == 1, 'the label means the last one'


def test_each_task_is_updated_by_its_own_episodes():
    live = adapting()
    live.play('a', [2 * HIGH], success=True, task='pour')
    assert level_of(live, 'pour') < 0.1
    assert level_of(live) == 0.1
    live.play('b', [HIGH], success=True, task='other')
    assert live.monitor.adaptation.of('pour').successes == 1
    assert live.monitor.adaptation.of('').successes == 1
    live.monitor.start('c', live.now, 'pour')
    assert live.monitor.band_name == "the band of task 'pour'"


def test_a_late_start_updates_the_band_of_its_task():
    live = adapting()
    assert live.state(0, HIGH) == ALARM, 'above the band of all tasks, not above that of pouring'
    live.monitor.start('a', live.now, 'pour')
    live.step(1, LOW)
    live.monitor.end('a')
    live.monitor.label('a', True)
    moving = live.monitor.adaptation.of('pour')
    assert (moving.successes, moving.false_alarms) == (1, 0), 'not above the band that is updated'
    assert moving.observed == (pytest.approx(HIGH),), 'and the first step is not forgotten'
    assert live.monitor.adaptation.of('').successes == 0


def test_what_holds_in_the_long_run_holds_where_every_start_comes_late():
    generator = np.random.default_rng(0)
    live = adapting(rate=0.01)
    for index in range(1500):
        score = float(generator.normal(3.0))
        live.step(0, score, episode=f'e{index}')
        live.monitor.start(f'e{index}', live.now, 'pour')
        live.step(1, score, episode=f'e{index}')
        live.monitor.end(f'e{index}')
        live.monitor.label(f'e{index}', True)
    moving = live.monitor.adaptation.of('pour')
    # Every one of them is above the band of all tasks, which scored the first steps.
    assert moving.successes == 1500
    assert abs(moving.false_alarms / 1500 - 0.1) < (0.9 + 0.01) / (1500 * 0.01)
    assert math.isfinite(moving.threshold)


def test_an_infinite_threshold_is_never_nominal_and_says_what_to_do():
    live = adapting(peaks=12, rate=0.2, max_missing_steps=100)
    for index in range(4):
        live.play(f'e{index}', [HIGH * (index + 1)], success=True)
    assert level_of(live) < 0
    invalid = live.monitor.counts.invalid
    live.monitor.start('x', live.now)
    assert live.monitor.verdict.state == UNKNOWN
    result = live.step(0, episode='x')
    assert (result.verdict.state, result.threshold) == (INVALID, math.inf)
    assert result.score == pytest.approx(LOW)
    for part in ('no finite threshold', 'of 4 labelled successes', 'go on labelling'):
        assert part in result.problem
    assert live.monitor.counts.invalid == invalid + 1
    for index in range(1, 5):
        assert live.state(index, 100.0, 'x') == INVALID
    assert live.state(0, episode='y') == INVALID
    before = live.monitor.adaptation.of('').false_alarms
    assert live.monitor.label('x', True) is LabelEffect.UPDATED
    assert live.monitor.adaptation.of('').false_alarms == before, 'no alarm was raised'
    count = 0
    while live.play(f'z{count}', [LOW], success=True) != [NOMINAL]:
        count += 1
        assert count < 100, 'labelled successes bring the threshold back'
    assert count > 0


def test_a_threshold_below_everything_alarms_at_once():
    live = adapting(rate=0.9)
    for index in range(12):
        live.play(f'e{index}', [-1.0], success=True)
        if level_of(live) >= 1.0:
            break
    assert live.play('x', [-1e6]) == [ALARM]
    live.monitor.label('x', True)
    assert live.monitor.adaptation.of('').false_alarms == 1


def test_another_detector_adapts_anew():
    live = adapting()
    live.play('a', [HIGH], success=True)
    following = adapting().monitor
    following.take_over(live.monitor)
    assert following.adaptation.of('').successes == 0
    assert following.label('a', False) is LabelEffect.UNKNOWN_EPISODE
    assert following.latest_id == 'a'


def test_a_band_without_its_shape_cannot_adapt():
    with pytest.raises(MonitorError, match=r'detector action_norm: the band of all tasks.*fit aga'):
        EpisodeMonitor(scripted(), adaptation_step=0.02)


def test_debounced_alarms_count_as_the_crossings_that_they_come_from():
    live = adapting(k=3, n=3)
    assert live.play('a', [HIGH, LOW]) == [WARNING, NOMINAL]
    live.monitor.label('a', True)
    assert live.monitor.adaptation.of('').false_alarms == 1


@pytest.mark.parametrize('late', [0, 5])
def test_under_drift_the_rate_is_kept_where_a_fixed_band_breaks(late):
    alpha, rate, count = 0.1, 0.01, 1200
    rng = np.random.default_rng(late)
    loaded = scripted(constant_band(rng.normal(size=60), (alpha,), 3), alpha)
    adaptive, fixed = Live(loaded, adaptation_step=rate), Live(loaded)
    alarms = {'adaptive': 0, 'fixed': 0}
    for index in range(count):
        drift = 2.0 * index / count
        scores = [*(drift - 3.0 + rng.random(2)), drift + rng.normal()]
        for name, live in (('adaptive', adaptive), ('fixed', fixed)):
            states = live.play(f'e{index}', scores)
            alarms[name] += ALARM in states
            assert name == 'fixed' or (INVALID in states) == np.isinf(live.monitor.threshold.at(0))
        if index >= late:
            adaptive.monitor.label(f'e{index - late}', True)
    assert alarms['fixed'] / count > 0.3
    assert abs(alarms['adaptive'] / count - alpha) < 0.02
    labelled = adaptive.monitor.adaptation.of('')
    bound = (max(alpha, 1 - alpha) + rate) / (labelled.successes * rate)
    bound += late / labelled.successes
    assert abs(labelled.false_alarms / labelled.successes - alpha) <= bound
    assert adaptive.monitor.counts.invalid < 0.02 * adaptive.monitor.counts.scored
