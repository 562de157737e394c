# SPDX-License-Identifier: Apache-2.0
"""Reads features and actions from messages of other nodes, which were not made for this suite.

This module imports no messages: it identifies a message by the name of its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.message_types import type_name_of
from vla_feature_bridge.ros.messages import MessageError, tensor_from_message

_MULTI_ARRAYS = ('std_msgs/msg/Float32MultiArray', 'std_msgs/msg/Float64MultiArray')
_TENSOR, _STAMPED = 'safe_msgs/msg/Tensor', 'safe_msgs/msg/TensorStamped'

FEATURE_TYPES = (_STAMPED, _TENSOR, *_MULTI_ARRAYS)
"""Types of messages that features can be read from."""

ACTION_TYPES = (
    'trajectory_msgs/msg/JointTrajectory',
    'sensor_msgs/msg/JointState',
    *_MULTI_ARRAYS,
    'geometry_msgs/msg/Twist',
    'geometry_msgs/msg/TwistStamped',
    _STAMPED,
    _TENSOR,
)
"""Types of messages that actions can be read from."""


class ForeignMessageError(SafeError):
    """A message of another node lacks the expected data.

    The text contains the name of the field.
    """


def features_of(message: Any) -> np.ndarray:
    """Return the features in a message, with the shape that the message states.

    Parameters
    ----------
    message
        One of :data:`FEATURE_TYPES`.

    Raises
    ------
    ForeignMessageError
        The message has another type, or the shape does not fit the data.
    """
    name = type_name_of(message)
    if name in (_TENSOR, _STAMPED):
        return _tensor(message if name == _TENSOR else message.tensor)
    if name in _MULTI_ARRAYS:
        return _multi_array(message)
    raise ForeignMessageError(
        where='features', expected=f'a message of type {", ".join(FEATURE_TYPES)}', found=name
    )


class ActionReader:
    """Reads action chunks from the messages of one topic, with the joints in a fixed order.

    Parameters
    ----------
    joint_names : sequence of str
        Order of the joints of ``JointTrajectory`` and ``JointState``; other joints in a message
        are left out. If it is empty, the first message gives the order.
    """

    def __init__(self, joint_names: Sequence[str] = ()) -> None:
        self.joint_names = tuple(joint_names)
        self._readers: dict[str, Callable[[Any], np.ndarray]] = {
            'trajectory_msgs/msg/JointTrajectory': self._trajectory,
            'sensor_msgs/msg/JointState': self._joint_state,
            'geometry_msgs/msg/Twist': _twist,
            'geometry_msgs/msg/TwistStamped': lambda message: _twist(message.twist),
            _STAMPED: lambda message: _tensor(message.tensor),
            _TENSOR: _tensor,
            **dict.fromkeys(_MULTI_ARRAYS, _multi_array),
        }

    def read(self, message: Any) -> np.ndarray:
        """Return the actions in a message.

        Parameters
        ----------
        message
            One of :data:`ACTION_TYPES`.

        Returns
        -------
        ndarray, shape (samples, horizon, action_dim)
            A message with one action gives shape (1, 1, action_dim), and a message with a chunk
            gives shape (1, horizon, action_dim). A twist has the action (linear x, y, z, angular x,
            y, z).

        Raises
        ------
        ForeignMessageError
            The message has another type, a joint is missing, or the shape does not fit the data.
        """
        name = type_name_of(message)
        reader = self._readers.get(name)
        if reader is None:
            raise ForeignMessageError(
                where='actions', expected=f'a message of type {", ".join(ACTION_TYPES)}', found=name
            )
        array = reader(message)
        if not 1 <= array.ndim <= 3 or array.size == 0:
            raise ForeignMessageError(
                where=f'actions in {name}',
                expected='shape (action_dim,), (horizon, action_dim) or '
                '(samples, horizon, action_dim)',
                found=f'shape {array.shape}',
            )
        return array.reshape((1,) * (3 - array.ndim) + array.shape)

    def _trajectory(self, message: Any) -> np.ndarray:
        if not message.points:
            raise ForeignMessageError(where='JointTrajectory', expected='points', found='none')
        for field in ('positions', 'velocities'):
            rows = [getattr(point, field) for point in message.points]
            if any(len(row) for row in rows):
                break
        else:
            raise ForeignMessageError(
                where='JointTrajectory', expected='positions or velocities', found='neither'
            )
        columns = self._columns(message.joint_names, 'JointTrajectory')
        wrong = [len(row) for row in rows if len(row) != len(message.joint_names)]
        if wrong:
            raise ForeignMessageError(
                where=f'JointTrajectory.points.{field}',
                expected=f'{len(message.joint_names)} values, one for each joint',
                found=str(wrong[0]),
            )
        return np.array(rows, dtype=np.float64)[:, columns]

    def _joint_state(self, message: Any) -> np.ndarray:
        for field in ('position', 'velocity', 'effort'):
            values = getattr(message, field)
            if len(values):
                break
        else:
            raise ForeignMessageError(
                where='JointState', expected='position, velocity or effort', found='none of them'
            )
        columns = self._columns(message.name, 'JointState')
        if len(values) != len(message.name):
            raise ForeignMessageError(
                where=f'JointState.{field}',
                expected=f'{len(message.name)} values, one for each name',
                found=str(len(values)),
            )
        return np.array(values, dtype=np.float64)[columns]

    def _columns(self, names: Sequence[str], where: str) -> list[int]:
        """Return where each joint of our order is in a message."""
        if not self.joint_names:
            if not names or len(set(names)) != len(names):
                raise ForeignMessageError(
                    where=where, expected='different names of joints', found=str(list(names))
                )
            self.joint_names = tuple(names)
        place = {name: column for column, name in enumerate(names)}
        missing = [name for name in self.joint_names if name not in place]
        if missing:
            raise ForeignMessageError(
                where=where,
                expected=f'the joints {", ".join(self.joint_names)}',
                found=f'{", ".join(names) or "none"}',
                advice='name the joints of the actions in the parameter joint_names',
            )
        return [place[name] for name in self.joint_names]


def _twist(twist: Any) -> np.ndarray:
    return np.array(
        [getattr(part, axis) for part in (twist.linear, twist.angular) for axis in 'xyz']
    )


def _tensor(message: Any) -> np.ndarray:
    try:
        array = tensor_from_message(message)
    except MessageError as error:
        raise ForeignMessageError(str(error)) from error
    if array is None:
        raise ForeignMessageError(where='Tensor', expected='numbers', found='an empty tensor')
    return array


def _multi_array(message: Any) -> np.ndarray:
    """Return the array of a ``MultiArray``; without dimensions it is a vector."""
    where = type(message).__name__
    dtype = np.float32 if where == 'Float32MultiArray' else np.float64
    data = np.frombuffer(message.data, dtype=dtype) if len(message.data) else np.zeros(0, dtype)
    layout = message.layout
    data = data[layout.data_offset :]
    if not layout.dim:
        return data
    shape = tuple(int(dim.size) for dim in layout.dim)
    if math.prod(shape) != len(data):
        raise ForeignMessageError(
            where=f'{where}.layout',
            expected=f'sizes whose product is the number of values, {len(data)}',
            found=' x '.join(map(str, shape)),
        )
    # By definition, a stride counts the values of its dimension and of the later dimensions. Many
    # publishers leave it 0.
    dense = tuple(math.prod(shape[axis:]) for axis in range(len(shape)))
    strides = tuple(int(dim.stride) for dim in layout.dim)
    if strides != dense and any(strides):
        raise ForeignMessageError(
            where=f'{where}.layout',
            expected=f'strides {dense} (no padding) or 0',
            found=str(strides),
        )
    return data.reshape(shape)
