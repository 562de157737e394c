# SPDX-License-Identifier: Apache-2.0
"""Detection rates and false-alarm rates of alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_monitor_node.bands.band import Band
from safe_training.metrics.ranking import rank
from safe_training.metrics.scored import (
    MetricError,
    ScoredRollout,
    Task,
    labels,
    mean_or_nan,
    mean_where_it_exists,
    min_length_of,
    task_members,
    values_and_outcomes,
)


@dataclass(frozen=True)
class AlarmRates:
    """Rates of the alarms on a group of rollouts.

    Attributes
    ----------
    detection_rate : float
        Share of the failures with an alarm (true-positive rate); NaN without failures.
    false_alarm_rate : float
        Share of the successes with an alarm while they ran (false-positive rate); NaN without
        successes.
    balanced_accuracy : float
        Mean of the detection rate and 1 - the false-alarm rate; NaN unless both exist.
    detection_time : float
        Mean over failures of first alarm step / length, 1.0 for a failure without an alarm; NaN
        without failures. 0 is the first step.
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

    A macro average is the mean of a rate over the tasks for which the rate exists.
    """

    pooled: AlarmRates
    per_task: dict[Task, AlarmRates]
    macro_detection_rate: float
    macro_false_alarm_rate: float
    macro_balanced_accuracy: float
    macro_detection_time: float


@dataclass(frozen=True)
class ClassificationReport:
    """How well one threshold on one value per rollout separates failures from successes.

    Failures are the positive class. `tpr` is the share of the failures that were detected, and
    `fnr` = 1 - `tpr`. `fpr` is the share of the successes that were classified as failures, and
    `tnr` = 1 - `fpr`. A rate is NaN if its class is absent. `weighted_accuracy` is the published
    accuracy: `tpr` times the share of the successes plus `tnr` times the share of the failures. The
    smaller class has more weight. In `balanced_accuracy` both classes have the same weight.
    `roc_auc` and `average_precision` need no threshold.
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


def classification_report(
    values: ArrayLike, failed: ArrayLike, threshold: float
) -> ClassificationReport:
    """Return the results of a threshold: rollouts with larger values count as failures.

    Parameters
    ----------
    values, failed : (N,) arrays
        As in `rank`.
    threshold : float
        Values are compared with `>`, as everywhere in this suite. The published tables use `>=`.
    """
    scores, positive = values_and_outcomes(values, failed)
    if np.isnan(threshold):
        raise MetricError(where='metrics', expected='a threshold', found='NaN')
    above = scores > threshold
    tpr, fpr = mean_or_nan(above[positive]), mean_or_nan(above[~positive])
    share = mean_or_nan(positive)
    ranking = rank(scores, positive)
    return ClassificationReport(
        tpr=tpr,
        tnr=1.0 - fpr,
        fpr=fpr,
        fnr=1.0 - tpr,
        accuracy=mean_or_nan(above == positive),
        balanced_accuracy=(tpr + 1.0 - fpr) / 2,
        weighted_accuracy=tpr * (1.0 - share) + (1.0 - fpr) * share,
        f1=f1_of_failures(positive, above),
        roc_auc=ranking.roc_auc,
        average_precision=ranking.average_precision,
    )


def f1_of_failures(failed: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Return the F1 score of the failures: 2 TP / (2 TP + FP + FN); NaN without failures."""
    if not failed.any():
        return np.nan
    return float(2 * (failed & found).sum() / (failed.sum() + found.sum()))


def band_alarms(scored: Sequence[ScoredRollout], band: Band, alpha: float) -> list[int | None]:
    """Return for each rollout the first step with a score above the threshold of its task.

    None if there is no such step.

    Raises `BandError` if the band was not calibrated for alpha, or if a rollout is longer than the
    band.
    """
    return [band.at(alpha, str(r.task)).first_crossing(r.scores) for r in scored]


def alarm_report(scored: Sequence[ScoredRollout], alarms: Sequence[int | None]) -> AlarmReport:
    """Return alarm rates, counting alarms at any step of a rollout, as an operator sees them.

    Parameters
    ----------
    scored : sequence of N ScoredRollout
        The rollouts.
    alarms : sequence of N int or None
        First alarm step of each, from `band_alarms` or from an alarm state machine.
    """
    for rollout, step in zip(scored, checked_alarms(scored, alarms), strict=True):
        if step is not None and not 0 <= step < len(rollout):
            raise MetricError(
                where=f'metrics: {rollout.name}',
                expected=f'an alarm step from 0 to {len(rollout) - 1}',
                found=str(step),
            )
    tasks = [rollout.task for rollout in scored]
    failed = labels(scored)
    alarmed = np.array([step is not None for step in alarms], dtype=bool)
    relative = np.array(
        [
            1.0 if step is None else step / len(rollout)
            for rollout, step in zip(scored, alarms, strict=True)
        ]
    )
    per_task = {
        task: _alarm_rates(failed[members], alarmed[members], relative[members])
        for task, members in task_members(tasks, len(scored)).items()
    }
    rates = list(per_task.values())
    return AlarmReport(
        pooled=_alarm_rates(failed, alarmed, relative),
        per_task=per_task,
        macro_detection_rate=mean_where_it_exists([r.detection_rate for r in rates]),
        macro_false_alarm_rate=mean_where_it_exists([r.false_alarm_rate for r in rates]),
        macro_balanced_accuracy=mean_where_it_exists([r.balanced_accuracy for r in rates]),
        macro_detection_time=mean_where_it_exists([r.detection_time for r in rates]),
    )


def alarm_report_until_min_length(
    scored: Sequence[ScoredRollout], alarms: Sequence[int | None], shortest: Mapping[Task, int]
) -> AlarmReport:
    """Return alarm rates, counting only alarms before the minimum length of the task.

    The detection time stays relative to the length of the rollout itself, so a failure not detected
    within that length counts 1.0 even if an alarm came later.
    """
    in_time = [
        step if step is not None and step < min_length_of(rollout, shortest) else None
        for rollout, step in zip(scored, checked_alarms(scored, alarms), strict=True)
    ]
    return alarm_report(scored, in_time)


def _alarm_rates(
    failed: NDArray[np.bool_], alarmed: NDArray[np.bool_], relative: NDArray[np.float64]
) -> AlarmRates:
    detection_rate = mean_or_nan(alarmed[failed])
    false_alarm_rate = mean_or_nan(alarmed[~failed])
    return AlarmRates(
        detection_rate=detection_rate,
        false_alarm_rate=false_alarm_rate,
        balanced_accuracy=(detection_rate + 1.0 - false_alarm_rate) / 2,
        detection_time=mean_or_nan(relative[failed]),
        n_failures=int(failed.sum()),
        n_successes=int((~failed).sum()),
    )


def checked_alarms(
    scored: Sequence[ScoredRollout], alarms: Sequence[int | None]
) -> Sequence[int | None]:
    """Return the alarms; raises `MetricError` unless each rollout has one entry."""
    if len(scored) != len(alarms):
        raise MetricError(
            where='metrics',
            expected=f'one alarm step or None for each of {len(scored)} rollouts',
            found=f'{len(alarms)} entries',
        )
    return alarms
