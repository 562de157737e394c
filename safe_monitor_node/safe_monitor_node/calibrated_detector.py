# SPDX-License-Identifier: Apache-2.0
"""A fitted detector with its band: all that a monitor needs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safe_monitor_node.bands.band import Band
from safe_monitor_node.detectors import Detector
from vla_feature_bridge.pooling import FeatureSpec


@dataclass(frozen=True)
class CalibratedDetector:
    """A fitted detector, its band and the origin of both; a detector folder holds one.

    Attributes
    ----------
    detector : Detector
        Fitted, ready to score.
    feature : FeatureSpec
        What the features are and how they were pooled.
    band : Band
        Thresholds at each step, for each promised false-alarm rate.
    alpha : float
        The false-alarm rate used unless another one is asked for; the band must have it.
    provenance : dict
        Which rollouts and versions it was fitted and calibrated with, as JSON values.
    weights_sha256 : str
        SHA-256 of the folder's file of arrays, in hexadecimal; empty if it comes from no folder.
    """

    detector: Detector
    feature: FeatureSpec
    band: Band
    alpha: float
    provenance: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ''

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a detector folder and return its path; see ``storage.detector_folder``.

        Parameters
        ----------
        folder : path
            Must not exist, unless ``overwrite`` and it is empty or a detector folder.

        Raises
        ------
        DetectorFolderError
            The folder exists, or the parts do not fit together; nothing is written then.
        """
        from safe_monitor_node.storage.detector_folder import save_detector

        return save_detector(folder, self, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CalibratedDetector:
        """Return the calibrated detector that a folder holds, after checking all of the folder.

        Raises
        ------
        DetectorFolderError
            A part is missing or damaged, or the parts do not fit together; the message names the
            file.
        """
        from safe_monitor_node.storage.detector_folder import load_detector

        return load_detector(folder)
