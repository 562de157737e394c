# SPDX-License-Identifier: Apache-2.0
"""A fitted detector with its band: all that a monitor needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import Detector
from vla_feature_bridge.pooling import FeatureSpec


@dataclass(frozen=True)
class CalibratedDetector:
    """What a detector folder holds.

    Attributes
    ----------
    detector : Detector
        Fitted, ready to score.
    feature : FeatureSpec
        What its features are and how they were pooled.
    band : Band or None
        Thresholds; None while not calibrated.
    alpha : float
        The false-alarm rate that the folder's maker chose.
    provenance : dict
        What it was fitted and calibrated on, and with which versions.
    weights_sha256 : str
        Of the file with its arrays, in hexadecimal; empty for one that was not read from a folder.
    """

    detector: Detector
    feature: FeatureSpec
    band: Band | None
    alpha: float
    provenance: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ''
