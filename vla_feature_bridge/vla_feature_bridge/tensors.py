# SPDX-License-Identifier: Apache-2.0
"""Conversion of arrays from messages, recordings and policies.

Dtypes, bytes, and search for non-finite values.

bfloat16 arrays have the dtype of ``ml_dtypes``, because NumPy has no dtype for bfloat16, and
PyTorch cannot convert its bfloat16 tensors to NumPy. If ``ml_dtypes`` is not installed in the
process of a policy, bfloat16 arrays have the dtype :data:`BFLOAT16_BITS`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError

try:
    import ml_dtypes
except ImportError:  # The environment of a policy may have NumPy only.
    ml_dtypes = None  # type: ignore[assignment]

#: The two bytes of a bfloat16, if ``ml_dtypes`` is not installed. NumPy refuses to compute with two
#: fields. With one integer, NumPy would compute wrong numbers without an error.
BFLOAT16_BITS = np.dtype([('low', 'u1'), ('high', 'u1')])
#: The dtype of bfloat16 in this process.
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16) if ml_dtypes else BFLOAT16_BITS

#: dtypes of a ``safe_msgs/Tensor`` by their names in messages.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder('<')
    for name in ('float16', 'float32', 'float64', 'int8', 'uint8', 'int16', 'int32', 'int64')
} | {'bfloat16': BFLOAT16}

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: Names of the dtypes that features may have.
FLOATS = ('bfloat16', 'float16', 'float32', 'float64')

#: NumPy before 2 has no array of more axes.
_MAX_AXES = 32
#: Number of elements that are checked together in the search for NaN.
_PORTION = 1 << 18


class TensorError(SafeError):
    """An array cannot be sent, or bytes do not match the stated dtype and shape."""


def dtype_name(array: np.ndarray) -> str:
    """Return the name of the dtype of an array, as in :data:`DTYPES`."""
    return _NAMES.get(array.dtype) or array.dtype.name  # NumPy makes the name anew each time


def as_float32(array: np.ndarray) -> np.ndarray:
    """Return the array as float32; exact, and fast for bfloat16 (the upper half of float32)."""
    if array.dtype == BFLOAT16:
        bits = np.ascontiguousarray(array).view('<u2').astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32).reshape(array.shape)
    return np.asarray(array, dtype=np.float32)


def little_endian(array: np.ndarray) -> np.ndarray:
    """Return the array as a message holds it: contiguous, row-major, little-endian.

    Raises
    ------
    TensorError
        The dtype is not one of :data:`DTYPES`.
    """
    dtype = DTYPES.get(dtype_name(array))
    if dtype is None:
        raise TensorError(
            expected=f'one of the dtypes {", ".join(DTYPES)}',
            found=str(array.dtype),
            advice='convert the array to one of these dtypes before sending',
        )
    return np.ascontiguousarray(array, dtype)


def array_of_bytes(dtype_name: str, shape: Sequence[int], data: Any) -> np.ndarray:
    """Return the array that the bytes of a message contain; the array is a view of the bytes.

    Parameters
    ----------
    dtype_name : str
        One of :data:`DTYPES`.
    shape : sequence of int
        Python's own integers, of any size.
    data : bytes-like
        The elements, little-endian and row-major.

    Raises
    ------
    TensorError
        The dtype is unknown, or the bytes do not fit the shape.
    """
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise TensorError(
            expected=f'one of the dtypes {", ".join(DTYPES)}',
            found=f'the unknown dtype {dtype_name[:40]!r}',
        )
    shape = tuple(shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise TensorError(
            expected=f'{expected} bytes for shape {_shown(shape)} and dtype {dtype_name}',
            found=f'{len(data)} bytes',
        )
    if len(shape) > _MAX_AXES:
        raise TensorError(expected=f'at most {_MAX_AXES} axes', found=f'{len(shape)} axes')
    try:
        if expected == 0:
            return np.zeros(shape, dtype)
        view = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # an empty array with axes that are longer than NumPy allows
        raise TensorError(
            expected='a shape that NumPy allows', found=f'{_shown(shape)} (NumPy: {error})'
        ) from None
    return view if sys.byteorder == 'little' else view.astype(dtype.newbyteorder('='))


def as_array(values: Any) -> np.ndarray:
    """Return a NumPy array of the same values; copies only if necessary.

    Parameters
    ----------
    values : ndarray, torch.Tensor, or what ``np.asarray`` takes
        A tensor may require gradients, may be on any device, and may be bfloat16.

    Raises
    ------
    TensorError
        The values cannot be converted to an array: lists of different lengths, or a dtype of
        PyTorch that NumPy does not have.
    """
    try:
        if isinstance(values, np.ndarray) or not hasattr(values, 'detach'):
            return np.asarray(values)
        tensor = values.detach().cpu()
        torch = sys.modules['torch']  # A tensor exists, so torch is already imported.
        if tensor.dtype == torch.bfloat16:
            bits: np.ndarray = tensor.contiguous().view(torch.int16).numpy()
            return bits.view(BFLOAT16)
        found: np.ndarray = tensor.numpy()
        return found
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise TensorError(
            expected=f'an array or a tensor of one of the dtypes {", ".join(DTYPES)}',
            found=f'{type(values).__name__} ({error})',
        ) from error


def first_not_finite(array: np.ndarray) -> int | None:
    """Return the first index of the first axis that holds NaN or infinity; None if all is finite.

    It checks about a million bytes at a time, so it needs little memory.
    """
    portion = max(1, _PORTION * len(array) // max(1, array.size))
    for start in range(0, len(array), portion):
        part = array[start : start + portion]
        if part.dtype == BFLOAT16 and part.ndim:
            # The isfinite function of ml_dtypes converts each element to float32 and is slow.
            finite = (part.view(np.uint16) & 0x7F80) != 0x7F80
        else:
            finite = np.isfinite(part)
        if not finite.all():
            return start + int(np.argmin(finite.reshape(len(part), -1).all(axis=1)))
    return None


def _shown(shape: tuple[int, ...]) -> str:
    """Return a shape as text for an error message; a manipulated shape can be long."""
    return str(shape) if len(shape) <= 8 else f'{shape[:8]} and {len(shape) - 8} more'
