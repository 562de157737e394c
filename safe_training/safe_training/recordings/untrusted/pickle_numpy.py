# SPDX-License-Identifier: Apache-2.0
"""Builds NumPy arrays, data types and scalars from the arguments that a pickle gives."""

from __future__ import annotations

import math
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

_NUMPY_DTYPES = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')


def build_dtype(arguments: Any, budget: Budget) -> Pending:
    """Return a dtype of numbers that waits for its byte order."""
    code = arguments[0] if arguments else None
    if type(code) is Global and code.name == 'ml_dtypes.bfloat16':
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif type(code) is str and code in _NUMPY_DTYPES:
        dtype = np.dtype(code)
    else:
        found = shown(code) if type(code) is str else kind_of(code)
        raise Refused(
            f'an array with one of the dtypes {", ".join(_NUMPY_DTYPES)}, bfloat16', found
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
    if type(kind) is not Global or kind.name != 'numpy.ndarray':
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
    if len(arguments) != 4 or type(arguments[3]) is not str or arguments[3] not in ('C', 'F'):
        raise Refused(
            'the arguments of an array: bytes, dtype, shape and order', 'different arguments'
        )
    data, dtype, shape, order = arguments
    return _array(data, dtype, shape, order, budget)


def build_scalar(arguments: Any, budget: Budget) -> Any:
    """Return a numpy scalar from its dtype and bytes."""
    if len(arguments) != 2:
        raise Refused(
            'the arguments of a numpy scalar: dtype and bytes', f'{len(arguments)} arguments'
        )
    dtype, data = arguments
    return _array(data, dtype, (), 'C', budget)[()]


def _array(data: Any, dtype: Any, shape: Any, order: str, budget: Budget) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, np.dtype):
        raise Refused('a complete dtype', kind_of(dtype))
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
    except ValueError as error:  # an empty array may claim more axes than numpy supports
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
    values.flags.writeable = False
    return values
