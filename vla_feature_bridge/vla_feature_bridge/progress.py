# SPDX-License-Identifier: Apache-2.0
"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with the number of parts done, the number of all parts, and a short note."""
