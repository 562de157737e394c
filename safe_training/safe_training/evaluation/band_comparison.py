# SPDX-License-Identifier: Apache-2.0
"""What kinds of bands promise, and what they keep.

A band is never judged by the rollouts that made it. For rollouts *like* them the held-out successes
of the seen tasks are cut in two halves at random, again and again: one half calibrates, the other
is judged. For *new* tasks all of them calibrate and the successes of the unseen tasks are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from safe_monitor_node.bands.adaptive_threshold import AdaptiveThreshold
from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import Detector
from safe_training.calibration.curves import CalibrationError
from safe_training.evaluation.evaluate import score_part
from safe_training.evaluation.fit_and_calibrate import (
    HELD_OUT,
    calibrated_band,
    left_out_scores,
    make_seeded,
)
from safe_training.evaluation.protocol import EvaluationError, Protocol
from safe_training.evaluation.splits import Split
from safe_training.metrics.alarms import band_alarms
from safe_training.metrics.scored import ScoredRollout
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]

# How often the held-out successes are cut in two, and an order of episodes is drawn.
DRAWS = 20

_DEFAULTS: dict[str, Any] = {'calibrate_on': 'heldout', 'per_task': False}
_PROTOCOLS: dict[str, dict[str, Any]] = {
    'max-deviation': {'modulation': 'max_deviation'},
    'published': {'modulation': 'max_deviation', 'quantile': 'published'},
    'std': {'modulation': 'std'},
    'constant': {'modulation': 'constant'},
    'none': {'modulation': 'none'},
    'per-task': {'modulation': 'none', 'per_task': True},
    'loto': {'modulation': 'none', 'calibrate_on': 'loto'},
}
MOVING = 'moving'
KINDS = {
    'max-deviation': 'functional, largest deviation',
    'published': 'functional, published quantile',
    'std': 'functional, std',
    'constant': 'functional, constant',
    'none': 'one threshold',
    'per-task': 'one for each task',
    'loto': 'one, left-out scores',
    MOVING: 'one, moved by labels',
}


@dataclass
class Tally:
    """Alarms among rollouts of one outcome, by task.

    Attributes
    ----------
    repeats : int
        How often rollouts were drawn; all draws are added up.
    """

    repeats: int = 1
    alarms: dict[str, int] = field(default_factory=dict)
    rollouts: dict[str, int] = field(default_factory=dict)

    def add(self, task: str, alarmed: bool) -> None:
        """Count one rollout."""
        self.alarms[task] = self.alarms.get(task, 0) + alarmed
        self.rollouts[task] = self.rollouts.get(task, 0) + 1

    @property
    def rate(self) -> float:
        """Share with an alarm; NaN without a rollout."""
        total = sum(self.rollouts.values())
        return sum(self.alarms.values()) / total if total else np.nan


@dataclass
class Kept:
    """What one kind of band at one promised rate did on one split.

    Attributes
    ----------
    kind : str
        One of :data:`KINDS`.
    alpha : float
        Promised false-alarm rate.
    split : int
        Number of the split.
    n_calibration : int
        Rollouts that the band for new tasks was ranked on.
    finite : bool
        Whether that band can raise an alarm at all.
    like, new : Tally
        Of successes of the seen tasks, and of those of the unseen tasks. Without any where the
        bands could raise no alarm, which keeps every promise and says nothing.
    detected : Tally
        Of failures of the unseen tasks.
    detection_times : list of float
        Of these, first alarm step / length, 1.0 without one.
    """

    kind: str
    alpha: float
    split: int
    n_calibration: int = 0
    finite: bool = True
    like: Tally = field(default_factory=Tally)
    new: Tally = field(default_factory=Tally)
    detected: Tally = field(default_factory=Tally)
    detection_times: list[float] = field(default_factory=list)

    def judge_new(self, rollout: ScoredRollout, alarm: int | None) -> None:
        """Count one rollout of an unseen task."""
        (self.detected if rollout.failed else self.new).add(str(rollout.task), alarm is not None)
        if rollout.failed:
            self.detection_times.append(1.0 if alarm is None else alarm / len(rollout))


def calibration_of(
    name: str,
    rollouts: Sequence[Rollout],
    protocol: Protocol,
    splits: Sequence[Split],
    alphas: Sequence[float],
    kinds: Sequence[str] = tuple(KINDS),
    params: Mapping[str, Any] | None = None,
    *,
    gamma: float | None = None,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> list[Kept]:
    """Fit a detector on each split, calibrate every kind of band and judge each by other rollouts.

    Parameters
    ----------
    name : str
        Registered detector.
    protocol : Protocol
        Its alpha, modulation and calibration are those of the kinds instead.
    alphas : sequence of float
        Promised rates.
    kinds : sequence of str
        Of :data:`KINDS`.
    gamma : float, optional
        Step size of the moving threshold; a tenth of each alpha by default.
    draws : int
        Halves and orders drawn for each split.

    Raises
    ------
    EvaluationError
        A split has no unseen tasks, or too few held-out successes to cut in two.
    """
    found: list[Kept] = []
    for number, split in enumerate(splits):
        detector = make_seeded(name, params or {}, split.number)

        def note(done: int, total: int, detail: str, number: int = number) -> None:
            if progress is not None:
                progress(number, len(splits), f'split {number + 1}: {done}/{total} {detail}')

        detector.fit([rollouts[i] for i in split.train], progress=note)
        found += _of_split(detector, rollouts, protocol, split, alphas, kinds, gamma, draws, note)
        if progress is not None:
            progress(number + 1, len(splits), '')
    return found


def _of_split(
    detector: Detector,
    rollouts: Sequence[Rollout],
    protocol: Protocol,
    split: Split,
    alphas: Sequence[float],
    kinds: Sequence[str],
    gamma: float | None,
    draws: int,
    progress: Progress,
) -> Iterator[Kept]:
    held_out = [rollouts[i] for i in split.seen if not rollouts[i].failed]
    unseen = [rollouts[i] for i in split.unseen]
    if len(held_out) < 2 or not unseen:
        raise EvaluationError(
            f'split {split.number}: {len(held_out)} held-out successes of seen tasks and '
            f'{len(unseen)} rollouts of unseen tasks; a band is judged by rollouts that did not '
            'make it, so at least two of the first and one of the second are needed; record more '
            'of them, or more tasks'
        )
    seen_scores = score_part(detector, held_out, 'seen')
    new_scores = score_part(detector, unseen, 'unseen')
    halves = _halves(len(held_out), draws, split.number)
    for kind in kinds:
        progress(0, 1, f'band: {kind}')
        if kind == MOVING:
            yield from _moving(seen_scores, new_scores, split, alphas, gamma, draws)
            continue
        left_out = None
        if kind == 'loto':
            left_out = left_out_scores(detector, rollouts, split, progress)
        for alpha in alphas:
            settings = replace(protocol, alpha=alpha, **{**_DEFAULTS, **_PROTOCOLS[kind]})

            def band_of(members: Iterable[int], settings: Protocol = settings) -> Band | None:
                indices = list(members)
                scores = [seen_scores[i].scores for i in indices]
                successes = [held_out[i] for i in indices]
                return _band(scores, successes, HELD_OUT, rollouts, split, settings)

            if left_out is not None:
                band = _band(*left_out, rollouts, split, settings)
                # None of the held-out successes made this band.
                judged = [(band, list(range(len(held_out))))]
            else:
                band = band_of(range(len(held_out)))
                judged = [(band_of(one), list(other)) for one, other in halves]
            kept = Kept(kind, alpha, split.number)
            kept.like.repeats = len(judged)
            for made, members in judged:
                others = [seen_scores[i] for i in members]
                for rollout, alarm in _judged(others, made, alpha):
                    kept.like.add(str(rollout.task), alarm is not None)
            kept.finite = _can_alarm(band, alpha)
            kept.n_calibration = band.n_calibration if band is not None else 0
            for rollout, alarm in _judged(new_scores, band, alpha):
                kept.judge_new(rollout, alarm)
            yield kept


def _band(
    scores: Sequence[np.ndarray],
    successes: Sequence[Rollout],
    what: str,
    rollouts: Sequence[Rollout],
    split: Split,
    protocol: Protocol,
) -> Band | None:
    """Return a band for the protocol's alpha alone; None where there is too little for its kind."""
    alphas = [protocol.alpha]
    try:
        return calibrated_band(scores, successes, what, rollouts, split, protocol, alphas=alphas)
    except CalibrationError:
        return None


def _can_alarm(band: Band | None, alpha: float) -> bool:
    return band is not None and band.at(alpha).can_alarm


def _judged(
    scored: Sequence[ScoredRollout], band: Band | None, alpha: float
) -> Iterator[tuple[ScoredRollout, int | None]]:
    """Return rollouts with their alarms; none where no alarm could ever be raised."""
    if band is not None and _can_alarm(band, alpha):
        yield from zip(scored, band_alarms(scored, band, alpha), strict=True)


def _halves(count: int, draws: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of halves of 0..count-1, drawn at random."""
    generator = np.random.default_rng([seed, count])
    orders = [generator.permutation(count) for _ in range(draws)]
    return [(order[: count // 2], order[count // 2 :]) for order in orders]


def _moving(
    seen: Sequence[ScoredRollout],
    new: Sequence[ScoredRollout],
    split: Split,
    alphas: Sequence[float],
    gamma: float | None,
    draws: int,
) -> Iterator[Kept]:
    """Let episodes come in random orders, each success labelled before the next episode begins."""
    peaks = np.array([rollout.scores.max() for rollout in seen])
    for alpha in alphas:
        kept = Kept(MOVING, alpha, split.number, len(seen))
        kept.like.repeats = kept.new.repeats = kept.detected.repeats = draws
        generator = np.random.default_rng([split.number, len(new)])
        for one, other in _halves(len(seen), draws, split.number):
            threshold = AdaptiveThreshold(peaks[one], alpha, gamma or alpha / 10)
            for index in other:
                alarmed = threshold.observe(float(peaks[index])).alarmed
                kept.like.add(str(seen[index].task), alarmed)
        for _ in range(draws):
            threshold = AdaptiveThreshold(peaks, alpha, gamma or alpha / 10)
            for index in generator.permutation(len(new)):
                rollout = new[index]
                above = np.flatnonzero(rollout.scores > threshold.threshold)
                kept.judge_new(rollout, int(above[0]) if above.size else None)
                if not rollout.failed:
                    threshold.observe(float(rollout.scores.max()))
        yield kept
