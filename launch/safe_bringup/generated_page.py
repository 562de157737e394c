# SPDX-License-Identifier: Apache-2.0
"""The command line of the modules that make a page of the documentation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_feature_bridge.atomic import replace_file


def write_page(text: str, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Write a page to the file that the command line names, or print it. Return status 0."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('file', type=Path, nargs='?', help='file to write (default: print)')
    file = parser.parse_args(arguments).file
    if file is None:
        sys.stdout.write(text)
    else:
        replace_file(file, text)
    return 0
