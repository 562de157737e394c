# SPDX-License-Identifier: Apache-2.0
"""Fit, calibrate and evaluate detectors by the protocol.

Seen tasks are there to learn from, unseen ones to judge by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from safe_monitor_node.band import Band
from safe_monitor_node.detectors import Detector, make_detector
from safe_training import fitting as _fitting  # noqa: F401  (makes Detector.fit work)
from safe_training.calibration import ALPHAS, CalibrationError, calibrate
from safe_training.conformal import constant_band
from safe_training.fit_probe import leave_one_task_out_scores
from safe_training.metrics import (
    AlarmReport,
    RankingReport,
    Scored,
    alarm_report_by_end,
    alarm_steps,
    bootstrap_interval,
    clock_scores,
    earliest_stops,
    rankings,
)
from safe_training.splits import Split, split_tasks
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]
CLOCK = 'clock'
PARTS = ('train', 'seen', 'unseen')
HELD_OUT = 'successes among the held-out rollouts of the seen tasks'


class EvaluationError(ValueError):
    """Rollouts cannot be evaluated as asked; the message says what was found and what to do."""


@dataclass(frozen=True)
class Protocol:
    """How rollouts are split and alarms calibrated; the same for every detector that is compared.

    Attributes
    ----------
    unseen_ratio, seen_train_ratio : float
        Share of the tasks that is never trained on; share of a seen task's rollouts that trains.
    alpha : float
        Promised false-alarm rate.
    modulation : {'adaptive', 'std', 'constant', 'none'}
        Shape of the band; 'none': one threshold for all steps, which needs the fewest successes.
    horizon : int
        Steps of the band; 0 takes the longest rollout there is.
    calibration : {'heldout', 'loto'}
        What the band is calibrated on: held-out successes of the seen tasks, or the training
        successes, each scored by a detector fitted on the other tasks (leave-one-task-out). The
        first promises for tasks like the seen ones, the second is the better guide to new tasks.
    stop_early : bool
        Stop training where the loss on the held-out rollouts of the seen tasks is lowest. The band
        is then calibrated on rollouts that training has looked at, which weakens its promise.
    """

    unseen_ratio: float = 0.3
    seen_train_ratio: float = 0.6
    alpha: float = 0.1
    modulation: str = 'adaptive'
    horizon: int = 0
    calibration: Literal['heldout', 'loto'] = 'heldout'
    stop_early: bool = False


@dataclass(frozen=True)
class Fitted:
    """A detector fitted on one split, and its band."""

    detector: Detector
    band: Band
    split: Split


@dataclass(frozen=True)
class PartReport:
    """What a detector achieves on one part of a split."""

    ranking: dict[str, RankingReport]
    clock: dict[str, RankingReport]
    alarms: AlarmReport
    alpha: float


def labelled(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the rollouts with an outcome; raises if there are none."""
    kept = [r for r in rollouts if r.success is not None]
    if not kept:
        raise EvaluationError(
            f'none of the {len(rollouts)} rollouts has an outcome (success or failure); '
            'label them first'
        )
    return kept


def choose_split(rollouts: Sequence[Rollout], protocol: Protocol, seed: int) -> Split:
    """Split labelled rollouts by task.

    Rollouts that their source sets aside (``Rollout.unseen``) are the unseen part, and nothing else
    is: no detector may train or be calibrated on their tasks.
    """
    aside = {r.task for r in rollouts if r.unseen}
    known = [i for i, r in enumerate(rollouts) if r.task not in aside]
    if not known:
        raise EvaluationError(
            'every task is set aside as unseen, so there is nothing to fit on; '
            'give a source that also holds tasks to train on'
        )
    split = split_tasks(
        [rollouts[i].task for i in known],
        seed=seed,
        unseen_ratio=0.0 if aside else protocol.unseen_ratio,
        seen_train_ratio=protocol.seen_train_ratio,
    )
    if not aside:
        return split
    return replace(
        split,
        train=tuple(known[i] for i in split.train),
        seen=tuple(known[i] for i in split.seen),
        unseen=tuple(i for i, r in enumerate(rollouts) if r.task in aside),
        unseen_tasks=tuple(sorted(aside)),
    )


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
    calibrate_on = _left_out_scores if protocol.calibration == 'loto' else _held_out_scores
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
) -> Band:
    """Calibrate the band of a split on scores of successes; ``what`` says which those are."""
    alphas = sorted({*ALPHAS, protocol.alpha})
    horizon = longest(rollouts, protocol)
    names = [r.episode_id for r in successes]
    described = f'{what}, split seed {split.seed}'
    if protocol.modulation == 'none':
        band = constant_band(
            scores, alphas, horizon=horizon, rollouts=names, calibrated_on=described
        )
    else:
        band = calibrate(
            scores,
            alphas,
            horizon=horizon,
            generator=np.random.default_rng(split.seed),
            modulation=protocol.modulation,  # type: ignore[arg-type]
            rollouts=names,
            calibrated_on=described,
        )
    return replace(band, provenance={**band.provenance, 'scores': protocol.calibration})


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


def _left_out_scores(
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
    return [Scored(s, r.failed, r.task) for s, r in zip(scores, rollouts, strict=True)]


def report_part(
    scored: Sequence[Scored], stops: Mapping[Any, int], band: Band, alpha: float
) -> PartReport:
    """Evaluate scored rollouts; ``stops`` are the earliest stops of all rollouts there are."""
    return PartReport(
        ranking=rankings(scored, stops),
        clock=rankings(clock_scores(scored), stops),
        alarms=alarm_report_by_end(scored, alarm_steps(scored, band.at(alpha))),
        alpha=alpha,
    )


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
        )
        for name, indices in fitted.split.parts.items()
        if indices
    }


def flatten_report(report: PartReport) -> dict[str, float]:
    """Return one part's numbers under flat names, for tables and JSON; NaN where there is none."""
    values: dict[str, float] = {}
    for prefix, ranking in (('', report.ranking), ('clock_', report.clock)):
        for when, entry in ranking.items():
            values[f'{prefix}roc_auc_{when}'] = entry.pooled.roc_auc
            values[f'{prefix}macro_roc_auc_{when}'] = entry.macro_roc_auc
    by_stop = report.ranking['by_earliest_stop']
    pooled = report.alarms.pooled
    values |= {
        'average_precision_by_earliest_stop': by_stop.pooled.average_precision,
        'tasks': len(by_stop.per_task),
        'tasks_with_both_outcomes': by_stop.tasks_used,
        'failures': pooled.n_failures,
        'successes': pooled.n_successes,
        'alpha': report.alpha,
        'false_alarm_rate': pooled.false_alarm_rate,
        'detection_rate': pooled.detection_rate,
        'balanced_accuracy': pooled.balanced_accuracy,
        'detection_time': pooled.detection_time,
        'macro_false_alarm_rate': report.alarms.macro_false_alarm_rate,
        'macro_detection_rate': report.alarms.macro_detection_rate,
    }
    return values


@dataclass(frozen=True)
class Row:
    """One detector on one part of one split."""

    detector: str
    seed: int
    part: str
    values: dict[str, float]


def evaluate_splits(
    names: Sequence[str],
    rollouts: Sequence[Rollout],
    protocol: Protocol,
    seeds: Sequence[int],
    params: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    progress: Progress | None = None,
) -> list[Row]:
    """Fit, calibrate and evaluate each detector on each random task split.

    Parameters
    ----------
    names : sequence of str
        Registered detectors.
    rollouts : sequence of Rollout
        Labelled rollouts of several tasks.
    seeds : sequence of int
        One task split each; also the seed of detectors that draw.
    params : dict of detector to parameters
    """
    rows = []
    for seed in seeds:
        split = choose_split(rollouts, protocol, seed)
        for name in names:
            chosen = dict((params or {}).get(name, {}))
            detector = make_detector(name, **chosen)
            if 'seed' in detector.get_params() and 'seed' not in chosen:
                detector = make_detector(name, **chosen, seed=seed)
            note = f'split {seed}, {name}'

            def report(done: int, total: int, detail: str, note: str = note) -> None:
                if progress is not None:
                    progress(done, total, f'{note}, {detail}')

            started = time.perf_counter()
            fitted = fit_and_calibrate(detector, rollouts, split, protocol, progress=report)
            seconds = time.perf_counter() - started
            for part, result in report_parts(fitted, rollouts, protocol.alpha).items():
                values = {**flatten_report(result), 'fit_seconds': seconds}
                rows.append(Row(name, seed, part, values))
    return rows


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
