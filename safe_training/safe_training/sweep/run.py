# SPDX-License-Identifier: Apache-2.0
"""Runs a grid of detector configurations over task splits; all that can be is trained together.

The configurations, poolings, subsets and splits of a grid (see `sweep_grid`) are divided into
units: one detector with all its configurations, on one pooling, one subset of the tasks and one
split. Each unit writes its results as one parquet file when it is done, so that an interrupted
sweep goes on where it stopped, and units can run on other machines.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import Detector, DetectorError
from safe_training.calibration.curves import CalibrationError
from safe_training.evaluation.fit_and_calibrate import (
    calibrated_band,
    held_out_successes,
    labelled,
    make_seeded,
)
from safe_training.evaluation.judge import score_part
from safe_training.evaluation.protocol import (
    EvaluationError,
    Protocol,
    choose_splits,
    numbered_tasks,
)
from safe_training.evaluation.saved_splits import read_splits, split_numbers, write_splits
from safe_training.evaluation.splits import Split, SplitError
from safe_training.fitting.batched import Learned, Precision, can_be_stacked, stacks, train_together
from safe_training.fitting.data import require_both_outcomes, stack_rollouts
from safe_training.metrics.part_report import flatten_report, report_part
from safe_training.metrics.scored import ScoredRollout, min_lengths
from safe_training.recordings.rollouts import Rollouts
from safe_training.recordings.sources import load_rollouts
from safe_training.sweep.folder import MANIFEST, Manifest
from safe_training.sweep.grid import Grid, Subset, SweepError, Variant
from safe_training.sweep.plan import (
    Progress,
    Settings,
    Unit,
    existing_variants,
    plan,
    planned_splits,
    tasks_of_subsets,
)
from safe_training.sweep.results import SUBSET_MARK, Result, canonical, write_results
from vla_feature_bridge.pooling import FeatureSpec, parse_pooling
from vla_feature_bridge.rollout import Rollout


def fastest_precision(device: str) -> Precision:
    """Measure in which precision this device multiplies matrices faster.

    Processors with bfloat16 arithmetic take less than half the time; others emulate it slowly.
    """
    taken: dict[Precision, float] = {}
    for name in get_args(Precision):
        a = torch.ones(1024, 1024, dtype=getattr(torch, name), device=device)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            # Reading a value waits for the device.
            torch.mm(a, a)[0, 0].item()
            times.append(time.perf_counter() - started)
        taken[name] = min(times)
    return min(taken, key=lambda name: taken[name])


@dataclass(frozen=True)
class _Divided:
    """What all configurations of a unit share: its rollouts, and what follows from the split.

    Attributes
    ----------
    parts : dict of str to list of Rollout
        Those of the split that are not empty, by name.
    shortest : dict of task to int
        Earliest stop of each task.
    """

    rollouts: list[Rollout]
    split: Split
    parts: dict[str, list[Rollout]]
    shortest: Mapping[Any, int]


def _members(rollouts: Sequence[Rollout], subset: Subset | None) -> list[Rollout]:
    return [r for r in rollouts if subset is None or subset.has(r.task)]


def _divide(unit: Unit, split: Split, rollouts: Sequence[Rollout]) -> _Divided:
    mine = _members(rollouts, unit.subset)
    parts = {name: [mine[i] for i in indices] for name, indices in split.parts.items() if indices}
    return _Divided(
        rollouts=mine,
        split=split,
        parts=parts,
        shortest=min_lengths([r.task for r in mine], [len(r) for r in mine]),
    )


def _benchmark(subset: Subset | None, settings: Settings) -> str:
    return settings.benchmark + (f'{SUBSET_MARK}{subset.name}' if subset else '')


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
    split : Split
        Of the rollouts of the unit's subset.
    rollouts : sequence of Rollout
        Labelled ones of all subsets.

    Returns
    -------
    results : list of Result
        One per configuration and part.
    failures : list of str
        Why a configuration gave none: training diverged, rollouts lack what it needs, or there is
        nothing to calibrate on.
    """
    divided = _divide(unit, split, rollouts)
    benchmark = _benchmark(unit.subset, settings)
    family = unit.family
    detectors = [make_seeded(family.detector, p, unit.split) for p in family.configurations]
    results: list[Result] = []
    failures: list[str] = []
    for index, detector, seconds, reason in _fitted(detectors, divided, settings, progress):
        chosen = unit.family.configurations[index]
        described = canonical({k: v for k, v in chosen.items() if k != 'seed'})
        if reason:
            failures.append(f'{unit.where()}, {described}: {reason}')
            continue
        try:
            parts = {name: score_part(detector, r, name) for name, r in divided.parts.items()}
            band = _band(parts, divided, settings.protocol)
        except (CalibrationError, DetectorError, EvaluationError) as error:
            failures.append(f'{unit.where()}, {described}: {error}')
            continue
        for part, scored in parts.items():
            report = report_part(
                scored,
                divided.shortest,
                band,
                settings.protocol.alpha,
                probability=detector.gives_probability,
            )
            results.append(
                Result(
                    benchmark,
                    settings.protocol.name,
                    detector.name,
                    described,
                    str(feature),
                    unit.split,
                    part,
                    {**flatten_report(report), 'fit_seconds': seconds},
                )
            )
    return results, failures


def _fitted(
    detectors: Sequence[Detector],
    divided: _Divided,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[tuple[int, Detector, float, str]]:
    """Fit detectors; yields (index, detector, seconds, reason why it could not be fitted)."""
    training = divided.parts['train']
    if all(can_be_stacked(d) for d in detectors) and not settings.protocol.stop_early:
        learned = cast('Sequence[Learned]', detectors)
        try:
            require_both_outcomes(training, learned[0].name)
        except DetectorError as error:
            yield from ((i, detector, 0.0, str(error)) for i, detector in enumerate(detectors))
            return
        data = stack_rollouts(training)
        for members in stacks(learned, data):
            started = time.perf_counter()
            group = [learned[i] for i in members]
            reasons = train_together(
                group, data, device=settings.device, precision=settings.precision, progress=progress
            )
            seconds = (time.perf_counter() - started) / len(members)
            yield from zip(members, group, itertools.repeat(seconds), reasons)
        return
    validation = divided.parts.get('seen', []) if settings.protocol.stop_early else None
    for index, detector in enumerate(detectors):
        started = time.perf_counter()
        reason = ''
        try:
            detector.fit(training, validation=validation)
        except DetectorError as error:
            reason = str(error)
        yield index, detector, time.perf_counter() - started, reason
        if progress is not None:
            progress(index + 1, len(detectors), '')


def _band(
    parts: Mapping[str, Sequence[ScoredRollout]], divided: _Divided, protocol: Protocol
) -> Band:
    successes = held_out_successes(parts.get('seen', []), divided.split)
    return calibrated_band(successes, divided.rollouts, divided.split, protocol)


@dataclass(frozen=True)
class Outcome:
    """What a sweep did: units run now, units that were there, and what could not be fitted."""

    done: int
    kept: int
    failures: tuple[str, ...]


def run_sweep(
    source: str,
    grid: Grid,
    out: Path,
    settings: Settings,
    splits: int | None = None,
    *,
    splits_from: Path | None = None,
    ray_address: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Outcome:
    """Run all units of a sweep that are not there yet.

    Parameters
    ----------
    source : str
        Whatever ``convert`` reads. Each pooling of it is read once.
    out : Path
        Folder of the results, one parquet file a unit; made if absent, gone on with otherwise.
    splits : int, optional
        As many task splits instead of the protocol's own, see `planned_splits`.
    splits_from : Path, optional
        Splits that were saved, instead of drawing any.
    ray_address : str, optional
        Run the units as tasks of this Ray cluster (``'local'`` starts one here). ``source`` is read
        here only.
    progress : callable, optional
        Called with (units done, units, note).
    say : callable, optional
        Told what a person should know.

    Raises
    ------
    SweepError
        ``out`` holds results of another sweep, the subsets do not fit the tasks, the rollouts
        cannot be split, or Ray is asked for and absent.
    """
    if SUBSET_MARK in settings.benchmark:
        raise SweepError(
            f'sweep: expected a benchmark name without {SUBSET_MARK!r}, which stands before the '
            f'name of a subset, found {settings.benchmark!r}; choose another (--benchmark)'
        )
    variants, notes = existing_variants(source, grid)
    out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(out / MANIFEST, source, grid, settings, splits_from)

    def read(variant: Variant) -> tuple[Rollouts, FeatureSpec]:
        pooling = parse_pooling(list(variant.pooling)) if variant.pooling else None
        rollouts = labelled(load_rollouts(source, pooling=pooling, feature=variant.feature))
        manifest.tie(rollouts)
        return rollouts, rollouts.feature

    if splits_from is not None and grid.subsets:
        raise SweepError(
            f'{splits_from}: saved splits are of one set of tasks, the grid {grid.benchmark} has '
            'subsets; leave --splits-from out'
        )
    # Which units there are depends on the tasks; a folder that is gone on with knows them.
    held: dict[Variant, tuple[Rollouts, FeatureSpec]] = {}
    if not manifest.tasks:
        held[variants[0]] = read(variants[0])
    subsets, left_out = tasks_of_subsets(grid, manifest.tasks)
    for note in (*notes, *left_out):
        say(note)
    if splits_from is not None:
        numbers = {subset: split_numbers(splits_from) for subset in subsets}
    else:
        name = settings.protocol.name
        numbers = {
            s: planned_splits(name, grid, splits, len(tasks)) for s, tasks in subsets.items()
        }
    units = plan(grid, variants, numbers)
    kept = sum((out / unit.name()).exists() for unit in units)
    if kept == len(units):
        return Outcome(0, kept, ())
    if not held:
        held[variants[0]] = read(variants[0])
    rollouts, feature = held[variants[0]]
    if settings.protocol.name == 'paper' and numbered_tasks(rollouts) is None:
        say(f'{source} has no number of its own for each task: splits go by their names')
    # The same rollouts come in every pooling.
    divided = {
        subset: _splits(
            _members(rollouts, subset), subset, numbers[subset], settings, splits_from, out
        )
        for subset in subsets
    }
    failures: list[str] = []
    told: set[tuple[str, Subset | None]] = set()
    finished: list[Unit] = []
    with _runner(ray_address) as run:
        for variant in variants:
            missing = [u for u in units if u.variant == variant and not (out / u.name()).exists()]
            if not missing:
                continue
            rollouts, feature = held.pop(variant) if variant in held else read(variant)

            def inner(part: int, parts: int, note: str) -> None:
                if progress is not None:
                    progress(kept + len(finished), len(units), f'{part}/{parts} {note}')

            work = [(unit, divided[unit.subset][unit.split]) for unit in missing]
            for unit, (results, reasons) in run(work, rollouts, feature, settings, inner):
                failures += [f'{unit.family.detector}, {reason}' for reason in reasons]
                if reasons and (unit.family.detector, unit.subset) not in told:
                    told.add((unit.family.detector, unit.subset))
                    say(f'left out: {unit.family.detector}, {reasons[0]}')
                write_results(out / unit.name(), results)
                finished.append(unit)
                if progress is not None:
                    note = f'{unit.family.detector}, {unit.where()}'
                    progress(kept + len(finished), len(units), note)
    return Outcome(len(finished), kept, tuple(failures))


def _splits(
    rollouts: Sequence[Rollout],
    subset: Subset | None,
    numbers: Sequence[int],
    settings: Settings,
    splits_from: Path | None,
    out: Path,
) -> dict[int, Split]:
    """Return the splits by number, and keep them in the results folder to be used again."""
    path = out / (f'splits-{subset.name}.json' if subset else 'splits.json')
    try:
        if splits_from is not None:
            splits = read_splits(splits_from, rollouts).splits
        else:
            drawn = choose_splits(rollouts, settings.protocol, numbers)
            splits = {split.number: split for split in drawn}
        # Results of an earlier call with more splits stay, and so do their splits.
        before = read_splits(path, rollouts).splits if path.exists() else {}
    except (SplitError, EvaluationError) as error:
        raise SweepError(f'{_benchmark(subset, settings)}: {error}') from error
    every = {**before, **splits}
    write_splits(path, rollouts, [every[k] for k in sorted(every)], settings.protocol.name)
    return splits


Work = Sequence[tuple[Unit, Split]]
Finished = tuple[Unit, tuple[list[Result], list[str]]]
Runner = Callable[..., Iterator[Finished]]


def _run_here(
    work: Work,
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[Finished]:
    for unit, split in work:
        yield unit, run_unit(unit, split, rollouts, feature, settings, progress)


@contextmanager
def _runner(ray_address: str | None) -> Iterator[Runner]:
    """Give what runs units: this process, or a Ray cluster for as long as the block lasts."""
    if ray_address is None:
        yield _run_here
        return
    try:
        import ray
    except ImportError as error:
        raise SweepError(
            'sweep: Ray is not installed; install it (pip install "ray>=2.40"), or leave --ray out'
        ) from error
    ray.init(
        address=None if ray_address == 'local' else ray_address,
        include_dashboard=False,
        log_to_driver=False,
    )

    def run(
        work: Work,
        rollouts: Sequence[Rollout],
        feature: FeatureSpec,
        settings: Settings,
        progress: Progress | None,
    ) -> Iterator[Finished]:
        # Memory maps do not travel.
        held = ray.put([_in_memory(rollout) for rollout in rollouts])
        remote = ray.remote(run_unit)
        if settings.device != 'cpu':
            remote = remote.options(num_gpus=1)
        waiting = {
            remote.remote(unit, split, held, feature, settings): unit for unit, split in work
        }
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready[0]), ray.get(ready[0])

    try:
        yield run
    finally:
        ray.shutdown()


def _in_memory(rollout: Rollout) -> Rollout:
    return replace(rollout, features=np.array(rollout.features))
