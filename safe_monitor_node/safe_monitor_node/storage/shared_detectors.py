# SPDX-License-Identifier: Apache-2.0
"""Detectors that several monitors of a process share: the weights are in memory once."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import DETECTORS
from safe_monitor_node.detectors.registry import ENTRIES
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
    entry = ENTRIES.get(_name_of_detector(folder))
    if entry is not None and entry.uses_torch:
        open_torch()
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

    Nothing else of the process can go on during the import. A folder that cannot be read, or a
    broken PyTorch, is no error here: `load_detector` says what is wrong.
    """
    # A library of PyTorch that cannot be opened is an OSError, a ValueError or a RuntimeError.
    with suppress(Exception):
        DETECTORS[_name_of_detector(folder)]


def _name_of_detector(folder: str | os.PathLike[str]) -> str:
    """Return the name of the detector of a folder; an empty text if it cannot be read."""
    path = located(folder) / DESCRIPTION
    with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
        if path.is_file():
            return str(json.loads(path.read_bytes())['detector'])
    return ''


def open_torch() -> None:
    """Open the libraries of PyTorch, while other threads go on.

    The import of PyTorch opens them while no other thread of Python can go on: about a second. If
    they cannot be opened here, the import says what is wrong.
    """
    found = None if 'torch' in sys.modules else importlib.util.find_spec('torch')
    if found is None or found.origin is None:
        return
    # A foreign function runs without the lock of the interpreter; `ctypes.CDLL(path)` holds it.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    # In the order and with the flags of PyTorch.
    libraries = Path(found.origin).parent / 'lib'
    dlopen(os.fsencode(libraries / 'libtorch_global_deps.so'), os.RTLD_NOW | os.RTLD_GLOBAL)
    dlopen(os.fsencode(libraries / 'libtorch.so'), os.RTLD_NOW)
