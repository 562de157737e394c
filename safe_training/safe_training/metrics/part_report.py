# SPDX-License-Identifier: Apache-2.0
"""Results of a detector on one part of a split.

The results are rankings, alarms, lead times and the calibration of probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_training.metrics.alarms import (
    AlarmReport,
    ClassificationReport,
    alarm_report,
    alarm_report_until_min_length,
    band_alarms,
    classification_report,
)
from safe_training.metrics.early import EarlyReport, early_report
from safe_training.metrics.lead_time import LeadTimes, lead_times
from safe_training.metrics.onset import OnsetReport, onset_report
from safe_training.metrics.ranking import RankingReport, all_rankings
from safe_training.metrics.reliability import Brier, ProbabilityReport, probability_report
from safe_training.metrics.scored import ScoredRollout, Task, clock_scores, labels
from vla_feature_bridge.rollout import Rollout

# Display names of the evaluation times of `all_rankings`, from early to late.
EVALUATION_TIMES = {
    'at_25_percent': 'at 25 % of the minimum length',
    'at_50_percent': 'at 50 % of the minimum length',
    'at_75_percent': 'at 75 % of the minimum length',
    'score_at_min_length': 'at the minimum length',
    'max_score_until_min_length': 'until the minimum length (largest score)',
    'running_25_percent': 'running at 25 % of a success',
    'running_50_percent': 'running at 50 % of a success',
    'running_75_percent': 'running at 75 % of a success',
    'running_100_percent': 'running at 100 % of a success',
    'max_score': 'whole rollout (leaks the length)',
}
# Alarm rates of a report under the names that tables and files have for them.
_RATES = ('detection_rate', 'false_alarm_rate', 'balanced_accuracy', 'detection_time')
_CLASSIFIED = ('accuracy', 'weighted_accuracy', 'f1')


@dataclass(frozen=True, eq=False)
class PartReport:
    """Results of a detector on one part of a split.

    Attributes
    ----------
    early : EarlyReport
        Share of the failures that are found early, and steps saved, compared with the clock.
    ranking, clock : dict of str to RankingReport
        Rankings of the detector and of the step counter (`clock`), at every evaluation time of
        :func:`safe_training.metrics.ranking.all_rankings`.
    alarms, alarms_until_min_length : AlarmReport
        Alarms at any step, as an operator sees them; alarms within the shortest length of the task.
    classification : ClassificationReport
        Classification report in which a rollout with an alarm is classified as a failure.
    lead : LeadTimes or None
        Lead times; None if no failure of the part has an annotated step.
    onset : OnsetReport or None
        How well the beginning of annotated failures is estimated; None if no failure is annotated.
    probability : ProbabilityReport or None
        Agreement of the probability of failure with the outcomes; None without a probability map.
    min_lengths : dict of task to int
        Length of the shortest rollout of each task of the part [steps].
    alpha : float
        Promised false-alarm rate.
    own_bands : int
        Number of rollouts that were compared with a band of their task.
    finite_band : bool
        False if the band of all tasks is infinite because there are too few calibration rollouts.
    """

    early: EarlyReport
    ranking: dict[str, RankingReport]
    clock: dict[str, RankingReport]
    alarms: AlarmReport
    alarms_until_min_length: AlarmReport
    classification: ClassificationReport
    lead: LeadTimes | None
    onset: OnsetReport | None
    probability: ProbabilityReport | None
    min_lengths: dict[Task, int]
    alpha: float
    own_bands: int
    finite_band: bool


def scored_rollouts(
    scores: Sequence[np.ndarray], rollouts: Sequence[Rollout], part: str = ''
) -> list[ScoredRollout]:
    """Return score curves with the labels and names of their rollouts."""
    return [
        ScoredRollout(
            curve,
            None if rollout.success is None else rollout.failed,
            rollout.task,
            rollout.failure_step,
            rollout.episode_id,
            part,
            rollout=rollout,
        )
        for curve, rollout in zip(scores, rollouts, strict=True)
    ]


def report_part(
    scored: Sequence[ScoredRollout],
    shortest: Mapping[Any, int],
    band: Band,
    alpha: float,
    *,
    probability: ProbabilityMap | None = None,
) -> PartReport:
    """Return the results of scored rollouts.

    Parameters
    ----------
    scored : sequence of ScoredRollout
        At least one.
    shortest : mapping of task to int
        Length of the shortest rollout of each task: see `min_lengths`.
    band : Band
        Each rollout is compared with the band of its task, if the band has one.
    alpha : float
        Promised false-alarm rate.
    probability : ProbabilityMap, optional
        Turns scores into probabilities of failure.
    """
    alarms = band_alarms(scored, band, alpha)
    failed = labels(scored)
    annotated = [r.failure_step for r in scored]
    return PartReport(
        early=early_report(scored, alarms),
        ranking=all_rankings(scored, shortest),
        clock=all_rankings(clock_scores(scored), shortest),
        alarms=alarm_report(scored, alarms),
        alarms_until_min_length=alarm_report_until_min_length(scored, alarms, shortest),
        classification=classification_report([float(a is not None) for a in alarms], failed, 0.5),
        lead=None if set(annotated) == {None} else lead_times(scored, alarms, annotated),
        onset=onset_report(scored, alarms),
        probability=None if probability is None else probability_report(scored, probability),
        min_lengths={r.task: shortest[r.task] for r in scored},
        alpha=alpha,
        own_bands=sum(bool(band.at(alpha, str(r.task)).task) for r in scored),
        finite_band=band.at(alpha).can_alarm,
    )


def flatten_report(report: PartReport) -> dict[str, float]:
    """Return the numbers of one part as a flat mapping, for tables and files.

    A number that does not exist is NaN.
    """
    values = _early_values(report.early)
    for prefix, ranking in (('', report.ranking), ('clock_', report.clock)):
        for when, entry in ranking.items():
            values[f'{prefix}roc_auc_{when}'] = entry.pooled.roc_auc
            values[f'{prefix}macro_roc_auc_{when}'] = entry.macro_roc_auc
            values[f'{prefix}average_precision_{when}'] = entry.pooled.average_precision
            values[f'{prefix}macro_average_precision_{when}'] = entry.macro_average_precision
    by_stop = report.ranking['max_score_until_min_length']
    pooled, early = report.alarms.pooled, report.alarms_until_min_length.pooled
    values |= {
        'tasks': len(by_stop.per_task),
        'tasks_with_both_outcomes': by_stop.tasks_used,
        'failures': pooled.n_failures,
        'successes': pooled.n_successes,
        'alpha': report.alpha,
        'own_bands': report.own_bands,
        'finite_band': float(report.finite_band),
        **{name: getattr(pooled, name) for name in _RATES},
        **{f'macro_{name}': getattr(report.alarms, f'macro_{name}') for name in _RATES},
        **{f'{name}_until_min_length': getattr(early, name) for name in _RATES},
        **{name: getattr(report.classification, name) for name in _CLASSIFIED},
    }
    lead, in_time, annotated = np.nan, np.nan, 0
    if report.lead is not None:
        lead, annotated = report.lead.median, report.lead.annotated
        in_time = report.lead.in_time / annotated
    return values | {
        'annotated_failures': annotated,
        'median_lead_steps': lead,
        'alarms_before_annotated_failure': in_time,
        **_onset_values(report.onset),
        **_probability_values(report.probability),
    }


def _early_values(report: EarlyReport) -> dict[str, float]:
    pooled = report.pooled
    return {
        'found_early': pooled.found_early.detector,
        'clock_found_early': pooled.found_early.clock,
        'steps_saved': pooled.steps_saved.detector,
        'steps_saved_over_clock': pooled.steps_saved.gain,
        'macro_found_early': report.macro_found_early.detector,
        'clock_macro_found_early': report.macro_found_early.clock,
        'failures_without_median': pooled.n_failures - pooled.n_with_median,
    }


def _onset_values(report: OnsetReport | None) -> dict[str, float]:
    return {
        'onset_distance_steps': np.nan if report is None else report.onset.median_distance,
        'alarm_distance_steps': np.nan if report is None else report.alarm.median_distance,
        'onset_near': np.nan if report is None else report.onset.near,
        'alarm_near': np.nan if report is None else report.alarm.near,
    }


def _probability_values(report: ProbabilityReport | None) -> dict[str, float]:
    brier = Brier(np.nan, np.nan, np.nan) if report is None else report.brier
    error = np.nan if report is None else report.reliability.calibration_error
    return {**_brier_values(brier), 'calibration_error': error}


def _brier_values(brier: Brier) -> dict[str, float]:
    return {
        'brier_score': brier.detector,
        'clock_brier_score': brier.clock,
        'base_rate_brier_score': brier.base_rate,
    }


def per_task(report: PartReport) -> dict[str, dict[str, float]]:
    """Return the numbers of each task as a mapping. A number that does not exist is NaN."""
    ranking = report.ranking['max_score_until_min_length'].per_task
    at_median = report.ranking['running_100_percent'].per_task
    brier = {} if report.probability is None else report.probability.per_task
    nothing = Brier(np.nan, np.nan, np.nan)
    values = {}
    for task, rates in report.alarms.per_task.items():
        early = report.early.per_task[task]
        running = at_median.get(task)
        values[str(task)] = {
            'found_early': early.found_early.detector,
            'clock_found_early': early.found_early.clock,
            'steps_saved': early.steps_saved.detector,
            'steps_saved_over_clock': early.steps_saved.gain,
            'roc_auc_max_score_until_min_length': ranking[task].roc_auc,
            'average_precision_max_score_until_min_length': ranking[task].average_precision,
            'roc_auc_running_100_percent': np.nan if running is None else running.roc_auc,
            **asdict(rates),
            **_brier_values(brier.get(task, nothing)),
            'n_failures_with_median': early.n_with_median,
            'min_length': report.min_lengths[task],
            'median_success_length': report.early.medians.get(task, np.nan),
        }
    return values
