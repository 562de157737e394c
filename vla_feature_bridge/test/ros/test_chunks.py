# SPDX-License-Identifier: Apache-2.0
"""Action chunks as trajectories, and images: shapes, times, names, refusals."""

import numpy as np
import pytest

from vla_feature_bridge.ros.chunks import ImageError, chunk_to_message, image_to_message
from vla_feature_bridge.ros.messages import time_from_message
from vla_feature_bridge.step import PolicyStep


def test_a_chunk_has_the_stamp_of_its_step_and_one_point_for_each_action():
    actions = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    step = PolicyStep(features=np.zeros(1), stamp=5_000_000_007, actions=actions)
    message = chunk_to_message(step, ['x', 'y', 'z'], 0.25)
    assert message.joint_names == ['x', 'y', 'z']
    assert time_from_message(message.header.stamp) == step.stamp
    np.testing.assert_array_equal([p.positions for p in message.points], actions[0])
    times = [time_from_message(p.time_from_start) for p in message.points]
    assert times == [250_000_000, 500_000_000, 750_000_000, 1_000_000_000]


def test_names_that_do_not_fit_are_replaced_by_numbers():
    step = PolicyStep(features=np.zeros(1), actions=np.zeros((1, 1, 2)))
    assert chunk_to_message(step, ['x'], 0.1).joint_names == ['action_0', 'action_1']
    assert chunk_to_message(PolicyStep(features=np.zeros(1)), [], 0.1) is None


@pytest.mark.parametrize(
    ('shape', 'dtype', 'encoding'),
    [
        ((4, 6), 'uint8', 'mono8'),
        ((4, 6, 1), 'uint8', 'mono8'),
        ((4, 6, 3), 'uint8', 'rgb8'),
        ((4, 6, 4), 'uint8', 'rgba8'),
        ((4, 6), 'uint16', 'mono16'),
        ((4, 6), '>u2', 'mono16'),
        ((4, 6), 'float32', '32FC1'),
    ],
)
def test_an_image_holds_its_pixels_in_rows(shape, dtype, encoding):
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    message = image_to_message(pixels[:, ::1], 3_000_000_001, 'camera')
    assert (message.height, message.width, message.encoding) == (4, 6, encoding)
    assert message.header.frame_id == 'camera'
    assert message.step * message.height == len(message.data)
    little = np.dtype(dtype).newbyteorder('<')
    np.testing.assert_array_equal(np.frombuffer(message.data, little).reshape(shape), pixels)


def test_cv_bridge_reads_what_was_sent():
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge is not installed')
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    found = cv_bridge.CvBridge().imgmsg_to_cv2(image_to_message(pixels, 0), 'rgb8')
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [
        ((4, 6, 2), 'uint8'),
        ((4,), 'uint8'),
        ((0, 6), 'uint8'),
        ((4, 6), 'int32'),
        ((2, 2, 2, 2), 'uint8'),
    ],
)
def test_an_array_that_is_no_image_is_refused(shape, dtype):
    with pytest.raises(ImageError, match=f'found shape .* of {dtype}'):
        image_to_message(np.zeros(shape, dtype), 0)
