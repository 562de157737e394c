# SPDX-License-Identifier: Apache-2.0
"""A subscription to a topic of another node, with the type and the QoS of the publishers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.message_types import full_type_name, has_header, message_type

#: Number of messages that wait until the node reads them; fewer for large messages.
_DEPTH, _IMAGE_DEPTH = 100, 10


class TopicInputError(SafeError):
    """The parameters of an input contradict each other, or its messages cannot be read."""


class HeaderOnly:
    """The header of a message whose other fields are not read."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 12:
            raise TopicInputError(where='message', expected='a header', found=f'{len(data)} bytes')
        # CDR: four bytes that state the byte order, then the stamp.
        order = '<' if data[1] & 1 else '>'
        seconds, nanoseconds = struct.unpack_from(f'{order}iI', data, 4)
        self.header = Header(stamp=Time(sec=seconds, nanosec=nanoseconds))


class TopicInput:
    """Subscribes to a topic as soon as it has a publisher, with a QoS that matches every publisher.

    A reliable subscription does not match a best-effort publisher. A transient-local subscription
    does not match a volatile publisher.

    Parameters
    ----------
    node : rclpy.node.Node
    topic : str
    callback : callable
        Called with each message. An error that it raises is kept in ``problem``.
    types : sequence of str
        Names of the accepted message types; empty for any.
    type_name : str
        The type of the topic; empty takes the type of the publishers.
    latched : bool
        True to request the last message of publishers that keep it (transient local).
    header_only : bool
        Whether only the header of a message is read: the callback gets :class:`HeaderOnly`, unless
        the type has no header. A camera image is large.

    Attributes
    ----------
    topic : str
        Full name.
    message_class : class or None
        Class of the messages; None before the first publisher.
    received : int
        Number of messages.
    problem : str
        Reason why no message comes, or why the last message was refused; empty without a problem.
    publishers : int
        Number of publishers that match.

    Raises
    ------
    TopicInputError
        ``type_name`` is none of ``types``.
    MessageTypeError
        ``type_name`` is not a message type that is installed here.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        callback: Callable[[Any], None],
        *,
        types: Sequence[str] = (),
        type_name: str = '',
        latched: bool = False,
        header_only: bool = False,
    ) -> None:
        self._node, self._callback = node, callback
        self._types = tuple(types)
        self._latched, self._header_only = latched, header_only
        self.topic = node.resolve_topic_name(topic)
        self.message_class: Any = None
        self.received = self.publishers = 0
        self._refused = self._not_connected = ''
        self._subscription: Any = None
        self._qos: tuple[Any, Any] | None = None
        self._type_name = ''
        if type_name:
            self._take_type(full_type_name(type_name))
        self.update()

    @property
    def problem(self) -> str:
        """Why no message comes, or why the last message was refused; empty without a problem."""
        return self._not_connected or self._refused

    def update(self) -> None:
        """Look at the publishers of the topic, and subscribe or change the QoS if needed."""
        mine = self._node.get_name(), self._node.get_namespace()
        found = [
            info
            for info in self._node.get_publishers_info_by_topic(self.topic)
            if (info.node_name, info.node_namespace) != mine
        ]
        try:
            self._not_connected = self._connect(found)
        except Exception as error:  # An error that another node causes must not end this node.
            self._not_connected = f'cannot subscribe: {error}'

    def close(self) -> None:
        """End the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _take_type(self, name: str) -> None:
        if self._types and name not in self._types:
            raise TopicInputError(
                where=f'topic {self.topic}',
                expected=f'messages of type {", ".join(self._types)}',
                found=name,
            )
        self.message_class, self._type_name = message_type(name), name

    def _connect(self, found: list[Any]) -> str:
        """Subscribe. Return the reason if this is not possible, otherwise an empty text."""
        types = sorted({info.topic_type for info in found})
        if not found:
            self.publishers = 0
            return 'no publisher'
        if self.message_class is None:
            try:
                self._take_type(types[0])
            except SafeError as error:
                return str(error)
        matching = [info for info in found if info.topic_type == self._type_name]
        self.publishers = len(matching)
        if not matching:
            return f'expected publishers of type {self._type_name}, found {", ".join(types)}'
        self._subscribe([info.qos_profile for info in matching])
        return ''

    def _subscribe(self, offered: list[QoSProfile]) -> None:
        reliability = ReliabilityPolicy.RELIABLE
        if any(qos.reliability == ReliabilityPolicy.BEST_EFFORT for qos in offered):
            reliability = ReliabilityPolicy.BEST_EFFORT
        durability = DurabilityPolicy.VOLATILE
        if self._latched and all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in offered):
            durability = DurabilityPolicy.TRANSIENT_LOCAL
        if self._qos is not None and not self._must_ask_for_less(reliability, durability):
            return
        self.close()
        self._qos = reliability, durability
        raw = self._header_only and has_header(self.message_class)
        self._subscription = self._node.create_subscription(
            self.message_class,
            self.topic,
            self._on_raw if raw else self._on_message,
            QoSProfile(
                depth=_IMAGE_DEPTH if self._header_only else _DEPTH,
                reliability=reliability,
                durability=durability,
            ),
            raw=raw,
        )

    def _must_ask_for_less(self, reliability: Any, durability: Any) -> bool:
        """Return True if a publisher does not offer the requested QoS."""
        assert self._qos is not None
        best_effort, volatile = ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE
        return (reliability == best_effort != self._qos[0]) or (
            durability == volatile != self._qos[1]
        )

    def _on_raw(self, data: bytes) -> None:
        self._on_message(data, HeaderOnly)

    def _on_message(self, message: Any, read: Callable[[Any], Any] | None = None) -> None:
        self.received += 1
        try:
            self._callback(message if read is None else read(message))
        except SafeError as error:
            self._refused = str(error)
        except Exception as error:  # A message of another node must not end this node.
            self._refused = f'{type(error).__name__}: {error}'
        else:
            self._refused = ''
