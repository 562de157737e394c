# SPDX-License-Identifier: Apache-2.0
"""Comparison of the promised and the realised false-alarm rates of each kind of band.

A band is never tested on its own calibration rollouts. For rollouts of *seen* tasks ("like"), the
held-out successes of the seen tasks are divided at random into two halves, many times: one half is
used for calibration and the other half for the test. For *new* tasks, all held-out successes are
used for calibration, and rollouts of the unseen tasks are used for the test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from safe_monitor_node.bands.adaptive_threshold import AdaptiveThreshold
from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import Detector
from safe_training.calibration.curves import CalibrationError, Successes
from safe_training.evaluation.compared_bands import COMPARED
from safe_training.evaluation.fit_and_calibrate import (
    calibrated_band,
    left_out_rollouts,
    left_out_successes_of,
    make_seeded,
    successes_of,
)
from safe_training.evaluation.judge import score_part
from safe_training.evaluation.protocol import HELD_OUT_PROTOCOL, EvaluationError, Protocol
from safe_training.evaluation.split_workers import load_fitters, run_each
from safe_training.evaluation.splits import Split
from safe_training.metrics.alarms import band_alarms
from safe_training.metrics.binomial import Tally
from safe_training.metrics.scored import ScoredRollout
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

DRAWS = 20
"""Number of random divisions of the held-out successes, and number of random orders of episodes."""


@dataclass(frozen=True)
class Comparison:
    """Settings of the comparison.

    Attributes
    ----------
    alphas : sequence of float
        Promised false-alarm rates.
    bands : sequence of str
        Names of :data:`COMPARED`.
    adaptation_step : float, optional
        Step size of the adaptive threshold; the default is alpha / 10 for each alpha.
    draws : int
        Number of random halves and random orders for each split.
    jobs : int, optional
        Number of processes, see :func:`safe_training.evaluation.split_workers.run_each`; the
        default is only this process.
    """

    alphas: Sequence[float]
    bands: Sequence[str] = tuple(COMPARED)
    adaptation_step: float | None = None
    draws: int = DRAWS
    jobs: int | None = None


@dataclass
class BandResult:
    """Results of one band at one promised rate on one split.

    Attributes
    ----------
    band : str
        One of :data:`COMPARED`.
    alpha : float
        Promised false-alarm rate.
    split : int
        Number of the split.
    n_calibration : int
        Number of calibration rollouts of the band for new tasks.
    finite : bool
        True if this band is finite, so that alarms are possible.
    like, new : Tally
        Successes of the seen and of the unseen tasks. Empty if the bands are infinite, because an
        infinite band never raises an alarm.
    detected : Tally
        Failures of the unseen tasks.
    detection_times : list of float
        First alarm step / length for each of these failures; 1.0 if there was no alarm.
    """

    band: str
    alpha: float
    split: int
    n_calibration: int = 0
    finite: bool = True
    like: Tally = field(default_factory=Tally)
    new: Tally = field(default_factory=Tally)
    detected: Tally = field(default_factory=Tally)
    detection_times: list[float] = field(default_factory=list)

    def add_new(self, rollout: ScoredRollout, alarm: int | None) -> None:
        """Count one rollout of an unseen task."""
        (self.detected if rollout.failed else self.new).add(str(rollout.task), alarm is not None)
        if rollout.failed:
            self.detection_times.append(1.0 if alarm is None else alarm / len(rollout))


def compare_bands(
    name: str,
    rollouts: Sequence[Rollout],
    splits: Sequence[Split],
    comparison: Comparison,
    *,
    params: Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    progress: Progress | None = None,
) -> list[BandResult]:
    """Fit a detector on each split, calibrate every band and test it on other rollouts.

    Parameters
    ----------
    name : str
        Registered detector.
    protocol : Protocol, optional
        Its alpha, modulation, quantile and calibration are replaced by the values of each compared
        band.

    Raises
    ------
    EvaluationError
        A split has no unseen tasks, or too few held-out successes to divide into two halves.
    SplitError
        A split was made from different rollouts, or from the same rollouts in another order.
    """
    for split in splits:
        split.check_rollouts(rollouts)

    def one(number: int, report: Progress) -> list[BandResult]:
        split = splits[number]
        detector = make_seeded(name, params or {}, split.number)
        detector.fit([rollouts[i] for i in split.train], progress=report)
        scored = _OneSplit.of(detector, rollouts, split, protocol or HELD_OUT_PROTOCOL, comparison)
        found: list[BandResult] = []
        for done, band in enumerate(comparison.bands):
            report(done, len(comparison.bands), f'band: {band}')
            found += scored.moving() if COMPARED[band].moves else scored.fixed(band, report)
        return found

    load_fitters([name])
    notes = [f'split {split.number}' for split in splits]
    with closing(run_each(one, notes, jobs=comparison.jobs, progress=progress)) as of_splits:
        return [result for results in of_splits for result in results]


@dataclass(frozen=True, eq=False)
class _OneSplit:
    """A detector fitted on one split, with the scores of all rollouts that may test its bands."""

    detector: Detector
    rollouts: Sequence[Rollout]
    split: Split
    protocol: Protocol
    comparison: Comparison
    seen: list[ScoredRollout]
    new: list[ScoredRollout]

    @classmethod
    def of(
        cls,
        detector: Detector,
        rollouts: Sequence[Rollout],
        split: Split,
        protocol: Protocol,
        comparison: Comparison,
    ) -> _OneSplit:
        held_out = [rollouts[i] for i in split.seen if not rollouts[i].failed]
        unseen = [rollouts[i] for i in split.unseen]
        if len(held_out) < 2 or not unseen:
            raise EvaluationError(
                where=f'split {split.number}',
                expected='two or more held-out successes of seen tasks, and one or more rollouts '
                'of unseen tasks',
                found=f'{len(held_out)} successes and {len(unseen)} rollouts',
                advice='record more rollouts or more tasks, because a band is tested on rollouts '
                'that were not used for its calibration',
            )
        return cls(
            detector,
            rollouts,
            split,
            protocol,
            comparison,
            score_part(detector, held_out, 'seen'),
            score_part(detector, unseen, 'unseen'),
        )

    def fixed(self, name: str, progress: Progress) -> Iterator[BandResult]:
        """Yield the results of a fixed band at each promised rate."""
        changes = {'calibrate_on': 'heldout', 'per_task': False, **COMPARED[name].changes}
        left_out = None
        if changes['calibrate_on'] == 'loto':
            left_out = left_out_successes_of(
                left_out_rollouts(self.detector, self.rollouts, self.split, progress)
            )
        everything = range(len(self.seen))
        for alpha in self.comparison.alphas:
            protocol = replace(self.protocol, alpha=alpha, **changes)
            if left_out is not None:
                band = self._band(left_out, protocol)
                # This band was not calibrated on held-out successes.
                tested = [(band, list(everything))]
            else:
                band = self._band(self._taken(everything), protocol)
                tested = [
                    (self._band(self._taken(one), protocol), list(other))
                    for one, other in self._halves()
                ]
            result = BandResult(name, alpha, self.split.number)
            result.like.repeats = len(tested)
            for made, members in tested:
                for rollout, alarm in _alarms([self.seen[i] for i in members], made, alpha):
                    result.like.add(str(rollout.task), alarm is not None)
            result.finite = _can_alarm(band, alpha)
            result.n_calibration = band.n_calibration if band is not None else 0
            for rollout, alarm in _alarms(self.new, band, alpha):
                result.add_new(rollout, alarm)
            yield result

    def moving(self) -> Iterator[BandResult]:
        """Simulate episodes in random order.

        Each success is labelled before the next episode begins.
        """
        peaks = np.array([rollout.scores.max() for rollout in self.seen])
        draws = self.comparison.draws
        for alpha in self.comparison.alphas:
            step = self.comparison.adaptation_step or alpha / 10
            result = BandResult('moving', alpha, self.split.number, len(self.seen))
            result.like.repeats = result.new.repeats = result.detected.repeats = draws
            generator = np.random.default_rng([self.split.number, len(self.new)])
            for one, other in self._halves():
                threshold = AdaptiveThreshold(peaks[one], alpha, step)
                for index in other:
                    alarmed = threshold.observe(float(peaks[index])).alarmed
                    result.like.add(str(self.seen[index].task), alarmed)
            for _ in range(draws):
                threshold = AdaptiveThreshold(peaks, alpha, step)
                for index in generator.permutation(len(self.new)):
                    rollout = self.new[index]
                    above = np.flatnonzero(rollout.scores > threshold.threshold)
                    result.add_new(rollout, int(above[0]) if above.size else None)
                    if not rollout.failed:
                        threshold.observe(float(rollout.scores.max()))
            yield result

    def _taken(self, members: Sequence[int] | np.ndarray) -> Successes:
        return successes_of([self.seen[i] for i in members])

    def _band(self, successes: Successes, protocol: Protocol) -> Band | None:
        """Return a band for only the alpha of the protocol.

        None if there are too few successes for this kind of band.
        """
        try:
            return calibrated_band(
                successes, self.rollouts, self.split, protocol, alphas=[protocol.alpha]
            )
        except CalibrationError:
            return None

    def _halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return pairs of halves of the held-out successes, drawn at random."""
        count = len(self.seen)
        generator = np.random.default_rng([self.split.number, count])
        orders = [generator.permutation(count) for _ in range(self.comparison.draws)]
        return [(order[: count // 2], order[count // 2 :]) for order in orders]


def _can_alarm(band: Band | None, alpha: float) -> bool:
    return band is not None and band.at(alpha).can_alarm


def _alarms(
    scored: Sequence[ScoredRollout], band: Band | None, alpha: float
) -> Iterator[tuple[ScoredRollout, int | None]]:
    """Yield rollouts with their alarms; yield nothing if the band is infinite."""
    if band is not None and _can_alarm(band, alpha):
        yield from zip(scored, band_alarms(scored, band, alpha), strict=True)
