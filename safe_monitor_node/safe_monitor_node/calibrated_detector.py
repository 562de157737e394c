# SPDX-License-Identifier: Apache-2.0
"""A fitted detector with its band: all that a monitor needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
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

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a detector folder and return its path.

        Parameters
        ----------
        folder : path
            Must not exist, unless ``overwrite`` and it is a detector folder.

        Raises
        ------
        DetectorFolderError
            The folder exists, or the parts do not belong together; nothing is written then.
        """
        from safe_monitor_node.storage.detector_folder import save_detector

        return save_detector(
            folder,
            self.detector,
            self.feature,
            band=self.band,
            alpha=self.alpha,
            provenance=self.provenance,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, folder: str | Path) -> CalibratedDetector:
        """Return what a detector folder holds, after checking all of it.

        Raises
        ------
        DetectorFolderError
            Anything is missing or damaged, or does not fit together; the message names the file.
        """
        from safe_monitor_node.storage.detector_folder import load_detector

        return load_detector(folder)
