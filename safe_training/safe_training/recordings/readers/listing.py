# SPDX-License-Identifier: Apache-2.0
"""Lists the files of a folder in a fixed order."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safe_training.recordings.errors import DumpError


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which ``step_2`` comes before ``step_10``."""
    parts = re.split(r'(\d+)', name)
    return [(0, int(part), '') if part.isdecimal() else (1, 0, part) for part in parts if part]


def list_names(folder: Path, ending: str) -> list[str]:
    """Return the names in a folder that have this ending, in natural order."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(ending)]
    except OSError as error:
        raise DumpError(
            where=str(folder),
            expected='a readable folder',
            found=str(error.strerror),
            advice='check the path and the permissions of the folder',
        ) from error
    return sorted((name for name in names if not name.startswith('.')), key=natural_key)
