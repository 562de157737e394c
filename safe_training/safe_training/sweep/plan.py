# SPDX-License-Identifier: Apache-2.0
"""The plan of a sweep: its units, its splits, and the tasks of its subsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from safe_monitor_node.detectors import DETECTORS
from safe_training.evaluation.evaluate import default_splits
from safe_training.evaluation.protocol import SEEN_TRAIN_RATIO, Protocol, ProtocolName
from safe_training.fitting.precision import Precision
from safe_training.recordings.sources import open_source
from safe_training.sweep.grid import Family, Grid, Subset, SweepError, Variant
from safe_training.sweep.results import SUBSET_MARK
from vla_feature_bridge.rollout import Rollout


@dataclass(frozen=True)
class Settings:
    """Settings of a sweep. The grid defines the configurations.

    Attributes
    ----------
    protocol : Protocol
        The band of a configuration is always calibrated on held-out rollouts, because a sweep
        chooses among the configurations on the same rollouts.
    benchmark : str
        Name of the rollouts in results.
    precision : {'float32', 'bfloat16'}
        Number format of the matrix products of models that are trained together.
    device : str
        PyTorch device on which models are trained together.
    """

    protocol: Protocol
    benchmark: str
    precision: Precision
    device: str = 'cpu'

    def __post_init__(self) -> None:
        ratio = self.protocol.seen_train_ratio
        held_out = replace(
            self.protocol,
            calibrate_on='heldout',
            seen_train_ratio=SEEN_TRAIN_RATIO if ratio is None else ratio,
        )
        object.__setattr__(self, 'protocol', held_out)


@dataclass(frozen=True)
class Unit:
    """One detector with all its configurations, on one pooling, subset of the tasks and split.

    Attributes
    ----------
    variant : Variant
        The pooling.
    family : Family
        The detector and its configurations.
    split : int
        Number of the split.
    subset : Subset or None
        None for all tasks.
    """

    variant: Variant
    family: Family
    split: int
    subset: Subset | None = None

    def name(self) -> str:
        """Return the file name of the unit.

        The name contains its detector, split and subset, and a digest of all its settings.
        """
        parts = asdict(self)
        # The digest is the same as in version 0.1, so that finished units of older sweeps are
        # found.
        parts['seed'] = parts.pop('split')
        if self.subset is None:
            del parts['subset']
        text = json.dumps(parts, sort_keys=True, default=dict)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        subset = f'{self.subset.name}-' if self.subset else ''
        return f'{self.family.detector}-{subset}split{self.split}-{digest}.parquet'

    def where(self) -> str:
        """Return the split and the optional subset as text for users."""
        return f'{self.subset.name}, split {self.split}' if self.subset else f'split {self.split}'


SplitNumbers = Mapping[str, tuple[int, ...]]
"""Numbers of the splits of each detector."""


def planned_splits(
    protocol: ProtocolName, grid: Grid, splits: int | None, n_tasks: int
) -> SplitNumbers:
    """Return the numbers of the splits of a protocol, for each detector of the grid.

    Parameters
    ----------
    protocol : {'paper', 'robust', 'loto'}
        'robust' uses more splits for detectors that are quick to fit, see
        :func:`safe_training.evaluation.evaluate.default_splits`.
    grid : Grid
        Names the published splits.
    splits : int, optional
        Number of splits, starting with split 0; replaces the splits of the protocol. 'loto' ignores
        it.
    n_tasks : int
        Tasks of the source or subset; 'loto' has one split for each.
    """
    names = [family.detector for family in grid.families]
    if protocol == 'loto':
        return dict.fromkeys(names, tuple(range(n_tasks)))
    if splits is not None:
        return dict.fromkeys(names, tuple(range(splits)))
    if protocol == 'paper':
        return dict.fromkeys(names, grid.splits)
    return {name: tuple(range(default_splits(name))) for name in names}


def tasks_of_subsets(
    grid: Grid, tasks: Sequence[str]
) -> tuple[dict[Subset | None, list[str]], list[str]]:
    """Return the tasks of each subset, and messages about excluded tasks and subsets.

    If the grid has no subsets, the key is None for all tasks. A task that is in no subset is
    excluded, because a grid can select only some tasks.

    Raises
    ------
    SweepError
        A task is in two subsets and would count twice in their mean, or all subsets are empty.
    """
    if not grid.subsets:
        return {None: list(tasks)}, []
    members: dict[Subset, list[str]] = {subset: [] for subset in grid.subsets}
    unmatched: list[str] = []
    for task in tasks:
        matches = [subset for subset in grid.subsets if subset.has(task)]
        if len(matches) > 1:
            raise SweepError(
                where=f'grid {grid.benchmark}',
                expected='each task in at most one subset',
                found=f'task {task!r} in {" and ".join(subset.name for subset in matches)}',
                advice='change the patterns of these subsets',
            )
        for subset in matches:
            members[subset].append(task)
        if not matches:
            unmatched.append(task)
    described = ', '.join(f'{s.name} ({", ".join(s.patterns)})' for s in grid.subsets)
    if len(unmatched) == len(tasks):
        raise SweepError(
            where=f'grid {grid.benchmark}',
            expected=f'tasks of the subsets {described}',
            found=f'only the tasks {", ".join(tasks)}',
            advice='correct the patterns, or remove the subsets from the grid',
        )
    notes = [
        f'left out: subset {subset.name}, because the source has no task that matches '
        f'{", ".join(subset.patterns)}'
        for subset in grid.subsets
        if not members[subset]
    ]
    if unmatched:
        notes.append(
            f'left out: the tasks {", ".join(unmatched)}, because they are not in a subset; '
            f'the subsets are {described}'
        )
    return {subset: found for subset, found in members.items() if found}, notes


def plan(
    grid: Grid, variants: Sequence[Variant], splits: Mapping[Subset | None, SplitNumbers]
) -> list[Unit]:
    """Return the units of a sweep in the order of the poolings and splits.

    ``splits`` are by subset. A detector that does not use features is only evaluated on the first
    pooling, because every pooling would give the same numbers.
    """
    return [
        Unit(variant, family, split, subset)
        for variant in variants
        for subset in splits
        for split in all_splits(splits[subset])
        for family in grid.families
        if split in splits[subset][family.detector]
        and (variant == variants[0] or 'features' in DETECTORS[family.detector].needs)
    ]


def all_splits(splits: SplitNumbers) -> list[int]:
    """Return the numbers of the splits of all detectors, in ascending order."""
    return sorted({number for numbers in splits.values() for number in numbers})


def existing_variants(source: str, grid: Grid) -> tuple[list[Variant], list[str]]:
    """Return the poolings of a grid that a source has, and notes about the other poolings.

    A source that is already pooled has only one pooling.
    """
    found = open_source(source)
    if found.raw_axes:
        return list(grid.variants), []
    if set(grid.variants) == {Variant()}:
        return [Variant()], []
    return [Variant()], [
        f'{source}: the features are already pooled ({found.feature}); the poolings of the grid '
        'are not used'
    ]


def members_of(rollouts: Sequence[Rollout], subset: Subset | None) -> list[Rollout]:
    """Return the rollouts of a subset; all rollouts for None."""
    return [r for r in rollouts if subset is None or subset.has(r.task)]


def benchmark_of(subset: Subset | None, settings: Settings) -> str:
    """Return the name of the benchmark in results: ``NAME`` or ``NAME/SUBSET``."""
    return settings.benchmark + (f'{SUBSET_MARK}{subset.name}' if subset else '')
