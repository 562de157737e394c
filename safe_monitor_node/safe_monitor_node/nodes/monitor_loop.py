# SPDX-License-Identifier: Apache-2.0
"""The loop of one or many monitors: waits for their messages and scores their steps.

An executor of rclpy makes a new wait set for each message, with all entities of all nodes. A
monitor has 30 entities, so that the new wait set takes longer than the score of the step. This loop
has two wait sets and keeps them. While steps arrive, it waits for the inputs of the monitors only:
steps and events. It checks all other entities (services, QoS events) several times a second. If no
input has come for a short time, a loop with one node waits for all its entities.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from rclpy.executors import (
    ExternalShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.time_source import CLOCK_TOPIC

from safe_monitor_node.monitor.scoring import Scoring, scored_alone, scored_together
from safe_monitor_node.nodes.monitor_node import MonitorNode
from safe_monitor_node.nodes.schedule import Schedule
from safe_monitor_node.nodes.wait_sets import Entities, LastingWaitSet

LOOK_PERIOD = 0.25
"""Time between two checks of the other entities of a node, if there are several nodes [s]."""
BUSY = 0.02
"""Time after such a check for which a loop with one node waits for inputs only [s]."""

T = TypeVar('T')

_LONGEST_WAIT_BESIDE = 0.01
# The longest time for which the thread that loads keeps the interpreter from the loop [s].
_SWITCH_INTERVAL = 0.0005
_LEAST_FOR_CALLS = 0.002
_LONGEST_WAIT = 1.0
_MOST_HANDLED = 50
#: If a wait is longer than requested by this time, the process was suspended [s].
_PAUSE = 0.5
#: Time in which the middleware receives the messages of the suspension [s].
_SETTLE = 0.5


class BatchCounts:
    """Counts the scored steps, and the steps that were scored together.

    Attributes
    ----------
    steps, batches, largest : int
    """

    def __init__(self) -> None:
        self.steps = self.batches = self.largest = 0

    def add(self, steps: int) -> None:
        """Count steps that were scored together."""
        self.steps += steps
        self.batches += 1
        self.largest = max(self.largest, steps)


class MonitorLoop(SingleThreadedExecutor):
    """Runs one or many monitors in one thread, and other nodes of their process.

    Steps that wait at the same time are scored in one call for each detector. A step that comes
    alone is scored at once. The steps of one monitor keep their order, and no monitor gets a second
    step before the waiting monitors have got one.

    Parameters
    ----------
    schedule : Schedule
        Periodic calls of the monitors; the loop makes them.
    """

    # Time after which the other requests to a node wait for the next turn [s].
    _longest_handling = math.inf

    def __init__(self, schedule: Schedule, **kwargs: Any) -> None:
        # Before the base class, which may call `wake`.
        self._changed = True
        self._monitors: list[MonitorNode] = []
        self._alone: MonitorNode | None = None
        # Pointers of subscriptions.
        self._inputs: set[int] = set()
        self._monitor_of: dict[int, MonitorNode] = {}
        self._clocks: dict[int, Any] = {}
        # Raw subscriptions are used for their QoS events only. Their messages are dropped, because
        # a waiting message would end every wait at once.
        self._unread: dict[int, Any] = {}
        self._looks: dict[int, LastingWaitSet] = {}
        # Monitors that have more messages than they have handled.
        self._behind: list[MonitorNode] = []
        self._busy_until = 0.0
        # Functions that run beside the loop. The next request of a node waits for them.
        self._loads = 0
        # An error of the loop meanwhile, which whoever wanted the function takes for its error.
        self._error: Exception | None = None
        # The wait set of the last wait for everything, until its other entities are handled.
        self._looked: LastingWaitSet | None = None
        super().__init__(**kwargs)
        self.schedule = schedule
        self.counts = BatchCounts()

    def add(self, node: Node) -> None:
        """Add a node to this loop, which then runs the callbacks of the node."""
        self.add_node(node)
        self._changed = True
        if isinstance(node, MonitorNode):
            self._monitors.append(node)
        self._alone = (
            self._monitors[0] if len(self._monitors) == len(self.get_nodes()) == 1 else None
        )
        if isinstance(node, MonitorNode):
            self.schedule.every(LOOK_PERIOD, lambda: node.guarded(lambda: self._look_at(node)))
        else:
            self.schedule.every(LOOK_PERIOD, lambda: self._look_at(node))

    def wake(self) -> None:
        """Note that entities were created or destroyed."""
        self._changed = True
        super().wake()

    def can_execute(self, entity: Any) -> bool:
        """Return whether the executor may take an entity: all but the inputs."""
        is_input = isinstance(entity, Subscription) and entity.handle.pointer in self._inputs
        return not is_input and bool(super().can_execute(entity))

    def spin(self) -> None:
        """Run until the context is shut down."""
        while self.context.ok() and not self._is_shutdown:
            self.turn()

    def turn(self, longest_wait: float = _LONGEST_WAIT) -> None:
        """Wait for messages or for the next periodic call, and handle them."""
        if self._error is not None:
            raise self._error
        ready = self._wait(longest_wait)
        began, steps = time.monotonic(), self.counts.steps
        if ready:
            self._score(ready)
            if self._alone is not None and self.counts.steps == steps:
                # All steps are scored, and the next step has not come. A call that is made now is
                # not made when the next step comes, which would wait for it.
                self._call_early()
        self._handle_looked()
        if self.schedule.next_due() > began:
            return
        # Periodic calls get half as much time as the messages had: that is enough for safe/stop,
        # which comes first, also if the machine is too slow for everything.
        now = time.monotonic()
        until = now + max((now - began) / 2, _LEAST_FOR_CALLS)
        while now < until and (call := self.schedule.take_due()) is not None:
            call.callback()
            now = time.monotonic()

    def _call_early(self) -> None:
        if (call := self.schedule.take_early()) is not None:
            call.callback()

    def _score(self, monitors: Iterable[MonitorNode]) -> None:
        scorings: list[Scoring[None]] = []
        owners = []
        for monitor in monitors:
            scoring = monitor.guarded(partial(self._next_scoring, monitor))
            if scoring is not None:
                scorings.append(scoring)
                owners.append(monitor)
        # Another step may wait. For one monitor, a request is faster than a wait.
        self._behind = [m for m in owners if self._alone is not None or m.inputs.holds]
        if not scorings:
            return
        self.counts.add(len(scorings))
        if len(scorings) == 1:
            owners[0].guarded(lambda: scored_alone(scorings[0]))
            return
        for monitor, result in zip(owners, scored_together(scorings), strict=True):
            if isinstance(result, Exception):
                monitor.fail(result)

    def _next_scoring(self, monitor: MonitorNode) -> Scoring[None] | None:
        self._take_time(monitor)
        taken = monitor.inputs.next_step()
        return None if taken is None else monitor.scoring(*taken)

    # --- waiting

    def _wait(self, longest: float) -> list[MonitorNode]:
        """Return the monitors that have messages, after waiting for one or for a periodic call."""
        if self._changed:
            self._collect()
        now = time.monotonic()
        behind, self._behind = self._behind, []
        left = 0.0 if behind else min(self.schedule.next_due() - now, longest)
        pointers: set[int] = set()
        if self._alone is None or self._loads:
            pointers = self._waits.wait(left)
        elif now >= self._busy_until:
            pointers = self._wait_for_everything(self._alone, left)
        elif not behind:
            pointers = self._waits.wait(min(left, self._busy_until - now))
        if not pointers and time.monotonic() - now > max(left, 0.0) + _PAUSE:
            # The process was suspended. What has come meanwhile goes before safe/stop.
            pointers = self._waits.wait(_SETTLE)
        if not self.context.ok():
            raise ExternalShutdownException
        ready = {id(monitor): monitor for monitor in behind}
        for pointer in pointers:
            if (monitor := self._monitor_of.get(pointer)) is not None:
                ready[id(monitor)] = monitor
        return list(ready.values())

    def _handle_looked(self) -> None:
        """Handle requests after the step, whose alarm must not wait for them."""
        look, self._looked = self._looked, None
        # If entities have changed, what is ready is found in the next turn.
        if look is not None and self._alone is not None and not self._changed:
            monitor = self._alone
            if look.rest_is_ready():
                monitor.guarded(lambda: self._handle_rest(monitor))

    def _wait_for_everything(self, monitor: MonitorNode, left: float) -> set[int]:
        look = self._look_of(monitor)
        pointers = look.wait(left)
        if not pointers.isdisjoint(self._inputs):
            self._busy_until = time.monotonic() + BUSY
            self._take_time(monitor)
        for pointer in pointers.intersection(self._unread):
            _take_newest(self._unread[pointer])
        self._looked = look
        return pointers

    def _collect(self) -> None:
        """Find what to wait for, after entities were created or destroyed."""
        self._changed = False
        for found in (self._monitor_of, self._clocks, self._unread, self._looks):
            found.clear()
        waited_for = []
        for monitor in self._monitors:
            for subscription in monitor.inputs.subscriptions:
                self._monitor_of[subscription.handle.pointer] = monitor
            waited_for += [subscription.handle for subscription in monitor.inputs.waited_for]
            clock_topic = monitor.resolve_topic_name(CLOCK_TOPIC)
            for subscription in monitor.subscriptions:
                if subscription.topic_name == clock_topic:
                    self._clocks[id(monitor)] = subscription
                elif subscription.raw:
                    self._unread[subscription.handle.pointer] = subscription
        clocks = (subscription.handle.pointer for subscription in self._clocks.values())
        self._inputs = {*self._monitor_of, *clocks}
        self._waits = LastingWaitSet(self.context, waited_for, self._guards)

    @property
    def _guards(self) -> list[Any]:
        """The guard conditions that end a wait: a change of entities, and a signal."""
        return [guard.handle for guard in (self._guard, self._sigint_gc)]

    # --- everything else of a node

    def _look_of(self, node: Node) -> LastingWaitSet:
        if id(node) not in self._looks:
            inputs, rest = [], Entities(node)
            for handle in rest.subscriptions[:]:
                unread = handle.pointer in self._unread
                if unread or handle.pointer in self._inputs:
                    rest.subscriptions.remove(handle)
                    if not unread or self._alone is not None:
                        inputs.append(handle)
            guards = [] if self._alone is None else self._guards
            self._looks[id(node)] = LastingWaitSet(self.context, inputs, guards, rest)
        return self._looks[id(node)]

    def _look_at(self, node: Node) -> None:
        """Handle what is ready of a node that is not waited for."""
        if self._alone is not None:
            return
        if self._changed:
            self._collect()
        look = self._look_of(node)
        pointers = look.wait(0.0)
        if isinstance(node, MonitorNode) and not pointers.isdisjoint(self._inputs):
            self._take_time(node)
            self._behind.append(node)
        if look.rest_is_ready():
            self._handle_rest(node)

    def _handle_rest(self, node: Node) -> None:
        """Let the executor of rclpy handle all ready entities except inputs, for a limited time."""
        until = time.monotonic() + self._longest_handling
        for _ in range(_MOST_HANDLED):
            if self._changed:
                # A transition may have made inputs, which the executor must not take.
                self._collect()
            try:
                handler, _, _ = self.wait_for_ready_callbacks(timeout_sec=0, nodes=[node])
            except TimeoutException:
                return
            handler()
            if (error := handler.exception()) is not None:
                raise error
            if time.monotonic() > until:
                return

    def _take_time(self, monitor: MonitorNode) -> None:
        """Take the newest time of ``/clock``."""
        if (clock := self._clocks.get(id(monitor))) is not None:
            newest = _take_newest(clock)
            if newest is not None:
                clock.callback(newest)

    # --- detectors

    def run_beside(self, function: Callable[[], T]) -> T:
        """Return the result of a function that runs in another thread while the loop continues.

        The function must not use objects of the loop. It may raise an exception.
        """
        results: list[T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(function())
            except Exception as error:  # It is raised below.
                errors.append(error)

        # The process must be able to end while a disk does not answer.
        thread = threading.Thread(target=run, name='load detector', daemon=True)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._loads += 1
        try:
            thread.start()
            while thread.is_alive():
                self.turn(_LONGEST_WAIT_BESIDE)
        except BaseException as error:
            if isinstance(error, Exception) and self.context.ok():
                self._error = error
            else:
                # A normal end would unload libraries while the thread opens them, and abort.
                atexit.register(os._exit, 0)
            raise
        finally:
            self._loads -= 1
            sys.setswitchinterval(interval)
        if errors:
            raise errors[0]
        if not results:
            raise RuntimeError('the thread that loads a detector has ended without a result')
        return results[0]


def _take_newest(subscription: Any) -> Any:
    """Return the newest message that waits, and discard the others; None if none waits."""
    newest = None
    for _ in range(_MOST_HANDLED):
        taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is None:
            break
        newest = taken[0]
    return newest
