# SPDX-License-Identifier: Apache-2.0
"""Starts the process of a node so that SIGINT and SIGTERM end it cleanly from the beginning.

This module imports only the standard library, because the signals must be handled before the module
of the node and its packages are imported. This import can take seconds.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a node."""


def start(load: Callable[[], Callable[..., int]], args: list[str] | None = None) -> int:
    """Import a node, run its ``main`` and return the exit status.

    The status is 0 after a signal, also during the import.

    Parameters
    ----------
    load : callable
        Imports the module of the node and returns its ``main``, which handles the signals itself.
    args : list of str, optional
        Arguments of ``main``.
    """
    previous = {number: signal.signal(number, _leave) for number in SIGNALS}
    try:
        return load()(args)
    finally:
        # At its end, the interpreter looks for garbage. With torch loaded, this takes a second.
        gc.freeze()
        for number, handler in previous.items():
            if signal.getsignal(number) is _leave:
                signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception would pass through half-imported packages, some of which report it in their own
    # way. Nothing is open yet, so that there is nothing to close.
    os._exit(0)
