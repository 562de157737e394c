# SPDX-License-Identifier: Apache-2.0
"""Fits the linear probe, and scores training rollouts by models that never saw their task.

Everything about a probe is chosen by leave-one-task-out: each training task is scored by a probe
fitted on the other ones, and the choice that ranks failures above successes best inside the tasks
wins. Components, scales and signals are those of all training rollouts: they know no outcome.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.utils.extmath import randomized_svd

from safe_monitor_node.detectors import (
    Detector,
    DetectorError,
    LinearProbe,
    fitter_for,
    make_detector,
)
from safe_monitor_node.detectors.probe import (
    HISTORY,
    signal_history,
    smoothed,
    stacked_signals,
)
from safe_training.fitting import require_both_outcomes, stack_rollouts
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import SIGNAL_NAMES

Progress = Callable[[int, int, str], None]
Array = NDArray[np.float64]

L2_CHOICES = (0.1, 0.3, 1.0, 3.0)
SMOOTHING_CHOICES = (0.0, 0.7)
DEFAULT_L2 = 0.3
DEFAULT_SMOOTHING = 0.7

# Leave-one-task-out over few failures is a noisy judge: another choice than the first listed must
# be better by this much AUC, and so must the fallback.
_MARGIN = 0.02
_FALLBACK_MARGIN = 0.05
_DISTANCE_COMPONENTS = 32
_RIDGE = 1e-2
_NEWTON_STEPS = 30


@dataclass(frozen=True)
class Candidate:
    """One way to make a probe."""

    method: str
    inputs: str
    l2: float
    smoothing: float


@dataclass(frozen=True)
class ProbeData:
    """Training rollouts as one matrix of steps, ready for any candidate.

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
    stops : ndarray, shape (B,)
        Length of the shortest rollout of the task.
    """

    components: Array
    history: Array
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    failed: NDArray[np.bool_]
    task: NDArray[np.int64]
    stops: NDArray[np.int64]

    def inputs(self, which: str) -> Array:
        """Return the columns that a candidate's inputs name."""
        if which == 'features':
            return self.components
        return self.history if which == 'signals' else np.hstack([self.components, self.history])

    def steps_of(self, rollouts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the mask (N,) of the steps of some rollouts."""
        return np.repeat(rollouts, self.lengths)


def task_balanced_weights(task: NDArray[np.int64], failed: NDArray[np.bool_]) -> Array:
    """Return the weight of each rollout: inside each task failures weigh what successes weigh.

    A task weighs as many as it has rollouts. One that has a single outcome cannot be balanced and
    would only teach which task tends to fail: it weighs nothing, unless no task has both.
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
    """Return the mean ROC-AUC of the tasks with both outcomes and values; NaN if there is none.

    Each task counts by ``f s / (f + s)`` for f failures and s successes, the inverse of the
    variance that its AUC has by chance, so that a task with one failure does not decide.
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


def _linear_left_out(data: ProbeData, inputs: str, l2: float, start: Array | None) -> Array:
    """Return raw scores (N,) of every step by a regression on the other tasks.

    NaN where the other tasks lack an outcome.
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


def _whitening(data: ProbeData, rollouts: NDArray[np.bool_]) -> tuple[Array, Array]:
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


def _distance_left_out(data: ProbeData) -> Array:
    """Return the distance (N,) of every step to the successes of the other tasks, NaN if none."""
    scores = np.full(len(data.components), np.nan)
    for number in np.unique(data.task):
        others = data.task != number
        if data.failed[others].all():
            continue
        mean, whitening = _whitening(data, others)
        left_out = ~data.steps_of(others)
        centred = data.components[left_out, : len(mean)] - mean
        scores[left_out] = np.linalg.norm(centred @ whitening.T, axis=1)
    return scores


def _ranking(data: ProbeData, raw: Array, smoothing: float) -> float:
    """Return the within-task AUC of the largest score by the earliest stop."""
    largest = np.array(
        [
            smoothed(raw[start : start + stop], smoothing).max()
            for start, stop in zip(data.starts, data.stops, strict=True)
        ]
    )
    return within_task_auc(largest, data.failed, data.task)


class _Choice:
    """Leave-one-task-out AUC of candidates, each raw score made once."""

    def __init__(self, data: ProbeData) -> None:
        self._data = data
        self._raw: dict[tuple[str, str, float], Array] = {}
        self._start: dict[str, Array] = {}

    def auc(self, candidate: Candidate) -> float:
        """Return the within-task AUC of a candidate."""
        key = (candidate.method, candidate.inputs, candidate.l2)
        if key not in self._raw:
            if candidate.method == 'distance':
                self._raw[key] = _distance_left_out(self._data)
            else:
                start = self._fitted(candidate)
                self._raw[key] = _linear_left_out(self._data, candidate.inputs, candidate.l2, start)
        return _ranking(self._data, self._raw[key], candidate.smoothing)

    def _fitted(self, candidate: Candidate) -> Array:
        self._start[candidate.inputs] = _fit_all(
            self._data, candidate.inputs, candidate.l2, self._start.get(candidate.inputs)
        )
        return self._start[candidate.inputs]

    def best(self, candidates: Sequence[Candidate], margin: float) -> Candidate:
        """Return the first candidate, or the best one if it is better by the margin."""
        if len(candidates) == 1:
            return candidates[0]
        aucs = np.array([self.auc(candidate) for candidate in candidates])
        if np.isnan(aucs[0]):
            return candidates[0]
        best = int(np.argmax(aucs))
        return candidates[best] if aucs[best] > aucs[0] + margin else candidates[0]


def _fit_all(data: ProbeData, inputs: str, l2: float, start: Array | None = None) -> Array:
    weights = task_balanced_weights(data.task, data.failed) / data.lengths
    return logistic_regression(
        data.inputs(inputs),
        data.steps_of(data.failed),
        np.repeat(weights, data.lengths),
        l2,
        start,
    )


def _choose(probe: LinearProbe, data: ProbeData) -> tuple[Candidate, float]:
    """Return the candidate that leave-one-task-out prefers, and its AUC there (NaN if unknown)."""
    choice = _Choice(data)
    has_features, has_signals = data.components.shape[1] > 0, data.history.shape[1] > 0
    which = [probe.inputs] if probe.inputs != 'auto' else ['both', 'features', 'signals']
    which = [
        w for w in which if (has_features or w == 'signals') and (has_signals or w == 'features')
    ]
    smoothings = (
        [DEFAULT_SMOOTHING, *(s for s in SMOOTHING_CHOICES if s != DEFAULT_SMOOTHING)]
        if probe.smoothing is None
        else [probe.smoothing]
    )
    l2s = (
        [DEFAULT_L2, *(v for v in L2_CHOICES if v != DEFAULT_L2)]
        if probe.l2 is None
        else [probe.l2]
    )
    if not which:
        raise DetectorError(
            f'{probe.name}: nothing to read: inputs={probe.inputs!r}, and the rollouts have '
            f'{"features" if has_features else "no features"} and '
            f'{"signals" if has_signals else "no signals"}'
        )
    linear = Candidate('linear', which[0], l2s[0], smoothings[0])
    linear = choice.best([Candidate('linear', w, l2s[0], smoothings[0]) for w in which], _MARGIN)
    grid = itertools.product(l2s, smoothings)
    linear = choice.best([Candidate('linear', linear.inputs, c, s) for c, s in grid], _MARGIN)
    distances = [Candidate('distance', 'features', l2s[0], s) for s in smoothings]
    chosen = linear
    if probe.method == 'distance':
        chosen = choice.best(distances, _MARGIN)
    elif probe.method == 'auto' and has_features and probe.inputs != 'signals':
        chosen = choice.best([linear, *distances], _FALLBACK_MARGIN)
    settled = len(which) == len(l2s) == len(smoothings) == 1 and probe.method != 'auto'
    return chosen, float('nan') if settled else choice.auc(chosen)


def _signal_names(probe: LinearProbe, rollouts: Sequence[Rollout]) -> list[str]:
    if probe.inputs == 'features':
        return []
    if probe.signals is not None:
        return list(probe.signals)
    carried = rollouts[0].signals
    names = [name for name in SIGNAL_NAMES if name in carried] or sorted(carried)
    if not names:
        raise DetectorError(
            f'rollout {rollouts[0].episode_id!r}: {probe.name} needs action signals, it has none; '
            'record the actions, or fit on the features alone (--set inputs=features)'
        )
    return names


@dataclass(frozen=True)
class _Maps:
    """From raw inputs to the columns of :class:`ProbeData`."""

    projection: Array
    offset: Array
    signal_scale: Array
    history_mean: Array
    history_scale: Array


def _prepare(
    probe: LinearProbe, rollouts: Sequence[Rollout], signals: Sequence[Array]
) -> tuple[ProbeData, _Maps]:
    lengths = np.array([len(r) for r in rollouts])
    components, projection, offset = _principal(probe, rollouts)
    scale = _signal_scale(np.concatenate(signals))
    history = np.concatenate([signal_history(values, scale) for values in signals])
    history = history.reshape(len(history), -1)
    history_mean, history_scale = history.mean(axis=0), history.std(axis=0)
    history_scale[history_scale < 1e-9] = 1.0
    numbers = {name: i for i, name in enumerate(sorted({r.task for r in rollouts}))}
    task = np.array([numbers[r.task] for r in rollouts])
    shortest = np.array([lengths[task == number].min() for number in range(len(numbers))])
    data = ProbeData(
        components=components,
        history=(history - history_mean) / history_scale,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        failed=np.array([r.failed for r in rollouts]),
        task=task,
        stops=shortest[task],
    )
    return data, _Maps(projection, offset, scale, history_mean, history_scale)


def _principal(probe: LinearProbe, rollouts: Sequence[Rollout]) -> tuple[Array, Array, Array]:
    """Return unit-variance components (N, k), and the map (k, D), (k,) that makes them."""
    width = rollouts[0].features.shape[-1]
    if width == 0 or probe.inputs == 'signals':
        steps = sum(len(r) for r in rollouts)
        return np.zeros((steps, 0)), np.zeros((0, width)), np.zeros(0)
    flat = stack_rollouts(rollouts).flat.numpy()
    mean = flat.mean(axis=0, dtype=np.float64)
    deviation = flat.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-6 * (np.abs(mean) + 1e-6)] = np.inf
    standard = ((flat - mean) / deviation).astype(np.float32)
    k = min(probe.components, *standard.shape)
    _, singular, axes = randomized_svd(standard, k, n_iter=3, random_state=0)
    spread = singular.astype(np.float64) / np.sqrt(len(standard))
    kept = spread > 1e-4 * max(float(spread[0]), 1e-4)
    axes = axes[kept].astype(np.float64) / spread[kept][:, None]
    components = (standard @ axes.T.astype(np.float32)).astype(np.float64)
    projection = axes / deviation
    return components, projection, -projection @ mean


def _signal_scale(values: Array) -> Array:
    """Return the typical size (S,) of each signal: the median of what is not 0."""
    sizes = [np.abs(column[column != 0]) for column in values.T]
    return np.array([float(np.median(size)) if size.size else 1.0 for size in sizes])


@fitter_for(LinearProbe.name)
def fit_probe(
    probe: LinearProbe,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fit a linear probe; what its parameters leave open is chosen by leave-one-task-out.

    Parameters
    ----------
    rollouts : sequence of Rollout
        Labelled training rollouts of both outcomes with features, signals, or both, of at least
        two tasks if anything is to be chosen.
    validation
        Not used: leave-one-task-out needs no further rollouts.
    progress : callable, optional
        Called with (done, total, note).

    Raises
    ------
    DetectorError
        A parameter without meaning, rollouts of one outcome, or one without its inputs.
    """
    probe.check_parameters()
    if not rollouts or rollouts[0].features.shape[-1] > 0:
        stack_rollouts(rollouts)
    require_both_outcomes(rollouts, probe.name)
    names = _signal_names(probe, rollouts)
    signals = [stacked_signals(rollout, names, probe.name) for rollout in rollouts]
    data, maps = _prepare(probe, rollouts, signals)
    candidate, auc = _choose(probe, data)
    choice: dict[str, Any] = {
        'inputs': candidate.inputs,
        'l2': candidate.l2,
        'method': candidate.method,
        'smoothing': candidate.smoothing,
        'signals': names,
        'leave_one_task_out_auc': None if np.isnan(auc) else round(float(auc), 4),
    }
    signal_weights = np.zeros((len(names), len(HISTORY)))
    if candidate.method == 'distance':
        mean, whitening = _whitening(data, np.ones(len(data.task), dtype=bool))
        projection = whitening @ maps.projection[: len(mean)]
        offset = whitening @ (maps.offset[: len(mean)] - mean)
    else:
        beta = _fit_all(data, candidate.inputs, candidate.l2)
        k = 0 if candidate.inputs == 'signals' else len(maps.projection)
        projection = beta[None, :k] @ maps.projection[:k]
        offset = beta[None, :k] @ maps.offset[:k] + beta[-1]
        if candidate.inputs != 'features':
            per_column = beta[k:-1] / maps.history_scale
            offset = offset - per_column @ maps.history_mean
            signal_weights = per_column.reshape(signal_weights.shape)
    probe.set_probe(choice, projection, offset, maps.signal_scale, signal_weights)
    if progress is not None:
        progress(1, 1, f'{candidate.method}, {candidate.inputs}, leave-one-task-out AUC {auc:.2f}')


def leave_one_task_out_scores(
    detector: Detector,
    rollouts: Sequence[Rollout],
    *,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Score each rollout by the same detector fitted on the rollouts of all other tasks.

    What a band for tasks never seen should be calibrated on: the scores come from models that did
    not know the task. A fitted linear probe keeps what it has chosen, other detectors are made
    anew from their parameters.

    Parameters
    ----------
    detector : Detector
        Fitted or not; it is not changed.
    rollouts : sequence of Rollout
        Labelled rollouts of at least two tasks.

    Returns
    -------
    list of ndarray of float32, shape (T_i,)
        In the order of the rollouts.

    Raises
    ------
    DetectorError
        Fewer than two tasks, or what is left without a task cannot be fitted on.
    """
    params = detector.get_params()
    if isinstance(detector, LinearProbe) and detector.fitted:
        params = detector.chosen()
    tasks = list(dict.fromkeys(rollout.task for rollout in rollouts))
    if len(tasks) < 2:
        raise DetectorError(
            f'leave-one-task-out needs rollouts of at least 2 tasks, found {len(tasks)}; '
            'calibrate on held-out rollouts instead'
        )
    scores: dict[int, NDArray[np.float32]] = {}
    for done, task in enumerate(tasks):
        model = make_detector(detector.name, **params)
        try:
            model.fit([r for r in rollouts if r.task != task])
        except DetectorError as error:
            raise DetectorError(f'leave-one-task-out, without task {task!r}: {error}') from error
        left_out = [i for i, r in enumerate(rollouts) if r.task == task]
        scores |= zip(left_out, model.score_all([rollouts[i] for i in left_out]), strict=True)
        if progress is not None:
            progress(done + 1, len(tasks), f'leave-one-task-out, {task}')
    return [scores[i] for i in range(len(rollouts))]
