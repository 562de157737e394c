# SPDX-License-Identifier: Apache-2.0
"""The topics that the black box records, and its subscriptions to them as serialized messages."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool

from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore, PolicyStep
from vla_feature_bridge.mcap_writer import Channel
from vla_feature_bridge.ros.definitions import full_definition, offered_qos, type_hash
from vla_feature_bridge.ros.message_types import type_name_of
from vla_feature_bridge.ros.qos import (
    ALARM_QOS,
    DIAGNOSTICS_QOS,
    EPISODE_QOS,
    SCORE_QOS,
    STEP_QOS,
    STOP_QOS,
)

#: The black box may get less CPU time than the monitor.
_DEPTH = 1000
_KEPT_EVENTS = 200
_EVENTS, _OF_MONITOR = 'vla/episode', 'safe/alarm'
_SCORE = 'safe_msgs/msg/FailureScore'
MOST_TOPICS = 64


@dataclass(frozen=True)
class RecordedTopic:
    """A topic, its type, and the QoS with which a player publishes it again."""

    name: str
    kind: Any
    qos: QoSProfile

    @property
    def latched(self) -> bool:
        """Whether a late subscriber gets the last message."""
        return bool(self.qos.durability == DurabilityPolicy.TRANSIENT_LOCAL)


TOPICS = (
    RecordedTopic('vla/policy_step', PolicyStep, STEP_QOS),
    RecordedTopic('vla/episode', EpisodeEvent, EPISODE_QOS),
    RecordedTopic('safe/score', FailureScore, SCORE_QOS),
    RecordedTopic('safe/alarm', FailureAlarm, ALARM_QOS),
    RecordedTopic('safe/stop', Bool, STOP_QOS),
    RecordedTopic('/diagnostics', DiagnosticArray, DIAGNOSTICS_QOS),
)
LATCHED = frozenset(number for number, topic in enumerate(TOPICS) if topic.latched)


def channel_of(node: Node, topic: RecordedTopic) -> Channel:
    """Return a topic with its full name and definition, as a file describes it."""
    return Channel(
        node.resolve_topic_name(topic.name),
        type_name_of(topic.kind),
        full_definition(type_name_of(topic.kind)),
        {
            'offered_qos_profiles': offered_qos(topic.qos),
            'topic_type_hash': type_hash(type_name_of(topic.kind)),
        },
    )


class RecordedTopics:
    """Subscribes to all topics.

    Latched topics have two subscriptions, as in the monitor: one for transient-local publishers,
    and one for volatile publishers. If both receive a message, it is kept only once.

    A policy waits until both its topics have a subscriber, and this subscriber must be a monitor.
    Therefore the black box subscribes to events only while a monitor runs. Events are latched, so
    that no event is missed.

    The black box subscribes to the scores of several detectors (``safe/NAME/score``) as soon as
    they are published.

    Parameters
    ----------
    node : rclpy.node.Node
    channels : list of Channel
        One for each topic of :data:`TOPICS`; more topics are appended.
    take : callable
        Called with the position of the topic in ``channels``, the serialized message, and the time
        at which it was sent [ns of the system clock].

    Attributes
    ----------
    left_out : set of str
        Scores of detectors that are not recorded, because the number of topics in a file is
        limited.
    """

    def __init__(
        self, node: Node, channels: list[Channel], take: Callable[[int, bytes, int], None]
    ) -> None:
        self._node, self._channels, self._take = node, channels, take
        self._seen: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._subscriptions: dict[str, list[Any]] = {}
        self.left_out: set[str] = set()
        for topic in TOPICS:
            if topic.name != _EVENTS:
                self._open(topic.name)
        self.update()

    def has_monitor(self) -> bool:
        """Return True if a node publishes ``safe/alarm``."""
        return bool(self._node.count_publishers(_OF_MONITOR))

    def update(self) -> None:
        """Check whether a monitor runs."""
        if not self.has_monitor():
            self._close(_EVENTS)
        elif _EVENTS not in self._subscriptions:
            self._open(_EVENTS)

    def look_for_scores(self) -> None:
        """Subscribe to the scores of new detectors in the graph."""
        first = self._node.resolve_topic_name('safe') + '/'
        for name, kinds in self._node.get_topic_names_and_types():
            of_detector = re.fullmatch(re.escape(first) + r'[^/]+/score', name)
            if not of_detector or kinds != [_SCORE] or name in self._subscriptions:
                continue
            topic = RecordedTopic(name, FailureScore, SCORE_QOS)
            known = [channel.topic for channel in self._channels]
            if name not in known:
                if len(known) >= MOST_TOPICS:
                    self.left_out.add(name)
                    continue
                self._channels.append(channel_of(self._node, topic))
                known.append(name)
            self._subscriptions[name] = [
                self._subscribe(known.index(name), topic, DurabilityPolicy.VOLATILE)
            ]

    def _open(self, name: str) -> None:
        (number,) = (n for n, topic in enumerate(TOPICS) if topic.name == name)
        topic = TOPICS[number]
        self._subscriptions[name] = [self._subscribe(number, topic, DurabilityPolicy.VOLATILE)]
        if topic.latched:
            latched = self._subscribe(number, topic, DurabilityPolicy.TRANSIENT_LOCAL)
            self._subscriptions[name].append(latched)

    def _close(self, name: str) -> None:
        for subscription in self._subscriptions.pop(name, []):
            self._node.destroy_subscription(subscription)

    def _subscribe(self, number: int, topic: RecordedTopic, durability: Any) -> Any:
        def on_message(data: bytes, info: dict[str, Any]) -> None:
            if topic.latched and self._is_known(number, data, info):
                return
            self._take(number, data, int(info['source_timestamp']))

        return self._node.create_subscription(
            topic.kind,
            topic.name,
            on_message,
            QoSProfile(depth=_DEPTH, reliability=topic.qos.reliability, durability=durability),
            raw=True,
            # It is no problem that a volatile publisher does not match the second subscription.
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=lambda event: None),
        )

    def _is_known(self, number: int, data: bytes, info: dict[str, Any]) -> bool:
        key = (
            number,
            int(info['source_timestamp']),
            int(info['publication_sequence_number']),
            hash(data),
        )
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _KEPT_EVENTS:
            self._seen.popitem(last=False)
        return False

    def close(self) -> None:
        """Destroy all subscriptions."""
        for name in list(self._subscriptions):
            self._close(name)
