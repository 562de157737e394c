# SPDX-License-Identifier: Apache-2.0
"""The thresholds that an episode is compared with: by alpha, and by task."""

import dataclasses
import math

import numpy as np
import pytest
from scripted_episodes import NOMINAL, RAISED, WARNING, Live, make_band, scripted

from safe_monitor_node.bands.band import Band
from safe_monitor_node.monitor.thresholds import MonitorError, choose_thresholds

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
        (make_band(), 0.15, 0.0, r'calibrated alphas 0\.1, 0\.2, found alpha 0\.15'),
        (make_band(), 0.0, 0.3, r'calibrated alphas .*found alpha 0\.3'),
        (make_band(), 0.2, 0.1, r'warning_alpha: .*at least alpha \(0\.2\), .*found 0\.1'),
        (make_band(levels=(math.inf, 0.5)), 0.0, 0.0, r'19 calibration.*choose alpha >= 0\.2'),
        (make_band(levels=(math.inf, math.inf)), 0.0, 0.0, 'fit the detector again on more'),
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
