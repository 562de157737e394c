# SPDX-License-Identifier: Apache-2.0
"""Detectors that several monitors of a process share: the weights are in memory once."""

from __future__ import annotations

import hashlib
import os
from weakref import WeakValueDictionary

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.storage.detector_folder import DESCRIPTION, WEIGHTS, load_detector
from safe_monitor_node.storage.shipped import located

_loaded: WeakValueDictionary[tuple[str, ...], CalibratedDetector] = WeakValueDictionary()


def shared_detector(folder: str | os.PathLike[str]) -> CalibratedDetector:
    """Return the calibrated detector of a folder, which is the same for folders of equal bytes.

    A calibrated detector never changes. It leaves the memory when its last monitor has gone.

    Raises
    ------
    DetectorFolderError
        As `load_detector`.
    """
    contents = _contents(folder)
    found = None if contents is None else _loaded.get(contents)
    if found is not None:
        return found
    calibrated = load_detector(folder)
    # The folder may have been replaced meanwhile.
    if contents is not None and contents == _contents(folder):
        _loaded[contents] = calibrated
    return calibrated


def _contents(folder: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Return the SHA-256 of both files; None if a file cannot be read: `load_detector` says why."""
    sums = []
    for name in (DESCRIPTION, WEIGHTS):
        path = located(folder) / name
        try:
            if not path.is_file():
                return None
            with path.open('rb') as file:
                sums.append(hashlib.sha256(file.read()).hexdigest())
        except OSError:
            return None
    return tuple(sums)
