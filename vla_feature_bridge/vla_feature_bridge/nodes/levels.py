# SPDX-License-Identifier: Apache-2.0
"""The levels and findings of a diagnosis, without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """Severity; the values are equal to ``diagnostic_msgs/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


_SEVERITY = (Level.OK, Level.WARN, Level.STALE, Level.ERROR)


def most_severe(*levels: Level) -> Level:
    """Return the highest level. STALE is above WARN, because without features nothing is known."""
    return max(levels, key=_SEVERITY.index)


@dataclass
class Finding:
    """A level and one sentence for a person."""

    level: Level
    text: str


def summarise(findings: Iterable[Finding], fine: str) -> tuple[Level, str]:
    """Return the highest level of some findings, and their sentences with the worst first."""
    found = sorted(findings, key=lambda finding: -_SEVERITY.index(finding.level))
    if not found:
        return Level.OK, fine
    return found[0].level, '; '.join(dict.fromkeys(finding.text for finding in found))
