# SPDX-License-Identifier: Apache-2.0
"""Moves calls of other threads to the thread of the executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from rclpy.node import Node

#: Number of calls after which timers and services are processed.
_AT_ONCE = 50
#: How often a waiting thread checks whether the handover is closed [s].
_LOOK_AGAIN = 0.5


class Handover:
    """Runs calls in the thread that spins a node; the calling thread waits until its call is done.

    There is no queue. While the node is slow, the calling thread waits, and reads less from its
    sender.

    Parameters
    ----------
    node : rclpy.node.Node
    on_error : callable
        Takes an error that a call raised.
    """

    def __init__(self, node: Node, on_error: Callable[[Exception], None]) -> None:
        self._node, self._on_error = node, on_error
        self._calls: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        self._closed = threading.Event()
        self._guard = node.create_guard_condition(self._run)

    @property
    def is_closed(self) -> bool:
        """Whether no more calls are run."""
        return self._closed.is_set()

    def call(self, function: Callable[[], None]) -> None:
        """Run a function in the thread of the executor, and wait until it has run."""
        if self._closed.is_set():
            return
        done = threading.Event()
        self._calls.put((function, done))
        self._guard.trigger()
        while not done.wait(_LOOK_AGAIN) and not self._closed.is_set():
            pass

    def close(self) -> None:
        """Run no more calls, and let all waiting threads continue."""
        self._closed.set()
        while True:
            try:
                _, done = self._calls.get_nowait()
            except Empty:
                break
            done.set()
        self._node.destroy_guard_condition(self._guard)

    def _run(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                function, done = self._calls.get_nowait()
            except Empty:
                return
            try:
                function()
            except Exception as error:  # Data of a policy must not end the node.
                self._on_error(error)
            finally:
                done.set()
        self._guard.trigger()
