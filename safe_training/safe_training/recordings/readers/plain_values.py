# SPDX-License-Identifier: Apache-2.0
"""Reads numbers and texts of a dump from all types in which recorders store them."""

from __future__ import annotations

from typing import Any

import numpy as np


def whole_number(value: Any) -> int | None:
    """Return a number without a fraction as int; None if the value is anything else.

    Recorders store an outcome as bool, as a NumPy scalar, or as an array or a tensor with one
    element.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    return None


def plain_text(value: Any) -> str | None:
    """Return a text as str; None if the value is anything else."""
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind == 'U':
        value = value.reshape(())[()]
    return str(value) if isinstance(value, str) else None


def number_text(value: Any) -> str | None:
    """Return a value with one number, for a message; None if it is anything else."""
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in 'biuf':
        value = value.reshape(())[()]
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        whole = whole_number(value)
        return str(float(value)) if whole is None else str(whole)
    return None
