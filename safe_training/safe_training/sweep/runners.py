# SPDX-License-Identifier: Apache-2.0
"""Where the units of a sweep run: in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import Any, Protocol

import numpy as np

from safe_monitor_node.detectors import DETECTORS
from safe_training.evaluation.split_workers import load_fitters, run_as_finished, useful_jobs
from safe_training.evaluation.splits import Split
from safe_training.sweep.grid import SweepError
from safe_training.sweep.plan import Settings, Unit
from safe_training.sweep.results import Result
from safe_training.sweep.unit import run_unit
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

Work = Sequence[tuple[Unit, Split]]
"""Units that share a pooling, each with its split."""

UnitOutcome = tuple[Unit, tuple[list[Result], list[str]]]
"""A finished unit, and the result of `run_unit` for it."""


class Runner(Protocol):
    """Runs units and yields them in the order in which they finish."""

    def __call__(
        self,
        work: Work,
        rollouts: Sequence[Rollout],
        feature: FeatureSpec,
        settings: Settings,
        progress: Progress | None,
    ) -> Iterator[UnitOutcome]:
        """Yield each unit of the work with its results as soon as it has finished."""


@dataclass(frozen=True)
class Place:
    """Where units run.

    Attributes
    ----------
    ray_address : str or None
        Address of a Ray cluster. 'local' starts a cluster on this machine. None: this machine,
        without Ray.
    jobs : int or None
        Number of processes without Ray. They run the units of detectors that are quick to fit;
        units that train networks run in this process with all its threads. None: as many as the
        cores and the memory allow.
    """

    ray_address: str | None = None
    jobs: int | None = None


@contextmanager
def runner(place: Place) -> Iterator[Runner]:
    """Yield a runner: this machine, or a Ray cluster that is available inside the block.

    Raises
    ------
    SweepError
        Ray is not installed.
    """
    if place.ray_address is None:
        yield partial(_run_here, place.jobs)
        return
    try:
        import ray
    except ImportError as error:
        raise SweepError(
            where='sweep --ray',
            expected='the package ray',
            found='none',
            advice='run `pip install "ray>=2.40"`, or remove --ray',
        ) from error
    ray.init(
        address=None if place.ray_address == 'local' else place.ray_address,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        yield _RunOnRay(ray)
    finally:
        ray.shutdown()


def _run_here(
    jobs: int | None,
    work: Work,
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[UnitOutcome]:
    quick, slow = _divided(work)
    jobs = jobs or useful_jobs(rollouts, len(quick))

    def one(number: int, report: Progress) -> tuple[list[Result], list[str]]:
        unit, split = quick[number]
        return run_unit(unit, split, rollouts, feature, settings, report)

    load_fitters({unit.family.detector for unit, _ in quick})
    names = [f'{unit.family.detector}, {unit.where()}' for unit, _ in quick]
    with closing(run_as_finished(one, names, jobs=jobs, progress=progress)) as found:
        for number, outcome in found:
            yield quick[number][0], outcome
    for unit, split in slow:
        yield unit, run_unit(unit, split, rollouts, feature, settings, progress)


def _divided(work: Work) -> tuple[Work, Work]:
    """Return the units that are quick to fit, and the units that train networks."""
    trains = [DETECTORS[unit.family.detector].trains_over_epochs() for unit, _ in work]
    return [w for w, t in zip(work, trains, strict=True) if not t], list(compress(work, trains))


class _RunOnRay:
    """Runs each unit as a task of a Ray cluster; progress inside a unit is not reported."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def __call__(
        self,
        work: Work,
        rollouts: Sequence[Rollout],
        feature: FeatureSpec,
        settings: Settings,
        progress: Progress | None,
    ) -> Iterator[UnitOutcome]:
        ray = self._ray
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


def _in_memory(rollout: Rollout) -> Rollout:
    """Return a rollout without memory maps, which can be sent to another machine."""
    return replace(rollout, features=np.array(rollout.features))
