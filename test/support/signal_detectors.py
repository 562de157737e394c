# SPDX-License-Identifier: Apache-2.0
"""Detectors whose score is a signal of the step, so that a test chooses the score of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from band_factory import constant_band

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import PolicyStep

LOW, RAISED, HIGH = 0.2, 0.7, 1.2
"""Scores below the warning threshold 0.5, between the thresholds, and above the threshold 0.9."""

WARNING_ALPHA = 0.55
_WIDTH = 4


def save_signal_detector(folder: Path, signal: str, length: int = 20) -> Path:
    """Save a detector whose score is a signal of the step.

    The thresholds of all steps are 0.9 at alpha 0.1 and 0.5 at alpha 0.55.

    Parameters
    ----------
    folder : Path
    signal : str
    length : int
        Length of the band [steps].
    """
    detector = make_detector('signal', signal=signal, accumulate='none')
    detector.load_state({}, _WIDTH)
    peaks = np.concatenate([np.full(8, 0.4), np.full(1, 0.5), np.full(10, 0.9)])
    band = constant_band(peaks, (0.1, WARNING_ALPHA), length)
    spec = FeatureSpec('hidden_states', _WIDTH)
    return CalibratedDetector(detector, spec, band, 0.1).save(folder)


def signal_step(index: int, episode: str, scores: Mapping[str, float | None]) -> PolicyStep:
    """Return a step with signals; None leaves a signal out, so that it cannot be scored."""
    return PolicyStep(
        features=np.full(_WIDTH, 1 + index, np.float32),
        feature_name='hidden_states',
        episode_id=episode,
        step=index,
        signals={name: score for name, score in scores.items() if score is not None},
    )
