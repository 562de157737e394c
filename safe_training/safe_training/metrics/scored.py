# SPDX-License-Identifier: Apache-2.0
"""ScoredRollout rollouts, and the moments at which their scores are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_feature_bridge.errors import SafeError

Task = int | str


class MetricError(SafeError):
    """ScoredRollout rollouts cannot be evaluated as asked."""


@dataclass(frozen=True, eq=False)
class ScoredRollout:
    """The score curve of one rollout with its outcome.

    Attributes
    ----------
    scores : (T,) float64 array
        One score per step over the rollout's true length; finite.
    failed : bool
        True for a failure, the positive class.
    task : int or str
        Task label.
    failure_step : int or None
        Step (0-based) at which a person saw the failure begin; None where nobody said.

    """

    scores: NDArray[np.float64]
    failed: bool
    task: Task
    failure_step: int | None = None

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        object.__setattr__(self, 'scores', scores)
        if not isinstance(self.failed, (bool, np.bool_)):
            raise MetricError(
                f'metrics: the outcome of a rollout of task {self.task!r} is {self.failed!r}; '
                'leave out rollouts without a label'
            )
        if scores.ndim != 1 or scores.size == 0:
            raise MetricError(
                f'metrics: scores of a rollout of task {self.task!r} must have shape (T,) with '
                f'T >= 1, found {scores.shape}'
            )
        if not np.isfinite(scores).all():
            step = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise MetricError(
                f'metrics: the score of a rollout of task {self.task!r} at step {step} is '
                f'{scores[step]}; scores must be finite'
            )

    def __len__(self) -> int:
        """Return the number of steps."""
        return int(self.scores.size)


def min_lengths(tasks: Sequence[Task], lengths: ArrayLike) -> dict[Task, int]:
    """Return the length of the shortest rollout of each task.

    The protocol takes it over *all* rollouts there are, of every split and both outcomes. It is
    oracle knowledge: the shortest rollout of a task is usually a success that a running monitor
    has not seen, so numbers up to the earliest stop compare detectors and do not describe
    operation (the realised false-alarm rate and the detection time by the end do).

    Parameters
    ----------
    tasks : sequence of N int or str
        Task of each rollout.
    lengths : (N,) int array
        Number of steps of each rollout.

    """
    counts = np.asarray(lengths)
    if counts.shape != (len(tasks),):
        raise MetricError(
            f'metrics: {len(tasks)} tasks need as many lengths, found shape {counts.shape}'
        )
    stops: dict[Task, int] = {}
    for task, length in zip(tasks, counts.tolist(), strict=True):
        if length < 1:
            raise MetricError(f'metrics: a rollout of task {task!r} has {length} steps')
        stops[task] = min(int(length), stops.get(task, int(length)))
    return stops


def scores_at_quantile(
    scored: Sequence[ScoredRollout], stops: Mapping[Task, int], quantile: float
) -> NDArray[np.float64]:
    """Return each rollout's score at step round((m - 1) * quantile), m its task's earliest stop.

    Shape (N,). Halves round to even, as Python and the published code do.
    """
    if not 0.0 <= quantile <= 1.0:
        raise MetricError(f'metrics: a time quantile must lie in [0, 1], found {quantile}')
    return np.array(
        [rollout.scores[round((stop_of(rollout, stops) - 1) * quantile)] for rollout in scored]
    )


def scores_at_min_length(
    scored: Sequence[ScoredRollout], stops: Mapping[Task, int]
) -> NDArray[np.float64]:
    """Return each rollout's score at the last step before its task's earliest stop, shape (N,)."""
    return scores_at_quantile(scored, stops, 1.0)


def max_scores_until_min_length(
    scored: Sequence[ScoredRollout], stops: Mapping[Task, int]
) -> NDArray[np.float64]:
    """Return each rollout's largest score up to its task's earliest stop, shape (N,).

    The ROC-AUC of these values, pooled over tasks, is the number of the paper's Table 1.
    """
    return np.array([rollout.scores[: stop_of(rollout, stops)].max() for rollout in scored])


def max_scores(scored: Sequence[ScoredRollout]) -> NDArray[np.float64]:
    """Return each rollout's largest score over its true length, shape (N,)."""
    return np.array([rollout.scores.max() for rollout in scored])


def clock_scores(scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
    """Return the control: the same rollouts scored by the step number 0..T-1 alone."""
    return [
        ScoredRollout(np.arange(len(rollout), dtype=np.float64), rollout.failed, rollout.task)
        for rollout in scored
    ]


def stop_of(rollout: ScoredRollout, stops: Mapping[Task, int]) -> int:
    if rollout.task not in stops:
        raise MetricError(
            f'metrics: no earliest stop for task {rollout.task!r}; compute the stops over all '
            'rollouts with min_lengths'
        )
    stop = stops[rollout.task]
    if not 1 <= stop <= len(rollout):
        raise MetricError(
            f'metrics: the earliest stop of task {rollout.task!r} is {stop}, but a rollout of it '
            f'has {len(rollout)} steps; compute the stops over all rollouts with min_lengths'
        )
    return stop


def values_and_outcomes(
    values: ArrayLike, failed: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return one finite value and one outcome per rollout, both (N,), or raise `MetricError`."""
    scores = np.asarray(values, dtype=np.float64)
    positive = np.asarray(failed)
    if positive.dtype != bool and positive.size:
        raise MetricError(f'metrics: outcomes must be booleans, found {positive.dtype}')
    positive = positive.astype(bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise MetricError(
            'metrics: values and outcomes must have the same shape (N,), found '
            f'{scores.shape} and {positive.shape}'
        )
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise MetricError(f'metrics: the value of rollout {index} is {scores[index]}')
    return scores, positive


def task_members(tasks: Sequence[Task], size: int) -> dict[Task, NDArray[np.int64]]:
    if len(tasks) != size:
        raise MetricError(f'metrics: {len(tasks)} tasks for {size} rollouts')
    members: dict[Task, list[int]] = {}
    for index, task in enumerate(tasks):
        members.setdefault(task, []).append(index)
    return {task: np.array(indices) for task, indices in members.items()}


def mean_or_nan(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else np.nan


def mean_where_it_exists(values: Sequence[float]) -> float:
    array = np.asarray(values, dtype=np.float64)
    return mean_or_nan(array[~np.isnan(array)])
