# SPDX-License-Identifier: Apache-2.0
"""Makes the features of an episode, pooled or raw, from the raw tensors of its steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.recordings.errors import LEAVE_OUT, DumpError
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.tensors import first_not_finite

FLOATS = ('bfloat16', 'float16', 'float32', 'float64')


class StepFeatures:
    """Collects the features of one episode from the raw tensors of its steps.

    Parameters
    ----------
    spec : FeatureSpec
        The expected feature. If its width is 0, the first step sets the width.
    what : str
        Name of the tensor in error texts, for example ``hidden states``.
    steps : int
        Number of steps of the episode, so that raw tensors of one shape are not copied twice.
    """

    def __init__(self, spec: FeatureSpec, what: str, steps: int) -> None:
        self.spec = spec
        self.what = what
        self._steps = steps
        self._rows: list[np.ndarray] = []
        self._block: np.ndarray | None = None

    def add(self, file: Path, step: int, raw: Any) -> None:
        """Add the tensor ``(*axes, width)`` of one step.

        Raises
        ------
        DumpError
            The tensor is not a float tensor, has the wrong axes, is empty, contains NaN or
            infinity, or has the wrong width. For raw features also: shape or dtype differ from the
            previous step.
        """
        axes = ', '.join([*self.spec.axes, 'width'])
        if not isinstance(raw, np.ndarray) or raw.ndim != len(self.spec.axes) + 1:
            raise DumpError(
                where=str(file),
                expected=f'{self.what} of shape ({axes}) at each step',
                found=f'{shape_text(raw)} at step {step}',
                advice=LEAVE_OUT,
            )
        if 0 in raw.shape or raw.dtype.name not in FLOATS:
            raise DumpError(
                where=str(file),
                expected=f'{self.what} of shape ({axes}) with float values and no empty axis',
                found=f'{raw.dtype} of shape {raw.shape} at step {step}',
                advice=LEAVE_OUT,
            )
        if first_not_finite(raw) is not None:
            raise DumpError(
                where=str(file),
                expected=f'{self.what} without NaN and infinity',
                found=f'NaN or infinity at step {step}',
                advice=LEAVE_OUT,
            )
        try:
            # Averages are computed in float32 for every stored dtype; selections are exact.
            row = self.spec.apply(raw) if self.spec.pooled else raw
        except PoolingError as error:
            raise DumpError(f'{file}: {error}') from error
        if not self.spec.pooled:
            self._check_raw(file, step, raw)
        if self.spec.dim == 0:
            self.spec = replace(self.spec, dim=row.shape[-1])
        self._keep(row)

    def _keep(self, row: np.ndarray) -> None:
        """Copy one row, because a view would keep the complete file of its step in memory."""
        if self._block is None:
            self._block = np.empty((self._steps, *row.shape), row.dtype)
        taken = len(self._rows)
        if row.shape == self._block.shape[1:] and taken < self._steps:
            self._block[taken] = row
            self._rows.append(self._block[taken])
        else:
            self._rows.append(row.copy())

    def _check_raw(self, file: Path, step: int, raw: np.ndarray) -> None:
        if self.spec.dim not in (0, raw.shape[-1]):
            raise DumpError(
                where=str(file),
                expected=f'{self.what} of width {self.spec.dim}, as in the other episodes',
                found=f'width {raw.shape[-1]} at step {step}',
                advice='leave the episode out with --skip-bad',
            )
        first = self._rows[0] if self._rows else raw
        if raw.dtype != first.dtype or raw.shape[1:] != first.shape[1:]:
            raise DumpError(
                where=str(file),
                expected=f'{self.what} with one dtype and one shape at all steps (only the first '
                'axis may differ)',
                found=f'{raw.dtype} of shape {raw.shape} at step {step} and {first.dtype} of '
                f'shape {first.shape} at step 0',
                advice=LEAVE_OUT,
            )

    def stack(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the features and the lengths of their first raw axis.

        Returns
        -------
        features : ndarray, shape (T, ...)
            Padded with zeros if the first raw axis differs from step to step.
        lengths : ndarray, shape (T,), or None
            None if the first raw axis has the same length in all steps.
        """
        rows, self._rows = self._rows, []
        block, self._block = self._block, None
        if block is not None and all(row.base is block for row in rows) and len(rows) == len(block):
            return block, None
        lengths = np.array([len(row) for row in rows], np.int64)
        longest = int(lengths.max())
        if self.spec.pooled or (lengths == longest).all():
            return np.stack(rows), None
        features = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
        for step, row in enumerate(rows):
            features[step, : len(row)] = row
        return features, lengths


def shape_text(value: Any) -> str:
    """Return the kind or shape of a value from a dump, for a message."""
    if isinstance(value, np.ndarray):
        return f'an array of shape {value.shape}'
    if type(value) in (list, dict):
        return f'a {type(value).__name__}' if value else f'an empty {type(value).__name__}'
    return 'no value' if value is None else f'a value of type {type(value).__name__}'


def bad_values(array: np.ndarray) -> str:
    """Return why an array has no usable numbers, for a message."""
    return 'NaN or infinity' if array.dtype.name in FLOATS else f'the dtype {array.dtype}'
