# SPDX-License-Identifier: Apache-2.0
"""Ends a node's process cleanly on SIGINT and SIGTERM, also if a signal comes twice."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Protocol

import rclpy
from rclpy.executors import ExternalShutdownException

from vla_feature_bridge.nodes.startup import SIGNALS
from vla_feature_bridge.ros.parameters import ParameterError

#: Time after which a signal that came in a ``__del__`` is raised again [s].
_LATER = 0.01


class Main(Protocol):
    """The entry point of a node. It takes command-line arguments and returns the exit status."""

    def __call__(self, args: list[str] | None = None) -> int:
        """Run the node."""


def ends_on_interrupt(main: Main) -> Main:
    """Return a ``main`` that returns 0 after SIGINT or SIGTERM.

    Only the first signal has an effect.

    The terminal and ``ros2 launch`` may both interrupt a process, with a few milliseconds between
    the two interrupts. The second interrupt must not stop the teardown that the first interrupt
    started.
    """

    @wraps(main)
    def run(args: list[str] | None = None) -> int:
        ending = False

        def first_only(signum: int, frame: FrameType | None) -> None:
            nonlocal ending
            if _is_finalising(frame):
                # Python would print the exception and go on, and the interrupt would be lost.
                threading.Timer(_LATER, signal.raise_signal, (signum,)).start()
            elif not ending:
                ending = True
                raise KeyboardInterrupt

        # Install the handler before rclpy.init, because the handler of rclpy calls the previously
        # installed handler.
        previous = {number: signal.signal(number, first_only) for number in SIGNALS}
        try:
            return main(args)
        except KeyboardInterrupt:
            return 0
        finally:
            interrupted, ending = ending, True
            # With torch loaded, the interpreter takes a while to end and must not be interrupted.
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_IGN if interrupted else handler)

    return run


def _is_finalising(frame: FrameType | None) -> bool:
    """Return whether a frame is inside of a ``__del__``."""
    while frame is not None:
        if frame.f_code.co_name == '__del__':
            return True
        frame = frame.f_back
    return False


def run_node(name: str, work: Callable[[], int], args: list[str] | None) -> int:
    """Run the work of a node between ``rclpy.init`` and shutdown. Return the exit status.

    The status is 0 after a signal. It is 1 if a parameter is refused; the reason is printed on
    standard error.
    """
    try:
        rclpy.init(args=args)
        return work()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except (ParameterError, RuntimeError) as error:
        # After a signal the context is shut down, and a running call of rclpy raises this error.
        if not rclpy.ok():
            return 0
        if not isinstance(error, ParameterError):
            raise
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
