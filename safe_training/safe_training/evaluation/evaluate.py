# SPDX-License-Identifier: Apache-2.0
"""Fit, calibrate and evaluate detectors by the protocol.

Seen tasks are there to learn from, unseen ones to judge by.
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
    Fitted,
    Progress,
    fit_and_calibrate,
    make_seeded,
)
from safe_training.evaluation.protocol import Protocol
from safe_training.evaluation.splits import Split
from safe_training.metrics.bootstrap import bootstrap_interval
from safe_training.metrics.part_report import (
    PartReport,
    flatten_report,
    per_task,
    report_part,
    scored_rollouts,
)
from safe_training.metrics.scored import ScoredRollout, min_lengths
from vla_feature_bridge.rollout import Rollout

CLOCK = 'clock'
PARTS = ('train', 'seen', 'unseen')


def score_part(detector: Detector, rollouts: Sequence[Rollout], part: str) -> list[ScoredRollout]:
    """Score labelled rollouts of one part; in 'train' no step may recognise itself."""
    score = detector.score_training if part == 'train' else detector.score_all
    scores = score(rollouts)
    return scored_rollouts(scores, rollouts)


def report_parts(
    fitted: Fitted, rollouts: Sequence[Rollout], alpha: float
) -> dict[str, PartReport]:
    """Evaluate a fitted detector on every part of its split that is not empty."""
    shortest = min_lengths([r.task for r in rollouts], [len(r) for r in rollouts])
    return {
        name: report_part(
            score_part(fitted.detector, [rollouts[i] for i in indices], name),
            shortest,
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
    split: int
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
        The number of each is also the seed of detectors that draw.
    params : dict of detector to parameters
    """
    rows = []
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
        started = time.perf_counter()
        try:
            fitted = fit_and_calibrate(detector, rollouts, split, protocol, progress=report)
        except (CalibrationError, DetectorError) as error:
            raise type(error)(f'{note}: {error}') from error
        seconds = time.perf_counter() - started
        for part, result in report_parts(fitted, rollouts, protocol.alpha).items():
            values = {**flatten_report(result), 'fit_seconds': seconds}
            rows.append(Row(name, split.number, part, values, per_task(result)))
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
