# SPDX-License-Identifier: Apache-2.0
"""Judges rollouts with a calibrated detector: score, threshold and alarm of each rollout.

Tables, figures, the report page and videos use :class:`JudgedSet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.threshold import BandError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import Detector
from safe_training.evaluation.protocol import EvaluationError, require_rollouts
from safe_training.metrics.alarms import band_alarms
from safe_training.metrics.binomial import Tally, clopper_pearson, tally_cells, worst_task
from safe_training.metrics.bootstrap import bootstrap_auc_interval
from safe_training.metrics.onset import onset_step
from safe_training.metrics.part_report import PartReport, report_part, scored_rollouts
from safe_training.metrics.scored import (
    ScoredRollout,
    Task,
    labels,
    max_scores_until_min_length,
    min_lengths,
)
from safe_training.metrics.task_bootstrap import task_interval
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.rollout import Rollout

GOOD_RUNS_PART = 'good runs'
"""The part of the rollouts that were used for thresholds of new tasks."""

PARTS = ('train', 'seen', 'unseen', GOOD_RUNS_PART, 'new')
"""Parts in the provenance of a detector. 'new' contains all other rollouts."""

Intervals = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class RealisedRate:
    """The realised and the promised false-alarm rate of a group of successes.

    Attributes
    ----------
    rollouts : str
        Name of the part. 'PART (calibration)' for rollouts that were used to calibrate the band;
        their rate is not evidence for the promise.
    successes : int
    promised, realised : float
    low, high : float
        95 % interval of the realised rate over rollouts (Clopper-Pearson).
    tasks_low, tasks_high : float
        95 % bootstrap interval over tasks; NaN with fewer than two tasks.
    above : bool
        True if the lower end of the interval over tasks is above the promised rate.
    worst_task : str or None
        The task with the highest rate; None if no task has enough successes.
    worst_rate : float or None
    infinite : bool
        True if the band is infinite at this rate.
    """

    rollouts: str
    successes: int
    promised: float
    realised: float
    low: float
    high: float
    tasks_low: float
    tasks_high: float
    above: bool
    worst_task: str | None
    worst_rate: float | None
    infinite: bool


@dataclass(frozen=True, eq=False)
class JudgedSet:
    """Rollouts with the scores and alarms of a calibrated detector, by part.

    Attributes
    ----------
    detector : CalibratedDetector
    alpha : float
        The promised false-alarm rate for which alarms were computed.
    parts : dict of str to list of ScoredRollout
        The parts of :data:`PARTS` that are not empty, in this order. Each rollout has its
        threshold, its alarm step and its recording.
    """

    detector: CalibratedDetector
    alpha: float
    parts: Mapping[str, Sequence[ScoredRollout]]

    @property
    def rollouts(self) -> list[ScoredRollout]:
        """All rollouts, part by part."""
        return [rollout for members in self.parts.values() for rollout in members]

    @property
    def band(self) -> Band:
        """The band of the detector."""
        return self.detector.band

    @cached_property
    def shortest(self) -> dict[Task, int]:
        """Minimum length of each task."""
        everything = self.rollouts
        return min_lengths([r.task for r in everything], [len(r) for r in everything])

    def report(self, alpha: float | None = None) -> dict[str, PartReport]:
        """Return the results of the detector on each part.

        Parameters
        ----------
        alpha : float, optional
            Promised false-alarm rate; the default is the rate of the alarms.

        Raises
        ------
        MetricError
            A rollout has no label.
        BandError
            The band was not calibrated for this rate.
        """
        return {
            part: report_part(
                members,
                self.shortest,
                self.band,
                self.alpha if alpha is None else alpha,
                probability=self.detector.probability,
            )
            for part, members in self.parts.items()
        }

    def intervals(self) -> dict[str, Intervals]:
        """Return the 95 % intervals over the rollouts of each part.

        The keys are the names of the parts. The AUC has a bootstrap interval, the rates have
        Clopper-Pearson intervals. The limits are NaN if the AUC or the rate does not exist.
        """
        return {
            part: rollout_intervals(self.parts[part], report, self.shortest)
            for part, report in self.report().items()
        }

    def realised_rates(self, alphas: Sequence[float] | None = None) -> list[RealisedRate]:
        """Return the realised and the promised false-alarm rates of each part.

        Parameters
        ----------
        alphas : sequence of float, optional
            Promised rates; the default is all rates of the band.
        """
        asked = self.band.alphas.tolist() if alphas is None else list(alphas)
        made = self.band.provenance
        used = {*made.get('calibration_rollouts', ()), *made.get('center_rollouts', ())}
        used.update(
            *(b.provenance.get('calibration_rollouts', ()) for b in self.band.tasks.values())
        )
        return [
            _realised(name, successes, self.band, alpha)
            for part, members in self.parts.items()
            for name, successes in (
                (f'{part} (calibration)', _successes(members, used, inside=True)),
                (part, _successes(members, used, inside=False)),
            )
            if successes
            for alpha in asked
        ]


def judge(
    detector: CalibratedDetector, rollouts: Rollouts, alpha: float | None = None
) -> JudgedSet:
    """Return the rollouts with their scores, thresholds and alarms.

    Parameters
    ----------
    detector : CalibratedDetector
    rollouts : Rollouts
        With or without labels.
    alpha : float, optional
        Promised false-alarm rate; the default is the rate of the detector.

    Raises
    ------
    EvaluationError
        The features or the action space differ from those that the detector was fitted on, the
        band was not calibrated for this rate, or a rollout is longer than the band.
    """
    if not isinstance(detector, CalibratedDetector):
        raise EvaluationError(
            where='judge',
            expected='a CalibratedDetector',
            found=repr(detector),
            advice='load a detector folder with safe_monitor_node.load_detector(folder)',
        )
    require_rollouts(rollouts)
    check_inputs(detector, rollouts)
    asked = detector.alpha if alpha is None else alpha
    try:
        # The rate does not depend on a rollout. Check it once, before hours of scoring.
        detector.band.at(asked)
    except BandError as error:
        raise EvaluationError(str(error)) from error
    parts = {
        part: with_alarms(score_part(detector.detector, members, part), detector.band, asked)
        for part, members in parts_of(detector, rollouts).items()
    }
    return JudgedSet(detector, asked, parts)


def score_part(detector: Detector, rollouts: Sequence[Rollout], part: str) -> list[ScoredRollout]:
    """Return the scored rollouts of one part, failures with their estimated beginning.

    For 'train', a step is not compared with steps of its own rollout.
    """
    score = detector.score_training if part == 'train' else detector.score_all
    return with_onsets(detector, scored_rollouts(score(rollouts), rollouts, part))


def with_onsets(detector: Detector, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
    """Return the rollouts; each failure has its beginning, estimated from its scores."""
    return [
        replace(rollout, onset_step=onset_step(detector.step_values(rollout.scores)))
        if rollout.failed
        else rollout
        for rollout in scored
    ]


def with_alarms(scored: Sequence[ScoredRollout], band: Band, alpha: float) -> list[ScoredRollout]:
    """Return the rollouts with the threshold of their task and their first alarm."""
    judged = []
    for rollout in scored:
        try:
            threshold = band.at(alpha, str(rollout.task))
            alarm = threshold.first_crossing(rollout.scores)
        except BandError as error:
            raise EvaluationError(f'rollout {rollout.episode_id!r}: {error}') from error
        judged.append(replace(rollout, threshold=threshold, alarm_step=alarm))
    return judged


def rollout_intervals(
    scored: Sequence[ScoredRollout], report: PartReport, shortest: Mapping[Task, int]
) -> Intervals:
    """Return 95 % intervals over the rollouts of a part; NaN for a number that does not exist."""
    auc = bootstrap_auc_interval(
        max_scores_until_min_length(scored, shortest),
        labels(scored),
        generator=np.random.default_rng(0),
    )
    pooled = report.alarms.pooled
    intervals = {'roc_auc_max_score_until_min_length': (auc.low, auc.high)}
    for name, count in (
        ('false_alarm_rate', pooled.n_successes),
        ('detection_rate', pooled.n_failures),
    ):
        alarms = round(getattr(pooled, name) * count) if count else 0
        intervals[name] = clopper_pearson(alarms, count)
    return intervals


def parts_of(detector: CalibratedDetector, rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Return rollouts by part, from the provenance of the detector.

    Rollouts that are not in the provenance belong to the part 'new'.
    """
    part_of = {
        episode: part
        for part, episodes in detector.provenance.get('episodes', {}).items()
        for episode in episodes
    }
    parts: dict[str, list[Rollout]] = {name: [] for name in PARTS}
    for rollout in rollouts:
        parts[part_of.get(rollout.episode_id, 'new')].append(rollout)
    return {name: members for name, members in parts.items() if members}


def check_inputs(detector: CalibratedDetector, rollouts: Rollouts) -> None:
    """Raise `EvaluationError` if the detector was fitted on different features or actions."""
    feature = rollouts.feature
    ignored = detector.feature.dim == 0 and not detector.reads_features
    if feature != detector.feature and not ignored:
        raise EvaluationError(
            where='rollouts',
            expected=f'the features of the detector: {detector.feature} of width '
            f'{detector.feature.dim}',
            found=f'{feature} of width {feature.dim}',
            advice='convert the recordings again with the feature and pooling of the detector',
        )
    if problem := detector.action_problem(rollouts.action_space):
        raise EvaluationError(
            f'{rollouts.source or "rollouts"}: {problem}; fit a detector on rollouts with the same '
            'action space'
        )


def _successes(
    members: Sequence[ScoredRollout], used: set[str], *, inside: bool
) -> list[ScoredRollout]:
    failed = labels(members)
    return [
        rollout
        for rollout, label in zip(members, failed, strict=True)
        if not label and (rollout.episode_id in used) == inside
    ]


def _realised(
    name: str, successes: Sequence[ScoredRollout], band: Band, alpha: float
) -> RealisedRate:
    tally = Tally()
    for rollout, alarm in zip(successes, band_alarms(successes, band, alpha), strict=True):
        tally.add(str(rollout.task), alarm is not None)
    low, high = clopper_pearson(sum(tally.alarms.values()), len(successes))
    over_tasks = task_interval(tally_cells({0: tally}))
    worst = worst_task([tally])
    return RealisedRate(
        rollouts=name,
        successes=len(successes),
        promised=alpha,
        realised=tally.rate,
        low=low,
        high=high,
        tasks_low=over_tasks.low,
        tasks_high=over_tasks.high,
        above=over_tasks.low > alpha,
        worst_task=None if worst is None else worst[0],
        worst_rate=None if worst is None else worst[1],
        infinite=not band.at(alpha).can_alarm,
    )
