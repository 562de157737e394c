# SPDX-License-Identifier: Apache-2.0
"""Reads the messages of openpi, GR00T and OpenVLA servers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vla_feature_bridge.relays.bounded_json import load
from vla_feature_bridge.relays.bounded_msgpack import unpack
from vla_feature_bridge.relays.byte_stream import LONGEST_MESSAGE, Body
from vla_feature_bridge.relays.exchanges import Exchange
from vla_feature_bridge.relays.readings import (
    ErrorReply,
    Inference,
    Keys,
    Reading,
    ReadingError,
    Reset,
    chunk,
    features_in,
    find,
    images_in,
    keys_of,
    text_in,
    unread_in,
)


def _decoded(decode: Callable[[bytes], Any], body: Body, what: str) -> Any:
    if not body.complete:
        raise ReadingError(
            where=what, expected=f'at most {LONGEST_MESSAGE} bytes', found=str(body.size)
        )
    return decode(body.joined())


def read_openpi(exchange: Exchange, keys: Keys) -> Reading:
    """Return the reading of an exchange with an openpi server.

    Raises
    ------
    DecodeError, ReadingError
        There was an inference, but it cannot be read.
    """
    if exchange.request.path:
        return None  # GET /healthz
    if exchange.kind == 'error':
        return ErrorReply()
    request = _decoded(unpack, exchange.request.body, 'request')
    reply = _decoded(unpack, exchange.reply, 'reply')
    key = keys.actions[0] if keys.actions else 'actions'
    actions = find(reply, key)
    if actions is None:
        raise ReadingError(where='reply', expected=f'the key {key}', found=keys_of(reply))
    feature_key, features = features_in([reply], keys)
    return Inference(
        instruction=text_in(find(request, keys.instruction or 'prompt')),
        actions=chunk(actions, key)[None],
        feature_key=feature_key,
        features=features,
        images=images_in(request, keys),
        seconds=_seconds(find(reply, 'policy_timing/infer_ms')),
        unread=unread_in(request=request, reply=reply),
    )


def _seconds(milliseconds: Any) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
        return None
    seconds = float(milliseconds) * 1e-3
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def read_groot(exchange: Exchange, keys: Keys) -> Reading:
    """Return the reading of an exchange with a GR00T server (N1.5 to N1.7).

    Raises
    ------
    DecodeError, ReadingError
        There was an inference, but it cannot be read.
    """
    request = _decoded(unpack, exchange.request.body, 'request')
    endpoint = find(request, 'endpoint')
    if endpoint is None:
        endpoint = 'get_action'
    if endpoint not in ('get_action', 'reset'):
        return None
    reply = _decoded(unpack, exchange.reply, 'reply')
    if find(reply, 'error') is not None:
        return ErrorReply()
    if endpoint == 'reset':
        return Reset()
    # N1.6 and N1.7 answer with the actions and further information, N1.5 with the actions only.
    replies = reply if isinstance(reply, list) else [reply]
    observation = find(request, 'data')
    inner = find(observation, 'observation')
    observation = inner if isinstance(inner, dict) else observation
    feature_key, features = features_in(replies, keys)
    return Inference(
        instruction=_groot_instruction(observation, keys),
        actions=_groot_actions(replies[0] if replies else None, keys)[None],
        feature_key=feature_key,
        features=features,
        images=images_in(observation, keys),
        unread=unread_in(request=request, reply=reply),
    )


def _groot_actions(reply: Any, keys: Keys) -> np.ndarray:
    if not isinstance(reply, dict):
        raise ReadingError(where='reply', expected='a map of actions', found=keys_of(reply))
    names = keys.actions or tuple(name for name in map(str, reply) if name not in keys.features)
    missing = [name for name in names if find(reply, name) is None]
    if missing or not names:
        raise ReadingError(
            where='reply',
            expected=f'the keys {", ".join(names) or "of actions"}',
            found=keys_of(reply),
        )
    parts = [_groot_part(find(reply, name), name) for name in names]
    horizons = {part.shape[0] for part in parts}
    if len(horizons) > 1:
        raise ReadingError(
            where='reply', expected='actions of one horizon', found=f'horizons {sorted(horizons)}'
        )
    return np.concatenate(parts, axis=1)


def _groot_part(value: Any, name: str) -> np.ndarray:
    # Here an array of one axis is one joint over the horizon, not one action.
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value[:, None]
    return chunk(value, name)


def _groot_instruction(observation: Any, keys: Keys) -> str:
    if keys.instruction:
        return text_in(find(observation, keys.instruction))
    language = find(observation, 'language')
    holder = language if isinstance(language, dict) else observation
    if not isinstance(holder, dict):
        return ''
    for name, value in holder.items():
        if holder is language or str(name).startswith('annotation.human.'):
            return text_in(value)
    return ''


def read_openvla(exchange: Exchange, keys: Keys) -> Reading:
    """Return the reading of an exchange with an OpenVLA server.

    Raises
    ------
    DecodeError, ReadingError
        There was an inference, but it cannot be read.
    """
    if exchange.request.path != 'POST /act':
        return None
    if exchange.kind == 'error':
        return ErrorReply()
    if exchange.kind == 'compressed':
        raise ReadingError(
            where='reply', expected='a body without Content-Encoding', found='a compressed body'
        )
    reply = _decoded(load, exchange.reply, 'reply')
    if isinstance(reply, str) and reply == 'error':
        return ErrorReply()
    request = _decoded(load, exchange.request.body, 'request')
    actions: Any = reply
    if isinstance(reply, dict):
        key = keys.actions[0] if keys.actions else 'action'
        actions = find(reply, key)
        if actions is None:
            raise ReadingError(where='reply', expected=f'the key {key}', found=keys_of(reply))
    feature_key, features = features_in([reply], keys)
    return Inference(
        instruction=text_in(find(request, keys.instruction or 'instruction')),
        actions=chunk(_stacked(actions), 'reply')[None],
        feature_key=feature_key,
        features=features,
        images=images_in(request, keys),
        unread=unread_in(request=request, reply=reply),
    )


def _stacked(actions: Any) -> Any:
    """Return a list of actions as one array; servers that return chunks send such lists."""
    if not isinstance(actions, list) or not all(isinstance(a, np.ndarray) for a in actions):
        return actions
    if len({a.shape for a in actions}) != 1:
        raise ReadingError(
            where='reply',
            expected='actions of one shape',
            found=f'{len(actions)} actions of different shapes',
        )
    return np.stack(actions)


READERS: dict[str, Callable[[Exchange, Keys], Reading]] = {
    'openpi': read_openpi,
    'groot': read_groot,
    'openvla': read_openvla,
}
