# SPDX-License-Identifier: Apache-2.0
"""Finds other publishers of the topics of the monitor, by the ROS graph and by liveliness."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from vla_feature_bridge.nodes.levels import Finding, Level
from vla_feature_bridge.ros.qos import LEASE, alive_qos

_INFINITE = 1_000_000_000 * 10**9
_SHOWN_NAMES = 4


class InputWatch:
    """Checks the publishers of a topic that the monitor subscribes to.

    Parameters
    ----------
    node : rclpy.node.Node
    topic : str
        Name of the topic in the subscription of the node.
    type_name : str
        Type of the messages, such as ``safe_msgs/msg/PolicyStep``.
    qos : QoSProfile
        QoS of the subscription.
    required : bool
        Whether the topic needs exactly one publisher.
    """

    def __init__(
        self, node: Node, topic: str, type_name: str, qos: QoSProfile, *, required: bool
    ) -> None:
        self._node, self._name, self._type, self._qos = node, topic, type_name, qos
        self._required = required
        self.topic = node.resolve_topic_name(topic)

    def findings(self) -> list[Finding]:
        """Return the problems of the publishers."""
        mine = self._node.get_name(), self._node.get_namespace()
        found = [
            info
            for info in self._node.get_publishers_info_by_topic(self._name)
            if (info.node_name, info.node_namespace) != mine
        ]
        right = [info for info in found if info.topic_type == self._type]
        texts = [
            *self._wrong_types(found),
            *self._wrong_qos(right),
        ]
        if self._required and not found:
            texts.append(f'{self.topic}: expected a publisher, found none{self._elsewhere()}')
        if self._required and len(right) > 1:
            texts.append(
                f'{self.topic}: expected one publisher, found {len(right)} ({_names(right)}); stop '
                'the other publishers (a killed node is counted for up to 20 s)'
            )
        return [Finding(Level.WARN, text) for text in texts]

    def _wrong_types(self, found: Iterable[Any]) -> list[str]:
        wrong = [info for info in found if info.topic_type != self._type]
        if not wrong:
            return []
        types = ', '.join(sorted({info.topic_type for info in wrong}))
        return [
            f'{self.topic}: expected messages of type {self._type}, found {types} ({_names(wrong)})'
        ]

    def _wrong_qos(self, right: Iterable[Any]) -> list[str]:
        texts = []
        for info in right:
            compatibility, reason = qos_check_compatible(info.qos_profile, self._qos)
            if compatibility == QoSCompatibility.ERROR:
                reason = reason.replace('ERROR: ', '').strip('; ').lower()
                texts.append(
                    f'{self.topic}: no message of {_names([info])} arrives, because the QoS does '
                    f'not match ({reason}); publish with reliability RELIABLE, or set '
                    f'qos_overrides.{self.topic}.subscription.reliability to best_effort'
                )
        return texts

    def _elsewhere(self) -> str:
        """Return the topics with messages of this type, or what to start; ends a sentence."""
        others = sorted(
            topic
            for topic, types in self._node.get_topic_names_and_types()
            if self._type in types and topic != self.topic and self._node.count_publishers(topic)
        )
        if not others:
            return (
                '; start the policy (if it sends to a bridge, it has not connected: compare the '
                'addresses)'
            )
        return (
            f'; messages of this type are on {_listed(others)}: remap the topic, or start the '
            'monitor in the namespace of the policy'
        )


class OutputWatch:
    """Checks the publishers of a topic that only this monitor may publish.

    The ROS graph shows the publishers of a killed process for 20 s. Liveliness shows within
    seconds that they are dead. Therefore publishers that offer liveliness are counted by their
    liveliness, not by the ROS graph.

    Parameters
    ----------
    node : rclpy.node.Node
    topic : str
    kind : type
        Class of the messages.

    Attributes
    ----------
    alive : int
        Number of publishers that offer liveliness and are alive.
    """

    def __init__(self, node: Node, topic: str, kind: Any) -> None:
        self._node, self._name = node, topic
        self.topic = node.resolve_topic_name(topic)
        self.alive = 0
        self._subscription = node.create_subscription(
            kind,
            topic,
            _ignore,
            alive_qos(QoSProfile(depth=1), 2.0 * LEASE),
            raw=True,
            # The ROS graph and the liveliness show what the default callbacks would log.
            event_callbacks=SubscriptionEventCallbacks(
                liveliness=self._on_liveliness, use_default_callbacks=False
            ),
        )

    def _on_liveliness(self, info: Any) -> None:
        self.alive = info.alive_count

    def close(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)

    def findings(self) -> list[Finding]:
        """Return the finding that there is another publisher, if there is one."""
        infos = self._node.get_publishers_info_by_topic(self._name)
        # This monitor is one of the publishers that offer liveliness.
        offering = [info for info in infos if _offers_liveliness(info)]
        others = len(infos) - len(offering) + min(self.alive, len(offering)) - 1
        if others < 1:
            return []
        return [
            Finding(
                Level.ERROR,
                f'{self.topic}: expected this monitor as the only publisher, found {others + 1} '
                f'publishers ({_names(infos)}), so that a robot gets contradicting messages; stop '
                'the other monitor, or start it in another namespace (`ros2 topic info -v '
                f'{self.topic}` shows the nodes)',
            )
        ]


def _offers_liveliness(info: Any) -> bool:
    return bool(info.qos_profile.liveliness_lease_duration.nanoseconds < _INFINITE)


def _ignore(message: bytes) -> None:
    """Do nothing."""


def _names(infos: Iterable[Any]) -> str:
    return _listed(map(_name, infos))


def _name(info: Any) -> str:
    # A publisher is visible before the name of its node.
    if 'UNKNOWN' in info.node_name:
        return 'a node that is not known yet'
    return f'{info.node_namespace.rstrip("/")}/{info.node_name}'


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f' and {len(listed) - _SHOWN_NAMES} more' if len(listed) > _SHOWN_NAMES else ''
    return ', '.join(listed[:_SHOWN_NAMES]) + more
