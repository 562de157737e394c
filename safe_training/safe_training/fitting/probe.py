# SPDX-License-Identifier: Apache-2.0
"""Fit the linear probe.

Parameters with the value None or 'auto' have fixed values. With ``choose``, they are chosen by
leave-one-task-out: each training task is scored by a probe fitted on the other tasks, and the
candidate with the highest AUC within the tasks is chosen. For this choice, components, scales and
the list of signals are computed from all training rollouts, because they do not depend on outcomes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_monitor_node.detectors.base import DetectorError
from safe_monitor_node.detectors.probe import LinearProbe, stacked_signals
from safe_monitor_node.detectors.signal_history import HISTORY, signal_histories
from safe_training.fitting.data import require_both_outcomes, stack_rollouts
from safe_training.fitting.probe_components import Components, SumsOfTasks, TaskMoments, principal
from safe_training.fitting.probe_regression import (
    FALLBACK_MARGIN,
    L2_CHOICES,
    MARGIN,
    SMOOTHING_CHOICES,
    Array,
    Candidate,
    ProbeData,
    distance_left_out,
    linear_left_out,
    logistic_regression,
    ranking,
    task_balanced_weights,
    whitening_matrix,
)
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import SIGNAL_NAMES

# The fixed values.
FIXED_L2, FIXED_SMOOTHING = 1.0, 0.5
FIXED_L2_SIGNALS, FIXED_SMOOTHING_SIGNALS = 0.3, 0.7
# The first candidates of a choice.
FIRST_L2, FIRST_SMOOTHING = 0.3, 0.7
# For wider features, the sums take more time than a decomposition for each task.
_WIDEST_PRODUCTS = 1024
_SUMS = SumsOfTasks(most_bytes=256 << 20)


class _Choice:
    """Leave-one-task-out AUC of candidates; raw scores are computed once and kept."""

    def __init__(self, data: ProbeData) -> None:
        self._data = data
        self._raw: dict[tuple[str, str, float], Array] = {}
        self._start: dict[str, Array] = {}

    def auc(self, candidate: Candidate) -> float:
        """Return the within-task AUC of a candidate."""
        key = (candidate.method, candidate.inputs, candidate.l2)
        if key not in self._raw:
            if candidate.method == 'distance':
                self._raw[key] = distance_left_out(self._data)
            else:
                start = self._fitted(candidate)
                self._raw[key] = linear_left_out(self._data, candidate.inputs, candidate.l2, start)
        return ranking(self._data, self._raw[key], candidate.smoothing)

    def _fitted(self, candidate: Candidate) -> Array:
        self._start[candidate.inputs] = _fit_all(
            self._data, candidate.inputs, candidate.l2, self._start.get(candidate.inputs)
        )
        return self._start[candidate.inputs]

    def best(self, candidates: Sequence[Candidate], margin: float) -> Candidate:
        """Return the best candidate, or the first candidate if the difference is small.

        The best candidate must have an AUC that is higher by more than the margin.
        """
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


def _possible_inputs(probe: LinearProbe, data: ProbeData) -> list[str]:
    """Return the possible inputs for the parameters and rollouts; the preferred ones first."""
    has_features, has_signals = data.components.shape[1] > 0, data.history.shape[1] > 0
    which = [probe.inputs] if probe.inputs != 'auto' else ['both', 'features', 'signals']
    which = [
        w for w in which if (has_features or w == 'signals') and (has_signals or w == 'features')
    ]
    if not which or (probe.method == 'distance' and not has_features):
        present = {'features': has_features, 'signals': has_signals}
        raise DetectorError(
            where=f'{probe.name}, inputs={probe.inputs!r}',
            expected=f'rollouts with {" and ".join(_used(probe))}',
            found=' and '.join(f'no {name}' for name in _used(probe) if not present[name]),
            advice='use --param inputs=auto, or other rollouts',
        )
    return which


def _fixed(probe: LinearProbe, which: Sequence[str]) -> Candidate:
    """Return the candidate with the fixed values of all open parameters."""
    only_signals = which[0] == 'signals'
    l2 = FIXED_L2_SIGNALS if only_signals else FIXED_L2
    smoothing = FIXED_SMOOTHING_SIGNALS if only_signals else FIXED_SMOOTHING
    return Candidate(
        'linear' if probe.method == 'auto' else probe.method,
        'features' if probe.method == 'distance' else which[0],
        l2 if probe.l2 is None else probe.l2,
        smoothing if probe.smoothing is None else probe.smoothing,
    )


def _choose(probe: LinearProbe, data: ProbeData, which: Sequence[str]) -> tuple[Candidate, float]:
    """Return the candidate chosen by leave-one-task-out, and its AUC (NaN if unknown)."""
    choice = _Choice(data)
    smoothings = (
        [FIRST_SMOOTHING, *(s for s in SMOOTHING_CHOICES if s != FIRST_SMOOTHING)]
        if probe.smoothing is None
        else [probe.smoothing]
    )
    l2s = [FIRST_L2, *(v for v in L2_CHOICES if v != FIRST_L2)] if probe.l2 is None else [probe.l2]
    linear = Candidate('linear', which[0], l2s[0], smoothings[0])
    linear = choice.best([Candidate('linear', w, l2s[0], smoothings[0]) for w in which], MARGIN)
    grid = itertools.product(l2s, smoothings)
    linear = choice.best([Candidate('linear', linear.inputs, c, s) for c, s in grid], MARGIN)
    distances = [Candidate('distance', 'features', l2s[0], s) for s in smoothings]
    chosen = linear
    if probe.method == 'distance':
        chosen = choice.best(distances, MARGIN)
    elif probe.method == 'auto' and data.components.shape[1] > 0 and probe.inputs != 'signals':
        chosen = choice.best([linear, *distances], FALLBACK_MARGIN)
    settled = len(which) == len(l2s) == len(smoothings) == 1 and probe.method != 'auto'
    return chosen, float('nan') if settled else choice.auc(chosen)


def _used(probe: LinearProbe) -> list[str]:
    """Return the data that a probe uses: features, signals, or both."""
    return [probe.inputs] if probe.inputs in ('features', 'signals') else ['features', 'signals']


def _signal_names(probe: LinearProbe, rollouts: Sequence[Rollout]) -> list[str]:
    if probe.inputs == 'features':
        return []
    if probe.signals is not None:
        return list(probe.signals)
    carried = rollouts[0].signals
    names = [name for name in SIGNAL_NAMES if name in carried] or sorted(carried)
    if not names:
        raise DetectorError(
            where=f'rollout {rollouts[0].episode_id!r}',
            expected=f'action signals for {probe.name}',
            found='none',
            advice='record the actions, or use only the features (--param inputs=features)',
        )
    return names


@dataclass(frozen=True)
class _Inputs:
    """Checked training rollouts, read into memory once.

    Attributes
    ----------
    names : list of str
        Signals in use.
    signals : list of B ndarrays (T_i, S)
    flat : ndarray of float32, shape (N, D), or None
        Features of all steps; None if the probe does not read features.
    width : int
        D.
    lengths, failed, tasks : ndarray, shape (B,)
    """

    names: list[str]
    signals: list[Array]
    flat: NDArray[np.float32] | None
    width: int
    lengths: NDArray[np.int64]
    failed: NDArray[np.bool_]
    tasks: NDArray[np.str_]

    @classmethod
    def of(cls, probe: LinearProbe, rollouts: Sequence[Rollout]) -> _Inputs:
        probe.check_params()
        width = rollouts[0].features.shape[-1] if rollouts else 1
        flat = stack_rollouts(rollouts).flat if width > 0 else None
        require_both_outcomes(rollouts, probe.name)
        names = _signal_names(probe, rollouts)
        return cls(
            names=names,
            signals=[stacked_signals(rollout, names, probe.name) for rollout in rollouts],
            flat=None if probe.inputs == 'signals' else flat,
            width=width,
            lengths=np.array([len(r) for r in rollouts]),
            failed=np.array([r.failed for r in rollouts]),
            tasks=np.array([r.task for r in rollouts]),
        )

    def take(self, kept: NDArray[np.bool_]) -> _Inputs:
        """Return some of the rollouts, without their features."""
        return replace(
            self,
            signals=list(itertools.compress(self.signals, kept)),
            flat=None,
            lengths=self.lengths[kept],
            failed=self.failed[kept],
            tasks=self.tasks[kept],
        )


@dataclass(frozen=True)
class _Maps:
    """The maps from raw inputs to the columns of :class:`ProbeData`."""

    projection: Array
    offset: Array
    signal_scale: Array
    history_mean: Array
    history_scale: Array


def _prepare(inputs: _Inputs, components: Components) -> tuple[ProbeData, _Maps]:
    lengths = inputs.lengths
    scale = _signal_scale(np.concatenate(inputs.signals))
    history = signal_histories(np.concatenate(inputs.signals), lengths, scale)
    history = history.reshape(len(history), -1)
    history_mean, history_scale = history.mean(axis=0), history.std(axis=0)
    history_scale[history_scale < 1e-9] = 1.0
    names, task = np.unique(inputs.tasks, return_inverse=True)
    shortest = np.array([lengths[task == number].min() for number in range(len(names))])
    data = ProbeData(
        components=components.values,
        history=(history - history_mean) / history_scale,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        failed=inputs.failed,
        task=task,
        min_lengths=shortest[task],
    )
    maps = _Maps(components.projection, components.offset, scale, history_mean, history_scale)
    return data, maps


def _signal_scale(values: Array) -> Array:
    """Return the typical size (S,) of each signal: the median of the absolute values above 0."""
    sizes = [np.abs(column[column != 0]) for column in values.T]
    return np.array([float(np.median(size)) if size.size else 1.0 for size in sizes])


def fit_probe(
    probe: LinearProbe,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fit a linear probe; with ``choose``, open parameters are chosen by leave-one-task-out.

    Parameters
    ----------
    probe : LinearProbe
        Fitted in place.
    rollouts : sequence of Rollout
        Labelled training rollouts of both outcomes with features, signals, or both, of at least two
        tasks if a parameter must be chosen.
    validation : sequence of Rollout, optional
        Not used: leave-one-task-out needs no further rollouts.
    progress : callable, optional
        Called with (done, total, note).

    Raises
    ------
    DetectorError
        All rollouts have the same outcome, or a rollout lacks features or signals.
    """
    inputs = _Inputs.of(probe, rollouts)
    if inputs.flat is None:
        components = Components.none(int(inputs.lengths.sum()), inputs.width)
    elif inputs.width <= _WIDEST_PRODUCTS and (moments := _moments(probe, inputs, rollouts)):
        components = moments.components(probe.components)
    else:
        components = principal(inputs.flat, probe.components)
    _fit(probe, inputs, components)
    if progress is not None:
        choice, auc = probe.choice_, probe.choice_['leave_one_task_out_auc']
        known = '' if auc is None else f', leave-one-task-out AUC {auc:.2f}'
        progress(1, 1, f'{choice["method"]}, {choice["inputs"]}{known}')


def fit_without_each_task(
    probe: LinearProbe, rollouts: Sequence[Rollout]
) -> Iterator[tuple[str, LinearProbe]]:
    """Yield each task, and a probe with the same parameters that is fitted on the other tasks.

    Equal to a fit for each task, except for rounding. The products of the features are summed only
    once, see :class:`TaskMoments`.

    Raises
    ------
    DetectorError
        The rollouts of the other tasks are not suitable for fitting.
    """
    inputs = _Inputs.of(probe, rollouts)
    names, task = np.unique(inputs.tasks, return_inverse=True)
    moments = _moments(probe, inputs, rollouts)
    for number, name in enumerate(names.tolist()):
        others = task != number
        model = LinearProbe(**probe.get_params())
        kept = [rollout for rollout, keep in zip(rollouts, others, strict=True) if keep]
        try:
            if moments is None:
                model.fit(kept)
            else:
                require_both_outcomes(kept, probe.name)
                components = moments.components(probe.components, without=number)
                _fit(model, inputs.take(others), components)
        except DetectorError as error:
            raise DetectorError(f'leave-one-task-out, without task {name!r}: {error}') from error
        yield name, model


def _moments(
    probe: LinearProbe, inputs: _Inputs, rollouts: Sequence[Rollout]
) -> TaskMoments | None:
    """Return the sums over the features of each task; None if they would take more time."""
    names, task = np.unique(inputs.tasks, return_inverse=True)
    steps = int(inputs.lengths.sum())
    if inputs.flat is None or not TaskMoments.pay(
        steps, inputs.width, len(names), probe.components
    ):
        return None
    of_rollout = np.split(inputs.flat, np.cumsum(inputs.lengths)[:-1])
    sums = {}
    for number in range(len(names)):
        members = np.flatnonzero(task == number)
        read = partial(_in_order, [of_rollout[i] for i in members])
        sums[number] = _SUMS.of([rollouts[i] for i in members], read)
    return TaskMoments(inputs.flat, np.repeat(task, inputs.lengths), sums)


def _in_order(steps: Sequence[NDArray[np.float32]], order: Sequence[int]) -> NDArray[np.float32]:
    return np.concatenate([steps[i] for i in order])


def _fit(probe: LinearProbe, inputs: _Inputs, components: Components) -> None:
    """Fit a probe on checked rollouts and the components of their steps."""
    data, maps = _prepare(inputs, components)
    which = _possible_inputs(probe, data)
    candidate, auc = _choose(probe, data, which) if probe.choose else (_fixed(probe, which), np.nan)
    choice: dict[str, Any] = {
        'inputs': candidate.inputs,
        'l2': candidate.l2,
        'method': candidate.method,
        'smoothing': candidate.smoothing,
        'signals': inputs.names,
        'leave_one_task_out_auc': None if np.isnan(auc) else round(float(auc), 4),
    }
    signal_weights = np.zeros((len(inputs.names), len(HISTORY)))
    if candidate.method == 'distance':
        mean, whitening = whitening_matrix(data, np.ones(len(data.task), dtype=bool))
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
