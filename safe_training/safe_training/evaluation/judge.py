# SPDX-License-Identifier: Apache-2.0
"""What a calibrated detector says about rollouts: score, threshold and alarm of each."""

from __future__ import annotations

from collections.abc import Sequence

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.threshold import BandError
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.evaluation.protocol import EvaluationError
from safe_training.metrics.scored import ScoredRollout
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout


def judge(
    loaded: CalibratedDetector,
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    alpha: float | None = None,
) -> list[ScoredRollout]:
    """Return the rollouts with their scores and alarms, part by part.

    Parameters
    ----------
    alpha : float or None
        Promised false-alarm rate; None takes the rate of the detector.

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
            try:
                threshold = band.at(loaded.alpha if alpha is None else alpha, rollout.task)
                alarm = threshold.first_crossing(scores)
            except BandError as error:
                raise EvaluationError(f'rollout {rollout.episode_id!r}: {error}') from error
            judged.append(
                ScoredRollout(
                    scores,
                    None if rollout.success is None else rollout.failed,
                    rollout.task,
                    rollout.failure_step,
                    rollout.episode_id,
                    part,
                    threshold,
                    alarm,
                    rollout,
                )
            )
    return judged


def by_part(judged: Sequence[ScoredRollout]) -> dict[str, list[ScoredRollout]]:
    """Group by part, in the order of their first member."""
    parts: dict[str, list[ScoredRollout]] = {}
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
