# SPDX-License-Identifier: Apache-2.0
"""The logistic regressions of the linear probe: weights, fits, left-out scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from safe_monitor_node.detectors.signal_history import smoothed

Array = NDArray[np.float64]

L2_CHOICES = (0.1, 0.3, 1.0, 3.0)
SMOOTHING_CHOICES = (0.0, 0.7)

# With few failures, the leave-one-task-out AUC is noisy. Another candidate replaces the first
# candidate only if its AUC is higher by this margin. The margin for the fallback is larger.
MARGIN = 0.02
FALLBACK_MARGIN = 0.05
_DISTANCE_COMPONENTS = 32
_RIDGE = 1e-2
_NEWTON_STEPS = 30


@dataclass(frozen=True)
class Candidate:
    """Parameters of one possible probe."""

    method: str
    inputs: str
    l2: float
    smoothing: float


@dataclass(frozen=True)
class ProbeData:
    """Training rollouts as one matrix of steps, prepared for all candidates.

    Attributes
    ----------
    components : ndarray, shape (N, k)
        Principal components of the standardised features, each of unit variance.
    history : ndarray, shape (N, 4 S)
        Signal history, standardised.
    starts : ndarray, shape (B,)
        First step of each rollout.
    lengths, failed, task : ndarray, shape (B,)
        Task as a number from 0.
    min_lengths : ndarray, shape (B,)
        Minimum length of the task.
    """

    components: Array
    history: Array
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    failed: NDArray[np.bool_]
    task: NDArray[np.int64]
    min_lengths: NDArray[np.int64]

    def inputs(self, which: str) -> Array:
        """Return the columns of the inputs of a candidate."""
        if which == 'features':
            return self.components
        return self.history if which == 'signals' else np.hstack([self.components, self.history])

    def steps_of(self, rollouts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the mask (N,): True for the steps of the given rollouts."""
        return np.repeat(rollouts, self.lengths)


def task_balanced_weights(task: NDArray[np.int64], failed: NDArray[np.bool_]) -> Array:
    """Return the weight of each rollout: inside each task both outcomes have the same weight.

    The weight of a task is its number of rollouts. A task with a single outcome cannot be balanced.
    With such a task, the probe would only learn which tasks often fail. Therefore its weight is 0.
    Exception: if no task has both outcomes, all tasks have a weight.
    """
    weights: Array = np.zeros(len(task))
    for number in np.unique(task):
        members = task == number
        failures = members & failed
        n, n_failed = members.sum(), failures.sum()
        if 0 < n_failed < n:
            weights[failures] = n / (2 * n_failed)
            weights[members & ~failed] = n / (2 * (n - n_failed))
    if not weights.any():
        n, n_failed = len(task), failed.sum()
        weights = np.where(failed, n / (2 * n_failed), n / (2 * (n - n_failed)))
    return weights


def logistic_regression(
    inputs: Array, failed: NDArray[np.bool_], weights: Array, l2: float, start: Array | None = None
) -> Array:
    """Return coefficients (d + 1,), the intercept last, of an L2-regularised logistic regression.

    Minimises ``sum_i w_i log(1 + exp(-s_i z_i)) / sum_i w_i + l2 / 2 |coefficients|^2`` by Newton's
    method, the intercept unregularised: scikit-learn's minimum at C = 1 / (l2 sum_i w_i), several
    times faster from a good start.
    """
    used = weights > 0
    x = np.hstack([inputs[used], np.ones((int(used.sum()), 1))])
    target, share = failed[used].astype(np.float64), weights[used] / weights.sum()
    penalty = np.full(x.shape[1], l2)
    penalty[-1] = 0.0
    beta = np.zeros(x.shape[1]) if start is None else start.copy()
    loss = _logistic_loss(x, target, share, penalty, beta)
    for _ in range(_NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ beta, -500, 500)))
        gradient = x.T @ (share * (p - target)) + penalty * beta
        curvature = np.maximum(share * p * (1.0 - p), 1e-12 * share.max())
        hessian = (x * curvature[:, None]).T @ x + np.diag(penalty)
        direction = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ direction)
        if decrement < 1e-10:
            break
        scale = 1.0
        while True:
            trial = beta - scale * direction
            trial_loss = _logistic_loss(x, target, share, penalty, trial)
            if trial_loss <= loss - 1e-4 * scale * decrement or scale < 1e-6:
                break
            scale /= 2
        beta, loss = trial, trial_loss
    return beta


def _logistic_loss(x: Array, target: Array, share: Array, penalty: Array, beta: Array) -> float:
    z = x @ beta
    return float(share @ (np.logaddexp(0.0, z) - target * z) + 0.5 * (penalty * beta) @ beta)


def within_task_auc(values: Array, failed: NDArray[np.bool_], task: NDArray[np.int64]) -> float:
    """Return the mean ROC-AUC of the tasks with both outcomes and values; NaN without any.

    The weight of a task is ``f s / (f + s)`` for f failures and s successes: about the inverse of
    the random variance of its AUC. Therefore a task with only one failure has little influence.
    """
    total = weight = 0.0
    for number in np.unique(task):
        members = task == number
        positive = failed[members]
        f, n = int(positive.sum()), int(members.sum())
        if 0 < f < n and not np.isnan(values[members]).any():
            ranks = rankdata(values[members])
            auc = (ranks[positive].sum() - f * (f + 1) / 2) / (f * (n - f))
            total += auc * f * (n - f) / n
            weight += f * (n - f) / n
    return total / weight if weight else float('nan')


def linear_left_out(data: ProbeData, inputs: str, l2: float, start: Array | None) -> Array:
    """Return raw scores (N,) of every step by a regression on the other tasks.

    The scores of a task are NaN if the other tasks do not have both outcomes.
    """
    x = data.inputs(inputs)
    failed_steps = data.steps_of(data.failed)
    scores = np.full(len(x), np.nan)
    for number in np.unique(data.task):
        others = data.task != number
        if data.failed[others].all() or not data.failed[others].any():
            continue
        rollout_weights = np.zeros(len(others))
        rollout_weights[others] = task_balanced_weights(data.task[others], data.failed[others])
        weights = np.repeat(rollout_weights / data.lengths, data.lengths)
        beta = logistic_regression(x, failed_steps, weights, l2, start)
        left_out = ~data.steps_of(others)
        scores[left_out] = x[left_out] @ beta[:-1] + beta[-1]
    return scores


def whitening_matrix(data: ProbeData, rollouts: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return mean (k,) and whitening (k, k) of the steps of the successes among some rollouts."""
    k = min(_DISTANCE_COMPONENTS, data.components.shape[1])
    chosen = rollouts & ~data.failed
    steps = data.components[data.steps_of(chosen), :k]
    weights = np.repeat(1.0 / data.lengths[chosen], data.lengths[chosen])
    weights /= weights.sum()
    mean = weights @ steps
    centred = steps - mean
    covariance = (centred * weights[:, None]).T @ centred + _RIDGE * np.eye(k)
    return mean, np.linalg.inv(np.linalg.cholesky(covariance))


def distance_left_out(data: ProbeData) -> Array:
    """Return the distance (N,) of every step to the successes of the other tasks.

    NaN if the other tasks have no successes.
    """
    scores = np.full(len(data.components), np.nan)
    for number in np.unique(data.task):
        others = data.task != number
        if data.failed[others].all():
            continue
        mean, whitening = whitening_matrix(data, others)
        left_out = ~data.steps_of(others)
        centred = data.components[left_out, : len(mean)] - mean
        scores[left_out] = np.linalg.norm(centred @ whitening.T, axis=1)
    return scores


def ranking(data: ProbeData, raw: Array, smoothing: float) -> float:
    """Return the within-task AUC of the largest score until the minimum length of the task."""
    largest = np.array(
        [
            smoothed(raw[start : start + length], smoothing).max()
            for start, length in zip(data.starts, data.min_lengths, strict=True)
        ]
    )
    return within_task_auc(largest, data.failed, data.task)
