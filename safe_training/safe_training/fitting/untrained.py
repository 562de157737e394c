# SPDX-License-Identifier: Apache-2.0
"""Fits the untrained detectors: makes sure that the rollouts hold what they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safe_monitor_node.detectors import DETECTORS, DetectorError, fitter_for
from safe_monitor_node.detectors.stepwise import StepwiseDetector
from vla_feature_bridge.rollout import Rollout

Progress = Callable[[int, int, str], None]

STEPWISE = tuple(name for name, cls in DETECTORS.items() if issubclass(cls, StepwiseDetector))


@fitter_for(*STEPWISE)
def fit_stepwise(
    detector: StepwiseDetector,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    progress: Progress | None = None,
) -> None:
    """Check the parameters and the first steps of every rollout; there is nothing to learn.

    Raises
    ------
    DetectorError
        No rollouts, a parameter without meaning, or a rollout without the inputs; named.
    """
    detector.check_parameters()
    if not rollouts:
        raise DetectorError('there are no rollouts to fit on; is the split or the set empty?')
    for rollout in rollouts:
        detector.check_inputs(rollout)
    detector.load_state({}, rollouts[0].features.shape[-1])
