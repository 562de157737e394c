# SPDX-License-Identifier: Apache-2.0
"""The ROS clock of a node is watched with the steady clock: it can stop, be missing or run back."""

import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

from vla_feature_bridge.ros.clock_watch import STANDS_STILL, ClockWatch


class Watched:
    """A node with a steady clock that the test moves, and a publisher of ``/clock``."""

    def __init__(self, context, use_sim_time):
        self.now = 50.0
        parameters = [Parameter('use_sim_time', value=use_sim_time)]
        self.node = Node('watched', context=context, parameter_overrides=parameters)
        self.watch = ClockWatch(self.node, lambda: self.now)
        self.other = Node('simulator', context=context)
        self.publisher = None
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)

    def set_clock(self, seconds):
        if self.publisher is None:
            self.publisher = self.other.create_publisher(Clock, '/clock', 10)
        stamp = Time(nanoseconds=int(seconds * 1e9))
        deadline = time.monotonic() + 15
        while self.node.get_clock().now().nanoseconds != stamp.nanoseconds:
            assert time.monotonic() < deadline, '/clock does not arrive'
            self.publisher.publish(Clock(clock=stamp.to_msg()))
            self.executor.spin_once(timeout_sec=0.05)


@pytest.fixture
def watched():
    context = rclpy.Context()
    rclpy.init(context=context)
    made = []

    def make(use_sim_time):
        made.append(Watched(context, use_sim_time))
        return made[-1]

    yield make
    for one in made:
        one.executor.shutdown()
        one.node.destroy_node()
        one.other.destroy_node()
    rclpy.shutdown(context=context)


def test_the_system_clock_never_stands_still(watched):
    one = watched(False)
    for _ in range(3):
        one.now += 10.0
        assert one.watch.problem() == ''
    assert one.watch.ran_back() == 0.0


def test_a_missing_clock_is_said_after_a_while(watched):
    one = watched(True)
    one.now += STANDS_STILL - 0.1
    assert one.watch.problem() == ''
    one.now += 10.1
    expected = 'no /clock for 12 s: use_sim_time is true, and no node publishes /clock'
    assert one.watch.problem() == expected


def test_a_clock_that_moves_is_no_problem_and_one_that_is_back_ends_it(watched):
    one = watched(True)
    one.now += 10.0
    one.set_clock(100.0)
    assert one.watch.problem() == ''
    one.now += 10.0
    assert '/clock repeats the same time' in one.watch.problem()
    one.set_clock(101.0)
    assert one.watch.problem() == ''


def test_a_clock_that_runs_back_is_said_once(watched):
    one = watched(True)
    one.set_clock(100.0)
    assert one.watch.ran_back() == 0.0
    one.set_clock(60.0)
    assert one.watch.problem() == '', 'looking at the problem does not hide the jump'
    one.set_clock(61.0)
    assert one.watch.ran_back() == pytest.approx(40.0)
    assert one.watch.ran_back() == 0.0
