# SPDX-License-Identifier: Apache-2.0
"""Runs a grid of detector configurations over task splits; all that can be is trained together.

A grid is a YAML file (see the folder ``grids``). Its configurations, poolings and splits are
divided into units: one detector with all its configurations, on one pooling and one split. Each
unit writes its results as one parquet file when it is done, so that an interrupted sweep goes on
where it stopped, and units can run on other machines.
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
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from safe_monitor_node.detectors import Detector, DetectorError, make_detector
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
    score_part,
)
from safe_training.fitting import require_both_outcomes, stack_rollouts
from safe_training.metrics import Scored, earliest_stops
from safe_training.part_report import flatten_report, report_part
from safe_training.protocol import EvaluationError, Protocol, choose_split
from safe_training.readers import load_rollouts, open_source
from safe_training.results import Result, canonical, write_results
from safe_training.splits import Split
from vla_feature_bridge.pooling import FeatureSpec, parse_pooling
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]
MANIFEST = 'sweep.json'
ROBUST_SPLITS = 10


class SweepError(ValueError):
    """A grid or a sweep's folder is not what it should be; the message names the file."""


@dataclass(frozen=True)
class Variant:
    """One way to pool a raw source; neither set: the source as it is."""

    feature: str | None = None
    pooling: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One detector with the configurations to try."""

    detector: str
    configurations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Grid:
    """What to try: detectors and their parameters, poolings, and the published split."""

    benchmark: str
    seeds: tuple[int, ...]
    unseen_ratio: float
    seen_train_ratio: float
    variants: tuple[Variant, ...]
    families: tuple[Family, ...]


@dataclass(frozen=True)
class Unit:
    """One detector with all its configurations, on one pooling and one split."""

    variant: Variant
    family: Family
    seed: int

    def name(self) -> str:
        """Return the name of the unit's file: what it is, and a digest of all of it."""
        text = json.dumps(asdict(self), sort_keys=True, default=dict)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f'{self.family.detector}-split{self.seed}-{digest}.parquet'


def shipped_grids() -> list[str]:
    """Return the names of the grids that come with this package."""
    folder = resources.files('safe_training') / 'grids'
    return sorted(f.name[: -len('.yaml')] for f in folder.iterdir() if f.name.endswith('.yaml'))


def read_grid(name_or_path: str) -> Grid:
    """Read a grid file, or one that is shipped by its name.

    Raises
    ------
    SweepError
        There is none, it is not YAML, or a field is missing, unknown or of another kind.
    """
    path = Path(name_or_path)
    if not path.exists() and name_or_path in shipped_grids():
        text = (resources.files('safe_training') / 'grids' / f'{name_or_path}.yaml').read_text()
    else:
        try:
            text = path.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise SweepError(
                f'{path}: expected a grid file, found {error}; '
                f'shipped are: {", ".join(shipped_grids())}'
            ) from error
    try:
        values = YAML(typ='safe', pure=True).load(text)
    except YAMLError as error:
        raise SweepError(f'{path}: expected YAML, found {error}') from error
    return _grid(str(path), values)


_FIELDS: dict[str, Any] = {
    'benchmark': str,
    'seeds': list,
    'unseen_ratio': float,
    'seen_train_ratio': float,
    'poolings': list,
    'detectors': list,
}


def _grid(path: str, values: Any) -> Grid:
    fields = _mapping(path, 'a grid', values, _FIELDS)
    for name in ('benchmark', 'detectors'):
        if name not in fields:
            raise SweepError(f'{path}: {name!r} is missing; a grid has {", ".join(_FIELDS)}')
    default = Protocol()
    seeds = tuple(fields.get('seeds', [0, 1, 2]))
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise SweepError(f"{path}: 'seeds' must be a list of split numbers, found {list(seeds)}")
    return Grid(
        benchmark=fields['benchmark'],
        seeds=seeds,
        unseen_ratio=fields.get('unseen_ratio', default.unseen_ratio),
        seen_train_ratio=fields.get('seen_train_ratio', default.seen_train_ratio),
        variants=tuple(_variant(path, v) for v in fields.get('poolings', [{}])),
        families=tuple(_family(path, v) for v in fields['detectors']),
    )


def _mapping(path: str, what: str, values: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SweepError(
            f'{path}: {what} must be a mapping of {", ".join(fields)}, found {values!r}'
        )
    for name, value in values.items():
        if name not in fields:
            raise SweepError(f'{path}: {what} has {", ".join(fields)}; {name!r} is none of them')
        kind = fields[name]
        if kind is float and type(value) is int:
            values[name] = value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise SweepError(
                f'{path}: {name!r} of {what} must be a {kind.__name__}, found {value!r}'
            )
    return dict(values)


def _variant(path: str, values: Any) -> Variant:
    fields = _mapping(path, 'a pooling', values, {'feature': str, 'pooling': list})
    pooling = tuple(str(command) for command in fields.get('pooling', ()))
    parse_pooling(list(pooling))
    return Variant(fields.get('feature'), pooling)


def _family(path: str, values: Any) -> Family:
    fields = _mapping(path, 'a detector', values, {'name': str, 'fixed': dict, 'grid': dict})
    if 'name' not in fields:
        raise SweepError(f"{path}: a detector lacks its 'name', found {values!r}")
    grid = fields.get('grid', {})
    for name, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise SweepError(
                f'{path}: {fields["name"]}: {name!r} must be a list of values, found {choices!r}'
            )
    found = []
    for chosen in itertools.product(*grid.values()):
        params = {**fields.get('fixed', {}), **dict(zip(grid, chosen, strict=True))}
        try:
            # Unknown names are found here, not after an hour.
            make_detector(fields['name'], **params)
        except DetectorError as error:
            raise SweepError(f'{path}: {error}') from error
        found.append(params)
    return Family(fields['name'], tuple(found))


def plan(grid: Grid, variants: Sequence[Variant], seeds: Sequence[int]) -> list[Unit]:
    """Return the units of a sweep, those of one pooling together."""
    return [
        Unit(variant, family, seed)
        for variant in variants
        for seed in seeds
        for family in grid.families
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
    name: Literal['paper', 'robust']
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


def run_unit(
    unit: Unit,
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    settings: Settings,
    progress: Progress | None = None,
) -> tuple[list[Result], list[str]]:
    """Fit, calibrate and evaluate every configuration of a unit on its split.

    Returns
    -------
    results : list of Result
        One per configuration and part.
    failures : list of str
        Why a configuration gave none: training diverged, or there is nothing to calibrate on.
    """
    split = choose_split(rollouts, settings.protocol, unit.seed)
    detectors = []
    for params in unit.family.configurations:
        detector = make_detector(unit.family.detector, **params)
        if 'seed' in detector.get_params() and 'seed' not in params:
            detector = make_detector(unit.family.detector, **params, seed=unit.seed)
        detectors.append(detector)
    stops = earliest_stops([r.task for r in rollouts], [len(r) for r in rollouts])
    results: list[Result] = []
    failures: list[str] = []
    for index, detector, seconds, reason in _fitted(detectors, rollouts, split, settings, progress):
        chosen = unit.family.configurations[index]
        described = canonical({k: v for k, v in chosen.items() if k != 'seed'})
        if reason:
            failures.append(f'split {unit.seed}, {described}: {reason}')
            continue
        parts = {
            name: score_part(detector, [rollouts[i] for i in indices], name)
            for name, indices in split.parts.items()
            if indices
        }
        try:
            band = _band(detector, parts, rollouts, split, settings.protocol)
        except (CalibrationError, EvaluationError) as error:
            failures.append(f'split {unit.seed}, {described}: {error}')
            continue
        for part, scored in parts.items():
            report = report_part(
                scored,
                stops,
                band,
                settings.protocol.alpha,
                probability=detector.gives_probability,
            )
            values = flatten_report(report)
            results.append(
                Result(
                    settings.benchmark,
                    settings.name,
                    detector.name,
                    described,
                    str(feature),
                    unit.seed,
                    part,
                    {**values, 'fit_seconds': seconds},
                )
            )
    return results, failures


def _fitted(
    detectors: Sequence[Detector],
    rollouts: Sequence[Rollout],
    split: Split,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[tuple[int, Detector, float, str]]:
    """Fit detectors; yields (index, detector, seconds, reason why it could not be fitted)."""
    training = [rollouts[i] for i in split.train]
    if all(can_be_stacked(d) for d in detectors) and not settings.protocol.stop_early:
        learned = cast('Sequence[Learned]', detectors)
        require_both_outcomes(training, learned[0].name)
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
    for index, detector in enumerate(detectors):
        started = time.perf_counter()
        reason = ''
        try:
            validation = [rollouts[i] for i in split.seen] if settings.protocol.stop_early else None
            detector.fit(training, validation=validation)
        except DetectorError as error:
            reason = str(error)
        yield index, detector, time.perf_counter() - started, reason
        if progress is not None:
            progress(index + 1, len(detectors), '')


def _band(
    detector: Detector,
    parts: Mapping[str, Sequence[Scored]],
    rollouts: Sequence[Rollout],
    split: Split,
    protocol: Protocol,
) -> Any:
    successes = [i for i, index in enumerate(split.seen) if not rollouts[index].failed]
    return calibrated_band(
        [parts['seen'][i].scores for i in successes] if successes else [],
        [rollouts[split.seen[i]] for i in successes],
        HELD_OUT,
        rollouts,
        split,
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
    seeds: Sequence[int],
    *,
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
    seeds : sequence of int
        Task splits.
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
        ``out`` holds results of another sweep, or Ray is asked for and absent.
    """
    variants, notes = existing_variants(source, grid)
    for note in notes:
        say(note)
    units = plan(grid, variants, seeds)
    out.mkdir(parents=True, exist_ok=True)
    kept = sum((out / unit.name()).exists() for unit in units)
    failures: list[str] = []
    told: set[str] = set()
    finished: list[Unit] = []
    with _runner(ray_address) as run:
        for variant in variants:
            missing = [u for u in units if u.variant == variant and not (out / u.name()).exists()]
            if not missing:
                continue
            pooling = parse_pooling(list(variant.pooling)) if variant.pooling else None
            rollouts, feature = load_rollouts(source, pooling=pooling, feature=variant.feature)
            rollouts = labelled(rollouts)
            _check_manifest(out, source, rollouts, settings)

            def inner(part: int, parts: int, note: str) -> None:
                if progress is not None:
                    progress(kept + len(finished), len(units), f'{part}/{parts} {note}')

            for unit, (results, reasons) in run(missing, rollouts, feature, settings, inner):
                failures += [f'{unit.family.detector}, {reason}' for reason in reasons]
                if reasons and unit.family.detector not in told:
                    told.add(unit.family.detector)
                    say(f'left out: {unit.family.detector}, {reasons[0]}')
                write_results(out / unit.name(), results)
                finished.append(unit)
                if progress is not None:
                    progress(
                        kept + len(finished),
                        len(units),
                        f'{unit.family.detector}, split {unit.seed}',
                    )
    return Outcome(len(finished), kept, tuple(failures))


Finished = tuple[Unit, tuple[list[Result], list[str]]]
Runner = Callable[..., Iterator[Finished]]


def _run_here(
    units: Sequence[Unit],
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[Finished]:
    for unit in units:
        yield unit, run_unit(unit, rollouts, feature, settings, progress)


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
        units: Sequence[Unit],
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
        waiting = {remote.remote(unit, held, feature, settings): unit for unit in units}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready[0]), ray.get(ready[0])

    try:
        yield run
    finally:
        ray.shutdown()


def _in_memory(rollout: Rollout) -> Rollout:
    return replace(rollout, features=np.array(rollout.features))


def _check_manifest(
    out: Path, source: str, rollouts: Sequence[Rollout], settings: Settings
) -> None:
    """Tie a folder to the rollouts and the protocol whose results it holds."""
    digest = hashlib.sha256()
    for rollout in rollouts:
        digest.update(f'{rollout.episode_id}\0{len(rollout)}\0{rollout.success}\n'.encode())
    found = {
        'source': source,
        'rollouts': len(rollouts),
        'digest': digest.hexdigest(),
        'settings': asdict(settings),
        'torch': torch.__version__,
    }
    path = out / MANIFEST
    if not path.exists():
        aside = path.with_name(f'.{MANIFEST}.{os.getpid()}')
        aside.write_text(json.dumps(found, indent=2) + '\n')
        aside.replace(path)
        return
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
        same = {k: before[k] == found[k] for k in ('rollouts', 'digest', 'settings')}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SweepError(f'{path}: expected what a sweep wrote, found {error!r}') from error
    if not all(same.values()):
        what = ', '.join(k for k, v in same.items() if not v)
        raise SweepError(
            f'{path}: this folder holds results of another sweep ({what} differ); '
            'give another --out, or the same source and options to go on'
        )
