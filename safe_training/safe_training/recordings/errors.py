# SPDX-License-Identifier: Apache-2.0
"""The error class for reading dumps and recordings."""

from __future__ import annotations

from vla_feature_bridge.errors import SafeError


class DumpError(SafeError):
    """A file cannot be read.

    The message contains the file name, what was expected, what was found, and what to do.
    """
