# SPDX-License-Identifier: Apache-2.0
"""Every rollout of a set as a detector judges it: score, threshold and alarm at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.threshold import BandError, Threshold
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.evaluation.protocol import EvaluationError
from safe_training.metrics.part_report import scored_rollouts
from safe_training.metrics.scored import ScoredRollout
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout

# What became of a rollout, in the order in which people look for trouble.
VERDICTS = ('miss', 'false alarm', 'detection', 'quiet')


@dataclass(frozen=True, eq=False)
class Judged:
    """One rollout with what the detector says about it.

    Attributes
    ----------
    rollout : Rollout
    part : {'train', 'seen', 'unseen', 'new'}
        What the detector's provenance calls it; 'new' if it does not name it.
    scores : ndarray of float64, shape (T,)
    threshold : Threshold
        An alarm is a score above it; covers the T steps.
    alarm_step : int or None
        The first step above the threshold.
    """

    rollout: Rollout
    part: str
    scores: np.ndarray
    threshold: Threshold
    alarm_step: int | None

    @property
    def verdict(self) -> str:
        """One of :data:`VERDICTS`; for a rollout without outcome 'unlabelled'."""
        if self.rollout.success is None:
            return 'unlabelled'
        if self.alarm_step is None:
            return 'miss' if self.rollout.failed else 'quiet'
        return 'detection' if self.rollout.failed else 'false alarm'

    @property
    def scored(self) -> ScoredRollout:
        """As the metrics take it; raises without an outcome."""
        return scored_rollouts([self.scores], [self.rollout])[0]


def judge(
    loaded: CalibratedDetector,
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    alpha: float | None = None,
) -> list[Judged]:
    """Score rollouts and find their alarms, part by part.

    Parameters
    ----------
    alpha : float or None
        Promised false-alarm rate; None takes the folder's own.

    Raises
    ------
    EvaluationError
        The features are not what the detector was fitted on, there is no band, or the band is not
        for this alpha or ends before a rollout does.
    """
    band = band_for(loaded, feature)
    judged = []
    for part, members in parts_of(loaded, rollouts).items():
        detector = loaded.detector
        score = detector.score_training if part == 'train' else detector.score_all
        for rollout, scores in zip(members, score(members), strict=True):
            values = np.asarray(scores, dtype=np.float64)
            try:
                threshold = band.at(loaded.alpha if alpha is None else alpha, rollout.task)
                alarm = threshold.first_crossing(values)
            except BandError as error:
                raise EvaluationError(f'rollout {rollout.episode_id!r}: {error}') from error
            judged.append(Judged(rollout, part, values, threshold, alarm))
    return judged


def by_part(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Group by part, in the order of their first member."""
    parts: dict[str, list[Judged]] = {}
    for entry in judged:
        parts.setdefault(entry.part, []).append(entry)
    return parts


def parts_of(loaded: CalibratedDetector, rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Sort rollouts into the parts that a detector's provenance names; the others are 'new'."""
    part_of = {
        episode: part
        for part, episodes in loaded.provenance.get('episodes', {}).items()
        for episode in episodes
    }
    parts: dict[str, list[Rollout]] = {name: [] for name in ('train', 'seen', 'unseen', 'new')}
    for rollout in rollouts:
        parts[part_of.get(rollout.episode_id, 'new')].append(rollout)
    return {name: members for name, members in parts.items() if members}


def band_for(loaded: CalibratedDetector, feature: FeatureSpec) -> Band:
    """Return the detector's band if it can judge rollouts with these features.

    Raises
    ------
    EvaluationError
        The features are not what the detector was fitted on, or there is no band.
    """
    if feature != loaded.feature:
        raise EvaluationError(
            f'the rollouts hold features {feature} of width {feature.dim}, '
            f'the detector was fitted on {loaded.feature} of width {loaded.feature.dim}; '
            'convert with the same feature and pooling'
        )
    if loaded.band is None:
        raise EvaluationError('the detector folder has no band; fit it again')
    return loaded.band
