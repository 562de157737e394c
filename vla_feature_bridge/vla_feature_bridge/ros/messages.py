# SPDX-License-Identifier: Apache-2.0
"""Between plain steps and ``safe_msgs``: one copy out, none in, no work per element, no pickle."""

from __future__ import annotations

import math
import sys
from array import array as typed_array
from typing import Any

import ml_dtypes
import numpy as np
from builtin_interfaces.msg import Time

from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.msg import Tensor as TensorMessage
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.step import PolicyStep

NANOSECONDS = 1_000_000_000

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder('<')
    for name in ('float16', 'float32', 'float64', 'int8', 'uint8', 'int16', 'int32', 'int64')
} | {'bfloat16': np.dtype(ml_dtypes.bfloat16)}


class MessageError(SafeError):
    """A message does not describe what it carries; the message says which field."""


def time_to_message(stamp: int) -> Time:
    """Convert nanoseconds to ``builtin_interfaces/Time``."""
    return Time(sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)


def time_from_message(stamp: Time) -> int:
    """Convert ``builtin_interfaces/Time`` to nanoseconds."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def tensor_to_message(array: np.ndarray | None, name: str = '') -> TensorMessage:
    """Pack an array; None becomes the empty tensor.

    Raises
    ------
    MessageError
        The dtype is not one of :data:`DTYPES`.
    """
    message = TensorMessage(name=name)
    if array is None:
        return message
    if array.dtype.name not in DTYPES:
        raise MessageError(
            f'tensor {name!r}: dtype {array.dtype} cannot be sent; use one of {", ".join(DTYPES)}'
        )
    contiguous = np.ascontiguousarray(array, dtype=DTYPES[array.dtype.name])
    message.dtype = array.dtype.name
    message.shape = typed_array('I', array.shape)
    # Filling uint8[] from the array's own bytes is the one fast way into an rclpy message.
    message.data.frombytes(contiguous.reshape(-1).view(np.uint8).data)
    return message


def tensor_from_message(message: TensorMessage) -> np.ndarray | None:
    """Return a view of the message's bytes; None for the empty tensor.

    Raises
    ------
    MessageError
        Unknown dtype, an impossible shape, or the number of bytes is not what shape and dtype say.
    """
    if not message.dtype:
        if len(message.data):
            raise MessageError(f'tensor {message.name!r}: {len(message.data)} bytes but no dtype')
        return None
    dtype = DTYPES.get(message.dtype)
    if dtype is None:
        raise MessageError(
            f'tensor {message.name!r}: unknown dtype {message.dtype!r}; '
            f'expected one of {", ".join(DTYPES)}'
        )
    shape = tuple(message.shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(message.data) != expected:
        raise MessageError(
            f'tensor {message.name!r}: shape {shape} of {message.dtype} needs {expected} bytes, '
            f'found {len(message.data)}'
        )
    try:
        if expected == 0:
            return np.zeros(shape, dtype)
        view = np.frombuffer(message.data, dtype=dtype).reshape(shape)
    except ValueError as error:  # more axes, or an empty tensor of longer ones, than NumPy has
        raise MessageError(f'tensor {message.name!r}: no array has this shape: {error}') from error
    return view if sys.byteorder == 'little' else view.astype(dtype.newbyteorder('='))


def _floats(values: np.ndarray | None) -> typed_array[float]:
    return typed_array(
        'f', b'' if values is None else np.asarray(values, dtype=np.float32).tobytes()
    )


def step_to_message(step: PolicyStep) -> PolicyStepMessage:
    """Pack a step for ``vla/policy_step``."""
    message = PolicyStepMessage(
        episode_id=step.episode_id,
        step=step.step,
        policy=step.policy,
        instruction=step.instruction,
        features=tensor_to_message(step.features, step.feature_name),
        actions=tensor_to_message(step.actions, 'actions'),
        exec_horizon=step.exec_horizon,
        token_probability=_floats(step.token_probability),
        token_entropy=_floats(step.token_entropy),
        signal_names=list(step.signals),
        signals=typed_array('f', step.signals.values()),
        inference_time=step.inference_time,
    )
    message.header.stamp = time_to_message(step.stamp)
    return message


def step_from_message(message: PolicyStepMessage) -> PolicyStep:
    """Unpack a step; its arrays are views of the message's memory.

    Raises
    ------
    MessageError
        A tensor does not describe its bytes, there are no features, or names and signals do not
        pair up.
    """
    features = tensor_from_message(message.features)
    if features is None:
        raise MessageError(
            f'step {message.step} of episode {message.episode_id!r} carries no features'
        )
    if len(message.signal_names) != len(message.signals):
        raise MessageError(
            f'step {message.step} of episode {message.episode_id!r}: {len(message.signal_names)} '
            f'signal names for {len(message.signals)} signals'
        )
    return PolicyStep(
        features=features,
        feature_name=message.features.name,
        stamp=time_from_message(message.header.stamp),
        episode_id=message.episode_id,
        step=message.step,
        policy=message.policy,
        instruction=message.instruction,
        actions=tensor_from_message(message.actions),
        exec_horizon=message.exec_horizon,
        token_probability=_tokens(message.token_probability),
        token_entropy=_tokens(message.token_entropy),
        signals=dict(zip(message.signal_names, message.signals, strict=True)),
        inference_time=message.inference_time,
    )


def _tokens(values: typed_array[float]) -> np.ndarray | None:
    return np.frombuffer(values, dtype=np.float32) if len(values) else None
