# SPDX-License-Identifier: Apache-2.0
"""Measures how well scores rank failures and how well alarms detect them, pooled and per task.

Failure is the positive class and a higher score means more likely failing. Where only one class
is present a ranking does not exist and the value is NaN, never 0.5 or 1.0.

Failures run to the time limit and successes stop early, so any score that grows with time finds
failures in hindsight. Three evaluation times are therefore kept apart: *at* a task's earliest
stop (the score of that one step), *by* it (the largest score up to then) and *by the end* (the
largest score of the whole rollout, which leaks the outcome through the length). `clock_scores`
is the control that shows how much of a number is length alone. The earliest stop itself is
knowledge that a running monitor does not have: see `earliest_stops`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import f1_score

from safe_monitor_node.band import Band

Task = int | str

# Resampled weights held at once by a bootstrap, to bound its memory.
_BOOTSTRAP_CHUNK = 1_000_000


class MetricError(ValueError):
    """Scored rollouts cannot be evaluated as asked."""


@dataclass(frozen=True, eq=False)
class Scored:
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

    Pooling flatters: most pairs of rollouts it compares are of two different tasks, so a score
    that merely recognises hard tasks does well. The macro averages compare within a task only.
    They leave out tasks with one class; `tasks_used` of `len(per_task)` tasks entered them.
    """

    pooled: Ranking
    per_task: dict[Task, Ranking]
    macro_roc_auc: float
    macro_average_precision: float
    tasks_used: int


@dataclass(frozen=True)
class AlarmRates:
    """What alarms achieve on a group of rollouts.

    Attributes
    ----------
    detection_rate : float
        Share of the failures with an alarm (TPR); NaN without failures.
    false_alarm_rate : float
        Share of the successes with an alarm while they ran (FPR); NaN without successes.
    balanced_accuracy : float
        Mean of the detection rate and 1 - the false-alarm rate; NaN unless both exist.
    detection_time : float
        Mean over failures of first alarm step / length, 1.0 for a missed one; NaN without
        failures. 0 is the first step.
    n_failures, n_successes : int
        Size of the group.

    """

    detection_rate: float
    false_alarm_rate: float
    balanced_accuracy: float
    detection_time: float
    n_failures: int
    n_successes: int


@dataclass(frozen=True)
class AlarmReport:
    """Alarm rates over all rollouts together, per task, and averaged over tasks.

    The macro averages take the mean of each rate over the tasks where it exists.
    """

    pooled: AlarmRates
    per_task: dict[Task, AlarmRates]
    macro_detection_rate: float
    macro_false_alarm_rate: float
    macro_balanced_accuracy: float
    macro_detection_time: float


@dataclass(frozen=True)
class ClassificationReport:
    """How one threshold on one value per rollout tells failures from successes.

    Failures are the positive class: `tpr` is the share of them found, `fnr` = 1 - `tpr` the share
    missed, `fpr` the share of the successes taken for failures, `tnr` = 1 - `fpr`. NaN where the
    class is absent. `weighted_accuracy` weighs each rate by the share of the *other* class, `tpr`
    by that of the successes, as the published tables do: the rarer class weighs more, while
    `balanced_accuracy` weighs both the same. `roc_auc` and `average_precision` need no threshold.
    """

    tpr: float
    tnr: float
    fpr: float
    fnr: float
    accuracy: float
    balanced_accuracy: float
    weighted_accuracy: float
    f1: float
    roc_auc: float
    average_precision: float


@dataclass(frozen=True, eq=False)
class LeadTimes:
    """How long before the annotated moment of failure the alarm came.

    Attributes
    ----------
    leads : (M,) float64 array
        Annotated failure step minus first alarm step, for each annotated failure with an alarm, in
        their order: positive if the alarm was early, negative if it came after the failure.
    mean, median : float
        Of `leads`, in steps; NaN without one.
    annotated : int
        Failures with an annotated step.
    alarmed : int
        Those with an alarm at any time: M.
    in_time : int
        Those with an alarm at the annotated step or before it.

    """

    leads: NDArray[np.float64]
    mean: float
    median: float
    annotated: int
    alarmed: int
    in_time: int


@dataclass(frozen=True)
class Interval:
    """An estimate with a percentile bootstrap interval.

    `given` values (or resamples, for an AUC) were at hand and `used` of them existed; the others
    were NaN. A reader who sees used < given knows that something is missing from the mean.
    """

    value: float
    low: float
    high: float
    used: int
    given: int


def earliest_stops(tasks: Sequence[Task], lengths: ArrayLike) -> dict[Task, int]:
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
    scored: Sequence[Scored], stops: Mapping[Task, int], quantile: float
) -> NDArray[np.float64]:
    """Return each rollout's score at step round((m - 1) * quantile), m its task's earliest stop.

    Shape (N,). Halves round to even, as Python and the published code do.
    """
    if not 0.0 <= quantile <= 1.0:
        raise MetricError(f'metrics: a time quantile must lie in [0, 1], found {quantile}')
    return np.array(
        [rollout.scores[round((_stop(rollout, stops) - 1) * quantile)] for rollout in scored]
    )


def scores_at_earliest_stop(
    scored: Sequence[Scored], stops: Mapping[Task, int]
) -> NDArray[np.float64]:
    """Return each rollout's score at the last step before its task's earliest stop, shape (N,)."""
    return scores_at_quantile(scored, stops, 1.0)


def scores_by_earliest_stop(
    scored: Sequence[Scored], stops: Mapping[Task, int]
) -> NDArray[np.float64]:
    """Return each rollout's largest score up to its task's earliest stop, shape (N,).

    The ROC-AUC of these values, pooled over tasks, is the number of the paper's Table 1.
    """
    return np.array([rollout.scores[: _stop(rollout, stops)].max() for rollout in scored])


def scores_by_end(scored: Sequence[Scored]) -> NDArray[np.float64]:
    """Return each rollout's largest score over its true length, shape (N,)."""
    return np.array([rollout.scores.max() for rollout in scored])


def clock_scores(scored: Sequence[Scored]) -> list[Scored]:
    """Return the control: the same rollouts scored by the step number 0..T-1 alone."""
    return [
        Scored(np.arange(len(rollout), dtype=np.float64), rollout.failed, rollout.task)
        for rollout in scored
    ]


def rank(values: ArrayLike, failed: ArrayLike) -> Ranking:
    """Rank failures above successes by one finite value per rollout.

    Parameters
    ----------
    values : (N,) array
        Higher means more likely failing.
    failed : (N,) bool array
        True for a failure.

    """
    scores, positive = values_and_outcomes(values, failed)
    n_failures = int(positive.sum())
    n_successes = int(positive.size) - n_failures
    if n_failures == 0 or n_successes == 0:
        return Ranking(np.nan, np.nan, n_failures, n_successes)
    # As sklearn.metrics.roc_auc_score and average_precision_score, which a test compares with; they
    # take 2 ms a call, and a sweep ranks each task of each configuration at ten moments.
    order = np.argsort(-scores, kind='stable')
    # Rollouts with the same value are found together.
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
    """Rank failures pooled, within each task, and averaged over the tasks with both classes.

    Tasks are reported in the order they first appear in.
    """
    scores, positive = values_and_outcomes(values, failed)
    per_task = {
        task: rank(scores[members], positive[members])
        for task, members in _members(tasks, scores.size).items()
    }
    roc_auc = [ranking.roc_auc for ranking in per_task.values()]
    average_precision = [ranking.average_precision for ranking in per_task.values()]
    return RankingReport(
        pooled=rank(scores, positive),
        per_task=per_task,
        macro_roc_auc=_mean_where_it_exists(roc_auc),
        macro_average_precision=_mean_where_it_exists(average_precision),
        tasks_used=int(np.isfinite(roc_auc).sum()),
    )


def rankings(scored: Sequence[Scored], stops: Mapping[Task, int]) -> dict[str, RankingReport]:
    """Rank at each evaluation time: 'at_earliest_stop', 'by_earliest_stop' and 'by_end'."""
    failed = [rollout.failed for rollout in scored]
    tasks = [rollout.task for rollout in scored]
    return {
        'at_earliest_stop': rank_by_task(scores_at_earliest_stop(scored, stops), failed, tasks),
        'by_earliest_stop': rank_by_task(scores_by_earliest_stop(scored, stops), failed, tasks),
        'by_end': rank_by_task(scores_by_end(scored), failed, tasks),
    }


def all_rankings(scored: Sequence[Scored], stops: Mapping[Task, int]) -> dict[str, RankingReport]:
    """Rank at every moment that is reported, by name.

    Those of :func:`rankings`; ``at_25_percent``, ``at_50_percent``, ``at_75_percent`` of the
    earliest stop (:func:`rankings_at_quantiles`); ``running_25_percent`` and so on up to 100: what
    still runs at that share of how long a success takes (:func:`running_rankings`).
    """
    quantiles = rankings_at_quantiles(scored, stops, (0.25, 0.5, 0.75))
    running = running_rankings(scored)
    return {
        **rankings(scored, stops),
        **{f'at_{100 * q:g}_percent': report for q, report in quantiles.items()},
        **{f'running_{100 * f:g}_percent': report for f, report in running.items()},
    }


def rankings_at_quantiles(
    scored: Sequence[Scored],
    stops: Mapping[Task, int],
    quantiles: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
) -> dict[float, RankingReport]:
    """Rank by the score at each time quantile of the earliest stop: see `scores_at_quantile`."""
    failed = [rollout.failed for rollout in scored]
    tasks = [rollout.task for rollout in scored]
    return {
        quantile: rank_by_task(scores_at_quantile(scored, stops, quantile), failed, tasks)
        for quantile in quantiles
    }


def running_rankings(
    scored: Sequence[Scored], fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
) -> dict[float, RankingReport]:
    """Rank the rollouts still running at fractions of how long a success of their task takes.

    At a fraction f the moment of a task is step ceil(f m) - 1 (0-based, at least 0), m the median
    length of its successes here. Rollouts that ended before it are left out, the others are ranked
    by their largest score so far. Unlike the earliest stop this is a moment that an operator can
    know; and since every rollout of a task is judged at the same step, a clock has 0.5 within each
    task. Keeping the last score of rollouts that have ended would give it 0.7. Tasks without a
    success have no such moment and are left out.
    """
    lengths: dict[Task, list[int]] = {}
    for rollout in scored:
        if not rollout.failed:
            lengths.setdefault(rollout.task, []).append(len(rollout))
    medians = {task: float(np.median(values)) for task, values in lengths.items()}
    reports = {}
    for fraction in fractions:
        if not fraction > 0.0:
            raise MetricError(f'metrics: a fraction of a length must be above 0, found {fraction}')
        # A product a hair above a whole number, such as 0.07 * 100, must not round up to the next.
        steps = {
            task: max(1, math.ceil(round(fraction * median, 9))) for task, median in medians.items()
        }
        running = [r for r in scored if r.task in steps and len(r) >= steps[r.task]]
        reports[fraction] = rank_by_task(
            [r.scores[: steps[r.task]].max() for r in running],
            [r.failed for r in running],
            [r.task for r in running],
        )
    return reports


def classification_report(
    values: ArrayLike, failed: ArrayLike, threshold: float
) -> ClassificationReport:
    """Judge one value per rollout by a threshold: above it the rollout is taken for a failure.

    Parameters
    ----------
    values, failed : (N,) arrays
        As in `rank`.
    threshold : float
        Compared with `>`, as everywhere here; the published tables compare with `>=`.

    """
    scores, positive = values_and_outcomes(values, failed)
    if np.isnan(threshold):
        raise MetricError('metrics: the threshold is NaN and nothing can be judged by it')
    above = scores > threshold
    tpr, fpr = _mean_or_nan(above[positive]), _mean_or_nan(above[~positive])
    share = _mean_or_nan(positive)
    ranking = rank(scores, positive)
    return ClassificationReport(
        tpr=tpr,
        tnr=1.0 - fpr,
        fpr=fpr,
        fnr=1.0 - tpr,
        accuracy=_mean_or_nan(above == positive),
        balanced_accuracy=(tpr + 1.0 - fpr) / 2,
        weighted_accuracy=tpr * (1.0 - share) + (1.0 - fpr) * share,
        f1=float(f1_score(positive, above, zero_division=0.0)) if positive.any() else np.nan,
        roc_auc=ranking.roc_auc,
        average_precision=ranking.average_precision,
    )


def lead_times(
    scored: Sequence[Scored],
    alarms: Sequence[int | None],
    failure_steps: Sequence[int | None],
) -> LeadTimes:
    """Measure by how many steps alarms precede the annotated failure.

    Parameters
    ----------
    scored : sequence of N Scored
        The rollouts; successes are left out.
    alarms : sequence of N int or None
        First alarm step of each.
    failure_steps : sequence of N int or None
        Step (0-based) at which the rollout can be seen to fail, None where nobody said; a success
        cannot have one.

    """
    if len(failure_steps) != len(scored):
        raise MetricError(
            f'metrics: {len(failure_steps)} annotated steps for {len(scored)} rollouts'
        )
    leads, annotated = [], 0
    for rollout, alarm, step in zip(
        scored, _checked_alarms(scored, alarms), failure_steps, strict=True
    ):
        if step is None:
            continue
        if not rollout.failed:
            raise MetricError(
                f'metrics: a success of task {rollout.task!r} is annotated to fail at step {step}'
            )
        if not 0 <= step < len(rollout):
            raise MetricError(
                f'metrics: a rollout of task {rollout.task!r} with {len(rollout)} steps is '
                f'annotated to fail at step {step}; annotate inference steps, counted from 0'
            )
        annotated += 1
        if alarm is not None:
            leads.append(step - alarm)
    array = np.array(leads, dtype=np.float64)
    return LeadTimes(
        leads=array,
        mean=_mean_or_nan(array),
        median=float(np.median(array)) if array.size else np.nan,
        annotated=annotated,
        alarmed=int(array.size),
        in_time=int((array >= 0).sum()),
    )


def band_alarms(scored: Sequence[Scored], band: Band, alpha: float) -> list[int | None]:
    """Return each rollout's first step above the threshold of its task, or None.

    Raises `BandError` for an alpha that the band was not calibrated for, or a rollout longer than
    it.
    """
    return [band.at(alpha, str(r.task)).first_crossing(r.scores) for r in scored]


def alarm_report_by_end(scored: Sequence[Scored], alarms: Sequence[int | None]) -> AlarmReport:
    """Report alarms at any step of a rollout: what an operator sees.

    Parameters
    ----------
    scored : sequence of N Scored
        The rollouts.
    alarms : sequence of N int or None
        First alarm step of each, from `band_alarms` or from an alarm policy.

    """
    for rollout, step in zip(scored, _checked_alarms(scored, alarms), strict=True):
        if step is not None and not 0 <= step < len(rollout):
            raise MetricError(
                f'metrics: alarm at step {step} of a rollout of task {rollout.task!r} with '
                f'{len(rollout)} steps; an alarm belongs inside its rollout'
            )
    tasks = [rollout.task for rollout in scored]
    failed = np.array([rollout.failed for rollout in scored], dtype=bool)
    alarmed = np.array([step is not None for step in alarms], dtype=bool)
    relative = np.array(
        [
            1.0 if step is None else step / len(rollout)
            for rollout, step in zip(scored, alarms, strict=True)
        ]
    )
    per_task = {
        task: _alarm_rates(failed[members], alarmed[members], relative[members])
        for task, members in _members(tasks, len(scored)).items()
    }
    rates = list(per_task.values())
    return AlarmReport(
        pooled=_alarm_rates(failed, alarmed, relative),
        per_task=per_task,
        macro_detection_rate=_mean_where_it_exists([r.detection_rate for r in rates]),
        macro_false_alarm_rate=_mean_where_it_exists([r.false_alarm_rate for r in rates]),
        macro_balanced_accuracy=_mean_where_it_exists([r.balanced_accuracy for r in rates]),
        macro_detection_time=_mean_where_it_exists([r.detection_time for r in rates]),
    )


def alarm_report_by_earliest_stop(
    scored: Sequence[Scored], alarms: Sequence[int | None], stops: Mapping[Task, int]
) -> AlarmReport:
    """Report alarms raised before the task's earliest stop only; later ones count as none.

    The detection time stays relative to the rollout's own length, so a failure not detected by
    the earliest stop counts 1.0 even if an alarm came later.
    """
    in_time = [
        step if step is not None and step < _stop(rollout, stops) else None
        for rollout, step in zip(scored, _checked_alarms(scored, alarms), strict=True)
    ]
    return alarm_report_by_end(scored, in_time)


def bootstrap_interval(
    values: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return the mean of some values, such as one AUC per split, with its bootstrap interval.

    NaN values are left out of the mean and counted: see `Interval`. The values are resampled as
    if independent; splits of one set of rollouts overlap, so the interval speaks of the draw of
    the split and not of new rollouts.

    Parameters
    ----------
    values : (N,) array
        May hold NaN; fewer than two others give an interval of NaN.
    generator : numpy.random.Generator
        Draws the resamples.
    level : float
        Coverage in (0, 1).
    resamples : int
        Number of resamples.

    """
    _check_bootstrap(level, resamples)
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1:
        raise MetricError(f'metrics: values must have shape (N,), found {given.shape}')
    used = given[~np.isnan(given)]
    value = float(used.mean()) if used.size else np.nan
    if used.size < 2:
        return Interval(value, np.nan, np.nan, int(used.size), int(given.size))
    means = used[generator.integers(used.size, size=(resamples, used.size))].mean(axis=1)
    low, high = _percentiles(means, level)
    return Interval(value, low, high, int(used.size), int(given.size))


def bootstrap_auc_interval(
    values: ArrayLike,
    failed: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return the ROC-AUC of one value per rollout with its bootstrap interval over rollouts.

    Rollouts are drawn with replacement; resamples that happen to hold one class have no AUC and
    are left out and counted.

    Parameters
    ----------
    values, failed : (N,) arrays
        As in `rank`.
    generator, level, resamples
        As in `bootstrap_interval`.

    """
    _check_bootstrap(level, resamples)
    scores, positive = values_and_outcomes(values, failed)
    value = rank(scores, positive).roc_auc
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan, 0, resamples)
    size = scores.size
    chunk = max(1, _BOOTSTRAP_CHUNK // size)
    found = []
    for start in range(0, resamples, chunk):
        counts = generator.multinomial(
            size, np.full(size, 1 / size), size=min(chunk, resamples - start)
        )
        found.append(_weighted_auc(scores, positive, counts))
    aucs = np.concatenate(found)
    existing = aucs[~np.isnan(aucs)]
    if existing.size == 0:
        return Interval(value, np.nan, np.nan, 0, resamples)
    low, high = _percentiles(existing, level)
    return Interval(value, low, high, int(existing.size), resamples)


def _weighted_auc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """ROC-AUC under each row of weights (R, N), ties counting half; NaN where a class is absent.

    scikit-learn's does one row at a time, which makes a bootstrap 100 times slower.
    """
    order = np.argsort(scores, kind='stable')
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    failures = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    successes = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(successes, axis=1) - successes
    wins = (failures * (below + 0.5 * successes)).sum(axis=1)
    pairs = (failures.sum(axis=1) * successes.sum(axis=1)).astype(np.float64)
    return np.divide(wins, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def _alarm_rates(
    failed: NDArray[np.bool_], alarmed: NDArray[np.bool_], relative: NDArray[np.float64]
) -> AlarmRates:
    detection_rate = _mean_or_nan(alarmed[failed])
    false_alarm_rate = _mean_or_nan(alarmed[~failed])
    return AlarmRates(
        detection_rate=detection_rate,
        false_alarm_rate=false_alarm_rate,
        balanced_accuracy=(detection_rate + 1.0 - false_alarm_rate) / 2,
        detection_time=_mean_or_nan(relative[failed]),
        n_failures=int(failed.sum()),
        n_successes=int((~failed).sum()),
    )


def _stop(rollout: Scored, stops: Mapping[Task, int]) -> int:
    if rollout.task not in stops:
        raise MetricError(
            f'metrics: no earliest stop for task {rollout.task!r}; compute the stops over all '
            'rollouts with earliest_stops'
        )
    stop = stops[rollout.task]
    if not 1 <= stop <= len(rollout):
        raise MetricError(
            f'metrics: the earliest stop of task {rollout.task!r} is {stop}, but a rollout of it '
            f'has {len(rollout)} steps; compute the stops over all rollouts with earliest_stops'
        )
    return stop


def _checked_alarms(scored: Sequence[Scored], alarms: Sequence[int | None]) -> Sequence[int | None]:
    if len(scored) != len(alarms):
        raise MetricError(f'metrics: {len(alarms)} alarms for {len(scored)} rollouts')
    return alarms


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


def _members(tasks: Sequence[Task], size: int) -> dict[Task, NDArray[np.int64]]:
    if len(tasks) != size:
        raise MetricError(f'metrics: {len(tasks)} tasks for {size} rollouts')
    members: dict[Task, list[int]] = {}
    for index, task in enumerate(tasks):
        members.setdefault(task, []).append(index)
    return {task: np.array(indices) for task, indices in members.items()}


def _mean_or_nan(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else np.nan


def _mean_where_it_exists(values: Sequence[float]) -> float:
    array = np.asarray(values, dtype=np.float64)
    return _mean_or_nan(array[~np.isnan(array)])


def _check_bootstrap(level: float, resamples: int) -> None:
    if not 0.0 < level < 1.0:
        raise MetricError(f'metrics: level must lie inside (0, 1), found {level}')
    if resamples < 1:
        raise MetricError(f'metrics: at least one resample is needed, found {resamples}')


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2
    low, high = np.quantile(values, (tail, 1.0 - tail))
    return float(low), float(high)
