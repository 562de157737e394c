# SPDX-License-Identifier: Apache-2.0
"""How well scores rank failures above successes, pooled and per task.

Failure is the positive class, and a higher score means that failure is more likely. If only one
class is present, there is no ranking and the value is NaN (not 0.5 or 1.0).

Failures run until the time limit and successes stop earlier. Therefore every score that grows with
time ranks failures high after the end of the episodes. For this reason, three values of a score are
reported separately: ``score_at_min_length`` (at the last step that all rollouts of the task have),
``max_score_until_min_length`` (the largest score up to that step) and ``max_score`` (the largest
score of the whole rollout, which leaks the label through the length). `clock_scores` is a control
that shows how much of a result comes only from the length. A running monitor does not know the
minimum length: see `min_lengths`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from safe_training.metrics.scored import (
    ScoredRollout,
    Task,
    labels,
    max_scores,
    max_scores_until_min_length,
    mean_where_it_exists,
    median_success_lengths,
    running_steps,
    scores_at_min_length,
    scores_at_quantile,
    task_members,
    values_and_outcomes,
)


@dataclass(frozen=True)
class Ranking:
    """How well one value per rollout separates failures from successes.

    `roc_auc` and `average_precision` are in [0, 1], NaN unless both classes are present.
    """

    roc_auc: float
    average_precision: float
    n_failures: int
    n_successes: int


@dataclass(frozen=True)
class RankingReport:
    """A ranking over all rollouts together, per task, and averaged over tasks.

    The pooled ranking is too optimistic: most pairs of rollouts belong to two different tasks, so a
    score that only recognises difficult tasks has a high value. The macro averages only compare
    rollouts of the same task. They exclude tasks with one class: `tasks_used` of `len(per_task)`
    tasks are included.
    """

    pooled: Ranking
    per_task: dict[Task, Ranking]
    macro_roc_auc: float
    macro_average_precision: float
    tasks_used: int


def rank(values: ArrayLike, failed: ArrayLike) -> Ranking:
    """Return how well one finite value per rollout ranks failures above successes.

    Parameters
    ----------
    values : (N,) array
        A higher value means that a failure is more likely.
    failed : (N,) bool array
        True for a failure.

    """
    scores, positive = values_and_outcomes(values, failed)
    n_failures = int(positive.sum())
    n_successes = int(positive.size) - n_failures
    if n_failures == 0 or n_successes == 0:
        return Ranking(np.nan, np.nan, n_failures, n_successes)
    # Same values as sklearn.metrics.roc_auc_score and average_precision_score (a test compares
    # them). The scikit-learn functions take 2 ms per call, which is too slow: a sweep ranks each
    # task of each configuration at ten evaluation times.
    order = np.argsort(-scores, kind='stable')
    # Rollouts with the same value form one group.
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0.0, True])
    found = np.cumsum(positive[order])[ends]
    above = ends + 1
    new = np.diff(found, prepend=0)
    wrong = np.diff(above - found, prepend=0)
    return Ranking(
        float((wrong * (found - new / 2)).sum() / (n_failures * n_successes)),
        float((new * (found / above)).sum() / n_failures),
        n_failures,
        n_successes,
    )


def rank_by_task(values: ArrayLike, failed: ArrayLike, tasks: Sequence[Task]) -> RankingReport:
    """Return the ranking of all rollouts, of each task, and the mean over tasks with both classes.

    Tasks come in the order of their first rollout.
    """
    scores, positive = values_and_outcomes(values, failed)
    per_task = {
        task: rank(scores[members], positive[members])
        for task, members in task_members(tasks, scores.size).items()
    }
    roc_auc = [ranking.roc_auc for ranking in per_task.values()]
    average_precision = [ranking.average_precision for ranking in per_task.values()]
    return RankingReport(
        pooled=rank(scores, positive),
        per_task=per_task,
        macro_roc_auc=mean_where_it_exists(roc_auc),
        macro_average_precision=mean_where_it_exists(average_precision),
        tasks_used=int(np.isfinite(roc_auc).sum()),
    )


def rankings(
    scored: Sequence[ScoredRollout], shortest: Mapping[Task, int]
) -> dict[str, RankingReport]:
    """Return rankings by `score_at_min_length`, `max_score_until_min_length` and `max_score`."""
    failed = labels(scored)
    tasks = [rollout.task for rollout in scored]
    return {
        'score_at_min_length': rank_by_task(scores_at_min_length(scored, shortest), failed, tasks),
        'max_score_until_min_length': rank_by_task(
            max_scores_until_min_length(scored, shortest), failed, tasks
        ),
        'max_score': rank_by_task(max_scores(scored), failed, tasks),
    }


def all_rankings(
    scored: Sequence[ScoredRollout], shortest: Mapping[Task, int]
) -> dict[str, RankingReport]:
    """Return the rankings at all reported evaluation times, as a mapping from name to ranking.

    The names are: the names of :func:`rankings`; ``at_25_percent``, ``at_50_percent``,
    ``at_75_percent`` of the minimum length (:func:`rankings_at_quantiles`); and
    ``running_25_percent`` to ``running_100_percent`` for the rollouts that still run at this share
    of the length of a success (:func:`running_rankings`).
    """
    quantiles = rankings_at_quantiles(scored, shortest, (0.25, 0.5, 0.75))
    running = running_rankings(scored)
    return {
        **rankings(scored, shortest),
        **{f'at_{100 * q:g}_percent': report for q, report in quantiles.items()},
        **{f'running_{100 * f:g}_percent': report for f, report in running.items()},
    }


def rankings_at_quantiles(
    scored: Sequence[ScoredRollout],
    shortest: Mapping[Task, int],
    quantiles: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
) -> dict[float, RankingReport]:
    """Return rankings by the score at fractions of the minimum length (`scores_at_quantile`)."""
    failed = labels(scored)
    tasks = [rollout.task for rollout in scored]
    return {
        quantile: rank_by_task(scores_at_quantile(scored, shortest, quantile), failed, tasks)
        for quantile in quantiles
    }


def running_rankings(
    scored: Sequence[ScoredRollout], fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
) -> dict[float, RankingReport]:
    """Return one ranking for each fraction.

    A ranking contains only the rollouts that still run at the evaluation time, which is this
    fraction of the median length of the successes.

    For a fraction f, the evaluation time of a task is step ceil(f m) - 1 (0-based, at least 0). m
    is the median length of the successes of this task in the given rollouts. Rollouts that ended
    before this step are excluded. The other rollouts are ranked by their largest score up to this
    step. An operator can know this step, but not the minimum length of the task. All rollouts of a
    task are ranked at the same step, so that a step counter has an AUC of 0.5 within each task. (It
    would have 0.7 if ended rollouts kept their last score.) Tasks without a success are excluded.
    """
    medians = median_success_lengths(scored)
    reports = {}
    for fraction in fractions:
        steps = running_steps(medians, fraction)
        running = [r for r in scored if r.task in steps and len(r) >= steps[r.task]]
        reports[fraction] = rank_by_task(
            [r.scores[: steps[r.task]].max() for r in running],
            labels(running),
            [r.task for r in running],
        )
    return reports
