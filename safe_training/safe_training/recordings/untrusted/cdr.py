# SPDX-License-Identifier: Apache-2.0
"""Policy steps and episode events as the bytes of a bag (CDR), without ROS 2 installed.

The definitions are copies of ``safe_msgs/msg``, which the installation makes (``setup.py``), or the
files of the same checkout. Code is generated only from these definitions. A definition in a bag is
compared with our present and older definitions, and is then ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep, StepField
from vla_feature_bridge.tensors import TensorError, array_of_bytes, little_endian

STEP = 'safe_msgs/msg/PolicyStep'
EVENT = 'safe_msgs/msg/EpisodeEvent'
SCORE = 'safe_msgs/msg/FailureScore'

KIND_START, KIND_END, KIND_LABEL = 0, 1, 2
OUTCOMES: Mapping[int, bool | None] = {0: None, 1: True, 2: False}
OUTCOME_NUMBERS = {success: number for number, success in OUTCOMES.items()}

_TENSOR = 'safe_msgs/msg/Tensor'
_HEADER = 'std_msgs/msg/Header'
_TIME = 'builtin_interfaces/msg/Time'
_NANOSECONDS = 1_000_000_000
#: Our own definitions have 3000 characters, including comments.
_MAX_DEFINITION_CHARACTERS = 1 << 16

#: Definitions of other packages that our definitions use.
_STANDARD = {
    _HEADER: (
        '# Standard metadata for higher-level stamped data types.\n\n'
        'builtin_interfaces/Time stamp\nstring frame_id\n'
    ),
    _TIME: (
        '# This message communicates ROS Time defined here:\n'
        '# https://design.ros2.org/articles/clock_and_time.html\n\n'
        'int32 sec\nuint32 nanosec\n'
    ),
}
#: Layout of the steps of version 0.1: the present fields without the last field.
_STEP_0_1 = f'{STEP}Of0_1'
_PARTS = {STEP: (_HEADER, _TIME, _TENSOR), EVENT: (_HEADER, _TIME), SCORE: (_HEADER, _TIME)}


class BagMessageError(SafeError):
    """A message in a bag, or its definition, cannot be read or written."""


@dataclass(frozen=True)
class Event:
    """Start, end or label of an episode; the plain Python form of ``safe_msgs/EpisodeEvent``.

    Attributes
    ----------
    kind : int
        One of ``KIND_START``, ``KIND_END``, ``KIND_LABEL``.
    success : bool or None
        The outcome; None if unknown.
    stamp : int
        Time of the event [ns].
    """

    episode_id: str
    kind: int
    success: bool | None = None
    task: str = ''
    instruction: str = ''
    reason: str = ''
    stamp: int = 0


# -- definitions


def own_definition(name: str) -> str:
    """Return the text of one message definition, such as ``safe_msgs/msg/Tensor``.

    Raises
    ------
    BagMessageError
        The installation does not contain the definition.
    """
    if name in _STANDARD:
        return _STANDARD[name]
    file = f'{name.rpartition("/")[2]}.msg'
    folders = _definition_folders()
    for folder in folders:
        if (folder / file).is_file():
            return (folder / file).read_text(encoding='utf-8')
    raise BagMessageError(
        where=f'{folders[0] / file}',
        expected='the copy of this message definition that the installation makes',
        found='no copy, no folder safe_msgs in a checkout, and no installed package safe_msgs',
        advice='install safe_training again from a checkout with: pip install ./safe_training, '
        'or source the ROS workspace',
    )


def _definition_folders() -> list[Path]:
    """Return the folders of definitions: the copies, this checkout, installed packages."""
    package = Path(__file__).resolve().parents[2]
    prefixes = filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep))
    return [
        package / 'definitions',
        package.parents[1] / 'safe_msgs' / 'msg',  # a clone that was not built
        *(Path(prefix, 'share', 'safe_msgs', 'msg') for prefix in prefixes),
    ]


def full_definition(name: str) -> str:
    """Return the definition with all definitions that it uses, as recorders store it in a bag."""
    parts = [own_definition(name)]
    for part in _PARTS[name]:
        package, _, short = part.replace('/msg/', '/').partition('/')
        parts.append(f'{"=" * 80}\nMSG: {package}/{short}\n{own_definition(part)}')
    return '\n'.join(parts)


def type_hash(name: str) -> str:
    """Return the RIHS01 hash of a message type, as ROS 2 computes it."""
    return str(_typestore().hash_rihs01(name))


def check_definition(name: str, encoding: str, text: str) -> str:
    """Return the layout of messages, for :func:`unpack`, by their definition in a bag.

    It is compared with our definition field by field, without comments. The layout is empty if the
    bag has no definition in a known language.

    Raises
    ------
    BagMessageError
        The definitions differ: the bag was recorded with other messages of the same name.
    """
    from rosbags.typesys import TypesysError, get_types_from_idl, get_types_from_msg

    if not text or encoding not in ('ros2msg', 'ros2idl'):
        return ''
    if len(text) > _MAX_DEFINITION_CHARACTERS:
        raise _other_definition(name, f'a definition of {len(text)} characters')
    try:
        if encoding == 'ros2msg':
            found: dict[str, Any] = dict(get_types_from_msg(text, name))
        else:
            found = {}
            for part in text.split('=' * 80 + '\n'):
                idl = part.partition('\n')[2] if part.startswith('IDL: ') else part
                found |= get_types_from_idl(idl) if idl.strip() else {}
    # For manipulated text, the parser can raise other exceptions than its own error class.
    except (TypesysError, RecursionError, ValueError, LookupError, TypeError) as error:
        problem = f'a definition that cannot be read ({_short(error)})'
        raise _other_definition(name, problem) from None
    ours = _typestore().fielddefs
    fields = found[name][1] if name in found else None
    layouts = (name, _STEP_0_1) if name == STEP else (name,)
    layout = next((known for known in layouts if fields == ours[known][1]), '')
    for part in (name, *_PARTS[name]):
        is_ours = layout if part == name else part in found and found[part][1] == ours[part][1]
        if not is_ours:
            raise _other_definition(name, f'a different definition of {part}')
    return layout


def _other_definition(name: str, found: str) -> BagMessageError:
    return BagMessageError(
        expected=f'the definition of {name} in this software',
        found=found,
        advice='convert the recording, or compare its scores, with the version that recorded it',
    )


@cache
def _typestore() -> Any:
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.EMPTY)
    types: dict[str, Any] = {}
    for name in (_TIME, _HEADER, _TENSOR, STEP, EVENT, SCORE):
        types |= get_types_from_msg(own_definition(name), name)
    constants, fields = types[STEP]
    types[_STEP_0_1] = (constants, [field for field in fields if field[0] != 'action_space'])
    store.register(types)
    return store


# -- messages


def step_to_cdr(step: PolicyStep) -> memoryview:
    """Return the bytes of a step, the same as in ROS 2.

    Raises
    ------
    BagMessageError
        A message cannot store the dtype of an array, or the stamp is out of range.
    """
    types = _typestore().types
    message = types[STEP](
        header=_header(step.stamp),
        episode_id=step.episode_id,
        step=step.step,
        policy=step.policy,
        instruction=step.instruction,
        features=_tensor(step.features, step.feature_name),
        exec_horizon=step.exec_horizon,
        signal_names=list(step.signals),
        signals=np.array(list(step.signals.values()), np.float32),
        action_space=step.action_space,
        **{f.name: _packed(f, getattr(step, f.name)) for f in STEP_FIELDS if f.kind != 'stamp'},
    )
    packed: memoryview = _typestore().serialize_cdr(message, STEP, little_endian=True)
    return packed


def step_from_cdr(data: bytes | memoryview, layout: str = STEP) -> PolicyStep:
    """Return the step of these bytes; its arrays are views of ``data``.

    Parameters
    ----------
    data : bytes
    layout : str
        Layout that :func:`check_definition` returned. If it is empty, the layout is found by the
        length: an older layout has 5 or more bytes less, and bags pad messages by at most 3 bytes.

    Raises
    ------
    BagMessageError
        The bytes are not a step, or the fields of the step do not match each other.
    """
    message = _unpack_step(data, layout)
    where = f'step {message.step} of episode {message.episode_id[:200]!r}'
    features = _array(message.features, f'{where}: features')
    if features is None or features.ndim == 0:
        raise BagMessageError(where=where, expected='features', found='no features')
    names = message.signal_names
    if len(names) != len(message.signals) or len(set(names)) != len(names):
        expected = f'{len(message.signals)} different names of signals, one for each signal'
        found = f'{len(names)} names, {len(set(names))} of them different'
        raise BagMessageError(where=where, expected=expected, found=found)
    if not message.episode_id:
        raise BagMessageError(where=where, expected='an episode_id', found='an empty episode_id')
    return PolicyStep(
        features=features,
        feature_name=message.features.name,
        stamp=_stamp(message.header),
        episode_id=message.episode_id,
        step=message.step,
        policy=message.policy,
        instruction=message.instruction,
        exec_horizon=message.exec_horizon,
        signals=dict(zip(names, map(float, message.signals), strict=True)),
        action_space=getattr(message, 'action_space', ''),
        **{
            field.name: _unpacked(field, getattr(message, field.name), where)
            for field in STEP_FIELDS
            if field.kind != 'stamp'
        },
    )


def _unpack_step(data: bytes | memoryview, layout: str) -> Any:
    if layout:
        return unpack(data, layout)
    with suppress(BagMessageError):
        return unpack(data, _STEP_0_1)
    return unpack(data, STEP)


def _packed(field: StepField, value: Any) -> Any:
    if field.kind == 'tensor':
        return _tensor(value, field.name)
    if field.kind == 'values':
        return np.zeros(0, np.float32) if value is None else np.asarray(value, np.float32)
    return value


def _unpacked(field: StepField, value: Any, where: str) -> Any:
    if field.kind == 'values':
        return value if len(value) else None
    if field.kind != 'tensor':
        return value
    array = _array(value, f'{where}: {field.name}')
    if array is not None and array.ndim != len(field.axes):
        expected = f'{field.name} of shape ({", ".join(field.axes)})'
        raise BagMessageError(where=where, expected=expected, found=f'shape {array.shape}')
    return array


def event_to_cdr(event: Event) -> memoryview:
    """Return the bytes of an event, equal to the bytes that ROS 2 makes."""
    message = _typestore().types[EVENT](
        header=_header(event.stamp),
        episode_id=event.episode_id,
        task=event.task,
        instruction=event.instruction,
        kind=event.kind,
        outcome=OUTCOME_NUMBERS[event.success],
        reason=event.reason,
    )
    packed: memoryview = _typestore().serialize_cdr(message, EVENT, little_endian=True)
    return packed


def event_from_cdr(data: bytes | memoryview) -> Event:
    """Return the event of these bytes.

    Raises
    ------
    BagMessageError
        The bytes are not an event, or its kind or outcome is unknown.
    """
    message = unpack(data, EVENT)
    where = f'event of episode {message.episode_id[:200]!r}'
    if message.kind not in (KIND_START, KIND_END, KIND_LABEL):
        kinds = 'kind 0 (start), 1 (end) or 2 (label)'
        raise BagMessageError(where=where, expected=kinds, found=f'kind {message.kind}')
    if message.outcome not in OUTCOMES:
        outcomes = 'outcome 0 (unknown), 1 (success) or 2 (failure)'
        raise BagMessageError(where=where, expected=outcomes, found=f'outcome {message.outcome}')
    return Event(
        episode_id=message.episode_id,
        kind=message.kind,
        success=OUTCOMES[message.outcome],
        task=message.task,
        instruction=message.instruction,
        reason=message.reason,
        stamp=_stamp(message.header),
    )


def unpack(data: bytes | memoryview, name: str) -> Any:
    """Return the message of these bytes; :class:`BagMessageError` if they have another form."""
    from rosbags.serde import SerdeError

    try:
        return _typestore().deserialize_cdr(data, name)
    except SerdeError as error:
        found = f'bytes of a different form ({_short(error)})'
        raise BagMessageError(expected=f'a message of type {name}', found=found) from None


def _header(stamp: int) -> Any:
    types = _typestore().types
    seconds = stamp // _NANOSECONDS
    if not -(2**31) <= seconds < 2**31:
        raise BagMessageError(
            expected='a stamp whose seconds fit 32 bits',
            found=f'{stamp} ns',
            advice='correct the stamps of this episode',
        )
    time = types[_TIME](sec=seconds, nanosec=stamp % _NANOSECONDS)
    return types[_HEADER](stamp=time, frame_id='')


def _stamp(header: Any) -> int:
    return int(header.stamp.sec) * _NANOSECONDS + int(header.stamp.nanosec)


def _tensor(array: np.ndarray | None, name: str) -> Any:
    make = _typestore().types[_TENSOR]
    if array is None:
        return make(name=name, dtype='', shape=np.zeros(0, np.uint32), data=np.zeros(0, np.uint8))
    try:
        contiguous = little_endian(array)
    except TensorError as error:
        raise BagMessageError(f'tensor {name!r}: {error}') from None
    return make(
        name=name,
        dtype=array.dtype.name,
        shape=np.array(array.shape, np.uint32),
        data=contiguous.reshape(-1).view(np.uint8),
    )


def _array(tensor: Any, where: str) -> np.ndarray | None:
    if not tensor.dtype:
        if count := len(tensor.data):
            raise BagMessageError(where=where, expected=f'a dtype for {count} bytes', found='none')
        return None
    try:
        return array_of_bytes(tensor.dtype, tensor.shape.tolist(), tensor.data)
    except TensorError as error:
        raise BagMessageError(f'{where}: {error}') from None


def _short(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return text if len(text) <= 160 else f'{text[:160]}...'
