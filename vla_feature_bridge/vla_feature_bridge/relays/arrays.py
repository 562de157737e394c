# SPDX-License-Identifier: Apache-2.0
"""Arrays that a message describes by dtype, shape and bytes. No part of a message is executed.

The dtypes come from a fixed list, because the decoders of NumPy accept the dtype ``|O`` for plain
bytes, and reading such an array ends the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.tensors import BFLOAT16

#: NumPy before 2 has no array of more axes.
_MAX_AXES = 32
#: ``numpy.save`` itself refuses to read longer headers.
_MAX_NPY_HEADER = 10_000
_MAX_SHOWN = 60
_MAX_LINE = 500

#: Names of dtypes that differ from the ``str`` of the dtype. NumPy has no bfloat16, and writes it
#: as two bytes without a meaning.
_NAMES: dict[str, np.dtype[Any]] = {'bfloat16': BFLOAT16, 'V2': BFLOAT16, 'bool': np.dtype('?')}
for _kind, _name, _sizes in (
    ('b', '', (1,)),
    ('i', 'int', (1, 2, 4, 8)),
    ('u', 'uint', (1, 2, 4, 8)),
    ('f', 'float', (2, 4, 8)),
):
    for _size in _sizes:
        _NAMES[f'{_kind}{_size}'] = np.dtype(f'{_kind}{_size}')
        if _name:
            _NAMES[f'{_name}{8 * _size}'] = np.dtype(f'{_kind}{_size}')

_NPY_HEADER = re.compile(
    rb"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n"
)


class ArrayError(SafeError):
    """A message describes an array that is not allowed, or whose bytes do not fit the shape."""


@dataclass(frozen=True)
class Unreadable:
    """Replaces a value that was not decoded, in a decoded message.

    Attributes
    ----------
    reason : str
        What was expected and what was found.
    """

    reason: str


def shown(value: object) -> str:
    """Return a value of a message as short text for an error message."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}...'


def printable(text: str) -> str:
    """Return a text that may hold parts of a message as one line without control characters."""
    return ''.join(c if c.isprintable() else '?' for c in text[:_MAX_LINE])


def dtype_of(text: object) -> np.dtype[Any]:
    """Return the dtype with this name: ``<f4``, ``|u1``, ``float32``, ``bfloat16``, ``|V2``.

    Two bytes without a meaning (``V2``) are bfloat16: ``numpy.save`` writes bfloat16 in this way.

    Raises
    ------
    ArrayError
        The dtype is not a boolean, integer or float of at most 8 bytes.
    """
    name = text.decode('latin-1') if isinstance(text, bytes) else text
    if isinstance(name, str):
        order = name[:1] if name[:1] in ('<', '>', '=', '|') else ''
        found = _NAMES.get(name[len(order) :])
        if found is BFLOAT16 and order != '>':
            return found
        if found is not None and found is not BFLOAT16:
            return found.newbyteorder('>' if order == '>' else '<')
    raise ArrayError(
        expected='a dtype of booleans, integers or floats of at most 8 bytes', found=shown(text)
    )


def array_of(dtype: object, shape: object, data: object) -> np.ndarray:
    """Return the array of these bytes, as a read-only view of them.

    Parameters
    ----------
    dtype : str or bytes
        See :func:`dtype_of`.
    shape : sequence of int
        Not negative; ``product(shape) * itemsize`` is the number of bytes.
    data : bytes-like
        The elements, in C order.

    Raises
    ------
    ArrayError
        The dtype or the shape is not allowed, or the bytes do not fit.
    """
    kind = dtype_of(dtype)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ArrayError(expected='the bytes of an array', found=shown(data))
    lengths = _shape_of(shape)
    expected = math.prod(lengths) * kind.itemsize
    if len(data) != expected:
        raise ArrayError(
            expected=f'{expected} bytes for shape {shown(lengths)} of {kind.name}',
            found=f'{len(data)} bytes',
        )
    try:
        if expected == 0:
            array = np.zeros(lengths, kind)
        else:
            array = np.frombuffer(data, kind).reshape(lengths)
    except ValueError as error:  # an empty array whose other axes are longer than NumPy allows
        raise ArrayError(
            expected='the shape of an array', found=f'{shown(lengths)} ({error})'
        ) from None
    if kind.kind == 'b' and array.size and array.view(np.uint8).max() > 1:
        raise ArrayError(expected='booleans as bytes 0 and 1', found='another byte')
    array.flags.writeable = False
    return array


def _shape_of(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes, bytearray)):
        raise ArrayError(expected='a shape as a list of integers', found=shown(shape))
    if len(shape) > _MAX_AXES:
        raise ArrayError(expected=f'at most {_MAX_AXES} axes', found=str(len(shape)))
    for length in shape:
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise ArrayError(expected='a shape of integers of at least 0', found=shown(list(shape)))
    return tuple(shape)


def array_of_npy(data: bytes | memoryview) -> np.ndarray:
    """Return the array of a ``.npy`` file that ``numpy.save`` wrote, as a view of the bytes.

    Raises
    ------
    ArrayError
        The bytes are not a ``.npy`` file, or contain a structured array or an array of objects.
    """
    head = bytes(data[:12])
    long = head[6:7] in (b'\x02', b'\x03')
    start = 12 if long else 10
    if head[:6] != b'\x93NUMPY' or head[6:8] not in (b'\x01\x00', b'\x02\x00', b'\x03\x00'):
        raise ArrayError(expected='the first bytes of a .npy file', found=shown(head[:8]))
    length = int.from_bytes(head[8:start], 'little')
    if length > _MAX_NPY_HEADER:
        raise ArrayError(
            expected=f'a .npy header of at most {_MAX_NPY_HEADER} bytes', found=str(length)
        )
    header = bytes(data[start : start + length])
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise ArrayError(
            expected='the .npy header of an array of numbers', found=shown(header.strip())
        )
    descr, fortran, inside = match.groups()
    try:
        shape = [int(word) for word in inside.split(b',') if word.strip()]
    except ValueError:
        raise ArrayError(expected='a shape in a .npy header', found=shown(inside)) from None
    body = data[start + length :]
    if fortran == b'True':
        return array_of(descr, shape[::-1], body).T
    return array_of(descr, shape, body)
