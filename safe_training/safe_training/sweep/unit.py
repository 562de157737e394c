# SPDX-License-Identifier: Apache-2.0
"""Computes one unit of a sweep: all configurations of a detector on one split.

If possible, configurations are trained together, so that each pass over the rollouts is shared.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from safe_monitor_node.detectors import Detector, DetectorError
from safe_monitor_node.detectors.registry import NoFitterError
from safe_training.calibration.curves import CalibrationError
from safe_training.evaluation.fit_and_calibrate import (
    calibrated_band,
    held_out_successes,
    make_seeded,
    probability_map,
)
from safe_training.evaluation.judge import score_part
from safe_training.evaluation.protocol import EvaluationError, Protocol
from safe_training.evaluation.splits import Split
from safe_training.fitting.batched import Learned, can_be_stacked, stacks, train_together
from safe_training.fitting.data import require_both_outcomes
from safe_training.fitting.learned import TrainingData
from safe_training.metrics.part_report import (
    PartReport,
    flatten_report,
    per_task,
    report_part,
)
from safe_training.metrics.scored import min_lengths
from safe_training.sweep.plan import Settings, Unit, benchmark_of, members_of
from safe_training.sweep.results import Result, canonical
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout


@dataclass(frozen=True)
class _UnitData:
    """Data that all configurations of a unit use: its rollouts and values computed from the split.

    Attributes
    ----------
    rollouts : list of Rollout
        The rollouts of the subset of this unit.
    split : Split
    parts : dict of str to list of Rollout
        Mapping from the name of each non-empty part of the split to its rollouts.
    shortest : dict of task to int
        Minimum length of each task [steps].
    """

    rollouts: list[Rollout]
    split: Split
    parts: dict[str, list[Rollout]]
    shortest: Mapping[Any, int]


class _Fitted(NamedTuple):
    """One configuration of a unit after fitting; ``reason`` explains why it could not be fitted."""

    number: int
    detector: Detector
    seconds: float
    reason: str


def run_unit(
    unit: Unit,
    split: Split,
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    settings: Settings,
    progress: Progress | None = None,
) -> tuple[list[Result], list[str]]:
    """Fit, calibrate and evaluate every configuration of a unit on its subset and split.

    Parameters
    ----------
    unit : Unit
    split : Split
        Split of the rollouts of the subset of this unit.
    rollouts : sequence of Rollout
        Labelled rollouts of all subsets.
    feature : FeatureSpec
    settings : Settings
    progress : callable, optional
        Called with (epochs or configurations done, their number, note).

    Returns
    -------
    results : list of Result
        One for each configuration and part.
    failures : list of str
        Reasons why configurations have no results: training diverged, rollouts lack required data,
        or there is no success to calibrate on.

    Raises
    ------
    NoFitterError
        The package that fits the detector is not installed. The unit must run again after the
        installation.
    """
    data = _unit_data(unit, split, rollouts)
    family = unit.family
    detectors = [make_seeded(family.detector, p, unit.split) for p in family.configurations]
    results: list[Result] = []
    failures: list[str] = []
    for fitted in _fit_all(detectors, data, settings, progress):
        chosen = family.configurations[fitted.number]
        params = canonical({k: v for k, v in chosen.items() if k != 'seed'})
        reason = fitted.reason
        if not reason:
            try:
                reports = _evaluated(fitted, data, settings.protocol)
            except (CalibrationError, DetectorError, EvaluationError) as error:
                reason = str(error)
        if reason:
            failures.append(f'{unit.where()}, {params}: {reason}')
            continue
        results += [
            Result(
                benchmark_of(unit.subset, settings),
                settings.protocol.name,
                fitted.detector.name,
                params,
                str(feature),
                unit.split,
                part,
                {**flatten_report(report), 'fit_seconds': fitted.seconds},
                per_task(report),
            )
            for part, report in reports.items()
        ]
    return results, failures


def _unit_data(unit: Unit, split: Split, rollouts: Sequence[Rollout]) -> _UnitData:
    members = members_of(rollouts, unit.subset)
    parts = {
        name: [members[i] for i in indices] for name, indices in split.parts.items() if indices
    }
    return _UnitData(
        rollouts=members,
        split=split,
        parts=parts,
        shortest=min_lengths([r.task for r in members], [len(r) for r in members]),
    )


def _evaluated(fitted: _Fitted, data: _UnitData, protocol: Protocol) -> dict[str, PartReport]:
    """Calibrate a fitted detector and return its results on each part."""
    detector = fitted.detector
    scored = {name: score_part(detector, part, name) for name, part in data.parts.items()}
    held_out = scored.get('seen', [])
    band = calibrated_band(
        held_out_successes(held_out, data.split), data.rollouts, data.split, protocol
    )
    probability = probability_map(held_out, data.split, protocol)
    return {
        part: report_part(members, data.shortest, band, protocol.alpha, probability=probability)
        for part, members in scored.items()
    }


def _fit_all(
    detectors: Sequence[Detector],
    data: _UnitData,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[_Fitted]:
    if all(can_be_stacked(d) for d in detectors) and not settings.protocol.stop_early:
        return _fit_together(cast('Sequence[Learned]', detectors), data, settings, progress)
    return _fit_one_by_one(detectors, data, settings, progress)


def _fit_together(
    detectors: Sequence[Learned],
    data: _UnitData,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[_Fitted]:
    training = data.parts['train']
    try:
        require_both_outcomes(training, detectors[0].name)
    except DetectorError as error:
        yield from (_Fitted(i, detector, 0.0, str(error)) for i, detector in enumerate(detectors))
        return
    stacked = TrainingData.of(training)
    for members in stacks(detectors, stacked):
        started = time.perf_counter()
        group = [detectors[i] for i in members]
        reasons = train_together(
            group, stacked, device=settings.device, precision=settings.precision, progress=progress
        )
        seconds = (time.perf_counter() - started) / len(members)
        yield from map(_Fitted, members, group, itertools.repeat(seconds), reasons)


def _fit_one_by_one(
    detectors: Sequence[Detector],
    data: _UnitData,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[_Fitted]:
    validation = data.parts.get('seen', []) if settings.protocol.stop_early else None
    for index, detector in enumerate(detectors):
        started = time.perf_counter()
        reason = ''
        try:
            detector.fit(data.parts['train'], validation=validation)
        except NoFitterError:
            # The installation is wrong, not the configuration: the unit is not finished.
            raise
        except DetectorError as error:
            reason = str(error)
        yield _Fitted(index, detector, time.perf_counter() - started, reason)
        if progress is not None:
            progress(index + 1, len(detectors), '')
