# SPDX-License-Identifier: Apache-2.0
"""Detectors that several monitors of a process share: the weights are in memory once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from weakref import WeakValueDictionary

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import DETECTORS
from safe_monitor_node.storage.detector_folder import DESCRIPTION, WEIGHTS, load_detector
from safe_monitor_node.storage.shipped import located

_Load = Callable[[], CalibratedDetector]

_loaded: WeakValueDictionary[tuple[str, ...], CalibratedDetector] = WeakValueDictionary()
_locks: dict[tuple[str, ...], Lock] = {}


def _here(load: _Load) -> CalibratedDetector:
    return load()


_runner: list[Callable[[_Load], CalibratedDetector]] = [_here]


def run_loads_with(runner: Callable[[_Load], CalibratedDetector] = _here) -> None:
    """Let a function run all loads of detectors from now on; by default, the caller runs them.

    Parameters
    ----------
    runner : callable
        Calls the function that it gets, for example in another thread, and returns its result or
        raises its exception.
    """
    _runner[0] = runner


def shared_detector(folder: str | os.PathLike[str]) -> CalibratedDetector:
    """Return the calibrated detector of a folder, which is the same for folders of equal bytes.

    A calibrated detector never changes. It leaves the memory when its last monitor has gone.

    Raises
    ------
    DetectorFolderError
        As `load_detector`.
    """
    return _runner[0](lambda: _load(folder))


def _load(folder: str | os.PathLike[str]) -> CalibratedDetector:
    contents = _contents(folder)
    if contents is None:
        return load_detector(folder)
    try:
        # Two threads that want the same detector load it once.
        with _locks.setdefault(contents, Lock()):
            found = _loaded.get(contents)
            if found is None:
                found = load_detector(folder)
                # The folder may have been replaced meanwhile.
                if contents == _contents(folder):
                    _loaded[contents] = found
            return found
    finally:
        _locks.pop(contents, None)


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


def import_code(folder: str | os.PathLike[str]) -> None:
    """Import the module of the detector of a folder, which takes seconds if it uses PyTorch.

    Nothing else of the process can go on during the import. A folder that cannot be read is no
    error here: `load_detector` says what is wrong.
    """
    path = located(folder) / DESCRIPTION
    with suppress(OSError, ValueError, TypeError, LookupError, ImportError):
        if path.is_file():
            DETECTORS[json.loads(path.read_bytes())['detector']]
