# SPDX-License-Identifier: Apache-2.0
"""Message definitions and hashes as recordings store them."""

import pytest
import rclpy
from rclpy.node import Node

from safe_msgs.msg import PolicyStep
from vla_feature_bridge.ros.definitions import full_definition, offered_qos, type_hash
from vla_feature_bridge.ros.message_types import MessageTypeError
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS


def test_a_definition_brings_every_definition_that_it_uses_once():
    text = full_definition('safe_msgs/msg/PolicyStep')
    assert text.startswith('# One inference of a robot policy')
    parts = text.split('=' * 80 + '\n')[1:]
    assert sorted(part.partition('\n')[0] for part in parts) == [
        'MSG: builtin_interfaces/Time',
        'MSG: safe_msgs/Tensor',
        'MSG: std_msgs/Header',
    ]


def test_a_type_of_the_same_package_in_an_array_is_found():
    text = full_definition('diagnostic_msgs/DiagnosticArray')
    assert 'MSG: diagnostic_msgs/DiagnosticStatus\n' in text
    assert 'MSG: diagnostic_msgs/KeyValue\n' in text
    assert full_definition('std_msgs/msg/Bool').count('MSG: ') == 0


def test_an_unknown_type_is_refused():
    for name in ('no_such_package/msg/X', 'std_msgs/msg/NoSuchMessage', '../msg/X', 'x'):
        with pytest.raises(MessageTypeError):
            full_definition(name)
    assert type_hash('std_msgs/msg/NoSuchMessage') == ''


def test_the_hash_is_the_one_that_ros_announces():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node('hashes', context=context)
    try:
        node.create_publisher(PolicyStep, 'steps', STEP_QOS)
        (info,) = node.get_publishers_info_by_topic('steps')
        expected = 'RIHS01_' + bytes(info.topic_type_hash.value).hex()
        assert type_hash('safe_msgs/msg/PolicyStep') == expected
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_the_qos_can_be_read_by_every_rosbag2():
    assert '"durability": 1' in offered_qos(EPISODE_QOS)
    assert '"durability": 2' in offered_qos(STEP_QOS)
    assert '"depth": 100' in offered_qos(STEP_QOS)
