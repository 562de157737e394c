# SPDX-License-Identifier: Apache-2.0
"""Builds NumPy arrays, data types and scalars from the arguments in a pickle."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from safe_training.recordings.errors import COPY_AGAIN
from safe_training.recordings.untrusted.budget import (
    Budget,
    Global,
    Pending,
    Refused,
    kind_of,
    lengths,
    shown,
)

_NUMPY_DTYPES = (
    *('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'),
    *('c8', 'c16'),
)
_TEXT_DTYPE = re.compile(r'[US]\d{1,7}')
_OTHER_DTYPE = (
    'nothing was executed; save the array again with one of these dtypes, for example with '
    'array.astype("float32")'
)
#: Array classes that NumPy pickles like an array. They are read as arrays.
ARRAY_CLASSES = (
    ('numpy', 'ndarray'),
    ('numpy', 'memmap'),
    ('numpy.core.memmap', 'memmap'),
    ('numpy._core.memmap', 'memmap'),
    ('numpy', 'matrix'),
    ('numpy.matrixlib.defmatrix', 'matrix'),
)
_ARRAY_CLASS_NAMES = frozenset('.'.join(name) for name in ARRAY_CLASSES)


def build_dtype(arguments: Any, budget: Budget) -> Pending:
    """Return a dtype of numbers that waits for its byte order."""
    code = arguments[0] if arguments else None
    if type(code) is Global and code.name == 'ml_dtypes.bfloat16':
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif type(code) is str and (code in _NUMPY_DTYPES or _TEXT_DTYPE.fullmatch(code)):
        dtype = np.dtype(code)
    else:
        found = shown(code) if type(code) is str else kind_of(code)
        raise Refused(
            f'an array with one of the dtypes {", ".join(_NUMPY_DTYPES)}, bfloat16, or text',
            found,
            _OTHER_DTYPE,
        )

    def finish(state: Any, budget: Budget) -> np.dtype[Any]:
        if type(state) is not tuple or len(state) != 8 or type(state[1]) is not str:
            raise Refused('the state of a plain dtype', 'a different state')
        if any(part is not None for part in state[2:5]):
            raise Refused('a plain dtype', 'a structured dtype')
        order = state[1]
        if order not in ('<', '>', '|', '='):
            raise Refused('a byte order <, >, | or =', shown(order))
        return dtype.newbyteorder('>') if order == '>' and dtype.itemsize > 1 else dtype

    return Pending(finish)


def build_reconstruct(arguments: Any, budget: Budget) -> Pending:
    """Return an array that waits for its shape, dtype and bytes."""
    kind = arguments[0] if arguments else None
    if type(kind) is not Global or kind.name not in _ARRAY_CLASS_NAMES:
        raise Refused('a numpy.ndarray', 'a different array class')

    def finish(state: Any, budget: Budget) -> np.ndarray[Any, Any]:
        if type(state) is not tuple or len(state) != 5:
            raise Refused(
                'the state of an array: version, shape, dtype, order and bytes', 'a different state'
            )
        _, shape, dtype, fortran, data = state
        return _array(data, dtype, shape, 'F' if fortran is True else 'C', budget)

    return Pending(finish)


def build_from_buffer(arguments: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return an array from its bytes, dtype, shape and order (pickle protocol 5)."""
    order, axes = (*arguments[3:], None, None)[:2]
    if len(arguments) not in (4, 5) or (order, axes) not in (('C', None), ('F', None)):
        if len(arguments) != 5 or order != 'K':
            raise Refused(
                'the arguments of an array: bytes, dtype, shape and order', 'different arguments'
            )
        order = 'C'
    data, dtype, shape = arguments[:3]
    array = _array(data, dtype, shape, order, budget)
    if axes is None:
        return array
    # NumPy 2.3 and later: the order of the axes in memory.
    if sorted(lengths(axes, 'the order of axes')) != list(range(array.ndim)):
        raise Refused(f'an order of {array.ndim} axes', shown(str(axes)))
    return array.transpose(axes)


def build_scalar(arguments: Any, budget: Budget) -> Any:
    """Return a numpy scalar from its dtype and bytes."""
    if len(arguments) != 2:
        raise Refused(
            'the arguments of a numpy scalar: dtype and bytes', f'{len(arguments)} arguments'
        )
    dtype, data = arguments
    value = _array(data, dtype, (), 'C', budget)[()]
    return str(value) if dtype.kind == 'U' else value


def build_encoded(arguments: Any, budget: Budget) -> memoryview:
    """Return bytes that protocol 2 stores as text in Latin-1 (``_codecs.encode``)."""
    if len(arguments) != 2 or arguments[1] not in ('latin1', 'latin-1'):
        raise Refused('bytes as text in Latin-1', 'different arguments')
    return _encoded(arguments[0], budget)


def build_bytes(arguments: Any, budget: Budget) -> memoryview:
    """Return bytes from ``bytes()`` or ``bytearray(...)``."""
    if not arguments:
        return memoryview(b'')
    if len(arguments) == 1 and type(arguments[0]) is memoryview:
        found: memoryview = arguments[0]
        return found
    return build_encoded(arguments, budget)


def _encoded(text: Any, budget: Budget) -> memoryview:
    if type(text) is not str:
        raise Refused('bytes as text in Latin-1', kind_of(text))
    budget.spend_copy(len(text))
    try:
        return memoryview(text.encode('latin-1'))
    except UnicodeEncodeError:
        raise Refused('bytes as text in Latin-1', 'other characters') from None


def _array(data: Any, dtype: Any, shape: Any, order: str, budget: Budget) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, np.dtype):
        raise Refused('a complete dtype', kind_of(dtype))
    if type(data) is str:  # bytes of Python 2
        data = _encoded(data, budget)
    if type(data) is not memoryview:
        raise Refused('the bytes of an array', kind_of(data))
    count = math.prod(lengths(shape, 'a shape'))
    if count * dtype.itemsize != len(data):
        raise Refused(
            f'{count * dtype.itemsize} bytes for an array of shape {shape} and dtype {dtype}',
            f'{len(data)} bytes',
            COPY_AGAIN,
        )
    try:
        return flat(data, dtype, budget).reshape(shape, order='F' if order == 'F' else 'C')
    except ValueError as error:  # an empty array may state more axes than numpy supports
        raise Refused('a shape that numpy supports', f'the error: {error}') from None


def flat(data: memoryview, dtype: np.dtype[Any], budget: Budget) -> np.ndarray[Any, Any]:
    """Return bytes as a read-only array (N,); copies only booleans and big-endian numbers.

    A byte of a boolean can have values other than 0 and 1. Therefore booleans are copied.
    """
    if dtype == np.dtype(bool):
        budget.spend_copy(len(data))
        values = np.frombuffer(data, np.uint8) != 0
    else:
        values = np.frombuffer(data, dtype)
        if dtype.byteorder == '>':
            budget.spend_copy(len(data))
            values = values.astype(dtype.newbyteorder('='))
        if dtype.kind == 'U':
            _check_text(values)
    values.flags.writeable = False
    return values


def _check_text(values: np.ndarray[Any, Any]) -> None:
    """Refuse numbers that are not characters.

    Otherwise NumPy would fail later, without the file name.
    """
    codes = np.ascontiguousarray(values).view(np.uint32)
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise Refused('text of Unicode characters', 'numbers that are not characters', COPY_AGAIN)
