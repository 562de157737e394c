# SPDX-License-Identifier: Apache-2.0
"""One robot of a fleet in this process: what ends its work, and what is no error of its code."""

from __future__ import annotations

import os
import time

import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is needed')
pytest.importorskip('safe_msgs.msg', reason='the messages must be built')

from rclpy.executors import ExternalShutdownException  # noqa: E402
from signal_detectors import HIGH, save_signal_detector, signal_step  # noqa: E402

from safe_monitor_node.monitor.scoring import scored_alone  # noqa: E402
from safe_monitor_node.nodes.fleet_file import Robot  # noqa: E402
from safe_monitor_node.nodes.fleet_robot import FleetRobot  # noqa: E402
from safe_monitor_node.nodes.schedule import Schedule  # noqa: E402
from safe_msgs.msg import EpisodeEvent  # noqa: E402
from vla_feature_bridge.ros.messages import step_to_message  # noqa: E402


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def robot(clock):
    rclpy.init(args=[])
    made = FleetRobot(Robot('/arm'), Schedule(lambda: clock[0]), 1)
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def test_an_error_ends_the_work_of_the_robot(robot, capfd):
    robot.guarded(lambda: 1 / 0)
    assert 'ZeroDivisionError' in robot.failure
    assert 'Traceback' in capfd.readouterr().err


def test_an_error_while_the_process_ends_is_none_of_the_robot(robot, capfd):
    rclpy.shutdown()
    with pytest.raises(ExternalShutdownException):
        robot.guarded(robot.outputs.publish_diagnostics)
    assert not robot.failure
    assert 'Traceback' not in capfd.readouterr().err


def calls_until(robot, clock, end):
    """Make all periodic calls until a time; return their number."""
    made = 0
    while clock[0] < end:
        clock[0] += 0.01
        while (call := robot.schedule.take_due()) is not None:
            call.callback()
            made += 1
    return made


def test_new_states_are_explained_together_and_do_not_delay_steps(robot, clock):
    # The first periodic call comes after 1 s.
    assert calls_until(robot, clock, 0.1) == 0
    for _ in range(100):
        robot.explain()
    assert calls_until(robot, clock, 0.3) == 0, 'the steps of other robots go first'
    assert calls_until(robot, clock, 0.4) == 1
    assert calls_until(robot, clock, 0.9) == 0
    robot.explain()
    assert calls_until(robot, clock, 1.3) == 2, 'the next one, and the periodic diagnosis'


def active_robot(tmp_path, clock, **parameters):
    folder = save_signal_detector(tmp_path / 'detector', 'tired')
    values = {'detector_folder': str(folder), **parameters}
    rclpy.init(args=[])
    robot = FleetRobot(Robot(f'/arm_{os.getpid()}', values), Schedule(lambda: clock[0]), 1)
    robot.autostart()
    assert robot.active
    return robot


def test_an_alarm_right_before_the_end_of_the_process_is_logged(clock, tmp_path, capfd):
    robot = active_robot(tmp_path, clock)
    info = {'publication_sequence_number': 1, 'source_timestamp': 1}
    step = step_to_message(signal_step(0, 'lift', {'tired': HIGH}))
    scored_alone(robot.scoring(step, info))
    assert 'ALARM' not in capfd.readouterr().err, 'steps go first'
    rclpy.try_shutdown()
    robot.destroy_node()
    assert "ALARM, episode 'lift'" in capfd.readouterr().err


def test_latched_labels_of_earlier_processes_do_not_fill_the_log(clock, tmp_path, capfd):
    robot = active_robot(tmp_path, clock, adaptation_step=0.05)
    success = EpisodeEvent.OUTCOME_SUCCESS
    for episode, time_of_publication in (('before', 1), ('now', time.time_ns())):
        event = EpisodeEvent(kind=EpisodeEvent.KIND_END, episode_id=episode, outcome=success)
        info = {'publication_sequence_number': 1, 'source_timestamp': time_of_publication}
        robot._on_episode(event, info)
    robot.destroy_node()
    rclpy.try_shutdown()
    lines = capfd.readouterr().err
    assert "episode 'now', outcome a success: the thresholds do not change" in lines
    assert "'before', outcome" not in lines
