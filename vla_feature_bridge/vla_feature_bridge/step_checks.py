# SPDX-License-Identifier: Apache-2.0
"""Checks what a policy gives for a step or an event, before it is sent."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.signals import SignalError, SignalStream
from vla_feature_bridge.step import StepField
from vla_feature_bridge.tensors import (
    DTYPES,
    FLOATS,
    TensorError,
    as_array,
    as_float32,
    dtype_name,
    first_not_finite,
)

_NANOSECONDS = 1_000_000_000
MAX_EXEC_HORIZON = 2**32 - 1
#: Range of a stamp [ns]: seconds are an int32 in a message.
STAMPS = range(-(2**31) * _NANOSECONDS, 2**31 * _NANOSECONDS)
_MAX_NUMBER = float(np.finfo(np.float32).max)


class StepError(SafeError):
    """A step, an event or a setting of a policy is wrong."""


def check_text(value: Any, name: str, where: str) -> str:
    """Return a text that a message can hold.

    Raises
    ------
    StepError
        ``value`` is not text.
    """
    try:
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeEncodeError:
        pass
    raise StepError(
        where=where, expected=f'{name} as a text (str, valid Unicode)', found=repr(value)
    )


def check_success(success: Any, where: str) -> bool | None:
    """Return the outcome of an episode.

    Every text that is not empty is true, also 'failure'. A wrong outcome would move adaptive
    thresholds and become a training label. Therefore only a bool is accepted.

    Raises
    ------
    StepError
        ``success`` is neither None nor a bool.
    """
    if success is None:
        return None
    try:
        array = as_array(success)
        if array.dtype == np.bool_ and array.ndim == 0:
            return bool(array)
    except TensorError:
        pass
    raise StepError(where=where, expected='success as True, False or None', found=repr(success))


def check_stamp(stamp: Any, where: str) -> int:
    """Return a time in nanoseconds.

    Raises
    ------
    StepError
        ``stamp`` is neither an integer nor a ``builtin_interfaces/Time``, or it does not fit a
        message.
    """
    try:
        if hasattr(stamp, 'nanosec'):
            number = int(stamp.sec) * _NANOSECONDS + int(stamp.nanosec)
        else:
            number = operator.index(stamp)
    except (TypeError, ValueError):
        number = STAMPS.stop
    if number not in STAMPS:
        raise StepError(
            where=where,
            expected='stamp as an integer of nanoseconds whose seconds fit 32 bits, or as a '
            'builtin_interfaces/Time',
            found=repr(stamp),
        )
    return number


def check_positive(number: Any, name: str, where: str) -> int:
    """Return an integer from 1 to :data:`MAX_EXEC_HORIZON`.

    Raises
    ------
    StepError
        ``number`` is not an integer of Python, NumPy or PyTorch, or is out of range.
    """
    try:
        value = operator.index(number)
    except (TypeError, ValueError):
        value = 0
    if not 1 <= value <= MAX_EXEC_HORIZON:
        raise StepError(
            where=where, expected=f'{name} from 1 to {MAX_EXEC_HORIZON}', found=repr(number)
        )
    return value


def check_seconds(value: Any, name: str) -> float:
    """Return a time in seconds.

    Raises
    ------
    StepError
        ``value`` is not a number from 0 to a day.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise StepError(
            where='settings of the policy',
            expected=f'{name} as a number of seconds from 0 to 86400',
            found=repr(value),
        )
    return seconds


def check_presence(name: str, value: Any, before: bool | None, where: str) -> None:
    """Raise :class:`StepError` if some steps of an episode have features or actions, others not.

    ``before`` says whether the steps before have them; None before the first step.
    """
    if before not in (None, value is not None):
        raise StepError(
            where=where,
            expected=f'{name} at every step of an episode or at none',
            found=f'a step without {name}' if value is None else f'a step with {name}',
        )


def check_features(features: Any, dim: int | None, where: str) -> np.ndarray:
    """Return the hidden state of a step as an array.

    Parameters
    ----------
    features : array or tensor, shape (D,) or (..., D), a float dtype
    dim : int or None
        The width that the last axis must have; None if it may have any width.
    where : str
        Name of the step in errors.

    Raises
    ------
    StepError
        The shape, the dtype or a value is wrong.
    """
    array = _array(features, 'features', where)
    if dtype_name(array) not in FLOATS or array.ndim == 0 or array.size == 0:
        raise StepError(
            where=where,
            expected=f'features of shape (D,) or (..., D) and dtype {", ".join(FLOATS)}',
            found=f'shape {array.shape} of {array.dtype}',
        )
    if dim not in (None, array.shape[-1]):
        raise StepError(
            where=where,
            expected=f'features of width {dim} as before',
            found=f'width {array.shape[-1]}',
            advice='use one publisher or sender for each kind of features',
        )
    _check_finite('features', array, where)
    return array


def check_actions(actions: Any, exec_horizon: int, where: str) -> np.ndarray:
    """Return the action chunks of a step as an array.

    Parameters
    ----------
    actions : array or tensor, shape (samples, horizon, action_dim)
    exec_horizon : int
        Number of actions that a chunk must have at least.
    where : str
        Name of the step in errors.

    Raises
    ------
    StepError
        The shape, the dtype or a value is wrong.
    """
    array = _array(actions, 'actions', where)
    if array.ndim == 2:
        raise StepError(
            where=where,
            expected='actions of shape (samples, horizon, action_dim)',
            found=f'shape {array.shape}',
            advice='add the axis of samples: actions[None]',
        )
    if array.ndim != 3 or array.size == 0 or dtype_name(array) not in DTYPES:
        raise StepError(
            where=where,
            expected=f'actions of shape (samples, horizon, action_dim) and dtype '
            f'{", ".join(DTYPES)}',
            found=f'shape {array.shape} of {array.dtype}',
        )
    if array.shape[1] < exec_horizon:
        raise StepError(
            where=where,
            expected=f'chunks of at least exec_horizon = {exec_horizon} actions',
            found=f'shape {array.shape}',
        )
    _check_finite('actions', array, where)
    return array


def check_field(field: StepField, value: Any, where: str) -> Any:
    """Return a further field of a step: a float, or an array of float32.

    Raises
    ------
    StepError
        The shape, the dtype or a value is wrong.
    """
    array = _array(value, field.name, where)
    if array.ndim != len(field.axes) or dtype_name(array) not in DTYPES:
        shape = ', '.join(field.axes)
        raise StepError(
            where=where,
            expected=f'{field.name} of shape ({shape}): {field.doc}',
            found=f'shape {array.shape} of {array.dtype}',
        )
    if dtype_name(array) == 'bfloat16':
        array = as_float32(array)
    if field.kind == 'number':
        number = float(array)
        if abs(number) > _MAX_NUMBER:  # NaN means unknown.
            raise StepError(
                where=where,
                expected=f'{field.name} as a number that fits float32',
                found=repr(number),
            )
        return number
    with np.errstate(over='ignore'):
        array = as_float32(array)
    _check_finite(field.name, array, where)
    return array


def check_signals(
    stream: SignalStream, actions: np.ndarray, executed: int, where: str
) -> dict[str, float]:
    """Return the signals of a step, and move the stream on.

    Raises
    ------
    StepError
        ``action_dim`` differs from the previous step, ``executed`` does not fit the previous chunk,
        or a signal does not fit float32.
    """
    chunks = as_float32(actions) if dtype_name(actions) == 'bfloat16' else actions
    try:
        with np.errstate(over='ignore', invalid='ignore'):
            signals = stream.step(chunks, executed)
    except SignalError as error:
        raise _at(where, error) from None
    for name, value in signals.items():
        if not abs(value) <= _MAX_NUMBER:
            raise StepError(
                where=where,
                expected=f'actions whose signal {name} fits float32',
                found=repr(value),
            )
    return signals


def _at(where: str, error: SafeError) -> StepError:
    """Return an error that also says at which step it occurred."""
    return StepError(where=where, expected=error.expected, found=error.found, advice=error.advice)


def _array(values: Any, name: str, where: str) -> np.ndarray:
    try:
        return as_array(values)
    except TensorError as error:
        raise _at(f'{where}: {name}', error) from error


def _check_finite(name: str, array: np.ndarray, where: str) -> None:
    if first_not_finite(array) is not None:
        raise StepError(where=where, expected=f'finite {name}', found='NaN or infinity')
