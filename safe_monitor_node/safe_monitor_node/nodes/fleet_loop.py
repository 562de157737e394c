# SPDX-License-Identifier: Apache-2.0
"""The loop of a fleet: waits for the messages of all robots and scores their steps together.

An executor of rclpy waits for every entity of every node again after each message: 40 monitors have
1500 of them. This loop waits for steps and events only. Everything else of a robot (its services,
the QoS events of its topics) is looked at several times a second, one robot after another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rclpy.context import Context
from rclpy.executors import (
    ExternalShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.waitable import NumberOfEntities

from safe_monitor_node.monitor.scoring import Scoring, scored_together
from safe_monitor_node.nodes.fleet_robot import FleetRobot
from safe_monitor_node.nodes.fleet_schedule import Schedule

LOOK_PERIOD = 0.25
"""Time between two looks at the services of a robot [s]."""

_LEAST_FOR_CALLS = 0.002
_LONGEST_WAIT = 1.0


class BatchCounts:
    """How many steps were scored, and how many of them together.

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


class RestOfNode:
    """Everything of a node that the loop does not wait for: services, QoS events, ``/clock``.

    A look at it takes a tenth of the time of a look with the executor of rclpy, which makes a wait
    set anew each time. What is ready is left to the executor.

    Parameters
    ----------
    node : rclpy.node.Node
    waited_for : set of int
        Ids of the subscriptions that the loop waits for.
    context : rclpy.context.Context
    """

    def __init__(self, node: Node, waited_for: set[int], context: Context) -> None:
        # Raw subscriptions are there for their QoS events only; nobody reads their messages.
        self._subscriptions = [
            subscription.handle
            for subscription in node.subscriptions
            if id(subscription) not in waited_for and not subscription.raw
        ]
        self._services = [service.handle for service in node.services]
        self._waitables = list(node.waitables)
        entities = NumberOfEntities(len(self._subscriptions), 0, 0, 0, len(self._services), 0)
        for waitable in self._waitables:
            entities += waitable.get_num_entities()
        self._events = entities.num_events
        with context.handle:
            self._wait_set = _rclpy.WaitSet(
                entities.num_subscriptions,
                entities.num_guard_conditions,
                entities.num_timers,
                entities.num_clients,
                entities.num_services,
                entities.num_events,
                context.handle,
            )

    def is_ready(self) -> bool:
        """Return whether something is ready, without waiting."""
        wait_set = self._wait_set
        wait_set.clear_entities()
        for handle in self._subscriptions:
            wait_set.add_subscription(handle)
        for handle in self._services:
            wait_set.add_service(handle)
        for waitable in self._waitables:
            waitable.add_to_wait_set(wait_set)
        wait_set.wait(0)
        return bool(
            wait_set.get_ready_entities('service')
            or wait_set.get_ready_entities('subscription')
            or any(wait_set.is_ready('event', index) for index in range(self._events))
        )


class FleetLoop(SingleThreadedExecutor):
    """Runs the monitors of a fleet in one thread.

    Steps that wait at the same time are scored in one call for each detector. A step that comes
    alone is scored at once. The steps of one robot keep their order, and no robot gets a second
    step before the waiting robots have got one.

    Parameters
    ----------
    schedule : Schedule
        Periodic calls of the robots; the loop makes them.
    """

    def __init__(self, schedule: Schedule) -> None:
        # Before the base class, which may call `wake`.
        self._changed = True
        self._robots: list[FleetRobot] = []
        self._hot: set[int] = set()
        self._waiting: list[Any] = []
        self._robot_of: dict[int, FleetRobot] = {}
        self._rest: dict[int, RestOfNode] = {}
        super().__init__()
        self.schedule = schedule
        self.counts = BatchCounts()

    def add(self, node: Node) -> None:
        """Run a node of the process."""
        self.add_node(node)
        if isinstance(node, FleetRobot):
            self._robots.append(node)
            self.schedule.every(LOOK_PERIOD, lambda: node.guarded(lambda: self._look_at(node)))
        else:
            self.schedule.every(LOOK_PERIOD, lambda: self._look_at(node))

    def wake(self) -> None:
        """Note that entities were created or destroyed."""
        self._changed = True
        super().wake()

    def can_execute(self, entity: Any) -> bool:
        """Return whether `_look_at` may take an entity: all but steps and events."""
        return id(entity) not in self._hot and bool(super().can_execute(entity))

    def spin(self) -> None:
        """Run until the context is shut down."""
        while self.context.ok() and not self._is_shutdown:
            self.turn()

    def turn(self, longest_wait: float = _LONGEST_WAIT) -> None:
        """Wait for messages or for the next periodic call, and handle what there is."""
        ready = self._wait(longest_wait)
        began = time.monotonic()
        for robot in ready:
            robot.guarded(robot.take_events)
        self._score(ready)
        # Periodic calls get half as much time as the messages had: that is enough for safe/stop,
        # which comes first, also if the machine is too slow for everything.
        now = time.monotonic()
        until = now + max((now - began) / 2, _LEAST_FOR_CALLS)
        while now < until and (call := self.schedule.take_due()) is not None:
            call.callback()
            now = time.monotonic()

    def _score(self, robots: Iterable[FleetRobot]) -> None:
        scorings: list[Scoring[None]] = []
        owners = []
        for robot in robots:
            scoring = robot.guarded(robot.take_step)
            if scoring is not None:
                scorings.append(scoring)
                owners.append(robot)
        if not scorings:
            return
        self.counts.add(len(scorings))
        for robot, result in zip(owners, scored_together(scorings), strict=True):
            if isinstance(result, Exception):
                robot.fail(result)

    # --- waiting

    def _wait(self, longest: float) -> list[FleetRobot]:
        """Return the robots that have messages, after waiting for one or for a periodic call."""
        if self._changed:
            self._collect()
        wait_set = self._wait_set
        wait_set.clear_entities()
        for handle in self._waiting:
            wait_set.add_subscription(handle)
        for guard in (self._guard, self._sigint_gc):
            wait_set.add_guard_condition(guard.handle)
        left = min(self.schedule.next_due() - time.monotonic(), longest)
        wait_set.wait(max(0, int(left * 1e9)))
        if not self.context.ok():
            raise ExternalShutdownException
        pointers = wait_set.get_ready_entities('subscription')
        # A robot with steps and events comes once.
        robots = [self._robot_of[pointer] for pointer in pointers]
        return list({id(robot): robot for robot in robots}.values())

    def _collect(self) -> None:
        """Find the subscriptions to wait for, after entities were created or destroyed."""
        self._changed = False
        self._hot.clear()
        self._waiting.clear()
        self._robot_of.clear()
        self._rest.clear()
        for robot in self._robots:
            for subscription in robot.inputs.waited_for:
                self._hot.add(id(subscription))
                self._waiting.append(subscription.handle)
                self._robot_of[subscription.handle.pointer] = robot
        with self.context.handle:
            self._wait_set = _rclpy.WaitSet(len(self._waiting), 2, 0, 0, 0, 0, self.context.handle)

    def _look_at(self, node: Node) -> None:
        """Handle the services and the QoS events of a node that are ready."""
        if self._changed:
            self._collect()
        if id(node) not in self._rest:
            self._rest[id(node)] = RestOfNode(node, self._hot, self.context)
        if not self._rest[id(node)].is_ready():
            return
        while True:
            try:
                handler, _, _ = self.wait_for_ready_callbacks(timeout_sec=0, nodes=[node])
            except TimeoutException:
                return
            handler()
            if (error := handler.exception()) is not None:
                raise error
