# SPDX-License-Identifier: Apache-2.0
"""The subscriptions of the monitor node, and the nodes around it."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile
from std_msgs.msg import Bool

from safe_monitor_node.monitor.remarks import RECENT
from safe_monitor_node.nodes.publication_order import EventNumbers, PublicationOrder, Taken
from safe_monitor_node.nodes.topic_watch import InputWatch, OutputWatch
from safe_msgs.msg import EpisodeEvent, FailureAlarm, PolicyStep
from vla_feature_bridge.nodes.levels import Finding, Level
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS, overridable

_KEPT_EVENTS = 200
_LOST = (
    '{}: a START, END or LABEL may be lost, because more events came than can wait (depth {}); '
    'the task or the outcome of an episode may be unknown; find out why the monitor was suspended '
    'or too slow, or increase the depth of the subscription'
)
_SHORT = (
    '{}: qos_overrides sets the depth of the subscription to {}, below {}: if more events come at '
    'once, some are lost, for example an END right before the next START; /diagnostics reports it'
)


class MonitorInputs:
    """Subscribes to steps and events, from configure to cleanup.

    A publisher of events may be transient local, as ``StepPublisher`` is, or volatile, as
    ``create_publisher(EpisodeEvent, 'vla/episode', 10)`` and ``ros2 topic pub`` are. No single
    subscription gets both the earlier events of the first and all events of the second. Therefore
    there are two, and an event that both receive counts once.

    Parameters
    ----------
    node : rclpy.node.Node
    on_step, on_event : callable
        Called with each message and its information.
    """

    def __init__(
        self,
        node: Node,
        on_step: Callable[[PolicyStep, Mapping[str, Any]], None],
        on_event: Callable[[EpisodeEvent, Mapping[str, Any]], None],
    ) -> None:
        self._node, self._on_step, self._take_event = node, on_step, on_event
        self._subscriptions: list[Any] = []
        self._inputs: list[InputWatch] = []
        self._outputs: list[OutputWatch] = []
        self._seen: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._order, self._numbers = PublicationOrder(), EventNumbers()
        self._lost_at = -math.inf

    def open(self) -> None:
        """Create the subscriptions."""
        volatile = QoSProfile(depth=EPISODE_QOS.depth, reliability=EPISODE_QOS.reliability)
        steps = self._subscribe(PolicyStep, 'vla/policy_step', self._on_step, STEP_QOS)
        events = self._subscribe(EpisodeEvent, 'vla/episode', self._on_event, volatile)
        self._subscribe(EpisodeEvent, 'vla/episode', self._on_event, EPISODE_QOS)
        if _is_short(events):
            text = _SHORT.format(events.topic_name, events.qos_profile.depth, EPISODE_QOS.depth)
            self._node.get_logger().warning(text)
        self._inputs = [
            InputWatch(
                self._node,
                'vla/policy_step',
                'safe_msgs/msg/PolicyStep',
                steps.qos_profile,
                required=True,
            ),
            InputWatch(
                self._node,
                'vla/episode',
                'safe_msgs/msg/EpisodeEvent',
                events.qos_profile,
                required=False,
            ),
        ]
        self._outputs = [
            OutputWatch(self._node, 'safe/stop', Bool),
            OutputWatch(self._node, 'safe/alarm', FailureAlarm),
        ]

    def _subscribe(self, kind: Any, topic: str, callback: Any, qos: QoSProfile) -> Any:
        subscription = self._node.create_subscription(
            kind,
            topic,
            callback,
            # `InputWatch` sees more than the default callbacks, and the executor looks at each of
            # them before it takes a step.
            event_callbacks=SubscriptionEventCallbacks(
                message_lost=self._on_lost if kind is EpisodeEvent else None,
                use_default_callbacks=False,
            ),
            **overridable(qos),
        )
        self._subscriptions.append(subscription)
        return subscription

    @property
    def steps(self) -> Any:
        """The subscription of steps; None while it is closed."""
        return self._subscriptions[0] if self._subscriptions else None

    @property
    def subscriptions(self) -> list[Any]:
        """All subscriptions; empty while they are closed."""
        return self._subscriptions

    @property
    def waited_for(self) -> list[Any]:
        """The subscriptions that get every new message; empty while they are closed.

        What the other one gets are events from before the node was there.
        """
        return self._subscriptions[:2]

    def close(self) -> None:
        """Destroy all subscriptions."""
        for output in self._outputs:
            output.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._inputs, self._outputs, self._subscriptions = [], [], []
        self._seen.clear()
        self._order.clear()
        self._numbers = EventNumbers()
        self._lost_at = -math.inf

    # --- messages

    def next_step(self) -> tuple[PolicyStep, Mapping[str, Any]] | None:
        """Handle the events that were published before the next step, and return this step.

        Returns
        -------
        tuple or None
            Message and information. None if no step waits; then every event is handled.
        """
        steps, order = self.steps, self._order
        if steps is None:
            return None
        order.put_events(self._waiting_events(), max(STEP_QOS.depth, steps.qos_profile.depth))
        if order.step is None:
            order.step = _take(steps)
        while (event := order.next_event()) is not None:
            self._on_event(*event)
            if self.steps is not steps:  # The event has closed the inputs.
                return None
        return order.take_step()

    @property
    def holds(self) -> bool:
        """Whether a message was taken and is not handled yet."""
        return self._order.holds

    def _waiting_events(self) -> list[Taken]:
        """Take the events that wait; those from before the node was there come first."""
        events: list[Taken] = []
        for subscription in reversed(self._subscriptions[1:]):
            # Events from before the node was there have smaller numbers, and can come later.
            is_new = subscription in self.waited_for
            # Depth 0 is the default depth of the middleware.
            for _ in range(max(1, subscription.qos_profile.depth)):
                if (taken := _take(subscription)) is None:
                    break
                events.append(taken)
                number = taken[1]['publication_sequence_number']
                if is_new and self._numbers.shows_loss(number, self._count_publishers):
                    self._on_lost()
            else:
                # The queue was full. The events from before the node was there may fill theirs,
                # and two events fill a short one: then only their numbers show a loss.
                if is_new and not _is_short(subscription):
                    self._on_lost()
        return events

    def _count_publishers(self) -> int:
        """Return the number of the other publishers of events; the monitor publishes labels."""
        return max(events.get_publisher_count() for events in self._subscriptions[1:]) - 1

    def _on_lost(self, info: object = None) -> None:
        self._lost_at = time.monotonic()

    def _on_event(self, event: EpisodeEvent, info: Mapping[str, Any]) -> None:
        stamp = event.header.stamp
        key = (
            info['source_timestamp'],
            info['publication_sequence_number'],
            (stamp.sec, stamp.nanosec, event.kind, event.outcome, hash(event.episode_id)),
        )
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > _KEPT_EVENTS:
            self._seen.popitem(last=False)
        self._take_event(event, info)

    def findings(self) -> list[Finding]:
        """Return the problems of the nodes around the monitor."""
        found = [finding for output in self._outputs for finding in output.findings()]
        if time.monotonic() - self._lost_at < RECENT:
            depth = self._subscriptions[1].qos_profile.depth
            found.append(Finding(Level.WARN, _LOST.format(self._inputs[1].topic, depth)))
        return found + [finding for watch in self._inputs for finding in watch.findings()]


def _is_short(events: Any) -> bool:
    """Return whether fewer events can wait than by default."""
    qos = events.qos_profile
    return qos.history != HistoryPolicy.KEEP_ALL and qos.depth < EPISODE_QOS.depth


def _take(subscription: Any) -> Taken | None:
    """Return the next message that waits, and its information; None if none waits."""
    taken: Taken | None = subscription.handle.take_message(subscription.msg_type, subscription.raw)
    return taken
