# SPDX-License-Identifier: Apache-2.0
"""Conformal ranks, and a threshold that adapts while episodes are labelled."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike


class AdaptationError(ValueError):
    """An adaptive threshold was set up or fed wrongly."""


def exact_fraction(value: float) -> Fraction:
    """Return the short fraction that a float stands for: 0.15000000000000002 is 3/20."""
    return Fraction(value).limit_denominator(10**9)


def conformal_rank(n: int, alpha: float) -> int:
    """Return ceil((n + 1)(1 - alpha)), the rank of the finite-sample conformal quantile.

    The k-th smallest of n exchangeable values is exceeded by the next one with probability at
    most alpha; a result of n + 1 means that no finite value has that property. Exact: alpha is
    read as the nearby decimal it stands for, since in floating point (9 + 1)(1 - 0.7) lies above
    3 and gives rank 4.
    """
    return n + 1 - math.floor((n + 1) * exact_fraction(alpha))


class AdaptiveThreshold:
    """Adaptive conformal inference (Gibbs and Candes, NeurIPS 2021), for labels as they come.

    Before each episode `threshold` is the conformal quantile at the present level alpha_t. After an
    episode that a person called a success, `observe` moves the level,
    ``alpha_{t+1} = alpha_t + gamma (alpha - err_t)`` with err_t = 1 for a false alarm (eq. 2):
    after false alarms the threshold rises, without any it sinks.

    What holds, for *any* sequence of successes, exchangeable or drifting: after T of them the share
    of false alarms differs from alpha by at most ``(max(alpha, 1 - alpha) + gamma) / (T gamma)``
    (proposition 4.1). It is a promise on the long run, not on any one episode, and failures have no
    part in it.

    Parameters
    ----------
    nonconformity : (N,) array
        Values of successes calibrated on, such as largest scores; finite.
    alpha : float
        Wanted false-alarm rate, in (0, 1).
    gamma : float
        Step size, positive: large follows drift quickly, small is steady.

    Attributes
    ----------
    level : float
        alpha_t; may leave [0, 1].
    successes, false_alarms : int
        Observed so far.
    """

    def __init__(self, nonconformity: ArrayLike, alpha: float, gamma: float = 0.02) -> None:
        values = np.sort(np.asarray(nonconformity, dtype=np.float64).ravel())
        if values.size == 0 or not np.isfinite(values).all():
            raise AdaptationError(
                f'adaptive threshold: expected finite nonconformities, found {values.size} values'
            )
        if not 0.0 < alpha < 1.0:
            raise AdaptationError(f'adaptive threshold: alpha must lie in (0, 1), found {alpha}')
        if not 0.0 < gamma < math.inf:
            raise AdaptationError(f'adaptive threshold: gamma must be positive, found {gamma}')
        self._values = values
        self.alpha = alpha
        self.gamma = gamma
        self.level = alpha
        self.successes = 0
        self.false_alarms = 0

    @property
    def threshold(self) -> float:
        """An alarm is a nonconformity above this; +inf and -inf where the level leaves (0, 1)."""
        if self.level >= 1.0:
            return -math.inf
        if self.level <= 0.0:
            return math.inf
        rank = conformal_rank(self._values.size, self.level)
        if rank < 1:
            return -math.inf
        return float(self._values[rank - 1]) if rank <= self._values.size else math.inf

    def observe(self, nonconformity: float) -> bool:
        """Learn from an episode labelled a success; returns whether it had been a false alarm."""
        if math.isnan(nonconformity):
            raise AdaptationError('adaptive threshold: the nonconformity of an episode is NaN')
        alarmed = nonconformity > self.threshold
        self.successes += 1
        self.false_alarms += alarmed
        self.level += self.gamma * (self.alpha - alarmed)
        return alarmed
