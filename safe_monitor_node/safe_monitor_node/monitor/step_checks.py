# SPDX-License-Identifier: Apache-2.0
"""Checks whether the features and actions of a step match the detector."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import StepError
from safe_monitor_node.monitor.step_order import shown
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.tensors import FLOATS, as_float32, dtype_name

LARGEST_FEATURE = 1e9
"""Hidden states of networks do not have larger numbers; the largest float16 is 65504."""

CONSTANT_STEPS = 10
"""Number of steps in succession with the same score, after which chunks without overlap are a
warning."""


class StepChecks:
    """Checks and pools the steps of one episode after another.

    A detector can compute a score from any numbers of the right shape. These checks find numbers
    that cannot be a hidden state: a frozen pipeline, an empty array, token ids.

    Attributes
    ----------
    calibrated : CalibratedDetector
    max_identical : int
        Number of steps in succession that may have identical features; 0: any number.
    warning : str
        Warning about the last accepted step; empty if there is no warning.
    """

    def __init__(self, calibrated: CalibratedDetector) -> None:
        self.calibrated = calibrated
        self._name = str(calibrated.feature)
        self.max_identical = 0
        self.begin()

    def begin(self, max_identical: int = 0) -> None:
        """Begin an episode."""
        self.max_identical = max_identical
        self.warning = ''
        self._last: np.ndarray | None = None
        self._identical = 0
        self._score, self._same_scores = math.nan, 0

    def checked(self, step: PolicyStep) -> PolicyStep:
        """Return the step with pooled features.

        Raises
        ------
        StepError
            The features or the actions do not match the detector.
        PoolingError
            The features cannot be pooled.
        """
        spec = self.calibrated.feature
        if problem := self.calibrated.action_problem(step.action_space):
            raise StepError(
                f'step {step.step}: {problem}; publish the actions in the space of the detector, '
                'or fit the detector again on actions in the space of the policy'
            )
        if not self.calibrated.reads_features:
            self.warning = ''
            return step
        self._check_name(step)
        if dtype_name(step.features) not in FLOATS:
            raise StepError(
                where=f'step {step.step}',
                expected=f'features of type {", ".join(FLOATS)}',
                found=dtype_name(step.features),
                advice='publish the hidden state, not token ids or images',
            )
        if spec.axes and step.features.ndim == len(spec.axes) + 1:
            step = replace(step, features=spec.apply(step.features))
        self._check_numbers(step)
        self.warning = (
            ''
            if step.feature_name
            else f'expected features with the name {self._name!r}, which the detector was fitted '
            'on, found features without a name; set features.name in vla/policy_step'
        )
        return step

    def scored(self, step: PolicyStep, score: float) -> None:
        """Warn if the score is constant because the chunks of the policy do not overlap.

        A signal that compares a chunk with the rest of the previous chunk is then always 0.
        """
        horizon = 0 if step.actions is None or step.actions.ndim != 3 else step.actions.shape[1]
        apart = 0 < horizon <= step.exec_horizon and self.calibrated.detector.reads_actions
        self._same_scores = self._same_scores + 1 if apart and score == self._score else 1
        self._score = score
        if self._same_scores >= CONSTANT_STEPS and not self.warning:
            self.warning = (
                f'the score is {score:.4g} at {self._same_scores} steps in succession, and the '
                f'chunks do not overlap (exec_horizon {step.exec_horizon}, horizon {horizon}): '
                'publish the real exec_horizon, infer before the chunk is used up, or use a '
                'detector that reads the hidden states'
            )

    def _check_name(self, step: PolicyStep) -> None:
        if step.feature_name and step.feature_name != self._name:
            spec = self.calibrated.feature
            raw = FeatureSpec(spec.name, spec.dim, spec.axes)
            if step.feature_name != str(raw):
                raise StepError(
                    where=f'step {step.step}',
                    expected=f'the features {self._name!r} that the detector was fitted on',
                    found=shown(step.feature_name),
                    advice='set the same feature and the same pooling in the bridge',
                )

    def _check_numbers(self, step: PolicyStep) -> None:
        if step.features.shape != (self.calibrated.detector.dim_,):
            return  # The detector states the shape that it expects.
        features = as_float32(step.features)
        largest = float(np.abs(features).max(initial=0.0))
        if largest == 0.0:
            raise StepError(
                where=f'step {step.step}',
                expected='features that are not all 0',
                found='only zeros',
                advice='publish the hidden state after the policy has computed it',
            )
        if LARGEST_FEATURE < largest < np.inf:
            raise StepError(
                where=f'step {step.step}',
                expected=f'features of at most {LARGEST_FEATURE:g}',
                found=f'{largest:.3g}',
                advice='check the type and the byte order of the array',
            )
        same = self._last is not None and bool((features == self._last).all())
        self._identical = self._identical + 1 if same else 1
        self._last = features
        if 0 < self.max_identical < self._identical:
            raise StepError(
                where=f'step {step.step}',
                expected=f'at most {self.max_identical} steps in succession with identical '
                'features (more identical steps show that the camera or the policy has stopped)',
                found=f'{self._identical} steps',
                advice='check the camera and the policy; if identical features are correct, set '
                'max_identical_features to a larger value',
            )
