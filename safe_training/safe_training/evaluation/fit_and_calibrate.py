# SPDX-License-Identifier: Apache-2.0
"""Fits a detector on a split and calibrates its band."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import Detector, make_detector
from safe_training.calibration.constant import constant_band
from safe_training.calibration.curves import ALPHAS, CalibrationError
from safe_training.calibration.functional import calibrate
from safe_training.evaluation.left_out import leave_one_task_out_scores
from safe_training.evaluation.protocol import EvaluationError, Protocol
from safe_training.evaluation.splits import Split
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]
HELD_OUT = 'successes among the held-out rollouts of the seen tasks'


@dataclass(frozen=True)
class Fitted:
    """A detector fitted on one split, and its band."""

    detector: Detector
    band: Band
    split: Split


def labelled(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the rollouts with an outcome; raises if there are none."""
    kept = [r for r in rollouts if r.success is not None]
    if not kept:
        raise EvaluationError(
            f'none of the {len(rollouts)} rollouts has an outcome (success or failure); '
            'label them first'
        )
    return kept


def longest(rollouts: Sequence[Rollout], protocol: Protocol) -> int:
    """Return how many steps the band must cover."""
    needed = max(len(r) for r in rollouts)
    if protocol.max_steps and protocol.max_steps < needed:
        raise EvaluationError(
            f'max_steps is {protocol.max_steps} steps, but the longest rollout has {needed}; '
            f'give --max-steps {needed} or more'
        )
    return protocol.max_steps or needed


def fit_and_calibrate(
    detector: Detector,
    rollouts: Sequence[Rollout],
    split: Split,
    protocol: Protocol,
    *,
    progress: Progress | None = None,
) -> Fitted:
    """Fit on the training part and calibrate on successes of the seen tasks.

    The number of the split seeds the draw of the band, so that every detector is calibrated on the
    same rollouts.
    """
    validation = [rollouts[i] for i in split.seen] if protocol.stop_early else None
    detector.fit([rollouts[i] for i in split.train], validation=validation, progress=progress)
    calibrate_on = left_out_scores if protocol.calibrate_on == 'loto' else _held_out_scores
    scores, successes, what = calibrate_on(detector, rollouts, split, progress)
    return Fitted(
        detector, calibrated_band(scores, successes, what, rollouts, split, protocol), split
    )


def calibrated_band(
    scores: Sequence[np.ndarray],
    successes: Sequence[Rollout],
    what: str,
    rollouts: Sequence[Rollout],
    split: Split,
    protocol: Protocol,
    *,
    alphas: Sequence[float] | None = None,
) -> Band:
    """Calibrate the band of a split on scores of successes; ``what`` says which those are.

    It holds ``alphas``; by default the usual ones and the protocol's own.
    """
    alphas = sorted({*ALPHAS, protocol.alpha}) if alphas is None else sorted(alphas)
    max_steps = longest(rollouts, protocol)
    described = f'{what}, split {split.number}'

    def band_of(members: Sequence[int], of_what: str) -> Band:
        curves = [scores[i] for i in members]
        names = [successes[i].episode_id for i in members]
        if protocol.modulation == 'none':
            return constant_band(
                curves,
                alphas,
                max_steps=max_steps,
                quantile=protocol.quantile,
                rollouts=names,
                calibrated_on=of_what,
            )
        return calibrate(
            curves,
            alphas,
            max_steps=max_steps,
            generator=np.random.default_rng(split.number),
            modulation=protocol.modulation,  # type: ignore[arg-type]
            quantile=protocol.quantile,
            rollouts=names,
            calibrated_on=of_what,
        )

    band = band_of(range(len(scores)), described)
    tasks: dict[str, Band] = {}
    if protocol.per_task:
        tasks = _task_bands(successes, protocol.alpha, described, band_of)
    return replace(
        band, provenance={**band.provenance, 'scores': protocol.calibrate_on}, tasks=tasks
    )


def _task_bands(
    successes: Sequence[Rollout],
    alpha: float,
    described: str,
    band_of: Callable[[Sequence[int], str], Band],
) -> dict[str, Band]:
    """Return a band for each task, and one for all tasks together that have too few successes.

    Which those are follows from the counts alone, so the promise holds within each task with a band
    of its own and within the group of the others. Were these left to the band of all tasks, which
    the tasks with many successes rule, theirs could be kept nowhere.
    """
    members: dict[str, list[int]] = {}
    for index, rollout in enumerate(successes):
        members.setdefault(rollout.task, []).append(index)
    bands: dict[str, Band] = {}
    few: list[str] = []
    # A task without a name cannot be told from the others while a robot works.
    for task in sorted(filter(None, members)):
        band = _finite_band(band_of, members[task], f'{described}, task {task!r} alone', alpha)
        if band is not None:
            bands[task] = band
        else:
            few.append(task)
    if few:
        of_few = [index for task in few for index in members[task]]
        what = f'{described}, the tasks {", ".join(map(repr, few))} together'
        shared = _finite_band(band_of, of_few, what, alpha)
        if shared is not None:
            shared = replace(shared, provenance={**shared.provenance, 'tasks': few})
            bands |= dict.fromkeys(few, shared)
    return bands


def _finite_band(
    band_of: Callable[[Sequence[int], str], Band], members: Sequence[int], what: str, alpha: float
) -> Band | None:
    """Return the band of some successes; None where they are too few for a finite threshold."""
    try:
        band = band_of(members, what)
    except CalibrationError:  # the published quantile of none
        return None
    return band if band.at(alpha).can_alarm else None


def _held_out_scores(
    detector: Detector, rollouts: Sequence[Rollout], split: Split, progress: Progress | None
) -> tuple[list[np.ndarray], list[Rollout], str]:
    """Return scores of the held-out successes of the seen tasks, these, and what they are."""
    successes = [rollouts[i] for i in split.seen if not rollouts[i].failed]
    if not successes:
        raise CalibrationError(
            f'calibration: the {len(split.seen)} held-out rollouts of the '
            f'{len(split.seen_tasks)} seen tasks hold no success; '
            'lower --train-ratio, add rollouts, or choose another --split'
        )
    return detector.score_all(successes), successes, HELD_OUT


def left_out_scores(
    detector: Detector, rollouts: Sequence[Rollout], split: Split, progress: Progress | None
) -> tuple[list[np.ndarray], list[Rollout], str]:
    """Return leave-one-task-out scores of the training successes, these, and what they are."""
    training = [rollouts[i] for i in split.train]
    scores = leave_one_task_out_scores(detector, training, progress=progress)
    kept = [i for i, rollout in enumerate(training) if not rollout.failed]
    what = (
        'successes among the training rollouts of the seen tasks, each scored without its task '
        '(leave-one-task-out)'
    )
    return [scores[i] for i in kept], [training[i] for i in kept], what


def make_seeded(name: str, params: Mapping[str, Any], seed: int) -> Detector:
    """Make a detector that draws with the seed of its split, unless the parameters name one."""
    detector = make_detector(name, **params)
    if 'seed' in detector.get_params() and 'seed' not in params:
        return make_detector(name, **params, seed=seed)
    return detector
