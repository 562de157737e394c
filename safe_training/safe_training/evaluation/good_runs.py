# SPDX-License-Identifier: Apache-2.0
"""Gives each new task its own threshold from a few successful rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_runs import (
    DEFAULT_RUNS,
    GoodRun,
    GoodRunsError,
    good_runs_band,
)
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import DetectorError
from safe_training.calibration.curves import CalibrationError, Successes
from safe_training.calibration.good_runs import seen_scores
from safe_training.evaluation.judge import GOOD_RUNS_PART, check_inputs
from safe_training.evaluation.protocol import require_rollouts
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.rollout import Rollout


@dataclass(frozen=True)
class NewThreshold:
    """The threshold of a task from its good runs.

    Attributes
    ----------
    task : str
    band : Band
    before : float
        Threshold of the task at the first step without good runs.
    threshold : float
        Threshold at the alpha of the detector, equal at all steps; +inf if no finite threshold
        keeps the promise.
    notes : tuple of str
        Notes for a person: rollouts that are not used, a task that was seen.
    """

    task: str
    band: Band
    before: float
    threshold: float
    notes: tuple[str, ...]


def add_seen_scores(
    detector: CalibratedDetector, left_out: Callable[[], Successes]
) -> CalibratedDetector:
    """Return the detector with the largest scores of its training successes.

    If the scores cannot be computed, the provenance contains the reason. The detector can still be
    used, but not with good runs.

    Parameters
    ----------
    detector : CalibratedDetector
    left_out : callable
        Returns the training successes, each scored by a detector fitted without its task.
    """
    try:
        seen = seen_scores(left_out())
    except (CalibrationError, DetectorError, GoodRunsError) as error:
        return replace(detector, provenance={**detector.provenance, 'no_seen_scores': str(error)})
    return replace(detector, seen_scores=seen)


def add_good_runs(
    detector: CalibratedDetector, rollouts: Rollouts, k: int | None = None
) -> CalibratedDetector:
    """Return a detector with a threshold for each task of some good runs.

    Parameters
    ----------
    detector : CalibratedDetector
    rollouts : Rollouts
        Successful rollouts of one or more new tasks. Failures and rollouts without a label are
        left out.
    k : int, optional
        Number of good runs of each task that make the threshold: the first k successes. The
        default is 5, or all successes of the task if it has fewer.

    Raises
    ------
    GoodRunsError
        The detector has no scores for good runs, or a task has fewer than k successes.
    EvaluationError
        The features or the action space differ from those that the detector was fitted on.
    """
    return with_thresholds(detector, new_thresholds(detector, rollouts, k), rollouts.source)


def new_thresholds(
    detector: CalibratedDetector, rollouts: Rollouts, k: int | None = None
) -> list[NewThreshold]:
    """Return the threshold of each task of some good runs; see :func:`add_good_runs`."""
    require_rollouts(rollouts)
    check_inputs(detector, rollouts)
    detector.scores_for_good_runs()
    tasks: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        tasks.setdefault(str(rollout.task), []).append(rollout)
    return [
        _threshold_of(detector, task, members, k, rollouts.source)
        for task, members in tasks.items()
    ]


def _threshold_of(
    detector: CalibratedDetector,
    task: str,
    members: Sequence[Rollout],
    k: int | None,
    source: str,
) -> NewThreshold:
    where = f'{source or "good runs"}, task {task!r}'
    if not task:
        raise GoodRunsError(
            where=where,
            expected='rollouts with the name of their task, because the monitor chooses the '
            'threshold by this name',
            found='rollouts without it',
            advice='record the task in the START event (vla/episode) or as the instruction of the '
            'steps',
        )
    trained_on = set(detector.provenance.get('episodes', {}).get('train', ()))
    usable = [r for r in members if r.success and r.episode_id not in trained_on]
    notes = _notes(detector, task, members, trained_on)
    count = _number_of_runs(detector, where, len(usable), k, notes)
    used = usable[:count]
    if len(usable) > count:
        notes.append(
            f'{len(usable) - count} more successes are not used (--k {len(usable)} uses all)'
        )
    longest = max(len(rollout) for rollout in used)
    if not detector.band.covers(longest):
        raise GoodRunsError(
            where=where,
            expected=f'good runs of at most {detector.band.length} steps, the length of the band',
            found=f'{longest} steps',
            advice=f'fit the detector again with --max-steps {longest} or more',
        )
    runs = [
        GoodRun(rollout.episode_id, float(np.max(scores)))
        for rollout, scores in zip(used, detector.detector.score_all(used), strict=True)
    ]
    seen = detector.scores_for_good_runs()
    band = good_runs_band(seen, runs, detector.band, source)
    threshold = band.at(detector.alpha).at(0)
    if math.isinf(threshold):
        notes.append(
            f'no finite threshold keeps the promise of alpha {detector.alpha:g}, because the seen '
            'tasks have too few successes: the monitor uses the band of all tasks; choose a larger '
            'alpha'
        )
    return NewThreshold(
        task,
        band,
        before=detector.band.at(detector.alpha, task).at(0),
        threshold=threshold,
        notes=tuple(notes),
    )


def _notes(
    detector: CalibratedDetector, task: str, members: Sequence[Rollout], trained_on: set[str]
) -> list[str]:
    """Return notes about left-out rollouts and about the task."""
    counts = {
        'failures are left out': sum(r.success is False for r in members),
        'rollouts without an outcome are left out (verb `label` sets it)': sum(
            r.success is None for r in members
        ),
        'successes are left out, because the detector was trained on them': sum(
            bool(r.success) and r.episode_id in trained_on for r in members
        ),
    }
    notes = [f'{count} {what}' for what, count in counts.items() if count]
    if task in set(map(str, detector.provenance.get('seen_tasks', ()))):
        notes.append(
            'the detector was trained on other rollouts of this task, so that the task is not new: '
            'scores of its successes can be lower than those of a new task'
        )
    if task in detector.band.tasks:
        notes.append('the threshold that the task had is replaced')
    return notes


def _number_of_runs(
    detector: CalibratedDetector, where: str, found: int, k: int | None, notes: Sequence[str]
) -> int:
    """Return the number of good runs for the threshold."""
    left_out = f' ({"; ".join(notes)})' if notes else ''
    if k is not None and k < 1:
        raise GoodRunsError(where=where, expected='k of at least 1', found=str(k))
    if found < (k or 1):
        raise GoodRunsError(
            where=where,
            expected=f'at least {k or 1} successes of the task',
            found=f'{found}{left_out}',
            advice='record more successes, or label episodes that succeeded'
            + (f', or use --k {found}' if found else ''),
        )
    return k or max(1, min(DEFAULT_RUNS, found, detector.scores_for_good_runs().most_runs))


def with_thresholds(
    detector: CalibratedDetector, thresholds: Sequence[NewThreshold], source: str = ''
) -> CalibratedDetector:
    """Return the detector with these thresholds of tasks; its provenance lists the good runs."""
    bands = {**detector.band.tasks, **{new.task: new.band for new in thresholds}}
    runs = [
        episode for new in thresholds for episode in new.band.provenance['calibration_rollouts']
    ]
    episodes: dict[str, Any] = {
        part: [episode for episode in names if episode not in set(runs)]
        for part, names in detector.provenance.get('episodes', {}).items()
    }
    kept = [e for e in episodes.pop(GOOD_RUNS_PART, []) if e not in runs]
    episodes[GOOD_RUNS_PART] = [*kept, *runs]
    sources = [*detector.provenance.get('good_runs_from', []), source]
    return replace(
        detector,
        band=replace(detector.band, tasks=bands),
        provenance={**detector.provenance, 'episodes': episodes, 'good_runs_from': sources},
        weights_sha256='',
    )
