# SPDX-License-Identifier: Apache-2.0
"""Formats numbers for people and for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MISSING = '-'
"""Text in a table for a number that does not exist."""


def percent(value: float | None, decimals: int = 1) -> str:
    """Return a rate (0 to 1) as text in percent; `MISSING` for None and NaN."""
    return MISSING if value is None or value != value else f'{100 * value:.{decimals}f}'


def as_number(value: float) -> float | None:
    """Return a number for JSON; None for NaN, because JSON has no NaN."""
    return None if value != value else float(value)


def plain_json(value: Mapping[str, Any]) -> str:
    """Return indented JSON for programs; a NaN raises ValueError, see `as_number`."""
    return json.dumps(value, indent=2, allow_nan=False)
