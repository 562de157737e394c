# SPDX-License-Identifier: Apache-2.0
"""Good runs on a real monitor: a new task, labelled successes, and its own threshold after five."""

import dataclasses

import numpy as np
import pytest
from band_factory import constant_band
from scripted_episodes import make_step, scripted

from safe_monitor_node.bands.good_runs import GoodRun, SeenScores, good_runs_band
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore

SUCCESS, FAILURE = EpisodeEvent.OUTCOME_SUCCESS, EpisodeEvent.OUTCOME_FAILURE
BAND = constant_band((np.arange(39) + 1) / 39, (0.1, 0.2), 20)
SEEN = SeenScores({t: np.linspace(0.1, 0.5, 9) + i / 5 for i, t in enumerate(('pour', 'stack'))})
ORDINARY = pytest.approx(BAND.at(0.1).at(0), rel=1e-6)
QUIET = 0.2
TASK = 'open the drawer'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a detector folder with scores for good runs; the tasks that it knows are in SEEN."""
    made = dataclasses.replace(
        scripted(BAND), provenance={'seen_tasks': list(SEEN.largest)}, seen_scores=SEEN
    )
    return made.save(tmp_path_factory.mktemp('good_runs') / 'detector')


def learned(largest):
    """Return the threshold that good runs with these largest scores make."""
    runs = [GoodRun(str(index), value) for index, value in enumerate(np.float32(largest))]
    return pytest.approx(good_runs_band(SEEN, runs, BAND).at(0.1).at(0), rel=1e-6)


def play(probe, episode, largest, outcome=SUCCESS, task=TASK):
    """Play an episode whose second step has the largest score; return both scores."""
    probe.start(episode, task)
    probe.spin_until(lambda: probe.facts().get('episode') == episode, 'START is handled')
    quiet = probe.step(make_step(0, QUIET, episode))
    # The subscriber keeps one state only: wait for each.
    probe.spin_until(
        lambda: probe.alarms[-1].state == quiet.state and probe.alarms[-1].episode_id == episode,
        'the state of the first step arrives',
    )
    loud = probe.step(make_step(1, largest, episode))
    probe.end(episode, outcome)
    return quiet, loud


def begin(probe, episode, task=TASK):
    """Return the score of the first step of an episode that goes on."""
    probe.start(episode, task)
    probe.spin_until(lambda: probe.facts().get('episode') == episode, 'START is handled')
    return probe.step(make_step(0, QUIET, episode))


def restart(probe, monitor, run_monitor, **parameters):
    """Stop the monitor, and start another one; returns when it listens."""
    monitor.stop()
    probe.spin_until(
        lambda: probe.node.count_subscribers('vla/episode') == 0, 'the monitor has gone'
    )
    run_monitor(**parameters)
    # Messages of the first monitor may still be on their way. It has had episodes.
    probe.spin_until(
        lambda: (
            probe.facts().get('episodes') == '0' and 'no episode is running' in probe.status.message
        ),
        'the new monitor is active',
        60.0,
    )
    probe.wait_until_active()


@pytest.mark.slow
def test_a_new_task_has_its_own_threshold_after_five_good_runs_and_after_a_restart(
    probe, run_monitor, folder, tmp_path
):
    file = tmp_path / 'kept.json'
    parameters = {'detector_folder': str(folder), 'adaptation_file': str(file)}
    first = run_monitor(**parameters)
    probe.wait_until_active()
    peaks = [2.0, 2.5, 1.5, 3.0, 2.2]
    for number, largest in enumerate(peaks):
        quiet, loud = play(probe, f'e{number}', largest)
        assert quiet.threshold == ORDINARY
        assert quiet.state == FailureScore.STATE_WARNING, 'never NOMINAL while learning'
        assert (loud.state, loud.alarm) == (FailureScore.STATE_ALARM, True), 'nor is it hidden'
        (told,) = [a for a in probe.alarms if a.episode_id == f'e{number}' and a.state == 2]
        assert f"learning, {number} of 5 good runs of task '{TASK}'" in told.reason
        assert told.advice == FailureAlarm.ADVICE_NONE
    assert begin(probe, 'sixth').threshold == learned(peaks)
    assert probe.scores[-1].state == FailureScore.STATE_NOMINAL
    probe.spin_until(
        lambda: '5 of 5; threshold' in probe.facts().get(f"good runs of task '{TASK}'", ''),
        'diagnostics show the good runs',
    )
    assert f"the band of task '{TASK}'" == probe.facts()['band']
    assert file.is_file()
    probe.end('sixth')
    restart(probe, first, run_monitor, **parameters)
    assert begin(probe, 'seventh').threshold == learned(peaks)
    probe.end('seventh')
    # A label of an episode before the restart still counts.
    answer = probe.label_episode('e3', FAILURE)
    assert 'no good run of task' in answer.message
    assert '4 of 5 good runs' in answer.message
    again = begin(probe, 'eighth')
    assert (again.threshold, again.state) == (ORDINARY, FailureScore.STATE_WARNING)


@pytest.mark.slow
def test_five_runs_of_which_one_is_relabelled_a_failure(probe, run_monitor, folder):
    run_monitor(detector_folder=str(folder), adaptation_step=0.01, learning_advice='ask')
    probe.wait_until_active()
    for number in range(4):
        play(probe, f'e{number}', 2.0 + number, EpisodeEvent.OUTCOME_UNKNOWN)
        answer = probe.label_episode('', SUCCESS)
        assert f'is a good run of task {TASK!r}; {number + 1} of 5' in answer.message
    play(probe, 'e4', 9.0)
    probe.event('e4', EpisodeEvent.KIND_LABEL, FAILURE, task='')
    quiet = begin(probe, 'e5')
    assert quiet.state == FailureScore.STATE_WARNING
    probe.spin_until(
        lambda: 'learning, 4 of 5' in probe.alarms[-1].reason, 'the state of the step arrives'
    )
    assert probe.alarms[-1].episode_id == 'e5'
    assert probe.alarms[-1].advice == FailureAlarm.ADVICE_ASK
    probe.spin_until(lambda: probe.stops[-1], 'the advice stops the robot')
    # The label of the next success arrives while a later episode runs: it changes the text only.
    probe.end('e5')
    running = begin(probe, 'e6')
    assert probe.label_episode('e5', SUCCESS).success
    probe.spin_until(
        lambda: 'learning, 5 of 5 good runs' in probe.alarms[-1].reason, 'the text follows'
    )
    assert probe.step(make_step(1, QUIET, 'e6')).threshold == running.threshold
    probe.end('e6')
    peaks = [2.0, 3.0, 4.0, 5.0, QUIET]
    assert begin(probe, 'e7').threshold == learned(peaks)


def test_known_tasks_and_good_runs_0_change_nothing(probe, run_monitor, folder):
    first = run_monitor(detector_folder=str(folder))
    probe.wait_until_active()
    assert begin(probe, 'a', 'pour').state == FailureScore.STATE_NOMINAL
    probe.end('a', SUCCESS)
    assert probe.step(make_step(0, QUIET, 'without a task')).state == FailureScore.STATE_NOMINAL
    restart(probe, first, run_monitor, detector_folder=str(folder), good_runs=0)
    assert begin(probe, 'b').state == FailureScore.STATE_NOMINAL
    probe.spin_until(lambda: 'good runs' in probe.facts(), 'diagnostics arrive')
    assert probe.facts()['good runs'] == 'off: the parameter good_runs is 0'
