# SPDX-License-Identifier: Apache-2.0
"""The threshold of one promised false-alarm rate, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_feature_bridge.errors import SafeError

# Kinds of bands in which the threshold never increases with alpha. The kind max_deviation is not in
# this list: its shape depends on alpha, so that the thresholds of two alphas can cross.
ORDERED_KINDS = ('functional_constant', 'functional_std', 'good_runs')

SHAPE = ('center', 'width', 'nonconformity')
"""Names of the arrays of a band's shape."""

FIT_AGAIN = 'fit the detector again'


class BandError(SafeError):
    """A band is not valid, or the band was not calibrated for the requested alpha or step."""


def refused(expected: str, found: str, advice: str = '') -> BandError:
    """Return the error for a band, or for an alpha or a step that the band does not have."""
    return BandError(where='band', expected=expected, found=found, advice=advice)


@dataclass(frozen=True, eq=False)
class Threshold:
    """The threshold at one alpha: a step with `score > threshold` raises an alarm.

    Attributes
    ----------
    alpha : float
        Promised false-alarm rate per successful episode.
    upper : (T,) float64 array
        Threshold at step 0..T-1; +inf if no finite threshold keeps the promise.
    task : str
        The task that the band belongs to; empty for the band of all tasks.

    """

    alpha: float
    upper: NDArray[np.float64]
    task: str = ''

    @property
    def length(self) -> int:
        """Number of steps for which the threshold is defined."""
        return int(self.upper.shape[0])

    @property
    def can_alarm(self) -> bool:
        """False if all thresholds are infinite, because there were too few calibration rollouts."""
        return bool(np.isfinite(self.upper).any())

    def covers(self, length: int) -> bool:
        """Return True if the threshold covers an episode of `length` steps."""
        return length <= self.length

    def at(self, step: int) -> float:
        """Return the threshold at a step (0-based).

        Raise `BandError` if the step is after the last calibrated step.
        """
        if not 0 <= step < self.length:
            self._refuse(step)
        return float(self.upper[step])

    def first_crossing(self, scores: ArrayLike) -> int | None:
        """Return the first step with a score strictly above the threshold.

        None if no score is above it.

        Parameters
        ----------
        scores : (T',) array
            Scores of one rollout over its true length, T' <= `length`.

        Raises
        ------
        BandError
            The rollout is longer than the band, or a score is NaN. In these cases, it is not known
            whether there was an alarm.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 1:
            raise refused('scores of shape (T,)', f'shape {values.shape}')
        if not self.covers(values.shape[0]):
            self._refuse(values.shape[0] - 1)
        if np.isnan(values).any():
            step = int(np.flatnonzero(np.isnan(values))[0])
            raise refused(
                f'a score at step {step}', 'NaN', 'find the reason why the detector returns NaN'
            )
        crossings = np.flatnonzero(values > self.upper[: values.shape[0]])
        return int(crossings[0]) if crossings.size else None

    def _refuse(self, step: int) -> None:
        longer = (
            'fit the detector again, and set --max-steps to the number of steps of the longest '
            'allowed episode'
        )
        raise refused(
            f'a step from 0 to {self.length - 1} (number of steps of the band: {self.length})',
            f'step {step}',
            longer if step >= 0 else '',
        )


def frozen(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return a read-only float64 copy: a threshold must not change after it was checked."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise refused(f'{name} as an array of numbers', f'other values ({error})') from error
    array.setflags(write=False)
    return array


def check_ordered(alphas: NDArray[np.float64], upper: NDArray[np.float64], kind: str) -> None:
    """Raise `BandError` if a larger alpha has a higher threshold anywhere.

    Parameters
    ----------
    alphas : (K,) array
        Ascending.
    upper : (K, T) array
    kind : str
        Kind of the band, for the message.
    """
    lower_alpha, higher_alpha = upper[:-1], upper[1:]
    # Ignore differences in the last digits (rounding).
    finite = np.isfinite(lower_alpha)
    slack = 1e-12 * np.abs(np.where(finite, lower_alpha, 0.0))
    disorder = higher_alpha > lower_alpha + slack
    if disorder.any():
        row, step = np.argwhere(disorder)[0]
        raise refused(
            f'a threshold of at most {upper[row, step]:g} for alpha {alphas[row + 1]:g} at step '
            f'{step} (the threshold for the smaller alpha {alphas[row]:g}), because the band has '
            f'the kind {kind!r}',
            f'{upper[row + 1, step]:g}',
            f'the band is damaged: {FIT_AGAIN}',
        )
