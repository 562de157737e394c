# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a recording, in the words of one error."""

from __future__ import annotations

from vla_feature_bridge.errors import SafeError


class DumpError(SafeError):
    """A dump cannot be read; says which file, what was expected, what was found, what to do."""
