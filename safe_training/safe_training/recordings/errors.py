# SPDX-License-Identifier: Apache-2.0
"""The error of everything that reads recordings."""

from __future__ import annotations

from vla_feature_bridge.errors import SafeError


class DumpError(SafeError):
    """A file cannot be read; says which file, what was expected and found, and what to do."""
