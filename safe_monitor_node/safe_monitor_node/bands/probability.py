# SPDX-License-Identifier: Apache-2.0
"""The probability that a running episode fails, as a function of its score and of time.

The function is a logistic regression with slopes of at least 0: a higher score or a later step
never lowers the probability. It is fitted on rollouts that the detector was not fitted on.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.threshold import FIT_AGAIN, refused

SCORE_BENDS = (0.0, 0.5, 0.8, 0.95)
"""Ranks of the score at which the slope changes."""
TIME_BENDS = (0.0, 0.5, 0.75, 1.0, 1.25)
"""Shares of the median success length at which the slope changes."""
LATEST = 3.0
"""After this share of the median success length, time no longer changes the probability."""


@dataclass(frozen=True)
class ProbabilityMap:
    """Maps a score and a step to the probability that the episode fails.

    The score is replaced by its rank u in [0, 1] among the scores of the fit: `quantiles` are the
    scores at evenly spaced ranks. The step t is replaced by r = (t + 1) / m. m is the usual length
    of a success, `median_steps`, which is the same for all tasks. The probability is
    sigmoid(intercept + sum of slope * max(value - bend, 0)) over the bends of u
    (:data:`SCORE_BENDS`) and of r (:data:`TIME_BENDS`).

    Attributes
    ----------
    quantiles : tuple of K >= 2 float
        Ascending.
    intercept : float
    score_slopes, time_slopes : tuple of float
        At least 0; one for each bend.
    clock_intercept, clock_slopes : float, tuple of float
        The same function of the step alone, without the score; for comparison.
    base_rate : float
        Share of failures among the rollouts of the fit; for comparison.
    median_steps : float
        Median over the tasks of the fit of their median success length [policy steps].
    rollouts, failures : int
        Number of rollouts of the fit, and number of failures among them.
    described : str
        Description of these rollouts.

    Raises
    ------
    BandError
        The values do not form a valid map.
    """

    quantiles: tuple[float, ...]
    intercept: float
    score_slopes: tuple[float, ...]
    time_slopes: tuple[float, ...]
    clock_intercept: float
    clock_slopes: tuple[float, ...]
    base_rate: float
    median_steps: float
    rollouts: int = 0
    failures: int = 0
    described: str = ''

    def __post_init__(self) -> None:
        for name, size in (
            ('quantiles', None),
            ('score_slopes', len(SCORE_BENDS)),
            ('time_slopes', len(TIME_BENDS)),
            ('clock_slopes', len(TIME_BENDS)),
        ):
            object.__setattr__(self, name, _numbers(getattr(self, name), name, size))
        for name in ('intercept', 'clock_intercept', 'base_rate', 'median_steps'):
            object.__setattr__(self, name, _numbers([getattr(self, name)], name, 1)[0])
        for name in ('score_slopes', 'time_slopes', 'clock_slopes'):
            if min(getattr(self, name)) < 0:
                raise refused(f'{name} of at least 0', str(getattr(self, name)), FIT_AGAIN)
        if len(self.quantiles) < 2 or list(self.quantiles) != sorted(self.quantiles):
            raise refused('2 or more quantiles in order', f'{self.quantiles!r:.80}', FIT_AGAIN)
        if not 0.0 <= self.base_rate <= 1.0:
            raise refused('a base rate in [0, 1]', str(self.base_rate), FIT_AGAIN)
        if self.median_steps <= 0:
            raise refused('a median length above 0', str(self.median_steps), FIT_AGAIN)

    def at(self, score: float, step: int) -> float:
        """Return the probability that an episode that still runs at a step fails, in [0, 1].

        Parameters
        ----------
        score : float
            Score at this step; NaN gives NaN.
        step : int
            Step of the episode, 0-based.
        """
        if math.isnan(score):
            return math.nan
        sum_of_score = _bent(self.rank(score), self.score_slopes, SCORE_BENDS)
        sum_of_time = _bent(self.share(step), self.time_slopes, TIME_BENDS)
        return _sigmoid(self.intercept + sum_of_score + sum_of_time)

    def along(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the probability at each step of an episode, shape (T,), from its scores (T,)."""
        values = np.asarray(scores, dtype=np.float64).tolist()
        return np.array([self.at(score, step) for step, score in enumerate(values)])

    def clock_at(self, step: int) -> float:
        """Return the probability from the step alone, in [0, 1]; for comparison."""
        sum_of_time = _bent(self.share(step), self.clock_slopes, TIME_BENDS)
        return _sigmoid(self.clock_intercept + sum_of_time)

    def rank(self, score: float) -> float:
        """Return the rank of a score in the scores of the fit, in [0, 1]; ties have the mean."""
        return rank_in(self.quantiles, score)

    def share(self, step: int) -> float:
        """Return the time after a step as a share of the median success length, at most 3."""
        return min((step + 1) / self.median_steps, LATEST)

    def to_dict(self) -> dict[str, Any]:
        """Return the map as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ProbabilityMap:
        """Return the map that :meth:`to_dict` wrote.

        Raises
        ------
        BandError
            A value is missing or wrong.
        """
        if not isinstance(content, Mapping):
            raise refused('a probability map as an object', f'{content!r:.80}', FIT_AGAIN)
        names = {f.name for f in fields(cls)}
        if set(content) != names:
            raise refused(f'the entries {sorted(names)}', str(sorted(content)), FIT_AGAIN)
        if not isinstance(content['described'], str):
            raise refused('described as a text', f'{content["described"]!r:.80}', FIT_AGAIN)
        for name in ('rollouts', 'failures'):
            if type(content[name]) is not int or content[name] < 0:
                raise refused(f'{name} as a count', f'{content[name]!r:.80}', FIT_AGAIN)
        return cls(**content)


def rank_in(quantiles: Sequence[float], score: float) -> float:
    """Return the rank of a score among evenly spaced quantiles, interpolated, in [0, 1]."""
    left = bisect.bisect_left(quantiles, score)
    right = bisect.bisect_right(quantiles, score)
    last = len(quantiles) - 1
    if left < right:  # Equal to one or more quantiles.
        return (left + right - 1) / 2 / last
    if left == 0:
        return 0.0
    if left > last:
        return 1.0
    low, high = quantiles[left - 1], quantiles[left]
    return (left - 1 + (score - low) / (high - low)) / last


def _bent(value: float, slopes: Sequence[float], bends: Sequence[float]) -> float:
    total = 0.0
    for slope, bend in zip(slopes, bends, strict=True):
        if value > bend:
            total += slope * (value - bend)
    return total


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1.0 + grown)


def _numbers(values: Any, name: str, size: int | None) -> tuple[float, ...]:
    """Return finite numbers as a tuple of float, or raise `BandError`."""
    fits = isinstance(values, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if not fits or (size is not None and len(values) != size):
        what = 'finite numbers' if size is None else f'{size} finite numbers'
        raise refused(f'{name}: {what}', f'{values!r:.80}', FIT_AGAIN)
    return tuple(float(v) for v in values)
