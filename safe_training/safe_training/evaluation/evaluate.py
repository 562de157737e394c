# SPDX-License-Identifier: Apache-2.0
"""Fits, calibrates and evaluates detectors over task splits.

Rollouts of seen tasks are used to train and calibrate a detector. Rollouts of unseen tasks are used
to test it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from safe_monitor_node.detectors import Detector, DetectorError
from safe_monitor_node.detectors.registry import DETECTORS
from safe_training.calibration.curves import CalibrationError
from safe_training.evaluation.fit_and_calibrate import (
    calibrated_detector,
    fit_on,
    left_out_rollouts,
    make_seeded,
    settled_for,
)
from safe_training.evaluation.judge import JudgedSet, score_part, with_alarms
from safe_training.evaluation.protocol import (
    CHEAP_SPLITS,
    ROBUST_SPLITS,
    Protocol,
    require_rollouts,
)
from safe_training.evaluation.split_workers import load_fitters, run_each
from safe_training.evaluation.splits import Split
from safe_training.metrics.part_report import flatten_report, per_task
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.progress import Progress

CLOCK = 'clock'


@dataclass(frozen=True)
class Row:
    """Results of one detector on one part of one split.

    It has a mapping from metric name to value, and such a mapping for each task.
    """

    detector: str
    split: int
    part: str
    values: dict[str, float]
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)


def default_splits(name: str) -> int:
    """Return how many random task splits a detector is evaluated on by default.

    It is 50 if fitting takes about a second (signals, tokens, probe, distances, controls), and ten
    if a network is trained over epochs.
    """
    return ROBUST_SPLITS if DETECTORS[name].trains_over_epochs() else CHEAP_SPLITS


def evaluate(
    names: Sequence[str],
    rollouts: Rollouts,
    splits: Sequence[Split] | Mapping[str, Sequence[Split]],
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    protocol: Protocol | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Return the results of each detector on each part of each split.

    Parameters
    ----------
    names : sequence of str
        Registered detectors.
    rollouts : Rollouts
        Labelled rollouts of several tasks.
    splits : sequence of Split, or mapping of detector to sequence of Split
        The number of a split is also the seed of detectors that use random numbers.
    params : mapping of detector to parameters, optional
    protocol : Protocol, optional
        How bands are calibrated.
    jobs : int, optional
        Number of processes, see :func:`safe_training.evaluation.split_workers.run_each`; the
        default is only this process.
    progress : callable, optional
        Called with (evaluations done, evaluations, note).

    Raises
    ------
    SplitError
        A split was made from different rollouts, or from the same rollouts in another order.
    """
    require_rollouts(rollouts)
    splits_of = splits if isinstance(splits, Mapping) else dict.fromkeys(names, splits)
    work = _in_turn(names, splits_of)
    # Check all splits before hours of training.
    for _, split in work:
        split.check_rollouts(rollouts)
    chosen = protocol or Protocol()

    def one(number: int, report: Progress) -> list[Row]:
        name, split = work[number]
        detector = make_seeded(name, (params or {}).get(name, {}), split.number)
        try:
            judged, seconds = fit_and_judge(detector, rollouts, split, chosen, progress=report)
        except (CalibrationError, DetectorError) as error:
            raise type(error)(f'{notes[number]}: {error}') from error
        return [
            Row(
                name,
                split.number,
                part,
                {**flatten_report(result), 'fit_seconds': seconds},
                per_task(result),
            )
            for part, result in judged.report().items()
        ]

    notes = [f'{name}, split {split.number}' for name, split in work]
    load_fitters(names)
    with closing(run_each(one, notes, jobs=jobs, progress=progress)) as found:
        return [row for rows in found for row in rows]


def _in_turn(
    names: Sequence[str], splits_of: Mapping[str, Sequence[Split]]
) -> list[tuple[str, Split]]:
    """Return detectors with their splits: all detectors on the first split, then on the next."""
    most = max((len(splits_of[name]) for name in names), default=0)
    return [
        (name, splits_of[name][turn])
        for turn in range(most)
        for name in names
        if turn < len(splits_of[name])
    ]


def fit_and_judge(
    detector: Detector,
    rollouts: Rollouts,
    split: Split,
    protocol: Protocol,
    *,
    progress: Progress | None = None,
) -> tuple[JudgedSet, float]:
    """Fit a detector; return the judged rollouts of the split and the time to fit [s].

    Every rollout is scored once: the band is calibrated on the scores that are reported. The time
    includes the calibration and the scores that the band is calibrated on, and no other scores.
    """
    protocol = settled_for(protocol, rollouts, split)
    started = time.perf_counter()
    fit_on(detector, rollouts, split, protocol, progress)
    seconds = time.perf_counter() - started
    parts = {}
    for name, indices in split.parts.items():
        if not indices:
            continue
        started = time.perf_counter()
        parts[name] = score_part(detector, [rollouts[i] for i in indices], name)
        if name == 'seen' and protocol.calibrate_on != 'loto':
            seconds += time.perf_counter() - started
    started = time.perf_counter()
    if protocol.calibrate_on == 'loto':
        scored = left_out_rollouts(detector, rollouts, split, progress)
    else:
        scored = parts.get('seen', [])
    calibrated = calibrated_detector(detector, scored, rollouts, split, protocol)
    seconds += time.perf_counter() - started
    judged = {
        name: with_alarms(members, calibrated.band, protocol.alpha)
        for name, members in parts.items()
    }
    return JudgedSet(calibrated, protocol.alpha, judged), seconds
