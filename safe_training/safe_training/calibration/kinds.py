# SPDX-License-Identifier: Apache-2.0
"""The kinds of bands, one class each: name, promise, and how the band is calibrated.

The command line, the protocol and the comparison of bands iterate over :data:`KINDS`. To add a kind
of band, write a subclass of :class:`BandKind` and add it to :data:`KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_training.calibration.constant import constant_band
from safe_training.calibration.curves import ALPHAS, CalibrationError, Quantile, Successes
from safe_training.calibration.functional import Modulation, calibrate


@dataclass(frozen=True)
class BandRequest:
    """Requirements for a band of any kind: promised rates, length and options.

    Attributes
    ----------
    max_steps : int
        Steps of the band.
    alpha : float
        Main promised false-alarm rate. A task gets its own band if that band is finite at this
        rate.
    alphas : sequence of float
        All promised rates that the band holds.
    seed : int
        Seed for selecting the rollouts that determine the shape. With the same seed, all detectors
        are calibrated on the same rollouts.
    quantile : {'finite_sample', 'published'}
        See :func:`safe_training.calibration.quantile.conformal_quantile`.
    per_task : bool
        Calibrate a band for each task as well (Mondrian): the promise then holds within each task.
    """

    max_steps: int
    alpha: float = 0.1
    alphas: Sequence[float] = ALPHAS
    seed: int = 0
    quantile: Quantile = 'finite_sample'
    per_task: bool = False


class BandKind(ABC):
    """A way to calibrate a band on scores of successes.

    Attributes
    ----------
    name : str
        Name in command-line options and in :class:`safe_training.evaluation.protocol.Protocol`.
    title : str
        Name in tables.
    promise : str
        One sentence that describes the promise of the band.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    promise: ClassVar[str]

    def calibrate(self, successes: Successes, request: BandRequest) -> Band:
        """Return the band of all tasks; if requested, it contains the bands of single tasks.

        Raises
        ------
        CalibrationError
            There are no scores to calibrate on, or the scores are not valid.
        """
        band = self.pooled(successes, request)
        if not request.per_task:
            return band
        return replace(band, tasks=self._task_bands(successes, request))

    @abstractmethod
    def pooled(self, successes: Successes, request: BandRequest) -> Band:
        """Return one band for the successes of all tasks together."""

    def _task_bands(self, successes: Successes, request: BandRequest) -> dict[str, Band]:
        """Return a band for each task, and a shared one for all tasks with too few successes.

        Only the numbers of successes decide which tasks share a band. Therefore the promise holds
        within each task that has its own band, and within the group of the other tasks. The band of
        all tasks would make no promise for this group, because tasks with many successes dominate
        it.
        """
        members: dict[str, list[int]] = {}
        for index, task in enumerate(successes.tasks):
            members.setdefault(task, []).append(index)
        bands: dict[str, Band] = {}
        few: list[str] = []
        # A task without a name cannot be identified while a robot works.
        for task in sorted(filter(None, members)):
            described = f'{successes.described}, task {task!r} alone'
            band = self._finite(successes.take(members[task], described), request)
            if band is not None:
                bands[task] = band
            else:
                few.append(task)
        if few:
            of_few = [index for task in few for index in members[task]]
            described = f'{successes.described}, the tasks {", ".join(map(repr, few))} together'
            shared = self._finite(successes.take(of_few, described), request)
            if shared is not None:
                shared = replace(shared, provenance={**shared.provenance, 'tasks': few})
                bands |= dict.fromkeys(few, shared)
        return bands

    def _finite(self, successes: Successes, request: BandRequest) -> Band | None:
        """Return the band, or None if there are too few successes for a finite threshold."""
        try:
            band = self.pooled(successes, request)
        except CalibrationError:  # the published quantile needs at least one value
            return None
        return band if band.at(request.alpha).can_alarm else None


class FunctionalKind(BandKind):
    """A band with a threshold for each step; its subclasses differ in the width over the steps."""

    modulation: ClassVar[Modulation]

    def pooled(self, successes: Successes, request: BandRequest) -> Band:
        """Return the functional conformal band; see :mod:`safe_training.calibration.functional`."""
        return calibrate(
            successes,
            request.alphas,
            max_steps=request.max_steps,
            generator=np.random.default_rng(request.seed),
            modulation=self.modulation,
            quantile=request.quantile,
        )


class MaxDeviation(FunctionalKind):
    """Width: the largest deviation from the mean curve at each step."""

    name = 'max_deviation'
    title = 'functional, largest deviation'
    promise = (
        'At most a share alpha of new successes raises an alarm. The width of the band at each '
        'step is the largest deviation of the successes from their mean.'
    )
    modulation = 'max_deviation'


class Std(FunctionalKind):
    """Width: the standard deviation at each step."""

    name = 'std'
    title = 'functional, std'
    promise = (
        'At most a share alpha of new successes raises an alarm. The width of the band at each '
        'step is the standard deviation of the successes at this step.'
    )
    modulation = 'std'


class Constant(FunctionalKind):
    """Width: constant over the steps, around the mean curve."""

    name = 'constant'
    title = 'functional, constant'
    promise = (
        'At most a share alpha of new successes raises an alarm. The band has a constant '
        'distance from the mean score of the successes.'
    )
    modulation = 'constant'


class OneThreshold(BandKind):
    """One threshold for all steps, which needs the fewest successes."""

    name = 'none'
    title = 'one threshold'
    promise = (
        'At most a share alpha of new successes raises an alarm. All steps have the same '
        'threshold. This kind needs the fewest successes.'
    )

    def pooled(self, successes: Successes, request: BandRequest) -> Band:
        """Return the band of the largest scores; see :func:`constant_band`."""
        return constant_band(
            successes, request.alphas, max_steps=request.max_steps, quantile=request.quantile
        )


KINDS: dict[str, BandKind] = {
    kind.name: kind for kind in (MaxDeviation(), Std(), Constant(), OneThreshold())
}
"""Every kind of band by its name."""
