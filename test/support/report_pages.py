# SPDX-License-Identifier: Apache-2.0
"""Report pages of rollouts made by hand, so that a test knows every step of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rollout_factory import make_rollout

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_monitor_node.bands.threshold import Threshold
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_training.evaluation.judge import JudgedSet
from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.page.page import page
from safe_training.reporting.page.videos import PageVideo
from vla_feature_bridge.atomic import replace_files
from vla_feature_bridge.pooling import FeatureSpec

ALPHA = 0.2
HORIZON = 40


def by_part(scored: Sequence[ScoredRollout]) -> dict[str, list[ScoredRollout]]:
    """Return rollouts by their part, in the order of the first rollout of each."""
    parts: dict[str, list[ScoredRollout]] = {}
    for rollout in scored:
        parts.setdefault(rollout.part, []).append(rollout)
    return parts


def judged(
    name: str,
    scores: Sequence[float],
    *,
    failed: bool = False,
    task: str = 'lift',
    part: str = 'new',
    edge: float | Sequence[float] = 0.5,
    failure_step: int | None = None,
    exec_horizon: int = 1,
    stamps: Sequence[float] | None = None,
) -> ScoredRollout:
    """Return a rollout with these scores under this band; ``stamps`` are seconds."""
    values = np.asarray(scores, dtype=np.float64)
    rollout = make_rollout(
        features=np.arange(2 * len(values), dtype=np.float32).reshape(-1, 2),
        task=task,
        success=not failed,
        episode_id=name,
        exec_horizon=exec_horizon,
        stamps=None if stamps is None else (np.asarray(stamps) * 1e9).astype(np.int64),
        failure_step=failure_step,
    )
    edges = np.atleast_1d(edge)
    upper = np.pad(edges, (0, HORIZON - len(edges)), mode='edge')
    threshold = Threshold(ALPHA, upper)
    alarm = threshold.first_crossing(values)
    return ScoredRollout(values, failed, task, failure_step, name, part, threshold, alarm, rollout)


def judged_set(
    entries: Sequence[ScoredRollout],
    band: Band,
    detector: str = 'mahalanobis',
    probability: ProbabilityMap | None = None,
) -> JudgedSet:
    """Return the rollouts as what a detector, which is not fitted, says about a set."""
    made, feature = make_detector(detector), FeatureSpec('state', 2)
    loaded = CalibratedDetector(made, feature, band, ALPHA, probability=probability)
    return JudgedSet(loaded, ALPHA, by_part(entries))


def _band(upper: np.ndarray, tasks: Mapping[str, Band] | None = None) -> Band:
    return Band(np.array([ALPHA]), upper[None], 'functional_constant', 30, tasks=tasks or {})


def write_report(
    path: Path, entries: Sequence[ScoredRollout], videos: Mapping[str, PageVideo] | None = None
) -> Path:
    """Write the page about the rollouts, without figures; each task has its rollouts' band."""
    tasks = {j.task: _band(j.required_threshold.upper) for j in entries}
    band = _band(np.full(HORIZON, 0.5), tasks)
    replace_files({path: page('Report', judged_set(entries, band), [], videos or {})})
    return path
