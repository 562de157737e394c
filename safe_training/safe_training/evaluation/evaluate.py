# SPDX-License-Identifier: Apache-2.0
"""Fits, calibrates and evaluates detectors over task splits.

Rollouts of seen tasks are used to train and calibrate a detector. Rollouts of unseen tasks are used
to test it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safe_monitor_node.detectors import Detector, DetectorError
from safe_training.calibration.curves import CalibrationError
from safe_training.evaluation.fit_and_calibrate import (
    calibrated_detector,
    fit_on,
    held_out_successes,
    left_out_successes,
    make_seeded,
    settled_for,
)
from safe_training.evaluation.judge import JudgedSet, score_part, with_alarms
from safe_training.evaluation.protocol import Protocol, require_rollouts
from safe_training.evaluation.splits import Split
from safe_training.metrics.bootstrap import bootstrap_interval
from safe_training.metrics.part_report import flatten_report, per_task
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.progress import Progress

CLOCK = 'clock'


@dataclass(frozen=True)
class Row:
    """Results of one detector on one part of one split.

    A mapping from metric name to value, and the same for each task.
    """

    detector: str
    split: int
    part: str
    values: dict[str, float]
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate(
    names: Sequence[str],
    rollouts: Rollouts,
    splits: Sequence[Split],
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    protocol: Protocol | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Return what each detector achieves on each part of each split.

    Parameters
    ----------
    names : sequence of str
        Registered detectors.
    rollouts : Rollouts
        Labelled rollouts of several tasks.
    splits : sequence of Split
        The number of a split is also the seed of detectors that use random numbers.
    params : mapping of detector to parameters, optional
    protocol : Protocol, optional
        How bands are calibrated.
    progress : callable, optional
        Called with (evaluations done, evaluations, note).

    Raises
    ------
    SplitError
        A split was made from different rollouts, or from these in another order.
    """
    require_rollouts(rollouts)
    # Check all splits before hours of training.
    for split in splits:
        split.check_rollouts(rollouts)
    rows = []
    chosen = protocol or Protocol()
    total = len(splits) * len(names)
    for number, (split, name) in enumerate(itertools.product(splits, names)):
        detector = make_seeded(name, (params or {}).get(name, {}), split.number)
        note = f'{name}, split {split.number}'

        def report(
            done: int, epochs: int, detail: str, number: int = number, note: str = note
        ) -> None:
            if progress is not None:
                progress(number, total, f'{note}: {done}/{epochs} {detail}')

        if progress is not None:
            progress(number, total, note)
        try:
            judged, seconds = fit_and_judge(detector, rollouts, split, chosen, progress=report)
        except (CalibrationError, DetectorError) as error:
            raise type(error)(f'{note}: {error}') from error
        for part, result in judged.report().items():
            values = {**flatten_report(result), 'fit_seconds': seconds}
            rows.append(Row(name, split.number, part, values, per_task(result)))
    return rows


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
        successes = left_out_successes(detector, rollouts, split, progress)
    else:
        successes = held_out_successes(parts.get('seen', []), split)
    calibrated = calibrated_detector(detector, successes, rollouts, split, protocol)
    seconds += time.perf_counter() - started
    judged = {
        name: with_alarms(scored, calibrated.band, protocol.alpha) for name, scored in parts.items()
    }
    return JudgedSet(calibrated, protocol.alpha, judged), seconds


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (ddof 1) over splits and a 95 % bootstrap interval of the mean."""

    mean: float
    std: float
    low: float
    high: float
    splits: int


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Summary]]]:
    """Return rows summarised over splits as ``[detector][part][value]``.

    Splits without a value are excluded.
    """
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
    """Summarise one number over splits. A split without the number has the value NaN."""
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
