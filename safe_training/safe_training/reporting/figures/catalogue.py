# SPDX-License-Identifier: Apache-2.0
"""The catalogue of figures. A new figure is one entry of :data:`FIGURES`.

The verb ``figures`` and the report page draw every entry for which data exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from safe_training.evaluation.judge import JudgedSet
from safe_training.metrics.early import early_curve, early_report
from safe_training.metrics.lead_time import LeadTimes, lead_times
from safe_training.metrics.operating_curves import alpha_curve
from safe_training.metrics.reliability import probability_report
from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.figures import (
    detections,
    feature_map,
    probabilities,
    promises,
    score_curves,
)
from safe_training.reporting.figures.projectors import PROJECTORS

# Maximum number of steps in a projection. If there are more steps, a regular subset over all
# rollouts is used.
MOST_POINTS = 6000


@dataclass(frozen=True, eq=False)
class FigureData:
    """Input data of all figures.

    Attributes
    ----------
    judged : JudgedSet
        At least one rollout; each has a label.
    title : str
    projectors : sequence of str
        Names in `projectors.PROJECTORS`.
    seed : int
        Seed of the projections.
    """

    judged: JudgedSet
    title: str
    projectors: Sequence[str] = ('pca',)
    seed: int = 0

    @property
    def parts(self) -> Mapping[str, Sequence[ScoredRollout]]:
        """The rollouts by part."""
        return self.judged.parts

    @cached_property
    def scored(self) -> list[ScoredRollout]:
        """All rollouts, part by part."""
        return self.judged.rollouts

    @cached_property
    def annotated(self) -> list[ScoredRollout]:
        """The failures with an annotated failure step."""
        return [r for r in self.scored if r.failed and r.failure_step is not None]


class DrawnFigure(NamedTuple):
    """A figure, its name in files and pages, and its title."""

    name: str
    title: str
    figure: Figure


def _always(data: FigureData) -> bool:
    return True


def _single(data: FigureData) -> Mapping[str, str]:
    return {'': ''}


@dataclass(frozen=True)
class FigureEntry:
    """One figure of the catalogue, or one for each of several variants.

    Attributes
    ----------
    name : str
        Name of its files; ``NAME_VARIANT`` if it has variants.
    title : str
        Title of the figure; ``{variant}`` is replaced by the display name of the variant.
    draw : callable (data, variant) -> Figure
    needs : callable data -> bool
        Returns True if data for the figure exist.
    variants : callable data -> mapping of variant to its display name
    """

    name: str
    title: str
    draw: Callable[[FigureData, str], Figure]
    needs: Callable[[FigureData], bool] = _always
    variants: Callable[[FigureData], Mapping[str, str]] = _single


def figures_of(data: FigureData) -> Iterator[DrawnFigure]:
    """Yield every figure of the catalogue for which data exist."""
    for entry in FIGURES:
        if not entry.needs(data):
            continue
        for variant, shown in entry.variants(data).items():
            yield DrawnFigure(
                f'{entry.name}_{variant}' if variant else entry.name,
                entry.title.format(variant=shown),
                entry.draw(data, variant),
            )


# -- what figures need, and their variants


def _has_successes(data: FigureData) -> bool:
    return not all(rollout.failed for rollout in data.scored)


def _has_annotations(data: FigureData) -> bool:
    return bool(data.annotated)


def _gives_probability(data: FigureData) -> bool:
    return data.judged.detector.probability is not None


def _parts_with_both(data: FigureData) -> Mapping[str, str]:
    """Return the parts with a failure of a task that has a median success length."""
    return {
        part: part
        for part in _parts_with_successes(data)
        if early_report(data.parts[part], _alarms(data.parts[part])).pooled.n_with_median
    }


def _parts_with_successes(data: FigureData) -> Mapping[str, str]:
    """Return the parts that have a median success length."""
    return {
        part: part
        for part, members in data.parts.items()
        if not all(rollout.failed for rollout in members)
    }


def _every_projector(data: FigureData) -> Mapping[str, str]:
    return {name: PROJECTORS[name] for name in data.projectors}


# -- drawing functions


def _score_curves(data: FigureData, variant: str) -> Figure:
    return score_curves.score_curves(data.parts, data.title)


def _found_early(data: FigureData, variant: str) -> Figure:
    members = data.parts[variant]
    return detections.found_early(
        early_curve(members, _alarms(members)), f'{data.title}, {variant}'
    )


def _false_alarms(data: FigureData, variant: str) -> Figure:
    counts = {
        part: (
            sum(r.outcome == 'false alarm' for r in members),
            sum(not r.failed for r in members),
        )
        for part, members in data.parts.items()
    }
    return promises.promise_bars(counts, data.judged.alpha, data.title)


def _conformal(data: FigureData, variant: str) -> Figure:
    points = {part: alpha_curve(members, data.judged.band) for part, members in data.parts.items()}
    return promises.conformal(points, data.title, data.judged.alpha)


def _cumulative_detections(data: FigureData, variant: str) -> Figure:
    return detections.cumulative_detections(
        {part: _alarm_times(members, failed=True) for part, members in data.parts.items()},
        data.title,
        {part: _alarm_times(members, failed=False) for part, members in data.parts.items()},
    )


def _detected_against_annotated(data: FigureData, variant: str) -> Figure:
    return detections.detected_against_annotated(
        [_relative(r, r.failure_step) for r in data.annotated],
        [_relative(r, r.alarm_step) for r in data.annotated],
        [r.part for r in data.annotated],
        data.title,
    )


def _leads(data: FigureData, variant: str) -> Figure:
    return detections.lead_times({p: _lead_times(m) for p, m in data.parts.items()}, data.title)


def _reliability(data: FigureData, variant: str) -> Figure:
    fitted = data.judged.detector.probability
    assert fitted is not None, 'the entry needs it'
    found = probability_report(data.parts[variant], fitted)
    assert found is not None, 'only parts with running rollouts are variants'
    return probabilities.reliability_diagram(found, f'{data.title}, {variant}')


def _feature_map(data: FigureData, variant: str) -> Figure:
    scored = data.scored
    lengths = [len(r) for r in scored]
    outcome = feature_map.outcome_values(lengths, [bool(r.failed) for r in scored])
    tasks = np.repeat([r.task for r in scored], lengths)
    every = -(-sum(lengths) // MOST_POINTS)
    # Only the drawn steps are copied: the features of all steps may not fit into memory.
    starts = np.cumsum([0, *lengths[:-1]])
    features = np.concatenate(
        [
            r.required_rollout.features[-start % every :: every].astype(np.float64)
            for r, start in zip(scored, starts.tolist(), strict=True)
        ]
    )
    points = feature_map.project(features, variant, data.seed)
    steps = 'every step' if every == 1 else f'one step in {every}'
    return feature_map.feature_map(
        points,
        outcome[::every],
        tasks[::every].tolist(),
        f'features of the policy, {steps}',
        PROJECTORS[variant],
    )


def _alarms(members: Sequence[ScoredRollout]) -> list[int | None]:
    return [rollout.alarm_step for rollout in members]


def _lead_times(members: Sequence[ScoredRollout]) -> LeadTimes:
    failures = [r for r in members if r.failed]
    return lead_times(
        failures, [r.alarm_step for r in failures], [r.failure_step for r in failures]
    )


def _alarm_times(members: Sequence[ScoredRollout], *, failed: bool) -> np.ndarray:
    return np.array([_relative(r, r.alarm_step) for r in members if r.failed == failed])


def _relative(rollout: ScoredRollout, step: int | None) -> float:
    return float('nan') if step is None else step / len(rollout)


FIGURES: tuple[FigureEntry, ...] = (
    FigureEntry(
        'found_early',
        'Part {variant}: share of failures with an alarm until a time (a share of the median '
        'success length of the task), for the detector and for a step counter with the same '
        'false-alarm rate',
        _found_early,
        variants=_parts_with_both,
    ),
    FigureEntry(
        'score_curves',
        'Scores over the policy steps: every rollout, and mean with standard deviation, by part',
        _score_curves,
    ),
    FigureEntry(
        'false_alarms',
        'Promised false-alarm rate, and realised rate of each part with its 95 % interval',
        _false_alarms,
        needs=_has_successes,
    ),
    FigureEntry(
        'conformal',
        'Balanced accuracy against detection time, and rates against the promised rate',
        _conformal,
    ),
    FigureEntry(
        'cumulative_detections',
        'Share of the rollouts with an alarm so far, over the relative time',
        _cumulative_detections,
    ),
    FigureEntry(
        'detected_against_annotated',
        'Time of the first alarm against the annotated beginning of the failure',
        _detected_against_annotated,
        needs=_has_annotations,
    ),
    FigureEntry(
        'lead_times',
        'Lead: steps from the first alarm to the annotated beginning of the failure',
        _leads,
        needs=_has_annotations,
    ),
    FigureEntry(
        'reliability',
        'Part {variant}: share of failures against the predicted probability of failure, of '
        'rollouts that still run at 25, 50, 75 and 100 % of the median success length',
        _reliability,
        needs=_gives_probability,
        variants=_parts_with_successes,
    ),
    FigureEntry(
        'features',
        'Features of the policy steps ({variant}) by outcome over time and by task',
        _feature_map,
        variants=_every_projector,
    ),
)
"""All figures, in the order in which they are drawn."""
