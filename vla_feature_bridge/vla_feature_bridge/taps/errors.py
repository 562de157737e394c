# SPDX-License-Identifier: Apache-2.0
"""The error of taps, and the names that are nearest to a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vla_feature_bridge.errors import SafeError


class TapError(SafeError):
    """A tap cannot be attached: a preset, a path or an option does not fit the policy."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return the names that are most similar to ``name``, as a text; all of few names."""
    names = list(names)
    found = difflib.get_close_matches(name, names, count, 0.4)
    if not found and len(names) <= count:
        found = names
    return ', '.join(found)
