# SPDX-License-Identifier: Apache-2.0
"""The bytes of an array file: mapped into memory without a file descriptor, or read.

A process may have few open files (often 1024, or 256) and a limited number of memory maps (65530 on
Linux). A set may have more rollouts than these limits. Therefore a map does not keep its file open.
Small files are not mapped, but read. If the process already has many maps, large files are read
too.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import numpy as np

#: A file of at most this size is read, because a map would take about as much memory [bytes].
SMALL_BYTES = 1 << 16
#: Largest number of maps of this module. Half of the default limit of Linux is left for other code.
MAX_MAPS = 32_000

# The lock is reentrant: the garbage collection can call `_give_map` in a thread that already holds
# the lock.
_lock = threading.RLock()
_maps = 0


def file_bytes(file: Path) -> np.ndarray:
    """Return the content of a file, read-only uint8 of shape (size,); no file stays open.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    size = os.stat(file).st_size
    if size > SMALL_BYTES and _take_map():
        return _mapped(file)
    data = np.fromfile(file, np.uint8)
    data.flags.writeable = False
    return data


def maps() -> int:
    """Return the number of maps that are in use."""
    return _maps


def _mapped(file: Path) -> np.ndarray:
    import pyarrow

    try:
        # NumPy and the module ``mmap`` of Python before 3.13 keep a descriptor for each map.
        with pyarrow.memory_map(str(file)) as opened:
            data = np.frombuffer(opened.read_buffer(), np.uint8)
    except BaseException:
        _give_map()
        raise
    # Every view of the data keeps this array, and therefore the map.
    weakref.finalize(data, _give_map).atexit = False
    return data


def _take_map() -> bool:
    global _maps
    with _lock:
        if _maps >= MAX_MAPS:
            return False
        _maps += 1
        return True


def _give_map() -> None:
    global _maps
    with _lock:
        _maps -= 1
