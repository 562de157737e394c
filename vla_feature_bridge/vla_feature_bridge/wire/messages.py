# SPDX-License-Identifier: Apache-2.0
"""Converts steps, events, images and the answers of the bridge to frames, and frames back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep
from vla_feature_bridge.step_checks import MAX_EXEC_HORIZON, STAMPS
from vla_feature_bridge.wire.frame import Frame, FrameError, encode_frame, json_number

#: Length of a text [characters].
MAX_TEXT = 65_536
MAX_SIGNALS = 256
_MAX_STEP = 2**32 - 1
_MAX_COUNT = 2**63 - 1
_MAX_NUMBER = float(np.finfo(np.float32).max)
_SOURCE = re.compile(r'[^\x00-\x1f\x7f]{0,128}')
_EVENT_KINDS = ('start', 'end', 'label')
_ARRAYS = [f for f in STEP_FIELDS if f.kind in ('tensor', 'values')]
_NUMBERS = [f.name for f in STEP_FIELDS if f.kind == 'number']
_STEP_TEXTS = ('episode_id', 'policy', 'instruction', 'action_space', 'feature_name')
_EVENT_TEXTS = ('episode_id', 'task', 'instruction', 'reason')


@dataclass(frozen=True, eq=False)
class Image:
    """A camera image that a policy saw.

    Attributes
    ----------
    name : str
        Name of the camera.
    array : ndarray of uint8, shape (height, width, 3) RGB, (height, width, 1) or (height, width)
    stamp : int
        Time of the image [ns].
    """

    name: str
    array: np.ndarray
    stamp: int = 0


@dataclass(frozen=True)
class Hello:
    """The first message of a sender: its name and its settings.

    Attributes
    ----------
    source : str
        Name of the policy process, unique at one bridge; empty for the source without a name.
    instance : str
        Random name of the sender object; the same after a reconnection.
    feature_name, policy, action_space : str
        As in a step.
    pid : int
        Number of the process, for people.
    """

    source: str
    instance: str
    feature_name: str = ''
    policy: str = ''
    action_space: str = ''
    pid: int = 0


@dataclass(frozen=True)
class BridgeStatus:
    """Report of the bridge to its senders.

    Attributes
    ----------
    monitor : bool
        True if steps that are sent now reach a monitor at once.
    detail : str
        Explanation for a person.
    """

    monitor: bool
    detail: str = ''


def encode_hello(hello: Hello) -> bytes:
    """Return the frame of a hello."""
    return encode_frame('hello', {name: getattr(hello, name) for name in Hello.__annotations__})


def decode_hello(frame: Frame) -> Hello:
    """Return the hello of a frame.

    Raises
    ------
    FrameError
        The frame is not a hello, or a field is wrong.
    """
    if frame.kind != 'hello':
        raise FrameError(where='first frame', expected='hello', found=frame.kind)
    fields = _Fields(frame)
    return Hello(
        source=check_source(fields.text('source', '')),
        instance=fields.text('instance'),
        feature_name=fields.text('feature_name'),
        policy=fields.text('policy'),
        action_space=fields.text('action_space'),
        pid=fields.integer('pid', range(2**32)),
    )


def check_source(name: str) -> str:
    """Return the name of a source; an empty one is the source without a name.

    Raises
    ------
    FrameError
        The name is too long or has control characters.
    """
    if not isinstance(name, str) or not _SOURCE.fullmatch(name):
        raise FrameError(
            where='source',
            expected='a name of 1 to 128 characters without control characters, or none',
            found=repr(name)[:200],
        )
    return name


def encode_step(step: PolicyStep, dropped: int = 0) -> bytes:
    """Return the frame of a step.

    Parameters
    ----------
    step : PolicyStep
    dropped : int
        Number of steps that the sender has dropped up to now.

    Raises
    ------
    FrameError
        The step is larger than a frame may be.
    """
    header = {
        **{name: _short_enough(getattr(step, name), name) for name in _STEP_TEXTS},
        'step': step.step,
        'stamp': step.stamp,
        'exec_horizon': step.exec_horizon,
        **{name: json_number(getattr(step, name)) for name in _NUMBERS},
        'signals': {name: json_number(value) for name, value in step.signals.items()},
        'dropped': dropped,
    }
    arrays = {f.name: getattr(step, f.name) for f in _ARRAYS}
    return encode_frame('step', header, {'features': step.features, **arrays})


def decode_step(frame: Frame) -> PolicyStep:
    """Return the step of a frame; its arrays are views of the received bytes.

    Raises
    ------
    FrameError
        A field or an array is missing or wrong.
    """
    fields = _Fields(frame)
    features = fields.array('features')
    if features is None or features.ndim == 0:
        raise FrameError(
            where=f'{fields.where}: features',
            expected='an array of shape (D,) or (..., D)',
            found='none' if features is None else f'shape {features.shape}',
        )
    more: dict[str, Any] = {
        **{name: fields.text(name) for name in _STEP_TEXTS},
        **{name: fields.number(name) for name in _NUMBERS},
        **{f.name: fields.array(f.name, len(f.axes)) for f in _ARRAYS},
    }
    return PolicyStep(
        features=features,
        step=fields.integer('step', range(_MAX_STEP + 1)),
        stamp=fields.integer('stamp', STAMPS),
        exec_horizon=fields.integer('exec_horizon', range(1, MAX_EXEC_HORIZON + 1)),
        signals=fields.signals(),
        **more,
    )


def encode_event(event: EpisodeEventRecord, dropped: int = 0, resent: bool = False) -> bytes:
    """Return the frame of an event.

    Parameters
    ----------
    event : EpisodeEventRecord
    dropped : int
        Number of steps that the sender has dropped up to now.
    resent : bool
        The event was sent before, over another connection.
    """
    return encode_frame(
        'event',
        {
            'event': event.kind,
            **{name: _short_enough(getattr(event, name), name) for name in _EVENT_TEXTS},
            'success': event.success,
            'stamp': event.stamp,
            'resent': resent,
            'dropped': dropped,
        },
    )


def decode_event(frame: Frame) -> EpisodeEventRecord:
    """Return the event of a frame.

    Raises
    ------
    FrameError
        A field is missing or wrong.
    """
    fields = _Fields(frame)
    kind = fields.text('event')
    if kind not in _EVENT_KINDS:
        raise FrameError(
            where=f'{fields.where}: event', expected=', '.join(_EVENT_KINDS), found=repr(kind)[:100]
        )
    return EpisodeEventRecord(
        kind=kind,  # type: ignore[arg-type]
        success=fields.flag('success', (None, True, False)),
        stamp=fields.integer('stamp', STAMPS),
        **{name: fields.text(name) for name in _EVENT_TEXTS},
    )


def is_resent(frame: Frame) -> bool:
    """Return True if an event was sent before, over another connection."""
    return bool(_Fields(frame).flag('resent', (True, False)))


def dropped_before(frame: Frame) -> int:
    """Return the number of steps that the sender had dropped before it made a frame."""
    return _Fields(frame).integer('dropped', range(_MAX_COUNT + 1))


def encode_image(image: Image, dropped: int = 0) -> bytes:
    """Return the frame of an image.

    Raises
    ------
    FrameError
        The array is not an image.
    """
    _check_image(image.array, f'image {image.name!r}')
    header = {
        'name': _short_enough(image.name, 'name'),
        'stamp': image.stamp,
        'dropped': dropped,
    }
    return encode_frame('image', header, {'image': image.array})


def decode_image(frame: Frame) -> Image:
    """Return the image of a frame.

    Raises
    ------
    FrameError
        A field is missing or wrong, or the array is not an image.
    """
    fields = _Fields(frame)
    name, array = fields.text('name'), fields.array('image')
    if array is None:
        raise FrameError(where=fields.where, expected='the array image', found='none')
    _check_image(array, fields.where)
    return Image(name, array, fields.integer('stamp', STAMPS))


def encode_status(status: BridgeStatus) -> bytes:
    """Return the frame of a status."""
    return encode_frame('status', {'monitor': status.monitor, 'detail': status.detail[:MAX_TEXT]})


def decode_status(frame: Frame) -> BridgeStatus:
    """Return the status of a frame.

    Raises
    ------
    FrameError
        A field is missing or wrong.
    """
    fields = _Fields(frame)
    return BridgeStatus(bool(fields.flag('monitor', (True, False))), fields.text('detail'))


def encode_refusal(reason: str) -> bytes:
    """Return the frame with the reason why the bridge closes a connection."""
    return encode_frame('refused', {'reason': reason[:MAX_TEXT]})


def decode_refusal(frame: Frame) -> str:
    """Return the reason why the bridge closes the connection.

    Raises
    ------
    FrameError
        The reason is not text.
    """
    return _Fields(frame).text('reason')


#: How each kind of frame of a source is read, except the hello.
DECODERS: dict[str, Callable[[Frame], PolicyStep | EpisodeEventRecord | Image]] = {
    'step': decode_step,
    'event': decode_event,
    'image': decode_image,
}


class _Fields:
    """Reads the fields of a header. The error for a wrong field contains its name."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.where = f'{frame.kind} frame'

    def text(self, name: str, default: str | None = None) -> str:
        value = self._frame.header.get(name, default)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise self._wrong(name, f'a text of at most {MAX_TEXT} characters', value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._wrong(name, 'valid Unicode', value) from None
        return value

    def integer(self, name: str, among: range) -> int:
        value = self._frame.header.get(name)
        if type(value) is not int or value not in among:
            raise self._wrong(name, f'an integer from {among.start} to {among.stop - 1}', value)
        return value

    def number(self, name: str) -> float:
        return self._number(name, self._frame.header.get(name))

    def flag(self, name: str, among: tuple[bool | None, ...]) -> bool | None:
        value = self._frame.header.get(name)
        if not any(value is choice for choice in among):
            raise self._wrong(name, ' or '.join(map(str, among)), value)
        return value

    def signals(self) -> dict[str, float]:
        found = self._frame.header.get('signals')
        if not isinstance(found, dict) or len(found) > MAX_SIGNALS:
            raise self._wrong('signals', f'an object of at most {MAX_SIGNALS} numbers', found)
        return {name: self._number(f'signals.{name[:100]}', value) for name, value in found.items()}

    def array(self, name: str, axes: int | None = None) -> np.ndarray | None:
        array = self._frame.arrays.get(name)
        if array is not None and axes is not None and array.ndim != axes:
            raise self._wrong(name, f'an array with {axes} axes', array.shape)
        return array

    def _number(self, name: str, value: Any) -> float:
        if value is None:
            return math.nan
        if type(value) not in (int, float) or not abs(value) <= _MAX_NUMBER:
            raise self._wrong(name, 'null or a number that fits float32', value)
        return float(value)

    def _wrong(self, name: str, expected: str, found: Any) -> FrameError:
        return FrameError(where=f'{self.where}: {name}', expected=expected, found=repr(found)[:100])


def _short_enough(text: str, name: str) -> str:
    if len(text) > MAX_TEXT:
        raise FrameError(
            where=name, expected=f'at most {MAX_TEXT} characters', found=f'{len(text)}'
        )
    return text


def _check_image(array: np.ndarray, where: str) -> None:
    is_image = (array.ndim == 3 and array.shape[2] in (1, 3)) or array.ndim == 2
    if not is_image or array.size == 0 or array.dtype != np.uint8:
        raise FrameError(
            where=where,
            expected='uint8 of shape (height, width, 3), (height, width, 1) or (height, width)',
            found=f'shape {array.shape} of {array.dtype}',
        )
