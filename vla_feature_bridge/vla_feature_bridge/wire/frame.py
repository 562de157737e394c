# SPDX-License-Identifier: Apache-2.0
"""Frames: the encoding of messages in a stream of bytes.

A frame is a prefix of 16 bytes (``SAFT``, version, lengths), a header in JSON, and the bytes of its
arrays. ``docs/reference/bridge_protocol.md`` describes the format. No part of a frame is executed.
Every length is checked before it is used.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.tensors import (
    DTYPES,
    TensorError,
    array_of_bytes,
    dtype_name,
    little_endian,
)

MAGIC = b'SAFT'
VERSION = 1
#: Magic, version, zero, bytes of the header, bytes of the payload; little-endian.
PREFIX = struct.Struct('<4sHHII')
MAX_HEADER = 1 << 20
MAX_PAYLOAD = 256 << 20
MAX_ARRAYS = 16
MAX_AXES = 32
#: Depth of a header: the header, its list of arrays, an array, a shape.
MAX_DEPTH = 4
#: Largest number of values in one header, including its lists and objects.
MAX_VALUES = 10_000

#: Kinds of frames of a source, and kinds of frames of the bridge.
SOURCE_KINDS = ('hello', 'step', 'event', 'image')
BRIDGE_KINDS = ('status', 'refused')


class FrameError(SafeError):
    """Bytes are not a frame, or a message does not fit a frame."""


class VersionError(FrameError):
    """The other side uses another version of the protocol."""


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes
    ----------
    kind : str
        One of :data:`SOURCE_KINDS` or :data:`BRIDGE_KINDS`.
    header : dict
        JSON values, without ``kind`` and ``arrays``.
    arrays : dict of str to ndarray
        Views of the received bytes.
    size, payload : int
        Length of the whole frame and of its payload [bytes].
    """

    kind: str
    header: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    size: int = 0
    payload: int = 0


def encode_frame(
    kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray | None] | None = None
) -> bytes:
    """Return the bytes of a frame; copies every array once.

    Parameters
    ----------
    kind : str
    header : mapping
        JSON values. NaN becomes null.
    arrays : mapping of str to ndarray, optional
        Entries that are None are left out.

    Raises
    ------
    FrameError
        The message is larger than a frame may be, or has a value that JSON does not have.
    """
    try:
        present = {
            name: little_endian(array)
            for name, array in (arrays or {}).items()
            if array is not None
        }
    except TensorError as error:
        raise FrameError(f'{kind} frame: {error}') from None
    table = [[name, dtype_name(array), array.shape] for name, array in present.items()]
    try:
        text = json.dumps(
            {'kind': kind, **header, 'arrays': table},
            allow_nan=False,
            ensure_ascii=False,
            separators=(',', ':'),
        ).encode()
    except (TypeError, ValueError) as error:
        raise FrameError(f'{kind} frame: expected a header of JSON values: {error}') from None
    payload = sum(array.nbytes for array in present.values())
    _check_length('header', len(text), MAX_HEADER)
    _check_length('payload', payload, MAX_PAYLOAD)
    prefix = PREFIX.pack(MAGIC, VERSION, 0, len(text), payload)
    return b''.join(
        [prefix, text, *(array.reshape(-1).view(np.uint8).data for array in present.values())]
    )


class PayloadBudget(Protocol):
    """Memory that several readers share."""

    def take(self, count: int) -> None:
        """Reserve bytes, or raise :class:`FrameError`."""


class FrameReader:
    """Makes frames from the bytes of a stream, piece by piece.

    Memory grows only with received bytes, not with the lengths that a frame states::

        count = connection.recv_into(reader.space())
        frame = reader.filled(count)

    Parameters
    ----------
    max_header, max_payload : int
        Largest lengths [bytes].
    budget : PayloadBudget, optional
        Reserves the memory of payloads. The receiver of a frame must free this memory.

    Attributes
    ----------
    reserved : int
        Memory of the payload that is being read [bytes].
    """

    def __init__(
        self,
        max_header: int = MAX_HEADER,
        max_payload: int = MAX_PAYLOAD,
        budget: PayloadBudget | None = None,
    ) -> None:
        self.max_header, self.max_payload = max_header, max_payload
        self.reserved = 0
        self._budget = budget
        self._next('prefix', PREFIX.size)
        self._header: dict[str, Any] = {}
        self._lengths = (0, 0)

    @property
    def is_between_frames(self) -> bool:
        """True if no frame has begun."""
        return self._part == 'prefix' and self._have == 0

    def space(self) -> memoryview:
        """Return where the next bytes of the stream belong; never empty."""
        return self._buffer.data[self._have :]

    def filled(self, count: int) -> Frame | None:
        """Take the first ``count`` bytes of :meth:`space`; return the frame that they complete.

        Raises
        ------
        FrameError
            The bytes are not a frame. The rest of the stream cannot be read.
        """
        self._have += count
        if self._have < len(self._buffer):
            return None
        if self._part == 'prefix':
            self._lengths = self._checked_prefix(self._buffer.tobytes())
            self._next('header', self._lengths[0])
            return None
        if self._part == 'header':
            self._header = _parsed(self._buffer.tobytes())
            _check_arrays(self._header, self._lengths[1])
            if self._lengths[1]:
                if self._budget is not None:
                    self._budget.take(self._lengths[1])
                    self.reserved = self._lengths[1]
                self._next('payload', self._lengths[1])
                return None
            return self._complete(memoryview(b''))
        return self._complete(self._buffer.data.toreadonly())

    def _complete(self, payload: memoryview) -> Frame:
        header = self._header
        kind = header.pop('kind')
        arrays = _arrays(header.pop('arrays', []), payload)
        self._header = {}
        self._next('prefix', PREFIX.size)
        self.reserved = 0
        return Frame(kind, header, arrays, PREFIX.size + sum(self._lengths), self._lengths[1])

    def _next(self, part: str, length: int) -> None:
        # The system gives memory to pages of np.empty only when bytes are written to them.
        try:
            self._buffer = np.empty(length, np.uint8)
        except MemoryError:
            raise FrameError(
                where=f'{part} of a frame', expected='enough memory', found=f'{length} bytes'
            ) from None
        self._part, self._have = part, 0

    def _checked_prefix(self, prefix: bytes) -> tuple[int, int]:
        magic, version, zero, header, payload = PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise FrameError(
                where='frame',
                expected=f'the first bytes {MAGIC!r}',
                found=repr(magic),
                advice='connect only senders of this software',
            )
        if version != VERSION:
            raise VersionError(
                where='frame',
                expected=f'version {VERSION} of the protocol',
                found=f'version {version}',
                advice='install the same version of vla_feature_bridge on both sides',
            )
        if zero:
            raise FrameError(where='frame', expected='zero in bytes 6 and 7', found=str(zero))
        if header == 0:
            raise FrameError(where='frame', expected='a header', found='0 bytes')
        _check_length('header', header, self.max_header)
        _check_length('payload', payload, self.max_payload)
        return header, payload


def json_number(value: float) -> float | None:
    """Return a number as JSON holds it: null for NaN."""
    return None if math.isnan(value) else value


def _check_length(part: str, length: int, limit: int) -> None:
    if length > limit:
        raise FrameError(
            where=f'{part} of a frame',
            expected=f'at most {limit} bytes',
            found=f'{length} bytes',
        )


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            text.decode(), parse_constant=_no_constant, object_pairs_hook=_without_repetition
        )
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:
        raise FrameError(f'header of a frame: expected JSON: {error}') from None
    if not isinstance(header, dict) or not isinstance(header.get('kind'), str):
        raise FrameError(
            where='header of a frame', expected='an object with kind', found=_short(header)
        )
    if header['kind'] not in SOURCE_KINDS + BRIDGE_KINDS:
        raise FrameError(
            where='kind of a frame',
            expected=', '.join(SOURCE_KINDS + BRIDGE_KINDS),
            found=_short(header['kind']),
        )
    _check_size(header)
    return header


def _no_constant(name: str) -> Any:
    raise FrameError(where='header of a frame', expected='finite numbers or null', found=name)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FrameError(
            where='header of a frame', expected='different names', found='one name twice'
        )
    return found


def _check_size(header: dict[str, Any]) -> None:
    """Raise :class:`FrameError` if a header is deeper or has more values than a message has."""
    level: list[Any] = [header]
    count = 0
    for _ in range(MAX_DEPTH):
        inner = [
            list(value.values()) if isinstance(value, dict) else value
            for value in level
            if isinstance(value, (dict, list))
        ]
        level = [value for values in inner for value in values]
        count += len(level)
        if count > MAX_VALUES:
            raise FrameError(
                where='header of a frame',
                expected=f'at most {MAX_VALUES} values',
                found=f'{count} or more',
            )
    if any(isinstance(value, (dict, list)) for value in level):
        raise FrameError(
            where='header of a frame', expected=f'at most {MAX_DEPTH} levels', found='more'
        )


def _check_arrays(header: dict[str, Any], payload: int) -> None:
    table = header.get('arrays', [])
    if not isinstance(table, list) or len(table) > MAX_ARRAYS:
        raise FrameError(
            where='arrays of a frame',
            expected=f'a list of at most {MAX_ARRAYS} arrays',
            found=_short(table),
        )
    total, names = 0, set()
    for entry in table:
        if not _is_array(entry):
            raise FrameError(
                where='arrays of a frame',
                expected=f'[name, dtype, shape] with a dtype of {", ".join(DTYPES)}',
                found=_short(entry),
            )
        names.add(entry[0])
        total += math.prod(entry[2]) * DTYPES[entry[1]].itemsize
    if len(names) < len(table):
        raise FrameError(
            where='arrays of a frame', expected='different names', found='one name twice'
        )
    if total != payload:
        raise FrameError(
            where='arrays of a frame',
            expected=f'{payload} bytes as the payload has',
            found=f'shapes of {total if total < 1 << 63 else "too many"} bytes',
        )


def _is_array(entry: Any) -> bool:
    if not (isinstance(entry, list) and len(entry) == 3):
        return False
    name, dtype, shape = entry
    return (
        isinstance(name, str)
        and isinstance(dtype, str)
        and dtype in DTYPES
        and isinstance(shape, list)
        and len(shape) <= MAX_AXES
        and all(type(length) is int and 0 <= length < 1 << 32 for length in shape)
    )


def _arrays(table: Sequence[Any], payload: memoryview) -> dict[str, np.ndarray]:
    arrays, start = {}, 0
    for name, dtype, shape in table:
        end = start + math.prod(shape) * DTYPES[dtype].itemsize
        try:
            arrays[name] = array_of_bytes(dtype, shape, payload[start:end])
        except TensorError as error:
            raise FrameError(f'array {_short(name)} of a frame: {error}') from None
        start = end
    return arrays


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f'{text[:100]}...'
