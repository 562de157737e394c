# SPDX-License-Identifier: Apache-2.0
"""A ROS time that stands still is noticed, and one that moves is not."""

import pytest
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_feature_bridge.ros.clock_watch import ClockWatch


@pytest.mark.parametrize(('use_sim_time', 'is_noticed'), [(True, True), (False, False)])
def test_a_clock_that_nobody_publishes_is_noticed(use_sim_time, is_noticed):
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node(
        'watched',
        context=context,
        parameter_overrides=[Parameter('use_sim_time', value=use_sim_time)],
    )
    try:
        steady = [100.0]
        watch = ClockWatch(node, lambda: steady[0])
        assert watch.problem() == ''
        steady[0] = 102.0
        assert watch.problem() == ''
        steady[0] = 107.0
        assert ('/clock has not moved for 7 s' in watch.problem()) == is_noticed
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
