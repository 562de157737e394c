# SPDX-License-Identifier: Apache-2.0
"""End a node's process cleanly on an interrupt, even when it comes twice."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Protocol

import rclpy
from rclpy.executors import ExternalShutdownException

from vla_feature_bridge.ros.parameters import ParameterError


class Main(Protocol):
    """The entry point of a node: command-line arguments in, exit status out."""

    def __call__(self, args: list[str] | None = None) -> int: ...


def ends_on_interrupt(main: Main) -> Main:
    """Make a node's ``main`` return 0 on SIGINT, of which only the first raises KeyboardInterrupt.

    The terminal and ``ros2 launch`` may both interrupt a process, a few milliseconds apart. The
    second must not fall into the teardown that the first began.
    """

    @wraps(main)
    def run(args: list[str] | None = None) -> int:
        ending = False

        def first_only(signum: int, frame: FrameType | None) -> None:
            nonlocal ending
            if not ending:
                ending = True
                raise KeyboardInterrupt

        # Before rclpy.init, whose own handler calls the one that it finds.
        previous = signal.signal(signal.SIGINT, first_only)
        try:
            return main(args)
        except KeyboardInterrupt:
            return 0
        finally:
            interrupted, ending = ending, True
            # The interpreter's own end takes a while with torch loaded, and must not be cut either.
            signal.signal(signal.SIGINT, signal.SIG_IGN if interrupted else previous)

    return run


def run_node(name: str, work: Callable[[], int], args: list[str] | None) -> int:
    """Do a node's work between ``rclpy.init`` and shutdown; returns the exit status.

    A signal ends it with 0, whatever call of rclpy it falls into; a refused parameter with 1 and
    the reason on standard error.
    """
    try:
        rclpy.init(args=args)
        return work()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except (ParameterError, RuntimeError) as error:
        # A signal shuts the context down under the call of rclpy that is under way: it fails.
        if not rclpy.ok():
            return 0
        if not isinstance(error, ParameterError):
            raise
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
