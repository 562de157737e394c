# SPDX-License-Identifier: Apache-2.0
"""Conformal ranks, and a threshold that is updated while episodes are labelled."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from vla_feature_bridge.errors import SafeError

WINDOW = 1000
"""Default number of observed values that are ranked together with the calibration values."""

KEPT_BEYOND_WINDOW = 100
"""Number of observations older than the window that are stored, so that an undo is exact."""


class AdaptationError(SafeError):
    """An adaptive threshold received an invalid parameter or value."""


def _refused(expected: str, found: object, advice: str = '') -> AdaptationError:
    return AdaptationError(
        where='adaptive threshold', expected=expected, found=str(found), advice=advice
    )


def exact_fraction(value: float) -> Fraction:
    """Return the fraction with a small denominator that is nearest to a float.

    For example, the fraction of 0.15000000000000002 is 3/20.
    """
    return Fraction(value).limit_denominator(10**9)


def conformal_rank(n: int, alpha: float) -> int:
    """Return ceil((n + 1)(1 - alpha)), the rank of the finite-sample conformal quantile.

    The next exchangeable value exceeds the k-th smallest of n values with probability at most
    alpha. A result of n + 1 means that no finite value has this property. The computation is exact:
    alpha is converted to a fraction first, because in floating point (9 + 1)(1 - 0.7) is above 3
    and gives rank 4.
    """
    return n + 1 - math.floor((n + 1) * exact_fraction(alpha))


@dataclass(frozen=True)
class Observation:
    """One observed episode of a threshold; needed to undo the observation.

    Attributes
    ----------
    number : int
        Position in the order of the observations.
    nonconformity : float
    alarmed : bool
        Whether the episode was a false alarm.
    """

    number: int
    nonconformity: float
    alarmed: bool


class AdaptiveThreshold:
    """Adaptive conformal inference (Gibbs and Candes, NeurIPS 2021), updated by labels.

    Before each episode, `threshold` is the conformal quantile at the current level alpha_t. After
    an episode that is labelled as a success, `observe` changes the level: ``alpha_{t+1} = alpha_t +
    gamma (alpha - err_t)`` with err_t = 1 for a false alarm (eq. 2; gamma is the adaptation step).
    A false alarm raises the threshold. A success without an alarm lowers the threshold. The
    nonconformity of the episode is added to the ranked values. Therefore the quantile follows a
    drift, and a level without a finite threshold becomes rare.

    The promise, for *any* sequence of successes, exchangeable or drifting: after T successes the
    share of false alarms differs from alpha by at most ``(max(alpha, 1 - alpha) + gamma) / (T
    gamma)`` (proposition 4.1). The promise is about the long-run average and not about a single
    episode. Failures do not count. The promise does not depend on the ranked values. It only needs
    two rules: no alarm at a level of 0 or below, and always an alarm at a level of 1 or above. Let
    d be the largest number of other labels (or undone labels) between the start of an episode and
    its own label, and u the number of undone labels. Then the level can deviate by an additional
    ``(d + u) gamma``, and the bound on the difference grows by at most ``(d + u) / T``.

    Parameters
    ----------
    nonconformity : (N,) array
        Finite values of the calibration successes, such as their largest scores. They are always
        among the ranked values.
    alpha : float
        Promised false-alarm rate, in (0, 1).
    adaptation_step : float
        Step size gamma, positive. A large step follows a drift quickly; a small step gives steady
        thresholds.
    window : int
        Number of the latest observed values that are ranked; with 0, no observed value is ranked.

    Attributes
    ----------
    successes, false_alarms : int
        Number of observed successes and of observed false alarms, without undone observations.
    """

    def __init__(
        self,
        nonconformity: ArrayLike,
        alpha: float,
        adaptation_step: float = 0.02,
        *,
        window: int = WINDOW,
    ) -> None:
        values = np.sort(np.asarray(nonconformity, dtype=np.float64).ravel())
        if values.size == 0 or not np.isfinite(values).all():
            raise _refused(
                'one or more nonconformities, all finite',
                f'{int(np.isfinite(values).sum())} finite values of {values.size} values',
            )
        if not 0.0 < alpha < 1.0:
            raise _refused('an alpha above 0 and below 1', alpha)
        if not 0.0 < adaptation_step < math.inf:
            raise _refused('a positive finite adaptation_step', adaptation_step)
        if window < 0:
            raise _refused('a window of at least 0 values', window)
        self.alpha = alpha
        self.adaptation_step = adaptation_step
        self.window = window
        self.successes = 0
        self.false_alarms = 0
        self._first_level = alpha
        self._ranked: list[float] = values.tolist()
        self._observed: list[float] = []
        self._numbers: list[int] = []
        self._next_number = 0

    @property
    def level(self) -> float:
        """Return the current level alpha_t. It can be below 0 or above 1."""
        # Sum of eq. 2. The level is computed only from counts, so that an undo restores it exactly.
        return self._first_level + self._moved_by()

    def _moved_by(self) -> float:
        return self.adaptation_step * (self.alpha * self.successes - self.false_alarms)

    @property
    def observed(self) -> tuple[float, ...]:
        """The latest observed values, oldest first.

        These are the values that are ranked now, and some values that were ranked earlier.
        """
        return tuple(self._observed)

    @property
    def threshold(self) -> float:
        """A nonconformity above this threshold is an alarm.

        The threshold is +inf if the level is 0 or below, and -inf if the level is 1 or above.
        """
        return self.quantile(self.level)

    def quantile(self, level: float) -> float:
        """Return the conformal quantile of the ranked values at a level; +inf if there is none."""
        if level >= 1.0:
            return -math.inf
        if level <= 0.0:
            return math.inf
        rank = conformal_rank(len(self._ranked), level)
        if rank < 1:
            return -math.inf
        return self._ranked[rank - 1] if rank <= len(self._ranked) else math.inf

    def observe(self, nonconformity: float, alarmed: bool | None = None) -> Observation:
        """Update the level with an episode that is labelled as a success.

        Parameters
        ----------
        nonconformity : float
            Nonconformity of the whole episode; finite.
        alarmed : bool, optional
            True if the nonconformity was above the threshold that was used while the episode ran.
            Give it if the threshold may have changed before the label arrived. The default compares
            with the current threshold.
        """
        if not math.isfinite(nonconformity):
            raise _refused('a finite nonconformity of the episode', nonconformity)
        if alarmed is None:
            alarmed = nonconformity > self.threshold
        observation = Observation(self._next_number, float(nonconformity), bool(alarmed))
        self._next_number += 1
        self.successes += 1
        self.false_alarms += observation.alarmed
        self._observed.append(observation.nonconformity)
        self._numbers.append(observation.number)
        insort(self._ranked, observation.nonconformity)
        if len(self._observed) > self.window:
            self._unrank(self._observed[-1 - self.window])
        del self._observed[: -self.window - KEPT_BEYOND_WINDOW]
        del self._numbers[: -self.window - KEPT_BEYOND_WINDOW]
        return observation

    def undo(self, observation: Observation) -> None:
        """Undo an observation because its label was withdrawn.

        The state is then the same as without the observation.
        """
        index = bisect_left(self._numbers, observation.number)
        kept = index < len(self._numbers) and self._numbers[index] == observation.number
        # An observation that is older than all stored observations is no longer in the window. Only
        # correct the counts.
        older = index == 0 and self.successes > len(self._numbers)
        if not (kept or older) or self.false_alarms < observation.alarmed:
            raise _refused(
                'an observation of this threshold that is not undone already', observation
            )
        self.successes -= 1
        self.false_alarms -= observation.alarmed
        if not kept:
            return
        first_ranked = max(0, len(self._observed) - self.window)
        if index >= first_ranked:
            self._unrank(self._observed[index])
            if first_ranked > 0:
                # Restore the value that left the window because of this observation.
                insort(self._ranked, self._observed[first_ranked - 1])
        del self._observed[index]
        del self._numbers[index]

    def _unrank(self, value: float) -> None:
        del self._ranked[bisect_left(self._ranked, value)]

    def restore(
        self, level: float, successes: int, false_alarms: int, observed: Sequence[float]
    ) -> None:
        """Continue from an earlier state. The adaptation step may differ from the earlier step.

        Raises
        ------
        AdaptationError
            The values are not a valid state, or this threshold has already observed episodes.
        """
        if self.successes or self._observed:
            raise _refused(
                'a new threshold without observations',
                f'a threshold with {self.successes} observed successes',
                'make a new threshold, and restore the state of the new threshold',
            )
        if not 0 <= false_alarms <= successes or len(observed) > successes:
            raise _refused(
                f'0 to {successes} false alarms and 0 to {successes} observed values for '
                f'{successes} successes',
                f'{false_alarms} false alarms and {len(observed)} observed values',
            )
        if not all(map(math.isfinite, (level, *observed))):
            raise _refused('a finite level and finite observed values', 'NaN or infinity')
        self.successes, self.false_alarms = successes, false_alarms
        self._first_level = level - self._moved_by()
        self._observed = [float(value) for value in observed][-self.window - KEPT_BEYOND_WINDOW :]
        self._numbers = list(range(len(self._observed)))
        self._next_number = len(self._observed)
        first_ranked = max(0, len(self._observed) - self.window)
        self._ranked = sorted(self._ranked + self._observed[first_ranked:])
