# SPDX-License-Identifier: Apache-2.0
"""Message types are found by their names, and a name from the network imports no other module."""

import sys

import pytest
from sensor_msgs.msg import Image
from std_msgs.msg import Float64MultiArray, String

from safe_msgs.msg import Tensor
from vla_feature_bridge.ros.message_types import (
    MessageTypeError,
    has_header,
    message_type,
    type_name_of,
)


def test_a_type_is_found_by_both_forms_of_its_name():
    assert message_type('std_msgs/msg/String') is String
    assert message_type('std_msgs/String') is String
    assert type_name_of(String()) == type_name_of(String) == 'std_msgs/msg/String'
    assert type_name_of(Tensor()) == 'safe_msgs/msg/Tensor'


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('', "found ''"),
        ('std_msgs', "found 'std_msgs'"),
        ('std_msgs.msg.String', 'expected a name such as'),
        ('std_msgs/srv/String', 'expected a name such as'),
        ('../evil/msg/String', 'expected a name such as'),
        ('std_msgs/msg/string', 'expected a name such as'),
        ('not_installed_msgs/msg/Thing', r'ros-DISTRO-not-installed-msgs'),
        ('std_msgs/msg/Nothing', r'ros2 interface package std_msgs'),
    ],
)
def test_an_unknown_type_is_refused_by_its_name(name, found):
    with pytest.raises(MessageTypeError, match=found):
        message_type(name)


def test_a_package_without_interfaces_is_not_imported():
    sys.modules.pop('antigravity', None)
    with pytest.raises(MessageTypeError, match='no such package'):
        message_type('antigravity/msg/String')
    assert 'antigravity' not in sys.modules


def test_a_header_is_seen():
    assert has_header(Image)
    assert not has_header(Float64MultiArray)
    assert not has_header(String)
