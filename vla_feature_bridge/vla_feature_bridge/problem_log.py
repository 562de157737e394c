# SPDX-License-Identifier: Apache-2.0
"""Logs each kind of problem of a sink once, and then from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable

#: A problem of the same kind is logged again after this time [s].
_LOG_AGAIN = 10.0
#: Number of kinds of problems that are distinguished.
_MAX_KINDS = 50


class ProblemLog:
    """Logs each kind of problem once, and then at most every 10 seconds.

    Parameters
    ----------
    log : callable
        Takes the text of one problem.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._kinds: dict[object, tuple[float, int]] = {}

    def add(self, kind: object, text: str) -> None:
        """Log a problem, or only count it if this kind was logged less than 10 s ago."""
        if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            kind = None
        now = time.monotonic()
        last, silent = self._kinds.get(kind, (-_LOG_AGAIN, 0))
        if now - last < _LOG_AGAIN:
            self._kinds[kind] = (last, silent + 1)
            return
        self._kinds[kind] = (now, 0)
        self._log(f'{text} ({silent} more of this kind before)' if silent else text)
