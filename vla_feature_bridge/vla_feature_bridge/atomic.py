# SPDX-License-Identifier: Apache-2.0
"""Writes text files that are whole or absent, whatever interrupts the writing."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(files: dict[Path, str]) -> None:
    """Write texts to files: all of them or, if one cannot be written, none is changed before."""
    aside = {path: path.with_name(f'.{path.name}.{os.getpid()}.partial') for path in files}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside[path].write_text(text, encoding='utf-8')
        for path, partial in aside.items():
            partial.replace(path)
    finally:
        for partial in aside.values():
            partial.unlink(missing_ok=True)
