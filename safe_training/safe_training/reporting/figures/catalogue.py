# SPDX-License-Identifier: Apache-2.0
"""Which figures a detector and a set of rollouts give, drawn by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from safe_monitor_node.bands.band import Band
from safe_training.evaluation.judge import by_part
from safe_training.metrics.lead_time import LeadTimes, lead_times
from safe_training.metrics.operating_curves import alpha_curve
from safe_training.metrics.reliability import reliability
from safe_training.metrics.scored import ScoredRollout, min_lengths, scores_at_min_length
from safe_training.reporting.figures import detections, feature_map, score_curves, style

# As many steps as a projection shows; more are thinned evenly, over all rollouts.
MOST_POINTS = 6000


def figures_of(
    judged: Sequence[ScoredRollout],
    band: Band,
    title: str,
    projectors: Sequence[str] = ('pca',),
    seed: int = 0,
    *,
    probability: bool = False,
) -> Iterator[tuple[str, str, Figure]]:
    """Draw every figure that there are data for.

    Parameters
    ----------
    probability : bool
        Whether the score claims to be the probability of failure.

    Yields
    ------
    name, what it shows, figure
    """
    parts = by_part(judged)
    alpha = judged[0].required_threshold.alpha
    yield (
        'score_curves',
        'Scores over the policy steps: every rollout, and mean with standard deviation, by part',
        score_curves.score_curves(
            {p: [style.OutcomeCurve(j.scores, bool(j.failed)) for j in m]
             for p, m in parts.items()},
            title,
            {p: [j.required_threshold.upper for j in m] for p, m in parts.items()},
        ),
    )  # fmt: skip
    counts = {
        part: (
            sum(j.outcome == 'false alarm' for j in members),
            sum(not j.failed for j in members),
        )
        for part, members in parts.items()
    }
    if any(n for _, n in counts.values()):
        yield (
            'false_alarms',
            'Realised false-alarm rate of each part, with its 95 % interval, and the promised one',
            detections.promise_bars(counts, alpha, title),
        )
    points = {part: alpha_curve(m, band) for part, m in parts.items()}
    yield (
        'conformal',
        'Balanced accuracy against detection time, and rates against the promised rate',
        detections.conformal(points, title, alpha),
    )
    yield (
        'cumulative_detections',
        'Share of the rollouts with an alarm by each relative time',
        detections.cumulative_detections(
            {part: _alarm_times(members, failed=True) for part, members in parts.items()},
            title,
            {part: _alarm_times(members, failed=False) for part, members in parts.items()},
        ),
    )
    annotated = [j for j in judged if j.failed and j.failure_step is not None]
    if annotated:
        yield (
            'detected_against_annotated',
            'First alarm against the step at which a person saw the failure begin',
            detections.detected_against_annotated(
                [_relative(j, j.failure_step) for j in annotated],
                [_relative(j, j.alarm_step) for j in annotated],
                [j.part for j in annotated],
                title,
            ),
        )
        yield (
            'lead_times',
            'By how many steps the first alarm preceded the step at which a person saw the failure',
            detections.lead_times({part: _lead_times(m) for part, m in parts.items()}, title),
        )
    if probability:
        stops = min_lengths([j.task for j in judged], [len(j) for j in judged])
        for part, members in parts.items():
            # The last step of a rollout would know its length.
            given = scores_at_min_length(members, stops)
            found = reliability(given, np.array([j.failed for j in members]))
            yield (
                f'reliability_{part}',
                f'How often rollouts of the part {part} fail against the probability given at the '
                'earliest stop of their task',
                detections.reliability_diagram(
                    found.bin_confidence,
                    found.bin_frequency,
                    found.bin_count,
                    f'{title}, {part}',
                    f'Brier score {found.brier:.3f}, calibration error '
                    f'{found.calibration_error:.3f}',
                ),
            )
    for projector in projectors:
        yield (
            f'features_{projector}',
            f'Features of the policy steps ({_NAMES[projector]}) by outcome over time and by task',
            _feature_map(judged, projector, seed),
        )


_NAMES = {'pca': 'PCA', 'tsne': 't-SNE', 'umap': 'UMAP'}


def _relative(entry: ScoredRollout, step: int | None) -> float:
    return float('nan') if step is None else step / len(entry)


def _lead_times(members: Sequence[ScoredRollout]) -> LeadTimes:
    failures = [j for j in members if j.failed]
    return lead_times(
        failures,
        [j.alarm_step for j in failures],
        [j.failure_step for j in failures],
    )


def _alarm_times(members: Sequence[ScoredRollout], *, failed: bool) -> np.ndarray:
    return np.array([_relative(j, j.alarm_step) for j in members if j.failed == failed])


def _feature_map(judged: Sequence[ScoredRollout], projector: str, seed: int) -> Figure:
    features = np.concatenate([j.required_rollout.features.astype(np.float64) for j in judged])
    lengths = [len(j) for j in judged]
    outcome = score_curves.outcome_values(lengths, [bool(j.failed) for j in judged])
    tasks = np.repeat([j.task for j in judged], lengths)
    every = -(-len(features) // MOST_POINTS)
    points = feature_map.project(features[::every], projector, seed)
    shown = 'every step' if every == 1 else f'one step in {every}'
    return feature_map.feature_map(
        points,
        outcome[::every],
        tasks[::every].tolist(),
        f'features of the policy, {shown}',
        _NAMES[projector],
    )
