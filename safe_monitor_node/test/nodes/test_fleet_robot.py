# SPDX-License-Identifier: Apache-2.0
"""One robot of a fleet in this process: what ends its work, and what is no error of its code."""

from __future__ import annotations

import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is needed')
pytest.importorskip('safe_msgs.msg', reason='the messages must be built')

from rclpy.executors import ExternalShutdownException  # noqa: E402

from safe_monitor_node.nodes.fleet_file import Robot  # noqa: E402
from safe_monitor_node.nodes.fleet_robot import FleetRobot  # noqa: E402
from safe_monitor_node.nodes.schedule import Schedule  # noqa: E402


@pytest.fixture
def robot():
    rclpy.init(args=[])
    made = FleetRobot(Robot('/arm'), Schedule(lambda: 0.0), 1)
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
