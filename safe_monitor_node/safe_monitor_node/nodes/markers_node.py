# SPDX-License-Identifier: Apache-2.0
"""Publishes ``safe/markers`` for RViz. ``markers`` is its executable."""

from __future__ import annotations

import time
from typing import Any

import rclpy
from rclpy.node import Node
from std_msgs.msg import Float32
from visualization_msgs.msg import MarkerArray

from safe_monitor_node.looking.board import RobotBoard
from safe_monitor_node.nodes.marker_messages import MarkerPlace, robot_markers
from safe_monitor_node.nodes.robot_topics import RobotTopics, call_every
from safe_msgs.msg import FailureScore
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import Parameter, declare_parameters
from vla_feature_bridge.ros.qos import MARKER_QOS, SCORE_QOS, overridable

PARAMETERS = (
    Parameter('frame_id', 'base_link', 'Frame of the markers, which RViz must know.'),
    Parameter('x', 0.0, 'Centre of the bar in the frame, along x [m].', -1000.0, 1000.0),
    Parameter('y', 0.0, 'Centre of the bar in the frame, along y [m].', -1000.0, 1000.0),
    Parameter('z', 1.2, 'Centre of the bar in the frame, along z [m].', -1000.0, 1000.0),
    Parameter('size', 0.6, 'Length of the bar [m].', 0.01, 100.0),
    Parameter('period', 0.2, 'Time between two updates of the markers [s].', 0.02, 10.0),
    Parameter(
        'numbers',
        False,
        'If true, each score and its threshold are also published as std_msgs/Float32, for plugins '
        'of RViz that show one number.',
    ),
)

_LOOK_PERIOD = 0.5
_HISTORY = 600
# RViz removes the markers if this node ends: an old state must not stay on the screen.
_LIFETIMES = 5.0
_LEAST_LIFETIME = 1.0


class MarkersNode(Node):
    """Shows the state, the score and the threshold of the robot in its namespace."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('markers', **kwargs)
        values = declare_parameters(self, PARAMETERS)
        if unknown := check_overrides(self):
            self.get_logger().warning(unknown)
        self._place = MarkerPlace(
            frame_id=values.frame_id,
            x=values.x,
            y=values.y,
            z=values.z,
            size=values.size,
            lifetime=max(_LEAST_LIFETIME, _LIFETIMES * values.period),
        )
        self._name = self.get_namespace()
        self._board = RobotBoard(_HISTORY)
        self._robot = RobotTopics(self, self._board, self._name)
        self._robot.update()
        self._markers = self.create_publisher(
            MarkerArray, 'safe/markers', **overridable(MARKER_QOS)
        )
        call_every(self, _LOOK_PERIOD, self._robot.update)
        call_every(self, values.period, self._publish)
        if values.numbers:
            self._numbers = [
                self.create_publisher(Float32, f'safe/{name}_value', SCORE_QOS)
                for name in ('score', 'threshold')
            ]
            self.create_subscription(FailureScore, 'safe/score', self._publish_numbers, SCORE_QOS)

    def _publish_numbers(self, message: FailureScore) -> None:
        for publisher, value in zip(self._numbers, (message.score, message.threshold), strict=True):
            publisher.publish(Float32(data=value))

    def _publish(self) -> None:
        view = self._board.view(self._name, time.monotonic())
        if view is not None and self._markers.get_subscription_count():
            self._markers.publish(robot_markers(view, self._place))


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down."""

    def work() -> int:
        node = MarkersNode()
        try:
            rclpy.spin(node)
        finally:
            node.destroy_node()
        return 0

    return run_node('markers', work, args)
