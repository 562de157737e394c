# SPDX-License-Identifier: Apache-2.0
"""Runs a grid of detector configurations over task splits; all that can be is trained together.

The configurations, poolings, subsets and splits of a grid (see `sweep_grid`) are divided into
units: one detector with all its configurations, on one pooling, one subset of the tasks and one
split. Each unit writes its results as one parquet file when it is done, so that an interrupted
sweep goes on where it stopped, and units can run on other machines.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from safe_monitor_node.band import Band
from safe_monitor_node.detectors import DETECTORS, Detector, DetectorError
from safe_training.batched_training import (
    Learned,
    Precision,
    can_be_stacked,
    stacks,
    train_together,
)
from safe_training.calibration import CalibrationError
from safe_training.evaluation import (
    HELD_OUT,
    calibrated_band,
    labelled,
    make_seeded,
    score_part,
)
from safe_training.fitting import require_both_outcomes, stack_rollouts
from safe_training.metrics import Scored, earliest_stops
from safe_training.part_report import flatten_report, report_part
from safe_training.protocol import (
    ROBUST_SPLITS,
    EvaluationError,
    Protocol,
    Scheme,
    choose_splits,
    numbered_tasks,
    read_splits,
    split_numbers,
    write_splits,
)
from safe_training.readers import load_rollouts, open_source
from safe_training.results import SUBSET_MARK, Result, canonical, write_results
from safe_training.splits import Split, SplitError
from safe_training.sweep_grid import Family, Grid, Subset, SweepError, Variant
from vla_feature_bridge.pooling import FeatureSpec, parse_pooling
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]
MANIFEST = 'sweep.json'


@dataclass(frozen=True)
class Unit:
    """One detector with all its configurations, on one pooling, subset of the tasks and split.

    Attributes
    ----------
    subset : Subset or None
        None: all tasks.
    """

    variant: Variant
    family: Family
    seed: int
    subset: Subset | None = None

    def name(self) -> str:
        """Return the name of the unit's file: what it is, and a digest of all of it."""
        parts = asdict(self)
        if self.subset is None:
            # Files of sweeps without subsets keep the names that they always had.
            del parts['subset']
        text = json.dumps(parts, sort_keys=True, default=dict)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        subset = f'{self.subset.name}-' if self.subset else ''
        return f'{self.family.detector}-{subset}split{self.seed}-{digest}.parquet'

    def where(self) -> str:
        """Return the split, and the subset if there is one, for people."""
        return f'{self.subset.name}, split {self.seed}' if self.subset else f'split {self.seed}'


def seeds_of(protocol: Scheme, grid: Grid, splits: int | None, n_tasks: int) -> tuple[int, ...]:
    """Return the numbers of the splits that a protocol takes.

    Parameters
    ----------
    protocol : {'paper', 'robust', 'loto'}
    grid : Grid
        Names the published splits.
    splits : int, optional
        As many, from 0 on, instead of the protocol's own; means nothing to 'loto'.
    n_tasks : int
        Tasks of the source or subset; 'loto' has one split for each.
    """
    if protocol == 'loto':
        return tuple(range(n_tasks))
    if splits is not None:
        return tuple(range(splits))
    return grid.seeds if protocol == 'paper' else tuple(range(ROBUST_SPLITS))


def tasks_of_subsets(
    grid: Grid, tasks: Sequence[str]
) -> tuple[dict[Subset | None, list[str]], list[str]]:
    """Return the tasks of each subset that a source has, and what is left out, for people.

    Without subsets in the grid all tasks belong to None. A task in no subset is left out, which a
    grid may mean: its subsets then are what it asks for.

    Raises
    ------
    SweepError
        A task is in two subsets and would count twice in their mean, or no subset has a task.
    """
    if not grid.subsets:
        return {None: list(tasks)}, []
    of: dict[Subset, list[str]] = {subset: [] for subset in grid.subsets}
    homeless: list[str] = []
    for task in tasks:
        homes = [subset for subset in grid.subsets if subset.has(task)]
        if len(homes) > 1:
            raise SweepError(
                f'grid {grid.benchmark}: expected each task in one subset, found {task!r} in '
                f'{" and ".join(subset.name for subset in homes)}; narrow their patterns'
            )
        for subset in homes:
            of[subset].append(task)
        if not homes:
            homeless.append(task)
    described = ', '.join(f'{s.name} ({", ".join(s.patterns)})' for s in grid.subsets)
    if len(homeless) == len(tasks):
        raise SweepError(
            f'grid {grid.benchmark}: expected tasks of the subsets {described}, found '
            f'{", ".join(tasks)}; correct the patterns, or take the subsets out of the grid'
        )
    notes = [
        f'left out: subset {subset.name}, none of its tasks ({", ".join(subset.patterns)}) is there'
        for subset in grid.subsets
        if not of[subset]
    ]
    if homeless:
        notes.append(f'left out: {", ".join(homeless)}, in none of the subsets {described}')
    return {subset: there for subset, there in of.items() if there}, notes


def plan(
    grid: Grid, variants: Sequence[Variant], seeds: Mapping[Subset | None, Sequence[int]]
) -> list[Unit]:
    """Return the units of a sweep, those of one pooling together; ``seeds`` by subset.

    A detector that reads no features is tried on the first pooling alone: on each it would give the
    same numbers, and a choice among copies is none.
    """
    return [
        Unit(variant, family, seed, subset)
        for variant in variants
        for subset in seeds
        for seed in seeds[subset]
        for family in grid.families
        if variant == variants[0] or 'features' in DETECTORS[family.detector].needs
    ]


def existing_variants(source: str, grid: Grid) -> tuple[list[Variant], list[str]]:
    """Return the poolings of a grid that a source has, and why the others are left out.

    A source that is pooled already has one: as it is.
    """
    found = open_source(source)
    if found.raw_axes:
        return list(grid.variants), []
    if set(grid.variants) == {Variant()}:
        return [Variant()], []
    return [Variant()], [f'{source} is pooled already ({found.feature}) and is taken as it is']


@dataclass(frozen=True)
class Settings:
    """How a sweep runs: nothing here changes which configurations there are."""

    protocol: Protocol
    benchmark: str
    precision: Precision
    device: str = 'cpu'


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
    successes : tuple of int
        Which rollouts of the part 'seen' the band is calibrated on.
    stops : dict of task to int
        Earliest stop of each task.
    """

    rollouts: list[Rollout]
    split: Split
    parts: dict[str, list[Rollout]]
    successes: tuple[int, ...]
    stops: Mapping[Any, int]


def _members(rollouts: Sequence[Rollout], subset: Subset | None) -> list[Rollout]:
    return [r for r in rollouts if subset is None or subset.has(r.task)]


def _divide(unit: Unit, split: Split, rollouts: Sequence[Rollout]) -> _Divided:
    mine = _members(rollouts, unit.subset)
    parts = {name: [mine[i] for i in indices] for name, indices in split.parts.items() if indices}
    return _Divided(
        rollouts=mine,
        split=split,
        parts=parts,
        successes=tuple(i for i, r in enumerate(parts.get('seen', ())) if not r.failed),
        stops=earliest_stops([r.task for r in mine], [len(r) for r in mine]),
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
    detectors = [make_seeded(family.detector, p, unit.seed) for p in family.configurations]
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
                divided.stops,
                band,
                settings.protocol.alpha,
                probability=detector.gives_probability,
            )
            results.append(
                Result(
                    benchmark,
                    settings.protocol.scheme,
                    detector.name,
                    described,
                    str(feature),
                    unit.seed,
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


def _band(parts: Mapping[str, Sequence[Scored]], divided: _Divided, protocol: Protocol) -> Band:
    return calibrated_band(
        [parts['seen'][i].scores for i in divided.successes],
        [divided.parts['seen'][i] for i in divided.successes],
        HELD_OUT,
        divided.rollouts,
        divided.split,
        protocol,
    )


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
        As many task splits instead of the protocol's own, see `seeds_of`.
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
    manifest = _Manifest(out / MANIFEST, source, grid, settings, splits_from)

    def read(variant: Variant) -> tuple[list[Rollout], FeatureSpec]:
        pooling = parse_pooling(list(variant.pooling)) if variant.pooling else None
        rollouts, feature = load_rollouts(source, pooling=pooling, feature=variant.feature)
        rollouts = labelled(rollouts)
        manifest.tie(rollouts)
        return rollouts, feature

    if splits_from is not None and grid.subsets:
        raise SweepError(
            f'{splits_from}: saved splits are of one set of tasks, the grid {grid.benchmark} has '
            'subsets; leave --splits-from out'
        )
    # Which units there are depends on the tasks; a folder that is gone on with knows them.
    held: dict[Variant, tuple[list[Rollout], FeatureSpec]] = {}
    if not manifest.tasks:
        held[variants[0]] = read(variants[0])
    subsets, left_out = tasks_of_subsets(grid, manifest.tasks)
    for note in (*notes, *left_out):
        say(note)
    if splits_from is not None:
        seeds = {subset: split_numbers(splits_from) for subset in subsets}
    else:
        scheme = settings.protocol.scheme
        seeds = {s: seeds_of(scheme, grid, splits, len(tasks)) for s, tasks in subsets.items()}
    units = plan(grid, variants, seeds)
    kept = sum((out / unit.name()).exists() for unit in units)
    if kept == len(units):
        return Outcome(0, kept, ())
    if not held:
        held[variants[0]] = read(variants[0])
    rollouts, feature = held[variants[0]]
    if settings.protocol.scheme == 'paper' and numbered_tasks(rollouts) is None:
        say(f'{source} has no number of its own for each task: splits go by their names')
    # The same rollouts come in every pooling.
    divided = {
        subset: _splits(
            _members(rollouts, subset), subset, seeds[subset], settings, splits_from, out
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

            work = [(unit, divided[unit.subset][unit.seed]) for unit in missing]
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
    seeds: Sequence[int],
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
            drawn = choose_splits(rollouts, settings.protocol, seeds)
            splits = {split.seed: split for split in drawn}
        # Results of an earlier call with more splits stay, and so do their splits.
        before = read_splits(path, rollouts).splits if path.exists() else {}
    except (SplitError, EvaluationError) as error:
        raise SweepError(f'{_benchmark(subset, settings)}: {error}') from error
    every = {**before, **splits}
    write_splits(path, rollouts, [every[k] for k in sorted(every)], settings.protocol.scheme)
    return splits


def _grid_digest(grid: Grid, family: Family) -> str:
    content = [[asdict(v) for v in grid.variants], [dict(c) for c in family.configurations]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


class _Manifest:
    """Ties a folder to the rollouts, the subsets and the settings whose results it holds.

    Attributes
    ----------
    tasks : list of str
        Names of the tasks in sorted order, empty until they are known.

    Raises
    ------
    SweepError
        The folder holds results of another sweep, or no manifest where one should be.
    """

    def __init__(
        self,
        path: Path,
        source: str,
        grid: Grid,
        settings: Settings,
        splits_from: Path | None = None,
    ) -> None:
        self._path = path
        self._asked: dict[str, Any] = {
            'source': source,
            'settings': asdict(settings),
            'subsets': {subset.name: list(subset.patterns) for subset in grid.subsets},
            # Of splits that are drawn the rollouts and the settings say all.
            'splits': '' if splits_from is None else _digest(splits_from),
            'grids': {f.detector: _grid_digest(grid, f) for f in grid.families},
            'torch': torch.__version__,
        }
        self._before: dict[str, Any] | None = None
        self.tasks: list[str] = []
        if not path.exists():
            return
        try:
            absent = {'subsets': {}, 'tasks': [], 'splits': '', 'grids': {}}
            self._before = {**absent, **json.loads(path.read_text('utf-8'))}
            self.tasks = [str(task) for task in self._before['tasks']]
        except (ValueError, TypeError, OSError) as error:
            raise self._unreadable(error) from error
        self._compare(self._asked, ('settings', 'subsets', 'splits'))
        # Further detectors may join; results of two grids of one detector would be pooled.
        grids = self._before['grids']
        for detector, digest in self._asked['grids'].items():
            if grids.get(detector, digest) != digest:
                raise SweepError(
                    f'{path}: this folder holds results of another grid of {detector} (its '
                    'parameters or poolings differ); give another --out, or the grid as it was'
                )

    def tie(self, rollouts: Sequence[Rollout]) -> None:
        """Write the manifest with the first rollouts that are read, and hold others to it."""
        digest = hashlib.sha256()
        for rollout in rollouts:
            digest.update(f'{rollout.episode_id}\0{len(rollout)}\0{rollout.success}\n'.encode())
        found = {'rollouts': len(rollouts), 'digest': digest.hexdigest()}
        self.tasks = sorted({rollout.task for rollout in rollouts})
        if self._before is not None:
            self._compare(found, tuple(found))
            grids = {**self._before['grids'], **self._asked['grids']}
            if grids == self._before['grids']:
                return
            self._before = {**self._before, 'grids': grids}
        else:
            self._before = {**self._asked, **found, 'tasks': self.tasks}
        aside = self._path.with_name(f'.{MANIFEST}.{os.getpid()}')
        aside.write_text(json.dumps(self._before, indent=2) + '\n')
        aside.replace(self._path)

    def _compare(self, found: Mapping[str, Any], names: Sequence[str]) -> None:
        assert self._before is not None
        try:
            differ = [name for name in names if self._before[name] != found[name]]
        except KeyError as error:
            raise self._unreadable(error) from error
        if differ:
            raise SweepError(
                f'{self._path}: this folder holds results of another sweep '
                f'({", ".join(differ)} differ); '
                'give another --out, or the same source and options to go on'
            )

    def _unreadable(self, error: Exception) -> SweepError:
        return SweepError(f'{self._path}: expected what a sweep wrote, found {error!r}')
