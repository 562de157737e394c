# SPDX-License-Identifier: Apache-2.0
"""Fits a detector on a split and calibrates its band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import safe_training.fitting  # noqa: F401  (registers the fitters)
from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import Detector, make_detector
from safe_training.calibration.curves import ALPHAS, CalibrationError, Successes
from safe_training.calibration.kinds import KINDS, BandRequest
from safe_training.calibration.probability import fit_probability
from safe_training.evaluation.good_runs import add_seen_scores
from safe_training.evaluation.judge import score_part
from safe_training.evaluation.left_out import leave_one_task_out_scores
from safe_training.evaluation.protocol import (
    EvaluationError,
    Protocol,
    require_rollouts,
    settled,
)
from safe_training.evaluation.provenance import provenance_of
from safe_training.evaluation.splits import Split
from safe_training.metrics.part_report import scored_rollouts
from safe_training.metrics.scored import ScoredRollout
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

HELD_OUT_ROLLOUTS = 'held-out rollouts of the seen tasks'
LEFT_OUT_ROLLOUTS = (
    'training rollouts of the seen tasks, each scored by a detector that was fitted without its '
    'task (leave-one-task-out)'
)
HELD_OUT = f'successes among the {HELD_OUT_ROLLOUTS}'
LEFT_OUT = f'successes among the {LEFT_OUT_ROLLOUTS}'

NO_SEEN_SCORES = (
    'the band was calibrated on held-out rollouts; --calibrate-on loto makes the scores, and '
    'trains the detector once without each seen task'
)


def labelled(rollouts: Rollouts) -> Rollouts:
    """Return the rollouts that have a label (success or failure).

    Raise an error if no rollout has a label.
    """
    require_rollouts(rollouts)
    kept = [r for r in rollouts if r.success is not None]
    if not kept:
        raise EvaluationError(
            where='rollouts',
            expected='at least one rollout with a label (success or failure)',
            found=f'{len(rollouts)} rollouts without a label',
            advice='label episodes first (verb `label`)',
        )
    return rollouts.take(kept)


def longest(rollouts: Sequence[Rollout], protocol: Protocol) -> int:
    """Return the number of steps of the band."""
    needed = max(len(r) for r in rollouts)
    if protocol.max_steps and protocol.max_steps < needed:
        raise EvaluationError(
            where='max_steps',
            expected=f'at least {needed} (the longest rollout has {needed} steps)',
            found=str(protocol.max_steps),
            advice=f'give --max-steps {needed} or more',
        )
    return protocol.max_steps or needed


def fit(
    name: str,
    rollouts: Rollouts,
    split: Split,
    *,
    params: Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    progress: Progress | None = None,
) -> CalibratedDetector:
    """Return a detector fitted on the training part of a split, with its band.

    Parameters
    ----------
    name : str
        Registered detector, such as 'linear_probe'.
    rollouts : Rollouts
        The rollouts from which the split was made; all must have a label.
    split : Split
        From :func:`safe_training.choose_split`.
    params : mapping of parameter to value, optional
        Parameters of the detector; its defaults if not given.
    protocol : Protocol, optional
        How the band is calibrated; the default promises a false-alarm rate of 0.1, and calibrates
        on leave-one-task-out scores if there are more than two seen tasks.
    progress : callable, optional
        Called with (done, total, note) while the detector is fitted.

    Raises
    ------
    DetectorError
        There is no such detector, or it cannot be fitted on the rollouts.
    SplitError
        The split was made from different rollouts, or from these in another order.
    CalibrationError
        No held-out rollout of the seen tasks is a success.
    """
    require_rollouts(rollouts)
    return fit_and_calibrate(
        make_detector(name, **(params or {})),
        rollouts,
        split,
        protocol or Protocol(),
        progress=progress,
    )


def fit_and_calibrate(
    detector: Detector,
    rollouts: Rollouts,
    split: Split,
    protocol: Protocol,
    *,
    progress: Progress | None = None,
) -> CalibratedDetector:
    """Fit on the training part and calibrate on successes of the seen tasks.

    The number of the split seeds the draw of the band, so that every detector is calibrated on the
    same rollouts.
    """
    protocol = settled_for(protocol, rollouts, split)
    fit_on(detector, rollouts, split, protocol, progress)
    left_out = cache(lambda: left_out_rollouts(detector, rollouts, split, progress))
    if protocol.calibrate_on == 'loto':
        scored = left_out()
    else:
        scored = score_part(detector, [rollouts[i] for i in split.seen], 'seen')
    calibrated = calibrated_detector(detector, scored, rollouts, split, protocol)
    if protocol.calibrate_on != 'loto' and detector.trains_over_epochs():
        # One more training for each seen task would take a long time, and the user did not request
        # it.
        provenance = {**calibrated.provenance, 'no_seen_scores': NO_SEEN_SCORES}
        return replace(calibrated, provenance=provenance)
    return add_seen_scores(calibrated, lambda: left_out_successes_of(left_out()))


def settled_for(protocol: Protocol, rollouts: Sequence[Rollout], split: Split) -> Protocol:
    """Return the protocol with a fixed ``calibrate_on`` for the training rollouts of a split.

    Raises
    ------
    SplitError
        The split was made from different rollouts, or from these in another order.
    """
    split.check_rollouts(rollouts)
    fixed = settled(protocol, [rollouts[i] for i in split.train])
    return replace(fixed, seen_train_ratio=split.seen_train_ratio)


def fit_on(
    detector: Detector,
    rollouts: Sequence[Rollout],
    split: Split,
    protocol: Protocol,
    progress: Progress | None = None,
) -> None:
    """Fit a detector on the training part of a split.

    Raises
    ------
    SplitError
        The split was made from different rollouts, or from these in another order.
    """
    split.check_rollouts(rollouts)
    validation = [rollouts[i] for i in split.seen] if protocol.stop_early else None
    detector.fit([rollouts[i] for i in split.train], validation=validation, progress=progress)


def calibrated_detector(
    detector: Detector,
    scored: Sequence[ScoredRollout],
    rollouts: Rollouts,
    split: Split,
    protocol: Protocol,
) -> CalibratedDetector:
    """Return a fitted detector with its band, probability map, features and provenance.

    Parameters
    ----------
    scored : sequence of ScoredRollout
        Successes and failures for the calibration, see `calibration_successes`.
    """
    successes = calibration_successes(scored, split, protocol)
    return CalibratedDetector(
        detector=detector,
        feature=rollouts.feature,
        band=calibrated_band(successes, rollouts, split, protocol),
        alpha=protocol.alpha,
        provenance=provenance_of(rollouts, split),
        action_space=rollouts.action_space,
        probability=probability_map(scored, split, protocol),
    )


def calibration_successes(
    scored: Sequence[ScoredRollout], split: Split, protocol: Protocol
) -> Successes:
    """Return the successes on which a band is calibrated.

    Parameters
    ----------
    scored : sequence of ScoredRollout
        The held-out rollouts of the seen tasks, or for ``calibrate_on='loto'`` the training
        rollouts with their leave-one-task-out scores (`left_out_rollouts`).
    """
    if protocol.calibrate_on == 'loto':
        return left_out_successes_of(scored)
    return held_out_successes(scored, split)


def probability_map(
    scored: Sequence[ScoredRollout], split: Split, protocol: Protocol
) -> ProbabilityMap | None:
    """Return the map from score and time to the probability of failure.

    None with too few failures or successes. The parameters are the same as for
    `calibration_successes`.
    """
    described = LEFT_OUT_ROLLOUTS if protocol.calibrate_on == 'loto' else HELD_OUT_ROLLOUTS
    return fit_probability(
        [rollout.scores for rollout in scored],
        [bool(rollout.failed) for rollout in scored],
        [str(rollout.task) for rollout in scored],
        f'{described}, split {split.number}',
    )


def calibrated_band(
    successes: Successes,
    rollouts: Sequence[Rollout],
    split: Split,
    protocol: Protocol,
    *,
    alphas: Sequence[float] | None = None,
) -> Band:
    """Return the band of a split.

    Parameters
    ----------
    rollouts : sequence of Rollout
        All rollouts of the split. The band is as long as the longest rollout.
    alphas : sequence of float, optional
        Promised rates of the band; the default is a fixed list and the rate of the protocol.
    """
    request = BandRequest(
        max_steps=longest(rollouts, protocol),
        alpha=protocol.alpha,
        alphas=sorted({*ALPHAS, protocol.alpha}) if alphas is None else sorted(alphas),
        seed=split.number,
        quantile=protocol.quantile,
        per_task=protocol.per_task,
    )
    described = replace(successes, described=f'{successes.described}, split {split.number}')
    band = KINDS[protocol.modulation].calibrate(described, request)
    return replace(band, provenance={**band.provenance, 'scores': protocol.calibrate_on})


def successes_of(scored: Sequence[ScoredRollout], described: str = HELD_OUT) -> Successes:
    """Return the scored successes as input for the calibration of a band."""
    return Successes(
        [r.scores for r in scored],
        [r.episode_id for r in scored],
        [str(r.task) for r in scored],
        described,
    )


def held_out_successes(seen: Sequence[ScoredRollout], split: Split) -> Successes:
    """Return the successes among the scored held-out rollouts of the seen tasks."""
    kept = [rollout for rollout in seen if not rollout.failed]
    if not kept:
        raise CalibrationError(
            where='calibration',
            expected=f'successes among the {len(split.seen)} held-out rollouts of the '
            f'{len(split.seen_tasks)} seen tasks',
            found='none',
            advice='lower --train-ratio (such as 0.6), add rollouts, or choose another split',
        )
    return successes_of(kept)


def left_out_rollouts(
    detector: Detector,
    rollouts: Sequence[Rollout],
    split: Split,
    progress: Progress | None = None,
) -> list[ScoredRollout]:
    """Return the training rollouts of both outcomes.

    Each is scored by a detector that was fitted without its task.
    """
    training = [rollouts[i] for i in split.train]
    scores = leave_one_task_out_scores(detector, training, progress=progress)
    return scored_rollouts(scores, training, 'train')


def left_out_successes_of(scored: Sequence[ScoredRollout]) -> Successes:
    """Return the successes among the rollouts of `left_out_rollouts`."""
    return successes_of([rollout for rollout in scored if not rollout.failed], LEFT_OUT)


def make_seeded(name: str, params: Mapping[str, Any], seed: int) -> Detector:
    """Return a detector.

    Its seed is the number of the split, except if ``params`` contain a seed.
    """
    detector = make_detector(name, **params)
    if 'seed' in detector.get_params() and 'seed' not in params:
        return make_detector(name, **params, seed=seed)
    return detector
