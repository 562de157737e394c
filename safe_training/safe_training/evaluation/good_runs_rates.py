# SPDX-License-Identifier: Apache-2.0
"""Measures false alarms of new tasks with and without good runs.

For every unseen task of a split, k of its successes are drawn as good runs several times. The other
successes and the failures of the task are judged; the good runs are not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_runs import GoodRun, GoodRunsError, SeenScores, good_runs_band
from safe_monitor_node.detectors import DetectorError
from safe_training.calibration.curves import CalibrationError
from safe_training.evaluation.fit_and_calibrate import fit_and_calibrate, make_seeded
from safe_training.evaluation.judge import score_part
from safe_training.evaluation.protocol import Protocol, require_rollouts
from safe_training.evaluation.split_workers import load_fitters, run_each
from safe_training.evaluation.splits import Split
from safe_training.metrics.alarms import AlarmRates, alarm_report, band_alarms
from safe_training.metrics.scored import ScoredRollout
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.progress import Progress

DRAWS = 20
"""Number of random draws of the good runs of a task."""

_RATES = ('false_alarm_rate', 'detection_rate', 'detection_time')


@dataclass(frozen=True)
class TaskRates:
    """Alarm rates of one unseen task of one split, with and without good runs.

    Attributes
    ----------
    detector : str
    split : int
    task : str
    successes, failures : int
        Rollouts of the task.
    without, with_runs : dict of str to float
        ``false_alarm_rate``, ``detection_rate`` and ``detection_time``, as in `AlarmRates`: with
        the band of all tasks, and mean over the draws with good runs. NaN if the rate does not
        exist, or if the task has no more than k successes.
    """

    detector: str
    split: int
    task: str
    successes: int
    failures: int
    without: Mapping[str, float]
    with_runs: Mapping[str, float]


def rates_with_good_runs(
    rollouts: Rollouts,
    splits: Mapping[str, Sequence[Split]],
    k: int,
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    protocol: Protocol | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[TaskRates]:
    """Return the alarm rates of each unseen task of each split, detector by detector.

    Parameters
    ----------
    rollouts, params, protocol, jobs, progress
        As in :func:`safe_training.evaluate`.
    splits : mapping of detector to sequence of Split
    k : int
        Number of good runs; with 0, only the rates without good runs exist.

    Raises
    ------
    GoodRunsError
        The seen tasks of a split have too few training successes for k good runs.
    """
    require_rollouts(rollouts)
    settings = protocol or Protocol()
    work = [(name, split) for name, chosen in splits.items() for split in chosen]
    notes = [f'{name}, split {split.number}' for name, split in work]

    def one(number: int, report: Progress) -> list[TaskRates]:
        name, split = work[number]
        detector = make_seeded(name, (params or {}).get(name, {}), split.number)
        try:
            calibrated = fit_and_calibrate(detector, rollouts, split, settings, progress=report)
            seen, band = calibrated.scores_for_good_runs(), calibrated.band
            unseen = score_part(detector, [rollouts[i] for i in split.unseen], 'unseen')
            return [
                _rates_of(name, split.number, task, unseen, (seen, band, settings.alpha, k))
                for task in map(str, split.unseen_tasks)
            ]
        except (CalibrationError, DetectorError, GoodRunsError) as error:
            raise type(error)(f'{notes[number]}: {error}') from error

    load_fitters(splits)
    with closing(run_each(one, notes, jobs=jobs, progress=progress)) as found:
        return [rates for of_split in found for rates in of_split]


def _rates_of(
    name: str,
    number: int,
    task: str,
    unseen: Sequence[ScoredRollout],
    made: tuple[SeenScores, Band, float, int],
) -> TaskRates:
    seen, band, alpha, k = made
    members = [rollout for rollout in unseen if str(rollout.task) == task]
    good = [rollout for rollout in members if not rollout.failed]
    bad = [rollout for rollout in members if rollout.failed]
    draws = []
    generator = np.random.default_rng(number)
    for _ in range(DRAWS if 0 < k < len(good) else 0):
        order = generator.permutation(len(good))
        runs = [GoodRun(good[i].episode_id, float(good[i].scores.max())) for i in order[:k]]
        own = good_runs_band(seen, runs, band)
        draws.append(_rates([*(good[i] for i in order[k:]), *bad], own, alpha))
    return TaskRates(
        name,
        number,
        task,
        len(good),
        len(bad),
        without=_rates(members, band, alpha),
        with_runs={
            rate: float(np.mean([draw[rate] for draw in draws])) if draws else np.nan
            for rate in _RATES
        },
    )


def _rates(members: Sequence[ScoredRollout], band: Band, alpha: float) -> dict[str, float]:
    report: AlarmRates = alarm_report(members, band_alarms(members, band, alpha)).pooled
    return {rate: getattr(report, rate) for rate in _RATES}
