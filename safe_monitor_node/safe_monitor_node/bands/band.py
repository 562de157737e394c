# SPDX-License-Identifier: Apache-2.0
"""Bands: the alarm thresholds of a detector, by step and by promised false-alarm rate alpha.

A band can contain bands of single tasks (Mondrian calibration). The promise then holds within each
of these tasks. A band can also contain its shape, which is needed to update the thresholds while a
robot works.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_monitor_node.bands.threshold import (
    FIT_AGAIN,
    ORDERED_KINDS,
    SHAPE,
    Threshold,
    check_ordered,
    frozen,
    refused,
)

# Tolerance when an alpha is compared with the calibrated alphas: 3 * 0.05 is 0.15000000000000002.
_ALPHA_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class BandShape:
    """The components of the thresholds: ``upper(t) = center(t) + w width(t)``.

    w is one of the nonconformities ``max_t (x(t) - center(t)) / width(t)`` of the calibration
    rollouts, chosen by its rank. An adaptive threshold changes w while a robot works.

    Attributes
    ----------
    center : (T,) float64 array
    width : (K, T) float64 array
        Positive; one row per alpha of the band.
    nonconformity : (K, n) float64 array
        Nonconformities of the n calibration rollouts; each row ascends.
    """

    center: NDArray[np.float64]
    width: NDArray[np.float64]
    nonconformity: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Freeze the arrays and check them."""
        for name, axes in (('center', 1), ('width', 2), ('nonconformity', 2)):
            array = frozen(getattr(self, name), name)
            object.__setattr__(self, name, array)
            if array.ndim != axes or not np.isfinite(array).all():
                raise refused(
                    f'{name} with {axes} axes and finite numbers',
                    f'shape {array.shape} with {np.isfinite(array).sum()} finite numbers',
                )
        if not (self.width > 0.0).all():
            raise refused('a positive width at each step', f'a width of {self.width.min():g}')
        if (np.diff(self.nonconformity, axis=1) < 0.0).any():
            raise refused('ascending nonconformities for each alpha', 'another order', FIT_AGAIN)


@dataclass(frozen=True, eq=False)
class Band:
    """Thresholds over the steps of an episode, one row per alpha.

    Attributes
    ----------
    alphas : (K,) float64 array
        Promised false-alarm rates, strictly increasing, each in (0, 1).
    upper : (K, T) float64 array
        Threshold of each alpha at each step; finite or +inf.
    kind : str
        Method that made the band: 'functional_max_deviation' (in folders of version 0.1
        'functional_adaptive'), 'functional_std', 'functional_constant', 'split_conformal', ...
    n_calibration : int
        Number of rollouts from which the thresholds were ranked. For an alpha below
        1/(n_calibration + 1), no finite threshold keeps the promise.
    n_center : int
        Number of rollouts from which center and width were computed.
    provenance : dict
        What was promised and which rollouts were used, as JSON values. It can contain a 'note' for
        users.
    shape : BandShape or None
        The components of the thresholds; None if they were not stored.
    tasks : dict of str to Band
        Bands of single tasks, with the same alphas and length. They contain no bands of tasks.
    """

    alphas: NDArray[np.float64]
    upper: NDArray[np.float64]
    kind: str
    n_calibration: int
    n_center: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    shape: BandShape | None = None
    tasks: Mapping[str, Band] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze the arrays and check every field."""
        object.__setattr__(self, 'alphas', frozen(self.alphas, 'alphas'))
        object.__setattr__(self, 'upper', frozen(self.upper, 'upper'))
        self._check_alphas()
        self._check_upper()
        if not isinstance(self.kind, str) or not self.kind:
            raise refused('a name as kind', repr(self.kind))
        for name in ('n_calibration', 'n_center'):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise refused(f'{name} as an integer of at least 0', repr(count))
        if self.kind in ORDERED_KINDS:
            check_ordered(self.alphas, self.upper, self.kind)
        try:
            json.dumps(self.provenance, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise refused('a provenance of JSON values', f'another value ({error})') from error
        if self.shape is not None:
            self._check_shape(self.shape)
        for task, band in self.tasks.items():
            self._check_task(task, band)

    def _check_alphas(self) -> None:
        alphas = self.alphas
        if alphas.ndim != 1 or alphas.size == 0:
            raise refused('alphas of shape (K,) with K >= 1', f'shape {alphas.shape}')
        # This form of the comparison also rejects NaN.
        if not (np.all(alphas > 0.0) and np.all(alphas < 1.0) and np.all(np.diff(alphas) > 0.0)):
            raise refused(
                'different alphas above 0 and below 1 in ascending order', str(alphas.tolist())
            )

    def _check_upper(self) -> None:
        alphas, upper = self.alphas, self.upper
        if upper.ndim != 2 or upper.shape[0] != alphas.size or upper.shape[1] == 0:
            raise refused(
                f'upper of shape ({alphas.size}, T) with T >= 1 (the band has '
                f'{alphas.size} alphas)',
                f'shape {upper.shape}',
            )
        if np.isnan(upper).any() or np.isneginf(upper).any():
            row, step = np.argwhere(np.isnan(upper) | np.isneginf(upper))[0]
            raise refused(
                'thresholds that are finite or +inf',
                f'{upper[row, step]} at step {step} for alpha {alphas[row]:g}',
            )

    def _check_shape(self, shape: BandShape) -> None:
        wanted = {
            'center': (self.length,),
            'width': (self.alphas.size, self.length),
            'nonconformity': (self.alphas.size, self.n_calibration),
        }
        for name, expected in wanted.items():
            if getattr(shape, name).shape != expected:
                raise refused(f'{name} of shape {expected}', f'shape {getattr(shape, name).shape}')

    def _check_task(self, task: str, band: Band) -> None:
        if not isinstance(task, str) or not task:
            raise refused('the name of a task for each band of a task', repr(task))
        if band.tasks:
            raise refused(
                f'no further bands in the band of task {task!r}',
                f'bands of the tasks {", ".join(band.tasks)}',
            )
        if not np.array_equal(band.alphas, self.alphas) or band.length != self.length:
            raise refused(
                f'the band of task {task!r} to have the same alphas ({self.alphas.tolist()}) and '
                f'number of steps ({self.length}) as the band of all tasks',
                f'the alphas {band.alphas.tolist()} and {band.length} steps',
            )

    @property
    def length(self) -> int:
        """Number of steps that the band was calibrated for."""
        return int(self.upper.shape[1])

    @property
    def smallest_finite_alpha(self) -> float | None:
        """The smallest alpha of the band for which an alarm is possible.

        None if no alarm is possible.
        """
        finite = np.isfinite(self.upper).any(axis=1)
        return float(self.alphas[np.argmax(finite)]) if finite.any() else None

    def covers(self, length: int) -> bool:
        """Return True if the band covers an episode of `length` steps."""
        return length <= self.length

    def at(self, alpha: float, task: str = '') -> Threshold:
        """Return the threshold for a calibrated alpha (to 1e-9).

        If the task has a band and the band is finite at this alpha, the threshold is from the band
        of the task. The task can share this band with other tasks that have few successes. All
        other tasks use the band of all tasks. The promise of the band of all tasks is an average
        over tasks, and not a promise for each task. It is still better than an infinite threshold,
        which can never raise an alarm.

        Raises
        ------
        BandError
            The band was not calibrated for alpha; the message lists its alphas.
        """
        row = self.row(alpha)
        if task in self.tasks:
            own = Threshold(float(self.alphas[row]), self.tasks[task].upper[row], task)
            if own.can_alarm:
                return own
        return Threshold(float(self.alphas[row]), self.upper[row])

    def row(self, alpha: float) -> int:
        """Return the row of a calibrated alpha (tolerance 1e-9).

        If alpha was not calibrated, raise `BandError` with the list of alphas.
        """
        row = int(np.argmin(np.abs(self.alphas - alpha)))
        # This form of the comparison also rejects NaN.
        if not abs(self.alphas[row] - alpha) <= _ALPHA_TOLERANCE:
            listed = ', '.join(f'{value:g}' for value in self.alphas)
            raise refused(
                f'one of the calibrated alphas {listed}',
                f'alpha {alpha:g}',
                f'choose a calibrated alpha, or fit the detector again with --alpha {alpha:g}',
            )
        return row

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays to store, float64: 'alphas' (K,), 'upper' (K, T), and the shape.

        The arrays of the i-th band of a task are named 'task<i>.upper' and so on.
        """
        arrays = {'alphas': self.alphas.copy(), 'upper': self.upper.copy()}
        if self.shape is not None:
            arrays |= {name: getattr(self.shape, name).copy() for name in SHAPE}
        for index, band in enumerate(self.tasks.values()):
            arrays |= {f'task{index}.{name}': array for name, array in band.state().items()}
        return arrays

    def meta(self) -> dict[str, Any]:
        """Return what is stored besides the arrays, as JSON values."""
        return {
            'kind': self.kind,
            'n_calibration': self.n_calibration,
            'n_center': self.n_center,
            'provenance': self.provenance,
            'tasks': [{'task': task, **band.meta()} for task, band in self.tasks.items()],
        }

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Band:
        """Rebuild a band from `state()` and `meta()`.

        Raises
        ------
        BandError
            A field is missing or has the wrong type, or the fields do not form a valid band.
        """
        has_shape = any(name in arrays for name in SHAPE)
        for name in ('alphas', 'upper', *(SHAPE if has_shape else ())):
            if name not in arrays:
                raise refused(f'an array {name!r}', f'the arrays {sorted(arrays)}', FIT_AGAIN)
            if arrays[name].dtype != np.float64:
                raise refused(f'an array {name!r} of float64', str(arrays[name].dtype))
        for name in ('kind', 'n_calibration', 'n_center', 'provenance'):
            if name not in meta:
                raise refused(f'an entry {name!r}', f'the entries {sorted(meta)}', FIT_AGAIN)
        if not isinstance(meta['provenance'], dict):
            raise refused(
                'a provenance that is an object', type(meta['provenance']).__name__, FIT_AGAIN
            )
        return cls(
            alphas=arrays['alphas'],
            upper=arrays['upper'],
            kind=meta['kind'],
            n_calibration=meta['n_calibration'],
            n_center=meta['n_center'],
            provenance=meta['provenance'],
            shape=BandShape(**{name: arrays[name] for name in SHAPE}) if has_shape else None,
            tasks=_task_bands(arrays, meta),
        )


def _task_bands(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> dict[str, Band]:
    """Restore the bands of single tasks. A band that an early version stored has no such bands."""
    entries = meta.get('tasks', [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise refused('the bands of tasks as a list of objects', f'{entries!r:.80}', FIT_AGAIN)
    bands: dict[str, Band] = {}
    for index, entry in enumerate(entries):
        task, prefix = entry.get('task'), f'task{index}.'
        if not isinstance(task, str) or task in bands:
            found = f'{task!r} twice' if isinstance(task, str) else repr(task)
            raise refused('a different name of the task for each band', found, FIT_AGAIN)
        own = {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
        bands[task] = Band.from_state(own, entry)
    return bands
