# SPDX-License-Identifier: Apache-2.0
"""Features and actions in messages of other projects: shapes, order of joints, refusals."""

import array

import numpy as np
import pytest
from geometry_msgs.msg import Twist, TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import (
    Float32MultiArray,
    Float64MultiArray,
    MultiArrayDimension,
    MultiArrayLayout,
    String,
)
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from safe_msgs.msg import Tensor, TensorStamped
from vla_feature_bridge.ros.foreign_arrays import ActionReader, ForeignMessageError, features_of
from vla_feature_bridge.ros.messages import tensor_to_message


def multi(kind, data, shape=(), strides=None, offset=0):
    strides = strides or [0] * len(shape)
    dims = [
        MultiArrayDimension(size=size, stride=stride)
        for size, stride in zip(shape, strides, strict=True)
    ]
    return kind(
        data=[float(value) for value in data], layout=MultiArrayLayout(dim=dims, data_offset=offset)
    )


def trajectory(names, rows, field='positions'):
    points = [JointTrajectoryPoint(**{field: [float(v) for v in row]}) for row in rows]
    return JointTrajectory(joint_names=list(names), points=points)


@pytest.mark.parametrize(
    ('kind', 'dtype'), [(Float32MultiArray, np.float32), (Float64MultiArray, np.float64)]
)
def test_a_multi_array_has_the_shape_that_its_layout_states(kind, dtype):
    values = np.arange(12, dtype=dtype)
    assert features_of(multi(kind, values)).shape == (12,)
    for strides in (None, [12, 4], [0, 0]):
        found = features_of(multi(kind, values, (3, 4), strides))
        np.testing.assert_array_equal(found, values.reshape(3, 4))
        assert found.dtype == dtype
    shifted = features_of(multi(kind, values, (2, 5), offset=2))
    np.testing.assert_array_equal(shifted, values[2:].reshape(2, 5))


@pytest.mark.parametrize(
    ('message', 'found'),
    [
        (
            multi(Float32MultiArray, range(12), (3, 5)),
            r'product is the number of values, 12, found 3 x 5',
        ),
        (
            multi(Float32MultiArray, range(12), (3, 4), [24, 8]),
            r'strides \(12, 4\).*found \(24, 8\)',
        ),
        (Tensor(dtype='float32', shape=[3], data=array.array('B', bytes(8))), 'Tensor|tensor'),
        (Tensor(), 'found an empty tensor'),
        (String(data='x'), 'found std_msgs/msg/String'),
        (JointState(), 'found sensor_msgs/msg/JointState'),
    ],
)
def test_features_that_cannot_be_read_are_refused(message, found):
    with pytest.raises(ForeignMessageError, match=found):
        features_of(message)


def test_a_tensor_gives_its_array():
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    tensor = tensor_to_message(values)
    for message in (tensor, TensorStamped(tensor=tensor)):
        np.testing.assert_array_equal(features_of(message), values)
        assert ActionReader().read(message).shape == (1, 2, 3)


def test_actions_of_every_kind_get_three_axes():
    read = ActionReader().read
    assert read(multi(Float64MultiArray, range(7))).shape == (1, 1, 7)
    assert read(multi(Float32MultiArray, range(8), (4, 2))).shape == (1, 4, 2)
    assert read(multi(Float32MultiArray, range(24), (3, 4, 2))).shape == (3, 4, 2)
    twist = Twist()
    twist.linear.y, twist.angular.z = 2.0, 3.0
    for message in (twist, TwistStamped(twist=twist)):
        np.testing.assert_array_equal(read(message), [[[0, 2, 0, 0, 0, 3]]])


def test_joints_are_read_in_the_order_of_the_parameter():
    reader = ActionReader(['b', 'a'])
    chunk = reader.read(trajectory(['a', 'x', 'b'], [[1, 9, 2], [3, 9, 4]]))
    np.testing.assert_array_equal(chunk, [[[2, 1], [4, 3]]])
    state = JointState(name=['a', 'b'], position=[1.0, 2.0], velocity=[5.0, 6.0])
    np.testing.assert_array_equal(reader.read(state), [[[2, 1]]])


def test_without_the_parameter_the_first_message_gives_the_order():
    reader = ActionReader()
    np.testing.assert_array_equal(reader.read(trajectory(['a', 'b'], [[1, 2]])), [[[1, 2]]])
    np.testing.assert_array_equal(reader.read(trajectory(['b', 'a'], [[2, 1]])), [[[1, 2]]])
    assert reader.joint_names == ('a', 'b')
    with pytest.raises(
        ForeignMessageError, match=r'expected the joints a, b, found a, c.*joint_names'
    ):
        reader.read(trajectory(['a', 'c'], [[1, 2]]))


def test_velocities_and_efforts_are_read_if_there_is_nothing_before_them():
    reader = ActionReader()
    np.testing.assert_array_equal(
        reader.read(trajectory(['a'], [[1], [2]], 'velocities')), [[[1], [2]]]
    )
    np.testing.assert_array_equal(reader.read(JointState(name=['a'], effort=[3.0])), [[[3]]])


@pytest.mark.parametrize(
    ('message', 'found'),
    [
        (trajectory(['a'], []), 'expected points'),
        (trajectory(['a'], [[]]), 'expected positions or velocities'),
        (trajectory(['a', 'b'], [[1]]), 'expected 2 values'),
        (trajectory(['a', 'a'], [[1, 2]]), 'different names'),
        (trajectory([], [[1]]), 'different names'),
        (JointState(name=['a']), 'expected position, velocity or effort'),
        (JointState(name=['a', 'b'], position=[1.0]), 'expected 2 values'),
        (multi(Float32MultiArray, range(2), (1, 1, 1, 2)), r'found shape \(1, 1, 1, 2\)'),
        (Float32MultiArray(), r'found shape \(0,\)'),
        (String(), 'found std_msgs/msg/String'),
    ],
)
def test_actions_that_cannot_be_read_are_refused(message, found):
    with pytest.raises(ForeignMessageError, match=found):
        ActionReader().read(message)
