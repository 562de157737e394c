# SPDX-License-Identifier: Apache-2.0
"""Fits the map from score and time to the probability that an episode fails.

The map is a logistic regression on every step of every rollout. It gives the probability for an
episode that is *still running*: at a given time, each running rollout counts once. Therefore, a
step has the weight 1 / m, where m is the median length of the successes of its task.

Time is divided by the usual length of a success. The map is for new tasks, whose usual length is
not known. Therefore each rollout is fitted with the median over the *other* tasks. With the median
of its own task, the time would have too much influence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safe_monitor_node.bands.probability import (
    LATEST,
    SCORE_BENDS,
    TIME_BENDS,
    ProbabilityMap,
    rank_in,
)

FEWEST = 5
"""With fewer failures or successes, no map is fitted, because it would be too uncertain."""
# Penalties on squared slopes; the sum of all weights is the number of rollouts. Time has a strong
# penalty, because the usual length of a success is a poor estimate on a new task. Steps much later
# than a median success are left out: only failures still run at these steps, and they would
# determine the curve. The three values were chosen on rollouts of pi0.5 and GR00T.
_SCORE_PENALTY, _TIME_PENALTY = 0.1, 10.0
_LAST_FITTED = 1.25
_RANKS = 41


def fit_probability(
    scores: Sequence[NDArray[np.float64]],
    failed: Sequence[bool],
    tasks: Sequence[str],
    described: str = '',
) -> ProbabilityMap | None:
    """Return the map from score and step to the probability that the episode fails.

    The negative log-likelihood is minimised under the condition that no slope is negative, with a
    penalty on the squared slopes. Steps after 1.25 median success lengths of the task are left out.

    Parameters
    ----------
    scores : sequence of N arrays (T_i,)
        Score curves over the true lengths, by a detector that was not fitted on these rollouts.
    failed : sequence of N bool
    tasks : sequence of N str
    described : str
        Description of these rollouts.

    Returns
    -------
    ProbabilityMap or None
        None with fewer than :data:`FEWEST` failures or successes.
    """
    outcomes = np.asarray(failed, dtype=bool)
    if min(outcomes.sum(), (~outcomes).sum()) < FEWEST:
        return None
    lengths = np.array([len(curve) for curve in scores])
    medians = _success_medians(lengths, outcomes, tasks)
    usual = float(np.median(list(medians.values())))
    steps = np.concatenate([np.arange(1, n + 1) for n in lengths])
    own = np.repeat([medians.get(task, usual) for task in tasks], lengths)
    others = np.repeat([_median_of_others(medians, task, usual) for task in tasks], lengths)
    used = steps <= _LAST_FITTED * own
    shares = np.minimum(steps / others, LATEST)[used]
    values = np.concatenate([np.asarray(curve, dtype=np.float64) for curve in scores])[used]
    positive = np.repeat(outcomes, lengths)[used]
    weights = 1.0 / own[used]
    weights *= len(lengths) / weights.sum()
    quantiles = _weighted_quantiles(values, weights)
    ranks = np.array([rank_in(quantiles, value) for value in values.tolist()])
    rising, late = _bent(ranks, SCORE_BENDS), _bent(shares, TIME_BENDS)
    penalties = [_SCORE_PENALTY] * len(SCORE_BENDS) + [_TIME_PENALTY] * len(TIME_BENDS)
    both = _monotone_regression(np.column_stack([rising, late]), positive, weights, penalties)
    clock = _monotone_regression(late, positive, weights, penalties[len(SCORE_BENDS) :])
    return ProbabilityMap(
        quantiles=tuple(quantiles),
        intercept=both[0],
        score_slopes=both[1 : 1 + len(SCORE_BENDS)],
        time_slopes=both[1 + len(SCORE_BENDS) :],
        clock_intercept=clock[0],
        clock_slopes=clock[1:],
        base_rate=float(outcomes.mean()),
        median_steps=usual,
        rollouts=len(lengths),
        failures=int(outcomes.sum()),
        described=described,
    )


def _success_medians(
    lengths: NDArray[np.int64], failed: NDArray[np.bool_], tasks: Sequence[str]
) -> dict[str, float]:
    """Return the median length of the successes of each task with a success."""
    found: dict[str, list[int]] = {}
    for length, fails, task in zip(lengths.tolist(), failed.tolist(), tasks, strict=True):
        if not fails:
            found.setdefault(task, []).append(length)
    return {task: float(np.median(values)) for task, values in found.items()}


def _median_of_others(medians: dict[str, float], task: str, usual: float) -> float:
    """Return the median of the other tasks, as for a task that the fit has not seen."""
    others = [median for name, median in medians.items() if name != task]
    return float(np.median(others)) if others else usual


def _weighted_quantiles(values: NDArray[np.float64], weights: NDArray[np.float64]) -> list[float]:
    """Return the scores at evenly spaced ranks, in ascending order."""
    order = np.argsort(values, kind='stable')
    reached = np.cumsum(weights[order])
    ranks = np.linspace(0.0, reached[-1], _RANKS)
    found = np.interp(ranks, reached, values[order])
    return [float(value) for value in np.maximum.accumulate(found)]


def _bent(values: NDArray[np.float64], bends: Sequence[float]) -> NDArray[np.float64]:
    """Return max(value - bend, 0) for each value and bend, shape (N, bends)."""
    return np.maximum(values[:, None] - np.asarray(bends), 0.0)


def _monotone_regression(
    inputs: NDArray[np.float64],
    positive: NDArray[np.bool_],
    weights: NDArray[np.float64],
    penalties: Sequence[float],
) -> tuple[float, ...]:
    """Return intercept and slopes >= 0 of a weighted logistic regression with an L2 penalty."""
    from scipy.optimize import minimize

    design = np.column_stack([np.ones(len(inputs)), inputs])
    strength = np.array([0.0, *penalties])
    signs = np.where(positive, 1.0, -1.0)

    def loss(coefficients: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = signs * (design @ coefficients)
        value = (weights * np.logaddexp(0.0, -margin)).sum()
        value += (strength * coefficients**2).sum() / 2
        pull = -weights * signs / (1.0 + np.exp(np.clip(margin, -500, 500)))
        return float(value), design.T @ pull + strength * coefficients

    share = float(np.average(positive, weights=weights))
    start = np.zeros(design.shape[1])
    start[0] = np.log(share / (1.0 - share))
    bounds = [(None, None)] + [(0.0, None)] * inputs.shape[1]
    found = minimize(loss, start, jac=True, method='L-BFGS-B', bounds=bounds)
    return tuple(float(value) for value in found.x)
