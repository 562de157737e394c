# SPDX-License-Identifier: Apache-2.0
"""Decodes JSON messages of policy servers, with limits; knows the arrays of json-numpy.

An array is ``{"__numpy__": base64, "dtype": "<f4", "shape": [7]}``. OpenVLA's server also accepts
the whole request as a text: ``{"encoded": "<JSON>"}``. Its answer is then a text that contains
JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from vla_feature_bridge.relays.arrays import ArrayError, Unreadable, array_of, shown
from vla_feature_bridge.relays.bounded_msgpack import MAX_DEPTH, MAX_VALUES, DecodeError


def load(body: bytes) -> Any:
    """Return the values of a JSON body; arrays of json-numpy become read-only NumPy arrays.

    A text that holds a JSON map, list or number is decoded too, once: replies of the ``encoded``
    variant. An array with a wrong dtype, shape or size becomes :class:`Unreadable`.

    Raises
    ------
    DecodeError
        The body is not JSON, repeats a key, or has more than :data:`MAX_VALUES` values or
        :data:`MAX_DEPTH` levels.
    """
    found = _parsed(body)
    if isinstance(found, dict) and found.keys() == {'encoded'}:
        found = found['encoded']
    if isinstance(found, str) and found[:1] in ('{', '['):
        return _parsed(found.encode('utf-8', 'surrogatepass'))
    return found


def _parsed(body: bytes) -> Any:
    # Every value but the first follows a bracket or a comma. Counting them takes no memory.
    if body.count(b',') + body.count(b'[') + body.count(b'{') >= MAX_VALUES:
        raise DecodeError(where='JSON', expected=f'fewer than {MAX_VALUES} values', found='more')
    try:
        found = json.loads(body, object_pairs_hook=_map)
    except RecursionError:
        raise _too_deep() from None
    except DecodeError:
        raise
    except ValueError as error:  # also UnicodeDecodeError, and integers of too many digits
        raise DecodeError(where='JSON', expected='valid JSON', found=str(error)[:120]) from None
    _check_depth(found)
    return found


def _too_deep() -> DecodeError:
    return DecodeError(where='JSON', expected=f'at most {MAX_DEPTH} levels', found='more')


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(MAX_DEPTH + 1):
        level = [
            value
            for holder in level
            if isinstance(holder, (dict, list))
            for value in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return
    raise _too_deep()


def _map(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DecodeError(
            where='JSON',
            expected='each key only once',
            found=f'a repeated key (the keys are {shown(list(found))})',
        )
    if '__numpy__' not in found:
        return found
    try:
        data = base64.b64decode(found['__numpy__'], validate=True)
        return array_of(found['dtype'], found['shape'], data)
    except ArrayError as error:
        return Unreadable(str(error))
    except KeyError as error:
        return Unreadable(f'expected an array with the key {error}, found none')
    except (TypeError, binascii.Error, ValueError):
        return Unreadable('expected the bytes of an array as base64, found something else')
