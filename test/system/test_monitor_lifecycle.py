# SPDX-License-Identifier: Apache-2.0
"""The monitor that a person or a manager starts, stops and starts again while a robot runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition
from probe import Probe
from signal_detectors import HIGH, LOW, save_signal_detector, signal_step

from safe_bringup.live import Process
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep

Quiet = Callable[..., PolicyStep]
CONFIGURE = Transition.TRANSITION_CONFIGURE
ACTIVATE = Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE
CLEANUP = Transition.TRANSITION_CLEANUP
SHUTDOWN = Transition.TRANSITION_ACTIVE_SHUTDOWN


@pytest.fixture
def loud(rollouts, mlp_folder) -> Rollout:
    """Return a rollout that raises an alarm."""
    loaded = load_detector(mlp_folder)
    threshold = loaded.band.at(0.2)
    return next(
        r for r in rollouts if threshold.first_crossing(loaded.detector.score(r)) is not None
    )


def raise_alarm(probe: Probe, rollout: Rollout, episode: str) -> None:
    probe.start(episode)
    for t in range(len(rollout)):
        step = rollout.step(t)
        step.episode_id = episode
        if probe.step(step).alarm:
            break
    probe.spin_until(lambda: probe.stops[-1] and probe.alarms[-1].state == 3, 'the alarm is there')


def test_a_lifecycle_manager_beside_autostart_ends_nothing(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object, quiet: Quiet
) -> None:
    process = run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    # nav2's lifecycle manager sends ids and does not look at the state.
    assert not probe.change_state(CONFIGURE)
    assert not probe.change_state(ACTIVATE)
    before = len(probe.stops)
    probe.spin_until(lambda: len(probe.stops) > before + 3, 'safe/stop goes on')
    assert probe.step(quiet(0)).state == FailureScore.STATE_NOMINAL
    assert process.exit_status is None


def test_a_monitor_that_was_not_configured_refuses_to_be_activated(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object
) -> None:
    process = run_monitor(detector_folder=mlp_folder, autostart=False)
    assert not probe.change_state(ACTIVATE)
    assert probe.change_state(CONFIGURE)
    assert probe.change_state(ACTIVATE)
    probe.wait_until_active()
    assert process.exit_status is None


def test_a_monitor_that_comes_up_inside_an_episode_stops_the_robot_at_once(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    quiet: Quiet,
    loud: Rollout,
) -> None:
    first = run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    raise_alarm(probe, loud, 'a')
    first.stop()
    probe.stops.clear()
    probe.alarms.clear()
    run_monitor(detector_folder=mlp_folder)
    probe.spin_until(
        lambda: probe.alarms and probe.alarms[-1].state == FailureAlarm.STATE_INVALID,
        'the monitor says that it has not seen everything',
    )
    assert "'a' was running before the monitor was active" in probe.alarms[-1].reason
    probe.wait_until_active()
    assert all(probe.stops), 'the robot was never released'
    assert probe.step(quiet(30, 'a')).state == FailureScore.STATE_INVALID
    assert all(probe.stops)
    probe.end('a')
    probe.start('b')
    assert probe.step(quiet(0, 'b')).state == FailureScore.STATE_NOMINAL
    probe.spin_until(lambda: not probe.stops[-1], 'the next episode is judged')


def test_an_ended_episode_is_no_reason_to_stop(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object, quiet: Quiet
) -> None:
    probe.start('a')
    probe.event('a', EpisodeEvent.KIND_END)
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    probe.spin_until(lambda: not probe.stops[-1], 'no episode is running')
    # How much of the time before that the probe has seen depends on the discovery.
    for alarm in probe.alarms:
        assert alarm.state == FailureAlarm.STATE_UNKNOWN
        is_known = alarm.reason == 'no episode is running'
        assert alarm.advice == (FailureAlarm.ADVICE_NONE if is_known else FailureAlarm.ADVICE_STOP)
    assert probe.step(quiet(0)).state == FailureScore.STATE_NOMINAL


def test_earlier_episodes_do_not_release_the_robot_when_the_monitor_is_configured_again(
    probe: Probe, run_monitor: Callable[..., Process], tmp_path: Path
) -> None:
    """The latched events are START and END of earlier episodes, and START of the running one."""
    folder = save_signal_detector(tmp_path / 'detector', 'tired')
    run_monitor(detector_folder=folder)
    probe.wait_until_active()
    for episode in ('a', 'b'):
        probe.start(episode)
        probe.step(signal_step(0, episode, {'tired': LOW}))
        probe.end(episode)
    probe.start('c')
    assert probe.step(signal_step(0, 'c', {'tired': HIGH})).alarm
    probe.spin_until(lambda: probe.stops[-1], 'the robot is stopped')
    probe.stops.clear()
    for transition in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
        assert probe.change_state(transition)
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_INVALID, 'the monitor knows c'
    )
    assert probe.stops and all(probe.stops)


def test_deactivate_in_alarm_does_not_release_the_robot(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object, loud: Rollout
) -> None:
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    raise_alarm(probe, loud, 'a')
    probe.stops.clear()
    assert probe.change_state(DEACTIVATE)
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_UNKNOWN, 'the state is not known'
    )
    assert probe.alarms[-1].reason.startswith('the monitor is not active; its last state was ALARM')
    assert probe.alarms[-1].advice == FailureAlarm.ADVICE_STOP
    assert all(probe.stops)
    # The episode still runs, and nobody has watched.
    assert probe.change_state(ACTIVATE)
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_INVALID, 'the episode is INVALID'
    )
    assert all(probe.stops)


def test_a_label_and_a_detector_in_the_last_state(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object
) -> None:
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    assert probe.change_state(SHUTDOWN)
    answer = probe.load_detector(mlp_folder)
    assert not answer.success
    assert 'cannot be configured again' in answer.message
    assert not probe.change_state(CONFIGURE)
    assert not probe.reset().success


def test_stop_while_nothing_is_known_is_a_choice(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object, quiet: Quiet
) -> None:
    run_monitor(detector_folder=mlp_folder, stop_when_unknown=True)
    probe.wait_until_active()
    assert probe.step(quiet(0)).state == FailureScore.STATE_NOMINAL
    probe.spin_until(lambda: not probe.stops[-1], 'NOMINAL')
    probe.end('e')
    probe.spin_until(lambda: probe.stops[-1], 'UNKNOWN between episodes')
    assert probe.alarms[-1].advice == FailureAlarm.ADVICE_STOP


# --- parameters


def test_parameters_change_while_the_robot_runs(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    quiet: Quiet,
    loud: Rollout,
) -> None:
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    raise_alarm(probe, loud, 'a')
    assert probe.set_parameters(alarm_advice='slow').successful
    probe.spin_until(
        lambda: probe.alarms[-1].advice == FailureAlarm.ADVICE_SLOW, 'the advice changes at once'
    )
    probe.spin_until(lambda: not probe.stops[-1], 'to slow down is not to stop')

    assert probe.set_parameters(alarm_k=2, alarm_n=3, stale_after=9.0, max_age=7.0).successful
    probe.spin_until(lambda: probe.facts().get('stale after [s]') == '9', 'at once')
    assert probe.facts()['max_age [s]'] == '7'
    assert probe.facts()['alarm_advice'] == 'slow'
    assert probe.facts()['alarm_k of alarm_n'] == '1 of 1'
    assert probe.facts()['at the next episode'] == 'alarm_k 2 of alarm_n 3'
    probe.end('a')
    assert probe.step(quiet(0, 'b')).state == FailureScore.STATE_NOMINAL
    probe.spin_until(lambda: probe.facts()['alarm_k of alarm_n'] == '2 of 3', 'the next episode')
    assert 'at the next episode' not in probe.facts()


def test_parameters_that_make_no_sense_change_nothing(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object
) -> None:
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    for values, words in (
        ({'stale_after': 9.0, 'alarm_k': 2}, 'k = 2'),
        ({'stale_after': 9.0, 'alpha': 0.123}, 'found alpha 0.123'),
        ({'stale_after': 9.0, 'alarm_advice': 'run'}, "found 'run'"),
        ({'stale_after': -1.0}, 'stale_after'),
        ({'threads': 2}, 'read-only'),
    ):
        result = probe.set_parameters(**values)
        assert not result.successful
        assert words in result.reason
    probe.spin_until(lambda: 'stale after [s]' in probe.facts(), 'diagnostics come')
    assert probe.facts()['stale after [s]'].startswith('2 ')


def test_a_parameter_file_for_another_node_is_said(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object, tmp_path: Path
) -> None:
    path = tmp_path / 'params.yaml'
    path.write_text('/monitr:\n  ros__parameters:\n    stale_after: 9.0\n')
    run_monitor(['--params-file', str(path)], detector_folder=mlp_folder)
    said = f'{path}: expected parameters of /monitor, found those of '
    probe.spin_until(lambda: probe.status and said in probe.status.message, 'it is diagnosed')


def test_a_misspelt_parameter_ends_the_start_with_the_nearest_name(own_domain: int) -> None:
    command = [sys.executable, '-m', 'safe_monitor_node.nodes.monitor', '--ros-args']
    ended = subprocess.run(
        [*command, '-p', 'stale_aftr:=3.0'], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "found 'stale_aftr'; the nearest name is 'stale_after'" in ended.stderr
    assert 'Traceback' not in ended.stderr
