# SPDX-License-Identifier: Apache-2.0
"""The reading of an exchange with a policy server: an inference, a reset, an error, or None."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.relays.arrays import Unreadable, shown
from vla_feature_bridge.tensors import FLOATS, dtype_name

#: Keys of features in replies, with the axes in front of the feature axis.
FEATURE_AXES: dict[str, tuple[str, ...]] = {
    'pre_velocity': ('denoise', 'horizon'),
    'pre_logits': ('token',),
    'hidden_states': ('token',),
    'safe/features': (),
}
_MOST_LEVELS = 4


class ReadingError(SafeError):
    """A reply lacks data that a step needs, or contains it in another form."""


@dataclass
class Inference:
    """One inference, as read from the messages.

    Attributes
    ----------
    instruction : str
        Language instruction of the request; empty if it has none.
    actions : ndarray, shape (1, horizon, action_dim)
        The chunk, un-normalised.
    feature_key : str
        Key of the features in the reply; empty if there are none.
    features : ndarray or None
        As the reply holds them.
    images : dict of str to ndarray, shape (height, width, 3), uint8
        Images of the request by their names.
    seconds : float or None
        How long the policy took, if the reply says so [s].
    unread : tuple of str
        Parts of the messages that could not be read, each with its place and the reason.
    """

    instruction: str
    actions: np.ndarray
    feature_key: str = ''
    features: np.ndarray | None = None
    images: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float | None = None
    unread: tuple[str, ...] = ()


@dataclass
class Reset:
    """The client has reset the policy: an episode ends."""


@dataclass
class ErrorReply:
    """The server answered with an error; there was no inference."""


#: None is an exchange that is no inference.
Reading = Inference | Reset | ErrorReply | None


@dataclass(frozen=True)
class Keys:
    """Keys of the messages that contain the data of a step.

    Attributes
    ----------
    actions : tuple of str
        Keys of the actions in the reply, in the order of the action dimensions. If empty, the
        actions are read from the usual place.
    instruction : str
        Key of the instruction in the request. If empty, it is read from the usual place.
    features : tuple of str
        Keys of the features in the reply. The first key that the reply has is read.
    with_images : bool
        Whether images of the request are wanted.
    images : tuple of str
        Keys of the images; empty: all images.
    """

    actions: tuple[str, ...] = ()
    instruction: str = ''
    features: tuple[str, ...] = tuple(FEATURE_AXES)
    with_images: bool = False
    images: tuple[str, ...] = ()


def find(holder: Any, key: str) -> Any:
    """Return the value of a key, or of a path of keys ``a/b``; None if it is not there."""
    if not isinstance(holder, dict):
        return None
    for name in (key, key.encode()):
        if name in holder:
            return holder[name]
    first, slash, rest = key.partition('/')
    return find(find(holder, first), rest) if slash else None


def keys_of(holder: Any) -> str:
    """Return the keys of a map as a short text."""
    if isinstance(holder, Mapping):
        return shown([k.decode('latin-1') if isinstance(k, bytes) else k for k in holder])
    return type(holder).__name__


def numbers(value: Any, what: str) -> np.ndarray:
    """Return an array of numbers, from an array or a list.

    Raises
    ------
    ReadingError
        The value was not decoded, or is not of numbers.
    """
    if isinstance(value, Unreadable):
        raise ReadingError(f'{what}: {value.reason}')
    try:
        # A list that mixes lengths would become an array of objects.
        array = value if isinstance(value, np.ndarray) else np.array(value, np.float64)
    except (TypeError, ValueError):
        raise ReadingError(where=what, expected='numbers', found=shown(value)) from None
    if array.dtype == np.bool_:
        raise ReadingError(where=what, expected='numbers', found='booleans')
    return array.astype(array.dtype.newbyteorder('='), copy=False)


def chunk(value: Any, what: str) -> np.ndarray:
    """Return an action chunk as an array of shape (horizon, action_dim).

    A single action becomes a chunk of one action. The axis of a batch of one is removed.

    Raises
    ------
    ReadingError
        The value has another shape.
    """
    array = numbers(value, what)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or 0 in array.shape:
        raise ReadingError(
            where=what,
            expected='actions of shape (horizon, action_dim), of one robot',
            found=f'shape {array.shape}',
        )
    return array


def text_in(value: Any) -> str:
    """Return the text of a value, or of its only element at any depth; otherwise an empty text."""
    for _ in range(_MOST_LEVELS):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
    return value if isinstance(value, str) else ''


def features_in(replies: list[Any], keys: Keys) -> tuple[str, np.ndarray | None]:
    """Return the key and the features of the first key that one of the maps has.

    Raises
    ------
    ReadingError
        The value under the key is not an array of floats.
    """
    for key in keys.features:
        for reply in replies:
            value = find(reply, key)
            if value is None:
                continue
            array = numbers(value, key)
            if dtype_name(array) not in FLOATS or array.ndim == 0 or array.size == 0:
                raise ReadingError(
                    where=key,
                    expected='features as an array of floats',
                    found=f'shape {array.shape} of {dtype_name(array)}',
                )
            return key, array
    return '', None


def pooled(spec: FeatureSpec, features: np.ndarray) -> np.ndarray:
    """Return the features of a step: pooled, or raw if no pooling was given.

    Raises
    ------
    ReadingError
        The features have other axes than the specification.
    """
    if features.ndim == len(spec.axes) + 2 and features.shape[0] == 1:
        features = features[0]
    if not spec.pooling:
        return features
    if features.ndim != len(spec.axes) + 1:
        raise ReadingError(
            where=f'feature {spec.name}',
            expected=f'the axes ({", ".join([*spec.axes, "feature"])})',
            found=f'shape {features.shape}',
            advice='use --axes to give the names of all axes that come before the feature axis',
        )
    try:
        return spec.apply(features)
    except PoolingError as error:
        raise ReadingError(str(error)) from None


def images_in(request: Any, keys: Keys) -> dict[str, np.ndarray]:
    """Return the images of a request as (height, width, 3) uint8, by their names.

    An image is an array of bytes of shape (height, width, 3) or (3, height, width). If an array has
    more axes in front (batch, time), the last element is used.
    """
    if not keys.with_images:
        return {}
    if keys.images:
        candidates = [(key, find(request, key)) for key in keys.images]
    else:
        candidates = list(_leaves(request, '', _MOST_LEVELS))
    found = {name: _image(value) for name, value in candidates}
    return {name: image for name, image in found.items() if image is not None}


def unread_in(**messages: Any) -> tuple[str, ...]:
    """Return the parts of messages that could not be read, by their names."""
    return tuple(
        f'{path}: {value.reason}'
        for name, message in messages.items()
        for path, value in _leaves(message, name, _MOST_LEVELS)
        if isinstance(value, Unreadable)
    )


def _leaves(holder: Any, path: str, levels: int) -> Iterator[tuple[str, Any]]:
    if not isinstance(holder, dict) or levels == 0:
        yield path, holder
        return
    for key, value in holder.items():
        name = key.decode('latin-1') if isinstance(key, bytes) else str(key)
        yield from _leaves(value, f'{path}/{name}' if path else name, levels - 1)


def _image(value: Any) -> np.ndarray | None:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (3, 4, 5):
        return None
    while value.ndim > 3:
        if value.shape[0] == 0:
            return None
        value = value[-1]
    if value.shape[2] == 3:
        image = value
    elif value.shape[0] == 3:
        image = value.transpose(1, 2, 0)
    else:
        return None
    return np.ascontiguousarray(image) if image.size else None
