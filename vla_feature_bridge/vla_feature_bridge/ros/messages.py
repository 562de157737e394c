# SPDX-License-Identifier: Apache-2.0
"""Converts steps to ``safe_msgs`` and back, and events of episodes to ``safe_msgs``.

Sending makes one copy, receiving makes no copy, and there is no computation per element.
"""

from __future__ import annotations

from array import array as typed_array
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time

from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.msg import Tensor as TensorMessage
from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep
from vla_feature_bridge.tensors import TensorError, array_of_bytes, dtype_name, little_endian

NANOSECONDS = 1_000_000_000
_SHOWN_OF_ID = 60
_EVENT_KINDS = {
    'start': EpisodeEvent.KIND_START,
    'end': EpisodeEvent.KIND_END,
    'label': EpisodeEvent.KIND_LABEL,
}
_OUTCOMES = {
    None: EpisodeEvent.OUTCOME_UNKNOWN,
    True: EpisodeEvent.OUTCOME_SUCCESS,
    False: EpisodeEvent.OUTCOME_FAILURE,
}


class MessageError(SafeError):
    """A ROS message is inconsistent, or a message cannot contain an array.

    The text contains the name of the field.
    """


def time_to_message(stamp: int) -> Time:
    """Convert nanoseconds to ``builtin_interfaces/Time``."""
    return Time(sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)


def time_from_message(stamp: Time) -> int:
    """Convert ``builtin_interfaces/Time`` to nanoseconds."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def tensor_to_message(array: np.ndarray | None, name: str = '') -> TensorMessage:
    """Return the message of an array; None becomes the empty tensor.

    Raises
    ------
    MessageError
        The dtype is not one of :data:`vla_feature_bridge.tensors.DTYPES`.
    """
    message = TensorMessage(name=name)
    if array is None:
        return message
    try:
        contiguous = little_endian(array)
    except TensorError as error:
        raise MessageError(f'tensor {name!r}: {error}') from None
    message.dtype = dtype_name(array)
    message.shape = typed_array('I', array.shape)
    # In rclpy, only assigning bytes to a uint8[] field is fast.
    message.data.frombytes(contiguous.reshape(-1).view(np.uint8).data)
    return message


def tensor_from_message(message: TensorMessage) -> np.ndarray | None:
    """Return the array as a view of the bytes of the message; None for the empty tensor.

    Raises
    ------
    MessageError
        The dtype is unknown, or the bytes do not fit shape and dtype.
    """
    if not message.dtype:
        if len(message.data):
            raise MessageError(
                where=f'tensor {message.name!r}',
                expected=f'a dtype, because the tensor has {len(message.data)} bytes',
                found='an empty dtype',
            )
        return None
    try:
        return array_of_bytes(message.dtype, message.shape, message.data)
    except TensorError as error:
        raise MessageError(f'tensor {message.name!r}: {error}') from None


def _values_to_message(values: np.ndarray | None, name: str) -> typed_array[float]:
    return typed_array(
        'f', b'' if values is None else np.asarray(values, dtype=np.float32).tobytes()
    )


def _values_from_message(values: typed_array[float]) -> np.ndarray | None:
    return np.frombuffer(values, dtype=np.float32) if len(values) else None


#: Two functions for each kind of field: the first returns the form of a message, the second returns
#: the form of a step. The kind 'stamp' is not here, because the header contains the stamp.
_CONVERT: dict[str, tuple[Callable[[Any, str], Any], Callable[[Any], Any]]] = {
    'tensor': (tensor_to_message, tensor_from_message),
    'values': (_values_to_message, _values_from_message),
    'number': (lambda number, name: float(number), float),
}
_PACK = [(f.name, _CONVERT[f.kind][0]) for f in STEP_FIELDS if f.kind in _CONVERT]
_UNPACK = [(f.name, _CONVERT[f.kind][1]) for f in STEP_FIELDS if f.kind in _CONVERT]


def step_to_message(step: PolicyStep) -> PolicyStepMessage:
    """Return the message of a step, for ``vla/policy_step``.

    Raises
    ------
    MessageError
        An array has a dtype that a message cannot hold.
    """
    message = PolicyStepMessage(
        episode_id=step.episode_id,
        step=step.step,
        policy=step.policy,
        instruction=step.instruction,
        features=tensor_to_message(step.features, step.feature_name),
        exec_horizon=step.exec_horizon,
        signal_names=list(step.signals),
        signals=typed_array('f', step.signals.values()),
        action_space=step.action_space,
        **{name: pack(getattr(step, name), name) for name, pack in _PACK},
    )
    message.header.stamp = time_to_message(step.stamp)
    return message


def step_from_message(message: PolicyStepMessage) -> PolicyStep:
    """Return the step of a message; its arrays are views of the memory of the message.

    Raises
    ------
    MessageError
        The shape and dtype of a tensor do not fit its bytes, the message has no features, or the
        number of signals differs from the number of their names.
    """
    features = tensor_from_message(message.features)
    if features is None:
        raise MessageError(where=_place(message), expected='features', found='none')
    if len(message.signal_names) != len(message.signals):
        raise MessageError(
            where=_place(message),
            expected='one name for each signal',
            found=f'{len(message.signal_names)} names for {len(message.signals)} signals',
        )
    return PolicyStep(
        features=features,
        feature_name=message.features.name,
        stamp=time_from_message(message.header.stamp),
        episode_id=message.episode_id,
        step=message.step,
        policy=message.policy,
        instruction=message.instruction,
        exec_horizon=message.exec_horizon,
        signals=dict(zip(message.signal_names, message.signals, strict=True)),
        action_space=message.action_space,
        **{name: unpack(getattr(message, name)) for name, unpack in _UNPACK},
    )


def _place(message: PolicyStepMessage) -> str:
    """Return which step it is; an id can be as long as a message."""
    episode, length = message.episode_id, len(message.episode_id)
    if length > _SHOWN_OF_ID:
        return f'step {message.step} of episode {episode[:_SHOWN_OF_ID]!r}... ({length} characters)'
    return f'step {message.step} of episode {episode!r}'


def event_to_message(event: EpisodeEventRecord) -> EpisodeEvent:
    """Return the message of an event, for ``vla/episode``."""
    message = EpisodeEvent(
        kind=_EVENT_KINDS[event.kind],
        episode_id=event.episode_id,
        task=event.task,
        instruction=event.instruction,
        outcome=_OUTCOMES[event.success],
        reason=event.reason,
    )
    message.header.stamp = time_to_message(event.stamp)
    return message


def success_of(outcome: int) -> bool | None:
    """Return whether an episode succeeded; None if it is unknown.

    Parameters
    ----------
    outcome : int
        One of ``EpisodeEvent.OUTCOME_...``.

    Raises
    ------
    MessageError
        The number is not the number of an outcome.
    """
    for success, known in _OUTCOMES.items():
        if outcome == known:
            return success
    raise MessageError(
        where='outcome',
        expected=f'one of {sorted(_OUTCOMES.values())} (unknown, success, failure)',
        found=str(outcome),
    )
