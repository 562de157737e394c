# SPDX-License-Identifier: Apache-2.0
"""Runs a grid of detector configurations over task splits, and continues after an interruption.

The configurations, poolings, subsets and splits of a grid (see `grid`) are divided into units (see
`plan`). Each unit writes its results as one parquet file when it has finished, so that an
interrupted sweep can continue. Units can run on other machines (see `runners`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

from safe_training.evaluation.fit_and_calibrate import labelled
from safe_training.evaluation.protocol import EvaluationError, choose_splits, numbered_tasks
from safe_training.evaluation.saved_splits import read_splits, split_numbers, write_splits
from safe_training.evaluation.splits import Split, SplitError
from safe_training.fitting.precision import Precision
from safe_training.recordings.rollouts import Rollouts
from safe_training.recordings.sources import load_rollouts
from safe_training.sweep.folder import MANIFEST, Manifest
from safe_training.sweep.grid import Grid, Subset, SweepError, Variant
from safe_training.sweep.plan import (
    Settings,
    SplitNumbers,
    Unit,
    all_splits,
    benchmark_of,
    existing_variants,
    members_of,
    plan,
    planned_splits,
    tasks_of_subsets,
)
from safe_training.sweep.results import SUBSET_MARK, Result, write_results
from safe_training.sweep.runners import Place, Runner, runner
from vla_feature_bridge.atomic import locked
from vla_feature_bridge.pooling import parse_pooling
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

#: The splits of each subset, by number.
_Splits = Mapping[Subset | None, Mapping[int, Split]]


@dataclass(frozen=True)
class SplitChoice:
    """Task splits of a sweep; the default is the splits of its protocol.

    Attributes
    ----------
    count : int or None
        Number of splits, see `planned_splits`.
    saved : Path or None
        File with splits to use instead of random splits.
    """

    count: int | None = None
    saved: Path | None = None


@dataclass(frozen=True)
class Listener:
    """Callbacks for the progress and the messages of a sweep.

    Attributes
    ----------
    progress : callable or None
        Called with (units done, units, note).
    say : callable
        Called with each message for people.
    """

    progress: Progress | None = None
    say: Callable[[str], None] = lambda message: None


@dataclass(frozen=True)
class Outcome:
    """Summary of a sweep.

    Units run now, units finished earlier, and configurations that could not be fitted.
    """

    done: int
    kept: int
    failures: tuple[str, ...]


def run_sweep(
    source: str,
    grid: Grid,
    out: Path,
    settings: Settings,
    splits: SplitChoice | None = None,
    *,
    place: Place | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Run all units of a sweep that have not finished yet.

    Parameters
    ----------
    source : str
        Any source that ``convert`` reads. It is read once for each pooling.
    out : Path
        Folder of the results, with one parquet file per unit. If it exists, the sweep continues;
        otherwise the folder is created.
    place : Place, optional
        Where the units run; the default is this machine. Only this machine reads ``source``.

    Raises
    ------
    SweepError
        ``out`` holds results of another sweep, the subsets do not fit the tasks, the rollouts
        cannot be split, or Ray is requested but not installed.
    """
    splits, listener = splits or SplitChoice(), listener or Listener()
    _check(grid, settings, splits)
    variants, notes = existing_variants(source, grid)
    out.mkdir(parents=True, exist_ok=True)
    with _no_other_sweep(out):
        manifest = Manifest(out / MANIFEST, source, grid, settings, splits.saved)
        reader = _Reader(source, manifest)
        # The list of units depends on the tasks. If the sweep continues, the manifest contains the
        # tasks.
        if not manifest.tasks:
            reader.read(variants[0])
        subsets, left_out = tasks_of_subsets(grid, manifest.tasks)
        for note in (*notes, *left_out):
            listener.say(note)
        numbers = _numbers(subsets, grid, settings, splits)
        manifest.add_plan({s.name if s else '': found for s, found in numbers.items()})
        units = plan(grid, variants, numbers)
        missing = [unit for unit in units if not (out / unit.name()).exists()]
        record = _Record(out, len(units), len(units) - len(missing), listener)
        if missing:
            rollouts = reader.read(variants[0])
            if settings.protocol.name == 'paper' and numbered_tasks(rollouts) is None:
                listener.say(
                    f'{source} has no unique task numbers: splits use the order of the task names'
                )
            # Every pooling has the same rollouts.
            drawn = {
                subset: _splits(
                    members_of(rollouts, subset),
                    subset,
                    all_splits(of_subset),
                    settings,
                    splits,
                    out,
                )
                for subset, of_subset in numbers.items()
            }
            with runner(place or Place()) as run:
                for variant in dict.fromkeys(unit.variant for unit in missing):
                    of_variant = [unit for unit in missing if unit.variant == variant]
                    _run_units(run, of_variant, drawn, reader.take(variant), settings, record)
        return record.outcome()


@contextmanager
def _no_other_sweep(out: Path) -> Iterator[None]:
    """Refuse a second sweep that writes into the same folder at the same time."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except BlockingIOError as error:
            raise SweepError(
                where=str(out),
                expected='only one sweep that writes into this folder',
                found='another sweep that is still running',
                advice='wait until the other sweep has finished, or give another folder with --out',
            ) from error
        yield


def _check(grid: Grid, settings: Settings, splits: SplitChoice) -> None:
    if SUBSET_MARK in settings.benchmark:
        raise SweepError(
            where='sweep',
            expected=f'a benchmark name without {SUBSET_MARK!r}',
            found=repr(settings.benchmark),
            advice=f'choose another name (--benchmark), because {SUBSET_MARK!r} separates the name '
            'of a subset',
        )
    if splits.saved is not None and grid.subsets:
        raise SweepError(
            where=str(splits.saved),
            expected='a grid without subsets',
            found=f'the grid {grid.benchmark} with subsets',
            advice='remove --splits-from, because saved splits are for one set of tasks',
        )


def _numbers(
    subsets: Mapping[Subset | None, Sequence[str]],
    grid: Grid,
    settings: Settings,
    splits: SplitChoice,
) -> dict[Subset | None, SplitNumbers]:
    """Return the numbers of the splits of each subset and detector."""
    if splits.saved is not None:
        saved = tuple(split_numbers(splits.saved))
        of_each = {family.detector: saved for family in grid.families}
        return dict.fromkeys(subsets, of_each)
    name = settings.protocol.name
    return {
        subset: planned_splits(name, grid, splits.count, len(tasks))
        for subset, tasks in subsets.items()
    }


class _Reader:
    """Reads a source in each pooling, and checks the rollouts against the manifest."""

    def __init__(self, source: str, manifest: Manifest) -> None:
        self._source, self._manifest = source, manifest
        self._held: dict[Variant, Rollouts] = {}

    def read(self, variant: Variant) -> Rollouts:
        """Return the labelled rollouts in a pooling, and cache them until `take` is called."""
        if variant not in self._held:
            pooling = parse_pooling(list(variant.pooling)) if variant.pooling else None
            rollouts = load_rollouts(self._source, pooling=pooling, feature=variant.feature)
            self._held[variant] = labelled(rollouts)
            self._manifest.tie(self._held[variant])
        return self._held[variant]

    def take(self, variant: Variant) -> Rollouts:
        """Return the labelled rollouts in a pooling, and remove them from the cache."""
        self.read(variant)
        return self._held.pop(variant)


@dataclass
class _Record:
    """Writes the results of finished units, and reports progress."""

    out: Path
    total: int
    kept: int
    listener: Listener
    done: int = 0
    failures: list[str] = field(default_factory=list)
    reported: set[tuple[str, Subset | None]] = field(default_factory=set)

    def add(self, unit: Unit, results: Sequence[Result], reasons: Sequence[str]) -> None:
        """Write the results of a unit. Report failures once for each detector and subset."""
        detector = unit.family.detector
        self.failures += [f'{detector}, {reason}' for reason in reasons]
        if reasons and (detector, unit.subset) not in self.reported:
            self.reported.add((detector, unit.subset))
            self.listener.say(f'left out: {detector}, {reasons[0]}')
        write_results(self.out / unit.name(), results)
        self.done += 1
        self.progress(f'{detector}, {unit.where()}')

    def progress(self, note: str) -> None:
        """Report the number of finished units to the listener."""
        if self.listener.progress is not None:
            self.listener.progress(self.kept + self.done, self.total, note)

    def outcome(self) -> Outcome:
        """Return the summary of the sweep."""
        return Outcome(self.done, self.kept, tuple(self.failures))


def _run_units(
    run: Runner,
    units: Sequence[Unit],
    splits: _Splits,
    rollouts: Rollouts,
    settings: Settings,
    record: _Record,
) -> None:
    """Run units on rollouts in their common pooling."""

    def inner(part: int, parts: int, note: str) -> None:
        record.progress(f'{part}/{parts} {note}')

    work = [(unit, splits[unit.subset][unit.split]) for unit in units]
    for unit, (results, reasons) in run(work, rollouts, rollouts.feature, settings, inner):
        record.add(unit, results, reasons)


def _splits(
    rollouts: Sequence[Rollout],
    subset: Subset | None,
    numbers: Sequence[int],
    settings: Settings,
    choice: SplitChoice,
    out: Path,
) -> dict[int, Split]:
    """Return the splits by number, and save them in the results folder for later use."""
    path = out / (f'splits-{subset.name}.json' if subset else 'splits.json')
    try:
        if choice.saved is not None:
            splits = read_splits(choice.saved, rollouts).splits
        else:
            drawn = choose_splits(rollouts, settings.protocol, numbers)
            splits = {split.number: split for split in drawn}
        # Keep results and splits of an earlier call with more splits.
        before = read_splits(path, rollouts).splits if path.exists() else {}
    except (SplitError, EvaluationError) as error:
        raise SweepError(f'{benchmark_of(subset, settings)}: {error}') from error
    every = {**before, **splits}
    write_splits(path, rollouts, [every[k] for k in sorted(every)], settings.protocol.name)
    return splits


def fastest_precision(device: str) -> Precision:
    """Measure and return the faster number format for matrix products on this device.

    Processors with bfloat16 arithmetic need less than half of the time. Other processors emulate
    bfloat16 slowly: large matrices would then take half a minute. Therefore small matrices are
    multiplied first.
    """
    taken: dict[Precision, float] = {}
    for size in _SIZES:
        taken = {name: _seconds(name, device, size) for name in get_args(Precision)}
        if max(taken.values()) > _CLEARLY * min(taken.values()):
            break
    return min(taken, key=lambda name: taken[name])


# Rows of the multiplied matrices, and the ratio of times after which no larger matrices are needed.
_SIZES, _CLEARLY = (256, 1024), 8.0


def _seconds(name: Precision, device: str, size: int) -> float:
    """Return the shortest time of a few products of two matrices."""
    a = torch.ones(size, size, dtype=getattr(torch, name), device=device)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        # Reading a value waits for the device.
        torch.mm(a, a)[0, 0].item()
        times.append(time.perf_counter() - started)
    return min(times)
