# SPDX-License-Identifier: Apache-2.0
"""The type of progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with the number of finished work items, the number of all work items, and a short note."""
