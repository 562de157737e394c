# SPDX-License-Identifier: Apache-2.0
"""Compares the scores of a live session with the offline scores of the same rollouts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from safe_training.evaluation.judge import JudgedSet, with_alarms, with_onsets
from safe_training.metrics.part_report import flatten_report
from safe_training.metrics.scored import ScoredRollout
from safe_training.recordings.untrusted.score_cdr import RecordedScore

TOLERANCE = 1e-5
"""Largest difference of two scores that count as equal, relative to 1 or to the larger score.

A message has the score as float32, and a live detector may sum in another order.
"""

_ESTIMATES = frozenset({'onset_distance_steps', 'onset_near'})
"""Numbers of the table that can change with the last digit of a score."""


@dataclass(frozen=True)
class Difference:
    """One difference between the live session and the offline results.

    Attributes
    ----------
    where : str
        Episode, or part of the table.
    step : int or None
        None if the difference is not about one step.
    what : str
    offline, live : str
    """

    where: str
    step: int | None
    what: str
    offline: str
    live: str


@dataclass(frozen=True, eq=False)
class LiveParity:
    """Result of :func:`compare_live`.

    Attributes
    ----------
    episodes, steps : int
        Number of episodes and steps in both.
    largest : float
        Largest absolute difference of two finite scores; NaN if there is none.
    differences : tuple of Difference
        Empty if the live session and the offline results are equal.
    offline, live : JudgedSet
        The complete episodes of both, with offline scores and with live scores.
    """

    episodes: int
    steps: int
    largest: float
    differences: tuple[Difference, ...]
    offline: JudgedSet
    live: JudgedSet


def compare_live(judged: JudgedSet, live: Mapping[str, Sequence[RecordedScore]]) -> LiveParity:
    """Compare scores, thresholds, alarms and the table.

    Every rollout is scored as in the monitor, also rollouts of the part 'train'.

    Parameters
    ----------
    judged : JudgedSet
        The rollouts of the session, judged offline.
    live : mapping of str to sequence of RecordedScore
        The scores that a monitor published, by episode.
    """
    differences: list[Difference] = []
    offline_parts: dict[str, list[ScoredRollout]] = {}
    live_parts: dict[str, list[ScoredRollout]] = {}
    episodes = steps = 0
    largest = math.nan
    for part, members in judged.parts.items():
        for rollout in _as_live(judged, part, members):
            scores = live.get(rollout.episode_id)
            if not scores:
                differences.append(_absent(rollout.episode_id, 'in the set', 'no score'))
                continue
            episodes += 1
            found = list(_differences(rollout, scores))
            differences += found
            common = _common(rollout, scores)
            steps += len(common)
            apart = [abs(a - b) for a, b in common if math.isfinite(b)]
            largest = np.nanmax([largest, *apart]) if apart else largest
            if [s.step for s in scores] == list(range(len(rollout))) and all(
                math.isfinite(s.score) for s in scores
            ):
                offline_parts.setdefault(part, []).append(rollout)
                live_parts.setdefault(part, []).append(_scored_live(judged, rollout, scores))
    known = {rollout.episode_id for rollout in judged.rollouts}
    differences += [_absent(name, 'not in the set', 'scores') for name in live if name not in known]
    offline = JudgedSet(judged.detector, judged.alpha, offline_parts)
    scored_live = JudgedSet(judged.detector, judged.alpha, live_parts)
    differences += _of_tables(offline, scored_live)
    return LiveParity(episodes, steps, float(largest), tuple(differences), offline, scored_live)


def _as_live(
    judged: JudgedSet, part: str, members: Sequence[ScoredRollout]
) -> Sequence[ScoredRollout]:
    """Return the rollouts with scores as in a monitor: compared with all training steps."""
    if part != 'train':
        return members
    scores = judged.detector.detector.score_all([m.required_rollout for m in members])
    again = [replace(m, scores=s) for m, s in zip(members, scores, strict=True)]
    return with_alarms(with_onsets(judged.detector.detector, again), judged.band, judged.alpha)


def _common(rollout: ScoredRollout, live: Sequence[RecordedScore]) -> list[tuple[float, float]]:
    return [(float(rollout.scores[s.step]), s.score) for s in live if s.step < len(rollout)]


def _differences(rollout: ScoredRollout, live: Sequence[RecordedScore]) -> Iterator[Difference]:
    name = rollout.episode_id
    numbers = [s.step for s in live]
    if numbers != list(range(len(rollout))):
        yield Difference(name, None, 'steps', _ranges(range(len(rollout))), _ranges(numbers))
    upper = rollout.required_threshold.upper
    for score in live:
        if score.step >= len(rollout):
            continue
        for what, offline, found in (
            ('score', float(rollout.scores[score.step]), score.score),
            ('threshold', float(upper[score.step]), score.threshold),
        ):
            if not _equal(offline, found):
                yield Difference(name, score.step, what, f'{offline:.6g}', f'{found:.6g}')
    if (alarm := _first_alarm(live)) != rollout.alarm_step:
        yield Difference(name, None, 'first alarm', _step(rollout.alarm_step), _step(alarm))


def _first_alarm(live: Sequence[RecordedScore]) -> int | None:
    return next((s.step for s in live if s.alarm), None)


def _equal(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= TOLERANCE * max(1.0, abs(one), abs(other))


def _step(number: int | None) -> str:
    return 'none' if number is None else f'step {number}'


def _ranges(numbers: Sequence[int]) -> str:
    """Return step numbers as ``0-3, 5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [str(a) if a == b else f'{a}-{b}' for a, b in parts]
    return ', '.join(shown[:6]) + (', ...' if len(shown) > 6 else '')


def _absent(name: str, offline: str, live: str) -> Difference:
    return Difference(name, None, 'episode', offline, live)


def _scored_live(
    judged: JudgedSet, rollout: ScoredRollout, live: Sequence[RecordedScore]
) -> ScoredRollout:
    scores = np.array([s.score for s in live])
    scored = replace(rollout, scores=scores, alarm_step=_first_alarm(live))
    return with_onsets(judged.detector.detector, [scored])[0]


def _of_tables(offline: JudgedSet, live: JudgedSet) -> list[Difference]:
    """Return the numbers of the table that differ."""
    reports, of_live = offline.report(), live.report()
    differences = []
    for part, report in reports.items():
        other = flatten_report(of_live[part])
        for name, value in flatten_report(report).items():
            if name in _ESTIMATES:
                continue
            both_missing = math.isnan(value) and math.isnan(other[name])
            if not both_missing and not _equal(value, other[name]):
                shown = f'{value:.6g}', f'{other[name]:.6g}'
                differences.append(Difference(f'table, {part}', None, name, *shown))
    return differences
