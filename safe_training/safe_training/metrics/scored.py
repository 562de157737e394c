# SPDX-License-Identifier: Apache-2.0
"""A scored rollout, and the steps at which its score is evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.threshold import Threshold
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout import Rollout

Task = int | str

OUTCOMES = ('miss', 'false alarm', 'detection', 'quiet')
"""Classes of a labelled rollout with an alarm decision, in order of importance for users."""


class MetricError(SafeError):
    """Scored rollouts are not suitable for the requested evaluation."""


@dataclass(frozen=True, eq=False)
class ScoredRollout:
    """The score curve of one rollout, with its label and, if it was judged, its alarm.

    Attributes
    ----------
    scores : (T,) float64 array
        One finite score per step over the true length of the rollout.
    failed : bool or None
        True for a failure, the positive class; None if the rollout has no label.
    task : int or str
        Task label.
    failure_step : int or None
        Annotated step (0-based) at which the failure began; None if it is not annotated.
    episode_id : str
        Empty if the rollout has no name.
    part : str
        'train', 'seen', 'unseen', 'good runs' or 'new', from the provenance of the detector; empty
        if the rollout belongs to no part.
    threshold : Threshold or None
        Threshold at each of the T steps. A score above it is an alarm. None if the rollout was not
        compared with a band.
    alarm_step : int or None
        First step (0-based) with an alarm; None without an alarm.
    rollout : Rollout or None
        The rollout that was scored, if it is needed later (features, video).
    onset_step : int or None
        Step (0-based) at which a failure began, as estimated from all its scores; None for a
        success, or if it was not estimated.
    """

    scores: NDArray[np.float64]
    failed: bool | None
    task: Task
    failure_step: int | None = None
    episode_id: str = ''
    part: str = ''
    threshold: Threshold | None = None
    alarm_step: int | None = None
    rollout: Rollout | None = field(default=None, repr=False)
    onset_step: int | None = None

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        object.__setattr__(self, 'scores', scores)
        if not (self.failed is None or isinstance(self.failed, (bool, np.bool_))):
            raise MetricError(
                where=f'metrics: {self.name}',
                expected='failed=True, failed=False or failed=None (no label)',
                found=f'failed={self.failed!r}',
            )
        if scores.ndim != 1 or scores.size == 0:
            raise MetricError(
                where=f'metrics: {self.name}',
                expected='scores of shape (T,) with T >= 1',
                found=str(scores.shape),
            )
        if not np.isfinite(scores).all():
            step = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise MetricError(
                where=f'metrics: {self.name}, step {step}',
                expected='a finite score',
                found=str(scores[step]),
            )

    def __len__(self) -> int:
        """Return the number of steps."""
        return int(self.scores.size)

    @property
    def name(self) -> str:
        """Name for messages: the episode id, or the task if there is no episode id."""
        return (
            f'episode {self.episode_id!r}'
            if self.episode_id
            else f'a rollout of task {self.task!r}'
        )

    @property
    def required_threshold(self) -> Threshold:
        """The threshold; :class:`MetricError` if no band was applied."""
        if self.threshold is None:
            raise MetricError(
                where=f'metrics: {self.name}',
                expected='a threshold',
                found='none',
                advice='judge the rollout with a calibrated detector first',
            )
        return self.threshold

    @property
    def required_rollout(self) -> Rollout:
        """The recording; :class:`MetricError` if it was not kept."""
        if self.rollout is None:
            raise MetricError(
                where=f'metrics: {self.name}',
                expected='the rollout that was scored',
                found='only its scores',
                advice='judge the rollout with a calibrated detector',
            )
        return self.rollout

    @property
    def outcome(self) -> str:
        """One of :data:`OUTCOMES`; 'unlabelled' for a rollout without a label."""
        if self.failed is None:
            return 'unlabelled'
        if self.alarm_step is None:
            return 'miss' if self.failed else 'quiet'
        return 'detection' if self.failed else 'false alarm'


def labels(scored: Sequence[ScoredRollout]) -> NDArray[np.bool_]:
    """Return whether each rollout failed, shape (N,).

    Raises
    ------
    MetricError
        A rollout has no label.
    """
    for rollout in scored:
        if rollout.failed is None:
            raise MetricError(
                where=f'metrics: {rollout.name}',
                expected='a label (success or failure)',
                found='none',
                advice='label the rollout, or leave this rollout out',
            )
    return np.array([rollout.failed for rollout in scored], dtype=bool)


def min_lengths(tasks: Sequence[Task], lengths: ArrayLike) -> dict[Task, int]:
    """Return the minimum length of each task: the length of its shortest rollout.

    The protocol uses *all* rollouts, of all splits and both labels. This is oracle knowledge: the
    shortest rollout of a task is usually a success that a running monitor does not know. Numbers
    until this length are only for the comparison of detectors. For operation, use the realised
    false-alarm rate and the detection time over the true length.

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
            where='metrics',
            expected=f'lengths of shape ({len(tasks)},), one for each task label',
            found=str(counts.shape),
        )
    shortest: dict[Task, int] = {}
    for task, length in zip(tasks, counts.tolist(), strict=True):
        if length < 1:
            raise MetricError(
                where=f'metrics: a rollout of task {task!r}',
                expected='at least 1 step',
                found=str(length),
            )
        shortest[task] = min(int(length), shortest.get(task, int(length)))
    return shortest


def median_success_lengths(scored: Sequence[ScoredRollout]) -> dict[Task, float]:
    """Return the median length of the successes of each task [steps]; only tasks with a success.

    Raises
    ------
    MetricError
        A rollout has no label.
    """
    lengths: dict[Task, list[int]] = {}
    for rollout, failed in zip(scored, labels(scored), strict=True):
        if not failed:
            lengths.setdefault(rollout.task, []).append(len(rollout))
    return {task: float(np.median(values)) for task, values in lengths.items()}


def running_steps(medians: Mapping[Task, float], fraction: float) -> dict[Task, int]:
    """Return how many steps of each task are over at a fraction of its median success length.

    The number is ceil(fraction * median), at least 1.

    Parameters
    ----------
    medians : mapping of task to float
        From `median_success_lengths`.
    fraction : float
        Above 0.
    """
    if not fraction > 0.0:
        raise MetricError(
            where='metrics', expected='fractions of a length above 0', found=str(fraction)
        )
    # A product slightly above an integer because of rounding, such as 0.07 * 100, must not be
    # rounded up.
    return {
        task: max(1, math.ceil(round(fraction * median, 9))) for task, median in medians.items()
    }


def scores_at_quantile(
    scored: Sequence[ScoredRollout], shortest: Mapping[Task, int], quantile: float
) -> NDArray[np.float64]:
    """Return the score of each rollout at step round((m - 1) * quantile), shape (N,).

    m is the minimum length of the task. Halves are rounded to even, as in Python and in the
    published code.
    """
    if not 0.0 <= quantile <= 1.0:
        raise MetricError(
            where='metrics',
            expected='quantile (a fraction of the minimum length) in [0, 1]',
            found=str(quantile),
        )
    return np.array([r.scores[round((min_length_of(r, shortest) - 1) * quantile)] for r in scored])


def scores_at_min_length(
    scored: Sequence[ScoredRollout], shortest: Mapping[Task, int]
) -> NDArray[np.float64]:
    """Return the score of each rollout at the last step of the minimum length, shape (N,)."""
    return scores_at_quantile(scored, shortest, 1.0)


def max_scores_until_min_length(
    scored: Sequence[ScoredRollout], shortest: Mapping[Task, int]
) -> NDArray[np.float64]:
    """Return the largest score of each rollout until the minimum length of its task, (N,).

    The ROC-AUC of these values, pooled over tasks, is the number of the paper's Table 1.
    """
    return np.array([r.scores[: min_length_of(r, shortest)].max() for r in scored])


def max_scores(scored: Sequence[ScoredRollout]) -> NDArray[np.float64]:
    """Return the largest score of each rollout over its true length, shape (N,)."""
    return np.array([rollout.scores.max() for rollout in scored])


def clock_scores(scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
    """Return the control: the same rollouts, scored by the step number 0..T-1."""
    return [
        ScoredRollout(np.arange(len(rollout), dtype=np.float64), rollout.failed, rollout.task)
        for rollout in scored
    ]


def min_length_of(rollout: ScoredRollout, shortest: Mapping[Task, int]) -> int:
    """Return the minimum length of the task of a rollout."""
    if rollout.task not in shortest:
        raise MetricError(
            where=f'metrics: task {rollout.task!r}',
            expected='a minimum length',
            found='none',
            advice='call min_lengths with all rollouts',
        )
    length = shortest[rollout.task]
    if not 1 <= length <= len(rollout):
        raise MetricError(
            where=f'metrics: {rollout.name}, {len(rollout)} steps',
            expected=f'a minimum length of its task from 1 to {len(rollout)}',
            found=str(length),
            advice='call min_lengths with all rollouts',
        )
    return length


def values_and_outcomes(
    values: ArrayLike, failed: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return one finite value and one outcome per rollout, both (N,), or raise `MetricError`."""
    scores = np.asarray(values, dtype=np.float64)
    positive = np.asarray(failed)
    if positive.dtype != bool and positive.size:
        raise MetricError(
            where='metrics', expected='outcomes (failed) as booleans', found=str(positive.dtype)
        )
    positive = positive.astype(bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise MetricError(
            where='metrics',
            expected='values and outcomes of the same shape (N,)',
            found=f'{scores.shape} and {positive.shape}',
        )
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise MetricError(
            where=f'metrics: rollout {index}', expected='a finite value', found=str(scores[index])
        )
    return scores, positive


def task_members(tasks: Sequence[Task], size: int) -> dict[Task, NDArray[np.int64]]:
    """Return the indices of the rollouts of each task, in the order of their first rollout."""
    if len(tasks) != size:
        raise MetricError(
            where='metrics',
            expected=f'one task for each of {size} rollouts',
            found=f'{len(tasks)} tasks',
        )
    members: dict[Task, list[int]] = {}
    for index, task in enumerate(tasks):
        members.setdefault(task, []).append(index)
    return {task: np.array(indices) for task, indices in members.items()}


def mean_or_nan(values: NDArray[Any]) -> float:
    """Return the mean; NaN if there are no values."""
    return float(values.mean()) if values.size else np.nan


def mean_where_it_exists(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if all values are NaN."""
    array = np.asarray(values, dtype=np.float64)
    return mean_or_nan(array[~np.isnan(array)])
