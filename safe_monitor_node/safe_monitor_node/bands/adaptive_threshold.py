# SPDX-License-Identifier: Apache-2.0
"""Conformal ranks, and a threshold that moves while episodes are labelled."""

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
"""How many observed values are ranked by default, besides the values calibrated on."""

KEPT_BEYOND_WINDOW = 100
"""How many observations can be undone exactly after a window of later ones."""


class AdaptationError(SafeError):
    """An adaptive threshold was set up or fed wrongly."""


def exact_fraction(value: float) -> Fraction:
    """Return the short fraction that a float stands for: 0.15000000000000002 is 3/20."""
    return Fraction(value).limit_denominator(10**9)


def conformal_rank(n: int, alpha: float) -> int:
    """Return ceil((n + 1)(1 - alpha)), the rank of the finite-sample conformal quantile.

    The k-th smallest of n exchangeable values is exceeded by the next one with probability at
    most alpha; a result of n + 1 means that no finite value has this property. Exact: alpha is
    read as the nearby decimal that it stands for, because in floating point (9 + 1)(1 - 0.7) lies
    above 3 and gives rank 4.
    """
    return n + 1 - math.floor((n + 1) * exact_fraction(alpha))


@dataclass(frozen=True)
class Observation:
    """One episode as a threshold observed it; needed to undo the observation.

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
    """Adaptive conformal inference (Gibbs and Candes, NeurIPS 2021), label by label.

    Before each episode `threshold` is the conformal quantile at the present level alpha_t. After an
    episode that a person labelled a success, `observe` moves the level,
    ``alpha_{t+1} = alpha_t + gamma (alpha - err_t)`` with err_t = 1 for a false alarm (eq. 2; gamma
    is the adaptation step): false alarms raise the threshold, quiet successes lower it. The
    episode's nonconformity joins the ranked values. So the quantile follows a drift, and a level
    that asks for more than the largest value, and has no finite threshold, becomes rare.

    The promise, for *any* sequence of successes, exchangeable or drifting: after T successes the
    share of false alarms differs from alpha by at most
    ``(max(alpha, 1 - alpha) + gamma) / (T gamma)`` (proposition 4.1). It is a promise on the long
    run, not on any one episode, and failures have no part in it. The promise asks nothing of the
    ranked values. It needs only that no alarm is raised at a level of 0 or below, and always one
    at 1 or above. If at most d other labels and undone labels come between the start of an episode
    and its own label, and u labels were undone, the level can go ``(d + u) gamma`` further astray,
    and the difference is at most ``(d + u) / T`` larger.

    Parameters
    ----------
    nonconformity : (N,) array
        Values of the successes calibrated on, such as largest scores; finite. They always stay
        ranked.
    alpha : float
        Wanted false-alarm rate, in (0, 1).
    adaptation_step : float
        Step size gamma, positive: a large one follows drift quickly, a small one is steady.
    window : int
        How many of the observed values, the latest ones, are ranked; 0 ranks none.

    Attributes
    ----------
    successes, false_alarms : int
        Observed so far, without those undone.
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
            raise AdaptationError(
                'adaptive threshold: expected finite nonconformities, at least one, found '
                f'{values.size} values, {int(np.isfinite(values).sum())} of them finite'
            )
        if not 0.0 < alpha < 1.0:
            raise AdaptationError(f'adaptive threshold: alpha must lie in (0, 1), found {alpha}')
        if not 0.0 < adaptation_step < math.inf:
            raise AdaptationError(
                f'adaptive threshold: adaptation_step must be positive, found {adaptation_step}'
            )
        if window < 0:
            raise AdaptationError(f'adaptive threshold: window must be 0 or more, found {window}')
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
        """alpha_t; may leave [0, 1]."""
        # Eq. 2 summed up: made from counts alone, the level is after an undo exactly what it was.
        return self._first_level + self._moved_by()

    def _moved_by(self) -> float:
        return self.adaptation_step * (self.alpha * self.successes - self.false_alarms)

    @property
    def observed(self) -> tuple[float, ...]:
        """The latest observed values, oldest first: the ranked ones, and some ranked before."""
        return tuple(self._observed)

    @property
    def threshold(self) -> float:
        """An alarm is a nonconformity above this; +inf and -inf where the level leaves (0, 1)."""
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
        """Move the level by an episode labelled a success.

        Parameters
        ----------
        nonconformity : float
            Of the whole episode; finite.
        alarmed : bool, optional
            Whether it lay above the threshold in force while the episode ran. A label may come
            late, and the threshold may have moved since; by default it has not.
        """
        if not math.isfinite(nonconformity):
            raise AdaptationError(
                'adaptive threshold: the nonconformity of an episode must be finite, '
                f'found {nonconformity}'
            )
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
        """Undo an observation, as if it had never been made, because its label was withdrawn."""
        index = bisect_left(self._numbers, observation.number)
        kept = index < len(self._numbers) and self._numbers[index] == observation.number
        # An observation older than all kept ones has left the window for good: only uncount it.
        older = index == 0 and self.successes > len(self._numbers)
        if not (kept or older) or self.false_alarms < observation.alarmed:
            raise AdaptationError(
                f'adaptive threshold: {observation} is not among the observations to undo'
            )
        self.successes -= 1
        self.false_alarms -= observation.alarmed
        if not kept:
            return
        first_ranked = max(0, len(self._observed) - self.window)
        if index >= first_ranked:
            self._unrank(self._observed[index])
            if first_ranked > 0:
                # The value that this one had pushed out of the window.
                insort(self._ranked, self._observed[first_ranked - 1])
        del self._observed[index]
        del self._numbers[index]

    def _unrank(self, value: float) -> None:
        del self._ranked[bisect_left(self._ranked, value)]

    def restore(
        self, level: float, successes: int, false_alarms: int, observed: Sequence[float]
    ) -> None:
        """Go on from an earlier state; the adaptation step may be another one.

        Raises
        ------
        AdaptationError
            No adaptive threshold has these values, or this one has observed episodes already.
        """
        if self.successes or self._observed:
            raise AdaptationError('adaptive threshold: only a new one can be restored')
        if not 0 <= false_alarms <= successes or len(observed) > successes:
            raise AdaptationError(
                f'adaptive threshold: {successes} successes cannot have {false_alarms} false '
                f'alarms and {len(observed)} observed values'
            )
        if not all(map(math.isfinite, (level, *observed))):
            raise AdaptationError('adaptive threshold: the level and all values must be finite')
        self.successes, self.false_alarms = successes, false_alarms
        self._first_level = level - self._moved_by()
        self._observed = [float(value) for value in observed][-self.window - KEPT_BEYOND_WINDOW :]
        self._numbers = list(range(len(self._observed)))
        self._next_number = len(self._observed)
        first_ranked = max(0, len(self._observed) - self.window)
        self._ranked = sorted(self._ranked + self._observed[first_ranked:])
