# SPDX-License-Identifier: Apache-2.0
"""Input of a calibration: promised rates and score curves of successes. Both are checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.adaptive_threshold import exact_fraction
from vla_feature_bridge.errors import SafeError

ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Default promised false-alarm rates of a band."""
Quantile = Literal['finite_sample', 'published']


class CalibrationError(SafeError):
    """The scores are not suitable for calibration, or an option does not exist."""


@dataclass(frozen=True, eq=False)
class Successes:
    """Score curves of successful rollouts, with names of the rollouts.

    Attributes
    ----------
    scores : sequence of N arrays (T_i,)
        Over the true length of each rollout.
    episodes, tasks : sequences of N str
        Episode id and task of each rollout; empty if they are not known.
    described : str
        Description of the rollouts for users ("successes of val_seen, split 0").
    """

    scores: Sequence[ArrayLike]
    episodes: Sequence[str] = ()
    tasks: Sequence[str] = ()
    described: str = ''

    def __post_init__(self) -> None:
        for name, values in (('episodes', self.episodes), ('tasks', self.tasks)):
            if values and len(values) != len(self.scores):
                raise CalibrationError(
                    where='calibration',
                    expected=f'{len(self.scores)} {name}, one for each score curve',
                    found=str(len(values)),
                )

    def take(self, members: Sequence[int], described: str) -> Successes:
        """Return some of the successes by their indices."""
        return Successes(
            [self.scores[i] for i in members],
            [self.episodes[i] for i in members] if self.episodes else (),
            [self.tasks[i] for i in members] if self.tasks else (),
            described,
        )


def infinite_note(alphas: Sequence[float], upper: NDArray[np.float64], n_calibration: int) -> str:
    """Return a text that lists the alphas without possible alarms, and what to do.

    Empty if alarms are possible at all alphas.
    """
    infinite = [alpha for alpha, row in zip(alphas, upper, strict=True) if np.isinf(row).all()]
    if not infinite:
        return ''
    listed = ', '.join(f'{alpha:g}' for alpha in infinite)
    if n_calibration == 0:
        reach = 'No alpha has a finite threshold.'
    else:
        reach = (
            f'The smallest alpha with a finite threshold is 1/{n_calibration + 1} = '
            f'{1 / (n_calibration + 1):.3g}.'
        )
    needed = math.ceil(1 / exact_fraction(infinite[0])) - 1
    return (
        f'{n_calibration} calibration rollouts are too few for alpha {listed}. With this alpha, '
        f'all thresholds are infinite and no alarm is possible. {reach} Alpha {infinite[0]:g} '
        f'needs {needed} calibration rollouts.'
    )


def checked_alphas(alphas: Sequence[float]) -> list[float]:
    """Return alphas in ascending order.

    Raise CalibrationError if an alpha is not inside (0, 1), or is given twice.
    """
    values = sorted(float(alpha) for alpha in alphas)
    if not values:
        raise CalibrationError(where='calibration', expected='one or more alphas', found='none')
    for value in values:
        # The second test detects alphas that differ from 0 or 1 only by rounding.
        if not (0.0 < value < 1.0 and 0 < exact_fraction(value) < 1):
            raise CalibrationError(
                where='calibration', expected='alphas inside (0, 1)', found=str(value)
            )
    if len(set(values)) != len(values):
        raise CalibrationError(where='calibration', expected='each alpha once', found=str(values))
    return values


def checked_curves(scores: Sequence[ArrayLike], max_steps: int) -> list[NDArray[np.float64]]:
    """Return score curves as float64.

    Raise CalibrationError if there is no curve, or if a curve is empty, contains NaN or is too
    long.
    """
    if len(scores) == 0:
        raise CalibrationError(
            where='calibration',
            expected='at least one success to calibrate on',
            found='none',
            advice='label successes, record more successes, or hold out more rollouts of the seen '
            'tasks (a lower seen_train_ratio, option --train-ratio)',
        )
    if max_steps < 1:
        raise CalibrationError(
            where='calibration', expected='max_steps of at least 1', found=str(max_steps)
        )
    curves = []
    for index, entry in enumerate(scores):
        curve = np.asarray(entry, dtype=np.float64)
        if curve.ndim != 1 or curve.size == 0:
            raise CalibrationError(
                where=f'calibration, rollout {index}',
                expected='scores of shape (T,) with T >= 1',
                found=f'shape {curve.shape}',
            )
        if not np.isfinite(curve).all():
            step = int(np.flatnonzero(~np.isfinite(curve))[0])
            raise CalibrationError(
                where=f'calibration, rollout {index}, step {step}',
                expected='a finite score',
                found=str(curve[step]),
            )
        if curve.size > max_steps:
            raise CalibrationError(
                where=f'calibration, rollout {index}',
                expected=f'at most max_steps = {max_steps} steps',
                found=f'{curve.size} steps',
                advice='raise max_steps to the time limit of an episode',
            )
        curves.append(curve)
    return curves


def curve_matrix(curves: ArrayLike, name: str, steps: int | None = None) -> NDArray[np.float64]:
    """Return curves of one length as a finite float64 array (n, T); raises CalibrationError."""
    matrix = np.asarray(curves, dtype=np.float64)
    if matrix.ndim != 2 or (steps is not None and matrix.shape[1] != steps):
        wanted = '(n, T)' if steps is None else f'(n, {steps})'
        raise CalibrationError(
            where=f'calibration, {name}',
            expected=f'shape {wanted}',
            found=str(matrix.shape),
        )
    if not np.isfinite(matrix).all():
        row, step = np.argwhere(~np.isfinite(matrix))[0]
        raise CalibrationError(
            where=f'calibration, {name}, row {row}, step {step}',
            expected='a finite score',
            found=str(matrix[row, step]),
        )
    return matrix


def edge_extended(curve: NDArray[np.float64], max_steps: int) -> NDArray[np.float64]:
    """Return a curve extended to `max_steps` with its last value."""
    # np.pad takes ten times as long. Bands are calibrated on thousands of curves.
    return np.concatenate([curve, np.full(max_steps - curve.size, curve[-1])])
