# SPDX-License-Identifier: Apache-2.0
"""Numbers as people and JSON read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_number(value: float) -> float | None:
    """Return a float for JSON; None where it does not exist."""
    return None if value != value else float(value)


def percent(value: float | None) -> str:
    """Format a rate for a table; '-' where it does not exist."""
    return '-' if value is None or value != value else f'{100 * value:.1f}'


def plain_json(value: Mapping[str, Any]) -> str:
    """Return JSON for machines."""
    return json.dumps(value, indent=2, allow_nan=False)
