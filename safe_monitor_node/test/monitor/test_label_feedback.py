# SPDX-License-Identifier: Apache-2.0
"""What a label does to the thresholds of later episodes, and when it does nothing."""

import dataclasses
import math

import numpy as np
import pytest
from band_factory import constant_band
from scripted_episodes import ALARM, HIGH, INVALID, LOW, NOMINAL, UNKNOWN, WARNING, Live, scripted

from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
from safe_monitor_node.monitor.label_feedback import KEPT_EPISODES, LabelEffect
from safe_monitor_node.monitor.thresholds import MonitorError


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
    # Adaptive thresholds are rounded up. The thresholds of the folder are not.
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
    # Every score is above the band of all tasks, with which the first steps were compared.
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
    for part in (
        'expected a finite threshold, found none',
        '1 of 4 labelled successes',
        'continue to label',
    ):
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
    with pytest.raises(
        MonitorError, match=r'detector action_norm: the band of all tasks.*fit the detector aga'
    ):
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
