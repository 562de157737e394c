# SPDX-License-Identifier: Apache-2.0
"""Fit, calibrate and evaluate detectors by the protocol.

Seen tasks are there to learn from, unseen ones to judge by.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from safe_monitor_node.band import Band
from safe_monitor_node.detectors import Detector, DetectorError, make_detector
from safe_training import fitting as _fitting  # noqa: F401  (makes Detector.fit work)
from safe_training.calibration import ALPHAS, CalibrationError, calibrate
from safe_training.conformal import constant_band
from safe_training.fit_probe import leave_one_task_out_scores
from safe_training.metrics import Scored, bootstrap_interval, earliest_stops
from safe_training.part_report import (
    PartReport,
    flatten_report,
    per_task,
    report_part,
    scored_rollouts,
)
from safe_training.protocol import EvaluationError, Protocol
from safe_training.splits import Split
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]
CLOCK = 'clock'
PARTS = ('train', 'seen', 'unseen')
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
    if protocol.horizon and protocol.horizon < needed:
        raise EvaluationError(
            f'the horizon is {protocol.horizon} steps, but the longest rollout has {needed}; '
            f'give --horizon {needed} or more'
        )
    return protocol.horizon or needed


def fit_and_calibrate(
    detector: Detector,
    rollouts: Sequence[Rollout],
    split: Split,
    protocol: Protocol,
    *,
    progress: Progress | None = None,
) -> Fitted:
    """Fit on the training part and calibrate on successes of the seen tasks.

    The band is drawn with the split's seed, so that every detector is calibrated on the same
    rollouts.
    """
    validation = [rollouts[i] for i in split.seen] if protocol.stop_early else None
    detector.fit([rollouts[i] for i in split.train], validation=validation, progress=progress)
    calibrate_on = left_out_scores if protocol.calibration == 'loto' else _held_out_scores
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
    horizon = longest(rollouts, protocol)
    described = f'{what}, split seed {split.seed}'

    def band_of(members: Sequence[int], of_what: str) -> Band:
        curves = [scores[i] for i in members]
        names = [successes[i].episode_id for i in members]
        if protocol.modulation == 'none':
            return constant_band(
                curves,
                alphas,
                horizon=horizon,
                quantile=protocol.quantile,
                rollouts=names,
                calibrated_on=of_what,
            )
        return calibrate(
            curves,
            alphas,
            horizon=horizon,
            generator=np.random.default_rng(split.seed),
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
        band, provenance={**band.provenance, 'scores': protocol.calibration}, tasks=tasks
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
            'lower --train-ratio, add rollouts, or choose another --seed'
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


def score_part(detector: Detector, rollouts: Sequence[Rollout], part: str) -> list[Scored]:
    """Score labelled rollouts of one part; in 'train' no step may recognise itself."""
    score = detector.score_training if part == 'train' else detector.score_all
    scores = score(rollouts)
    return scored_rollouts(scores, rollouts)


def report_parts(
    fitted: Fitted, rollouts: Sequence[Rollout], alpha: float
) -> dict[str, PartReport]:
    """Evaluate a fitted detector on every part of its split that is not empty."""
    stops = earliest_stops([r.task for r in rollouts], [len(r) for r in rollouts])
    return {
        name: report_part(
            score_part(fitted.detector, [rollouts[i] for i in indices], name),
            stops,
            fitted.band,
            alpha,
            probability=fitted.detector.gives_probability,
        )
        for name, indices in fitted.split.parts.items()
        if indices
    }


@dataclass(frozen=True)
class Row:
    """One detector on one part of one split: numbers by name, and those of each task."""

    detector: str
    seed: int
    part: str
    values: dict[str, float]
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate_splits(
    names: Sequence[str],
    rollouts: Sequence[Rollout],
    protocol: Protocol,
    splits: Sequence[Split],
    params: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    progress: Progress | None = None,
) -> list[Row]:
    """Fit, calibrate and evaluate each detector on each split.

    Parameters
    ----------
    names : sequence of str
        Registered detectors.
    rollouts : sequence of Rollout
        Labelled rollouts of several tasks.
    splits : sequence of Split
        The seed of each is also that of detectors that draw.
    params : dict of detector to parameters
    """
    rows = []
    total = len(splits) * len(names)
    for number, (split, name) in enumerate(itertools.product(splits, names)):
        detector = make_seeded(name, (params or {}).get(name, {}), split.seed)
        note = f'{name}, split {split.seed}'

        def report(
            done: int, epochs: int, detail: str, number: int = number, note: str = note
        ) -> None:
            if progress is not None:
                progress(number, total, f'{note}: {done}/{epochs} {detail}')

        if progress is not None:
            progress(number, total, note)
        started = time.perf_counter()
        try:
            fitted = fit_and_calibrate(detector, rollouts, split, protocol, progress=report)
        except (CalibrationError, DetectorError) as error:
            raise type(error)(f'{note}: {error}') from error
        seconds = time.perf_counter() - started
        for part, result in report_parts(fitted, rollouts, protocol.alpha).items():
            values = {**flatten_report(result), 'fit_seconds': seconds}
            rows.append(Row(name, split.seed, part, values, per_task(result)))
    return rows


def make_seeded(name: str, params: Mapping[str, Any], seed: int) -> Detector:
    """Make a detector that draws with the seed of its split, unless the parameters name one."""
    detector = make_detector(name, **params)
    if 'seed' in detector.get_params() and 'seed' not in params:
        return make_detector(name, **params, seed=seed)
    return detector


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (ddof 1) over splits and a 95 % bootstrap interval of the mean."""

    mean: float
    std: float
    low: float
    high: float
    splits: int


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Summary]]]:
    """Summarise rows over splits as ``[detector][part][value]``; splits without it are left out."""
    grouped: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        part = grouped.setdefault(row.detector, {}).setdefault(row.part, {})
        for name, value in row.values.items():
            part.setdefault(name, []).append(value)
    return {
        detector: {
            part: {name: summary_of(values) for name, values in named.items()}
            for part, named in parts.items()
        }
        for detector, parts in grouped.items()
    }


def summary_of(values: Sequence[float]) -> Summary:
    """Summarise one number over splits; NaN where a split has none."""
    array = np.array(values, dtype=np.float64)
    used = array[np.isfinite(array)]
    interval = bootstrap_interval(array, generator=np.random.default_rng(0))
    return Summary(
        mean=float(used.mean()) if used.size else np.nan,
        std=float(used.std(ddof=1)) if used.size > 1 else np.nan,
        low=interval.low,
        high=interval.high,
        splits=int(used.size),
    )
