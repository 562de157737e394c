# SPDX-License-Identifier: Apache-2.0
"""Subscribes to the steps of a bridge, as a monitor does, and prints the number of each step."""

import rclpy
from rclpy.node import Node

from safe_msgs.msg import EpisodeEvent, PolicyStep
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS


def main() -> None:
    """Run until a signal comes."""
    rclpy.init()
    node = Node('step_counter')
    node.create_subscription(
        PolicyStep, 'vla/policy_step', lambda step: print(step.step, flush=True), STEP_QOS
    )
    node.create_subscription(EpisodeEvent, 'vla/episode', lambda event: None, EPISODE_QOS)
    rclpy.spin(node)


main()
