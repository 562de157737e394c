# SPDX-License-Identifier: Apache-2.0
"""Combines the steps of one recorded episode into the arrays of a rollout."""

from __future__ import annotations

from typing import Any

import numpy as np

from safe_training.recordings.errors import LEAVE_OUT, DumpError
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep, StepField
from vla_feature_bridge.tensors import FLOATS, first_not_finite

#: Limit for the table of one episode: a fixed number of entries, plus a multiple of the number of
#: given values.
_FREE_PADDING = 1 << 20
_MAX_PADDING = 16


def pooled(where: str, spec: FeatureSpec, raw: np.ndarray) -> np.ndarray:
    """Return the pooled features of one step, float32 ``(spec.dim,)``.

    Raises
    ------
    DumpError
        The tensor does not fit the specification; the message begins with ``where``.
    """
    try:
        return spec.apply(raw)
    except PoolingError as error:
        raise DumpError(f'{where}: {error}') from error


def stacked_features(
    where: str, steps: list[PolicyStep], spec: FeatureSpec | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the features of all steps, pooled by ``spec`` if given.

    Returns
    -------
    features : ndarray, shape (T, ..., D)
    lengths : ndarray of int64, shape (T,), or None
        Length of the first raw axis at each step, if this length changes between steps.

    Raises
    ------
    DumpError
        Steps differ in dtype or shape, or hold NaN or infinity.
    """
    rows = [step.features for step in steps]
    for step, row in enumerate(rows):
        if row.dtype != rows[0].dtype or row.dtype.name not in FLOATS:
            raise DumpError(
                where=where,
                expected='features with one float dtype at all steps',
                found=f'{row.dtype} at step {step} and {rows[0].dtype} at step 0',
                advice=LEAVE_OUT,
            )
        if not np.isfinite(row).all():
            raise DumpError(
                where=where,
                expected='features without NaN and infinity',
                found=f'NaN or infinity at step {step}',
                advice=LEAVE_OUT,
            )
    if spec is not None:
        return np.stack([pooled(where, spec, row) for row in rows]), None
    if rows[0].ndim == 1 or len({row.shape for row in rows}) == 1:
        return np.stack(rows), None
    if len({row.shape[1:] for row in rows}) > 1:
        raise DumpError(
            where=where,
            expected='raw features with one shape at all steps (only the first axis may differ)',
            found=f'the shapes {rows[0].shape} and '
            f'{next(row.shape for row in rows if row.shape[1:] != rows[0].shape[1:])}',
            advice=LEAVE_OUT,
        )
    lengths = np.array([len(row) for row in rows], np.int64)
    check_padding(where, len(rows) * int(lengths.max()), int(lengths.sum()))
    padded = np.zeros((len(rows), int(lengths.max()), *rows[0].shape[1:]), rows[0].dtype)
    for step, row in enumerate(rows):
        padded[step, : len(row)] = row
    return padded, lengths


def stacked_fields(where: str, steps: list[PolicyStep]) -> dict[str, np.ndarray | None]:
    """Return the arrays of all fields of :data:`STEP_FIELDS`; None if no step has a value.

    Raises
    ------
    DumpError
        The values of the steps do not fit together.
    """
    return {
        field.stacked: _STACK[field.kind](
            where, field, [getattr(step, field.name) for step in steps]
        )
        for field in STEP_FIELDS
    }


def stacked_signals(where: str, steps: list[PolicyStep]) -> dict[str, np.ndarray]:
    """Return each signal of the steps, float32 ``(T,)``; NaN if a step does not have the signal."""
    names = dict.fromkeys(name for step in steps for name in step.signals)
    check_padding(where, len(names) * len(steps), sum(len(step.signals) for step in steps))
    return {
        name: np.array([step.signals.get(name, np.nan) for step in steps], np.float32)
        for name in names
    }


def check_padding(where: str, padded: int, given: int) -> None:
    """Raise DumpError for very different lengths: the table would be large and mostly empty."""
    if padded > _FREE_PADDING + _MAX_PADDING * given:
        raise DumpError(
            where=where,
            expected='steps with similar numbers of tokens and signals',
            found=f'{given} values that need a table of {padded} values',
            advice=LEAVE_OUT,
        )


def _tensors(where: str, field: StepField, rows: list[np.ndarray | None]) -> np.ndarray | None:
    given = [row for row in rows if row is not None]
    if not given:
        return None
    if len({(row.shape, row.dtype) for row in given}) > 1 or len(given) != len(rows):
        kinds = {'no value' if r is None else f'{r.dtype} of shape {r.shape}' for r in rows}
        raise DumpError(
            where=where,
            expected=f'{field.name} with one dtype and one shape at all steps',
            found=' and '.join(sorted(kinds)[:4]),
            advice=LEAVE_OUT,
        )
    stacked = np.stack(given)
    if stacked.dtype.kind not in 'iu' and (step := first_not_finite(stacked)) is not None:
        raise DumpError(
            where=where,
            expected=f'{field.name} without NaN and infinity',
            found=f'NaN or infinity at step {step}',
            advice=LEAVE_OUT,
        )
    return stacked


def _values(where: str, field: StepField, rows: list[np.ndarray | None]) -> np.ndarray | None:
    widths = [0 if row is None else len(row) for row in rows]
    if max(widths) == 0:
        return None
    check_padding(where, len(rows) * max(widths), sum(widths))
    padded = np.full((len(rows), max(widths)), np.nan, np.float32)
    for step, row in enumerate(rows):
        if row is not None:
            padded[step, : len(row)] = row
    return padded


def _numbers(where: str, field: StepField, rows: list[float]) -> np.ndarray | None:
    numbers = np.array(rows, np.float32)
    return None if np.isnan(numbers).all() else numbers


def _stamps(where: str, field: StepField, rows: list[int]) -> np.ndarray | None:
    stamps = np.array(rows, np.int64)
    return stamps if stamps.any() else None


_STACK: dict[str, Any] = {
    'tensor': _tensors,
    'values': _values,
    'number': _numbers,
    'stamp': _stamps,
}
