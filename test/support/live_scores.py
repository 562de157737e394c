# SPDX-License-Identifier: Apache-2.0
"""The scores that a detector gives while an episode runs."""

from __future__ import annotations

import numpy as np

from safe_monitor_node.detectors import Detector
from vla_feature_bridge.rollout import Rollout


def streamed(detector: Detector, rollout: Rollout) -> np.ndarray:
    """Return the score of each step of a rollout, given to a new stream one after the other."""
    stream = detector.stream()
    return np.array([stream.step(rollout.step(t)) for t in range(len(rollout))])
