# SPDX-License-Identifier: Apache-2.0
"""Wait sets that are used many times. rclpy makes a new wait set for each message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rclpy.context import Context
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.waitable import NumberOfEntities


class Entities:
    """The entities of a node for which rclpy waits: subscriptions, services, QoS events and others.

    Parameters
    ----------
    node : rclpy.node.Node
    """

    def __init__(self, node: Node) -> None:
        self.subscriptions = [subscription.handle for subscription in node.subscriptions]
        self.services = [service.handle for service in node.services]
        self.clients = [client.handle for client in node.clients]
        self.timers = [timer.handle for timer in node.timers]
        self.waitables = list(node.waitables)


class LastingWaitSet:
    """Waits for the same entities many times. If entities change, a new wait set is needed.

    Parameters
    ----------
    context : rclpy.context.Context
    inputs, guards : sequence
        Handles of subscriptions and of guard conditions.
    rest : Entities, optional
        Other entities to wait for.
    """

    def __init__(
        self,
        context: Context,
        inputs: Sequence[Any] = (),
        guards: Sequence[Any] = (),
        rest: Entities | None = None,
    ) -> None:
        self._inputs, self._guards, self._rest = list(inputs), list(guards), rest
        count = NumberOfEntities(len(self._inputs), len(self._guards))
        self._events = 0
        if rest is not None:
            count += NumberOfEntities(
                len(rest.subscriptions), 0, len(rest.timers), len(rest.clients), len(rest.services)
            )
            for waitable in rest.waitables:
                count += waitable.get_num_entities()
            self._events = count.num_events
        with context.handle:
            self._wait_set = _rclpy.WaitSet(
                count.num_subscriptions,
                count.num_guard_conditions,
                count.num_timers,
                count.num_clients,
                count.num_services,
                count.num_events,
                context.handle,
            )

    def wait(self, seconds: float) -> set[int]:
        """Wait for an entity, at most for some seconds; return the pointers of ready inputs."""
        wait_set = self._wait_set
        wait_set.clear_entities()
        for handle in self._inputs:
            wait_set.add_subscription(handle)
        for handle in self._guards:
            wait_set.add_guard_condition(handle)
        if self._rest is not None:
            self._add(self._rest)
        wait_set.wait(max(0, int(seconds * 1e9)))
        ready = wait_set.get_ready_entities('subscription')
        return set(ready) if ready else set()

    def _add(self, rest: Entities) -> None:
        wait_set = self._wait_set
        for handle in rest.subscriptions:
            wait_set.add_subscription(handle)
        for handle in rest.services:
            wait_set.add_service(handle)
        for handle in rest.clients:
            wait_set.add_client(handle)
        for handle in rest.timers:
            wait_set.add_timer(handle)
        for waitable in rest.waitables:
            waitable.add_to_wait_set(wait_set)

    def rest_is_ready(self) -> bool:
        """Return True if another entity than an input was ready after the last wait."""
        wait_set, rest = self._wait_set, self._rest
        if rest is None:
            return False
        ready = wait_set.get_ready_entities('subscription')
        return bool(
            any(handle.pointer in ready for handle in rest.subscriptions)
            or any(wait_set.get_ready_entities(kind) for kind in ('service', 'client', 'timer'))
            or any(wait_set.is_ready('event', index) for index in range(self._events))
        )
