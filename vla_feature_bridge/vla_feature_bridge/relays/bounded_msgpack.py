# SPDX-License-Identifier: Apache-2.0
"""Decodes msgpack messages of policy servers, with limits; knows three encodings of arrays.

* openpi: a map with ``__ndarray__``, ``data``, ``dtype``, ``shape``; for a scalar
  ``__npgeneric__``.
* GR00T until N1.6: a map with ``__ndarray_class__`` and ``as_npy``, the bytes of a ``.npy`` file.
* GR00T N1.7 (msgpack-numpy): a map with ``nd``, ``type``, ``kind``, ``shape``, ``data``.

We use our own decoder. The decoder of msgpack limits the size of each container, but not the number
of containers. A body of ten million empty lists would need a gigabyte of memory. The decoder of
msgpack-numpy would also unpickle.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.relays.arrays import (
    ArrayError,
    Unreadable,
    array_of,
    array_of_npy,
    shown,
)

MAX_DEPTH = 32
MAX_VALUES = 200_000
#: Longest key of a map, in bytes.
_MAX_KEY = 1024


class DecodeError(SafeError):
    """A message cannot be decoded: it is incomplete or damaged, or exceeds a limit."""


def unpack(data: bytes) -> Any:
    """Return the values of a msgpack message; arrays become read-only NumPy arrays.

    Binary values are views (``memoryview``) of ``data``. Maps become dicts whose keys are text,
    bytes or integers. A value that is not allowed becomes :class:`Unreadable`: an array with a
    wrong dtype, shape or size, text that is not UTF-8, or an extension type.

    Raises
    ------
    DecodeError
        The message is cut, has bytes after its end, repeats a key, or has more than
        :data:`MAX_VALUES` values or :data:`MAX_DEPTH` levels.
    """
    reader = _Reader(data)
    found = reader.value(0)
    if reader.place != len(data):
        raise DecodeError(
            where=f'msgpack, byte {reader.place}',
            expected='the end of the message',
            found=f'{len(data) - reader.place} more bytes',
        )
    return found


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._left = MAX_VALUES
        self.place = 0

    def value(self, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise DecodeError(
                where='msgpack', expected=f'at most {MAX_VALUES} values', found='more'
            )
        code = self._take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code < 0x90:
            return self._map(code & 0x0F, depth)
        if code < 0xA0:
            return self._list(code & 0x0F, depth)
        if code < 0xC0:
            return self._text(code & 0x1F)
        return self._coded(code, depth)

    def _coded(self, code: int, depth: int) -> Any:
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            layout = _NUMBERS[code]
            return layout.unpack(self._take(layout.size))[0]
        if code in _FIXED_EXTENSIONS:
            return self._extension(_FIXED_EXTENSIONS[code])
        if code not in _SIZED:
            raise DecodeError(
                where=f'msgpack, byte {self.place - 1}',
                expected='the code of a type',
                found=f'0x{code:02x}',
            )
        kind, width = _SIZED[code]
        size = int.from_bytes(self._take(width), 'big')
        if kind == 'bytes':
            return self._take(size)
        if kind == 'text':
            return self._text(size)
        if kind == 'extension':
            return self._extension(size)
        return self._list(size, depth) if kind == 'list' else self._map(size, depth)

    def _take(self, size: int) -> memoryview:
        end = self.place + size
        if end > len(self._data):
            raise DecodeError(
                where=f'msgpack, byte {self.place}',
                expected=f'{size} more bytes',
                found=f'{len(self._data) - self.place}',
            )
        part = self._data[self.place : end]
        self.place = end
        return part

    def _text(self, size: int) -> str | Unreadable:
        try:
            return str(self._take(size), 'utf-8')
        except UnicodeDecodeError:
            return Unreadable('expected text as UTF-8, found other bytes')

    def _extension(self, size: int) -> Unreadable:
        kind = self._take(1)[0]
        self._take(size)
        return Unreadable(f'expected no extension type, found type {kind}')

    def _check_container(self, count: int, depth: int) -> None:
        # Each value has at least one byte. Therefore a wrong count is found before any values are
        # decoded.
        if count > len(self._data) - self.place:
            raise DecodeError(
                where=f'msgpack, byte {self.place}',
                expected=f'{count} more values',
                found=f'{len(self._data) - self.place} bytes',
            )
        if depth >= MAX_DEPTH:
            raise DecodeError(
                where=f'msgpack, byte {self.place}',
                expected=f'at most {MAX_DEPTH} levels',
                found='more',
            )

    def _list(self, count: int, depth: int) -> list[Any]:
        self._check_container(count, depth)
        return [self.value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> Any:
        self._check_container(2 * count, depth)
        found: dict[Any, Any] = {}
        for _ in range(count):
            start = self.place
            key = self.value(depth + 1)
            if isinstance(key, memoryview) and len(key) <= _MAX_KEY:
                key = bytes(key)
            if isinstance(key, bool) or not isinstance(key, (str, bytes, int)) or key in found:
                raise DecodeError(
                    where=f'msgpack, byte {start}',
                    expected='a key that is text, bytes or an integer, and different from the '
                    'other keys of the map',
                    found=shown(key),
                )
            found[key] = self.value(depth + 1)
        return decoded_map(found)


def decoded_map(found: dict[Any, Any]) -> Any:
    """Return the array or the scalar that a map encodes. For other maps, return the map itself.

    The marks may be text or bytes: openpi and msgpack-numpy write bytes, GR00T until N1.6 text.
    """
    for mark, decode in _DECODERS.items():
        if mark in found or mark.encode() in found:
            named = {
                k.decode('latin-1') if isinstance(k, bytes) else k: v for k, v in found.items()
            }
            try:
                return decode(named)
            except ArrayError as error:
                return Unreadable(str(error))
            except KeyError as error:
                return Unreadable(f'expected an array with the key {error}, found none')
    return found


def _openpi(found: dict[Any, Any]) -> Any:
    return array_of(found['dtype'], found['shape'], found['data'])


def _openpi_scalar(found: dict[Any, Any]) -> Any:
    data = found['data']
    if isinstance(data, (bool, int, float, str)):
        return data
    raise ArrayError(expected='a scalar that is a number or text', found=shown(data))


def _npy(found: dict[Any, Any]) -> Any:
    data = found['as_npy']
    if not isinstance(data, memoryview):
        raise ArrayError(expected='the bytes of a .npy file', found=shown(data))
    return array_of_npy(data)


def _msgpack_numpy(found: dict[Any, Any]) -> Any:
    if not {'type', 'data'} <= found.keys():
        return found  # a map with an unrelated value of the name nd
    kind = found.get('kind', '')
    if len(kind) if isinstance(kind, (str, memoryview)) else kind is not None:
        # The kind O holds a pickle.
        raise ArrayError(expected='an array of numbers', found='an array of another kind')
    return array_of(found['type'], found['shape'] if found['nd'] is True else [], found['data'])


_DECODERS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    '__ndarray__': _openpi,
    '__npgeneric__': _openpi_scalar,
    '__ndarray_class__': _npy,
    'nd': _msgpack_numpy,
}
_CONSTANTS: dict[int, bool | None] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCA + place: struct.Struct(f'>{letter}') for place, letter in enumerate('fdBHIQbhiq')}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
#: Code -> what follows, and how many bytes its length has.
_SIZED = {
    0xC4: ('bytes', 1),
    0xC5: ('bytes', 2),
    0xC6: ('bytes', 4),
    0xC7: ('extension', 1),
    0xC8: ('extension', 2),
    0xC9: ('extension', 4),
    0xD9: ('text', 1),
    0xDA: ('text', 2),
    0xDB: ('text', 4),
    0xDC: ('list', 2),
    0xDD: ('list', 4),
    0xDE: ('map', 2),
    0xDF: ('map', 4),
}
