# SPDX-License-Identifier: Apache-2.0
"""The levels of a diagnosis, without ROS."""

from __future__ import annotations

from enum import IntEnum


class Level(IntEnum):
    """Severity; the values are equal to ``diagnostic_msgs/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3
