# SPDX-License-Identifier: Apache-2.0
"""Runs the units of a sweep in this process, or as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

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


@contextmanager
def runner(ray_address: str | None) -> Iterator[Runner]:
    """Yield a runner: this process, or a Ray cluster that is available inside the block.

    Parameters
    ----------
    ray_address : str or None
        Address of the cluster. 'local' starts a cluster on this machine; None runs in this process.

    Raises
    ------
    SweepError
        Ray is not installed.
    """
    if ray_address is None:
        yield _run_here
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
        address=None if ray_address == 'local' else ray_address,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        yield _RunOnRay(ray)
    finally:
        ray.shutdown()


def _run_here(
    work: Work,
    rollouts: Sequence[Rollout],
    feature: FeatureSpec,
    settings: Settings,
    progress: Progress | None,
) -> Iterator[UnitOutcome]:
    for unit, split in work:
        yield unit, run_unit(unit, split, rollouts, feature, settings, progress)


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
