# SPDX-License-Identifier: Apache-2.0
"""Fits the detectors that have nothing to train: controls, signals, tokens, samples."""

from __future__ import annotations

from collections.abc import Sequence

from safe_monitor_node.detectors import Detector, DetectorError
from safe_monitor_node.detectors.stepwise import StepwiseDetector
from safe_training.fitting.data import Progress
from vla_feature_bridge.rollout import Rollout


def fit_control(
    detector: Detector,
    rollouts: Sequence[Rollout],
    *,
    validation: Sequence[Rollout] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fit a control: learns nothing but the feature width, and checks that its inputs are there."""
    if not rollouts:
        raise DetectorError('there are no rollouts to fit on; is the split or the set empty?')
    if 'actions' in detector.needs:
        for rollout in rollouts:
            if rollout.actions is None and detector.name not in rollout.signals:
                raise DetectorError(
                    f'rollout {rollout.episode_id!r}: {detector.name} needs action chunks, '
                    'it has none'
                )
    detector.load_state({}, rollouts[0].features.shape[-1])


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
