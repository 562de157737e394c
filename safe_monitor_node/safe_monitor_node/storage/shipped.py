# SPDX-License-Identifier: Apache-2.0
"""Detector folders that come with this package: their names are accepted as folders."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = ('signal_probe',)
"""Names of the shipped detectors; ``docs/how-to/start_without_training.md`` describes them."""

_PLACE = Path(__file__).resolve().parent.parent / 'shipped'


def located(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a detector folder, or of the shipped detector of this name.

    An existing file or folder has precedence over a shipped detector of the same name.
    """
    path = Path(folder)
    if os.fspath(folder) in SHIPPED and not path.exists():
        return _PLACE / path
    return path
