# SPDX-License-Identifier: Apache-2.0
"""Episode and index of a serialized step, against the messages of ROS."""

import pytest
from rclpy.serialization import serialize_message

from safe_monitor_node.black_box.place import step_place
from safe_msgs.msg import PolicyStep


@pytest.mark.parametrize('frame', ['', 'a', 'base', 'world!!'])
@pytest.mark.parametrize('episode', ['', 'e', 'ab', 'abc', 'Tür 7 \U0001f916', 'x' * 300])
@pytest.mark.parametrize('index', [0, 7, 2**32 - 1])
def test_the_place_is_the_one_of_the_message(frame, episode, index):
    message = PolicyStep(episode_id=episode, step=index, policy='p', instruction='i')
    message.header.frame_id = frame
    message.header.stamp.sec = -5
    assert step_place(serialize_message(message)) == (episode, index)


def test_bytes_that_are_cut_or_no_step_have_no_place():
    data = serialize_message(PolicyStep(episode_id='episode', step=3))
    for length in range(36):
        assert step_place(data[:length]) is None
    assert step_place(b'\x00\x01\x00\x00' + b'\xff' * 100) is None


def test_the_other_byte_order_is_read():
    data = bytes.fromhex('00000000 00000001 00000002 00000001 00000000 00000003 61620000 00000009')
    assert step_place(data) == ('ab', 9)
