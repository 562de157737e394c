# SPDX-License-Identifier: Apache-2.0
"""Records and plays as ``ros2 bag`` does, which PyPI does not have: ``ros2_bag.py record ...``.

It takes the options that our launch files give, as rosbag2 documents them, and refuses all others.
It records serialized messages and publishes recorded bytes as they are, as rosbag2 does.
"""

from __future__ import annotations

import argparse
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diagnostic_msgs.msg
import rclpy
import std_msgs.msg
import yaml
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability
from rosbags.interfaces import QosTime as Time
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosgraph_msgs.msg import Clock

import safe_msgs.msg
from vla_feature_bridge.ros.definitions import full_definition, type_hash

MODULES = {'safe_msgs': safe_msgs, 'std_msgs': std_msgs, 'diagnostic_msgs': diagnostic_msgs}


def message_type(name: str) -> Any:
    """Return the class of a message type such as ``std_msgs/msg/Bool``."""
    package, _, short = name.partition('/msg/')
    return getattr(MODULES[package].msg, short)


def parser() -> argparse.ArgumentParser:
    """Return a parser of the options of rosbag2 (Jazzy) that our launch files use."""
    made = argparse.ArgumentParser(allow_abbrev=False)
    verbs = made.add_subparsers(dest='verb', required=True)
    record = verbs.add_parser('record', allow_abbrev=False)
    record.add_argument('-s', '--storage', choices=['mcap', 'sqlite3'], required=True)
    record.add_argument('-o', '--output', required=True)
    record.add_argument('--qos-profile-overrides-path', type=argparse.FileType('r'), required=True)
    record.add_argument('--include-unpublished-topics', action='store_true')
    record.add_argument('--disable-keyboard-controls', action='store_true')
    record.add_argument('--use-sim-time', action='store_true')
    record.add_argument('-e', '--regex', default='')
    record.add_argument('--topics', nargs='+', required=True)
    play = verbs.add_parser('play', allow_abbrev=False)
    play.add_argument('bag_path')
    play.add_argument('--clock', type=float, nargs='?', const=40.0, default=0.0)
    play.add_argument('-d', '--delay', type=float, default=0.0)
    play.add_argument('-r', '--rate', type=float, default=1.0)
    play.add_argument('-l', '--loop', action='store_true')
    play.add_argument('--disable-keyboard-controls', action='store_true')
    play.add_argument('-m', '--remap', nargs='+', default=[])
    return made


# --- record


def requested_qos(stated: dict[str, Any]) -> QoSProfile:
    """Return the QoS of a subscription from an entry of the file of overrides."""
    return QoSProfile(
        history=HistoryPolicy.get_from_short_key(stated['history']),
        depth=stated['depth'],
        reliability=ReliabilityPolicy.get_from_short_key(stated['reliability']),
        durability=DurabilityPolicy.get_from_short_key(stated['durability']),
    )


def offered_qos(node: Node, topic: str) -> list[Qos]:
    """Return the QoS that the publishers of a topic offer."""
    forever = Time(9223372036, 854775807)
    return [
        Qos(
            history=QosHistory.KEEP_LAST,
            depth=10,
            reliability=QosReliability[info.qos_profile.reliability.name],
            durability=QosDurability[info.qos_profile.durability.name],
            deadline=forever,
            lifespan=forever,
            liveliness=QosLiveliness.AUTOMATIC,
            liveliness_lease_duration=forever,
            avoid_ros_namespace_conventions=False,
        )
        for info in node.get_publishers_info_by_topic(topic)
    ]


class Recorder:
    """Writes the serialized messages of topics, from when their types are known."""

    def __init__(self, options: argparse.Namespace, writer: Writer) -> None:
        self._options, self._writer = options, writer
        self._overrides = yaml.safe_load(options.qos_profile_overrides_path)
        self._node = Node('rosbag2_recorder')
        self._kept: dict[str, tuple[str, list[tuple[int, bytes]]]] = {}
        self._offered: dict[str, list[Qos]] = {}
        self._looked_at = 0.0

    def spin(self) -> None:
        """Record until the process is interrupted."""
        while rclpy.ok():
            self._look()
            rclpy.spin_once(self._node, timeout_sec=0.1)

    def _look(self) -> None:
        if time.monotonic() < self._looked_at + 0.1:
            return
        self._looked_at = time.monotonic()
        for topic in self._kept:
            self._offered[topic] = offered_qos(self._node, topic) or self._offered.get(topic, [])
        known = dict(self._node.get_topic_names_and_types())
        wanted = self._options.regex and re.compile(self._options.regex)
        also = [
            topic
            for topic in known
            if wanted and wanted.search(topic) and self._node.count_publishers(topic)
        ]
        for topic in (*self._options.topics, *also):
            if topic not in self._kept and topic in known:
                kind = known[topic][0]
                self._kept[topic] = kind, []
                self._node.create_subscription(
                    message_type(kind),
                    topic,
                    lambda data, topic=topic: self._kept[topic][1].append(
                        (time.time_ns(), bytes(data))
                    ),
                    self._requested_qos(topic),
                    raw=True,
                )

    def _requested_qos(self, topic: str) -> QoSProfile:
        """Return the QoS of the overrides, or that which the publishers offer."""
        if topic in self._overrides:
            return requested_qos(self._overrides[topic])
        (offered, *_) = self._node.get_publishers_info_by_topic(topic)
        return QoSProfile(
            depth=10,
            reliability=offered.qos_profile.reliability,
            durability=offered.qos_profile.durability,
        )

    def write(self) -> None:
        """Write everything, in the order of arrival."""
        messages = []
        for topic, (kind, kept) in self._kept.items():
            connection = self._writer.add_connection(
                topic,
                kind,
                msgdef=full_definition(kind),
                rihs01=type_hash(kind),
                offered_qos_profiles=self._offered.get(topic, []),
            )
            messages += [(now, connection, data) for now, data in kept]
        for now, connection, data in sorted(messages, key=lambda entry: entry[0]):
            self._writer.write(connection, now, data)


def record(options: argparse.Namespace) -> None:
    """Record until the process is interrupted."""
    plugin = StoragePlugin[options.storage.upper()]
    with Writer(Path(options.output), version=9, storage_plugin=plugin) as writer:
        recorder = Recorder(options, writer)
        try:
            recorder.spin()
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        except RuntimeError:  # RCLError: the interrupt came while a subscription was made
            if rclpy.ok():
                raise
        # The terminal and ros2 launch may both interrupt the process.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        recorder.write()


# --- play


class Player:
    """Publishes a recording at its pace, and ``/clock``."""

    def __init__(self, options: argparse.Namespace, reader: Reader) -> None:
        self._options, self._reader = options, reader
        self._node = Node('rosbag2_player')
        moved = dict(rule.split(':=') for rule in options.remap)
        self._publishers = {
            connection.topic: self._node.create_publisher(
                message_type(connection.msgtype),
                moved.get(connection.topic, connection.topic),
                self._qos(connection.ext.offered_qos_profiles),
            )
            for connection in reader.connections
        }
        self._clock = self._node.create_publisher(Clock, '/clock', 1) if options.clock else None

    @staticmethod
    def _qos(offered: Sequence[Qos]) -> QoSProfile:
        latched = bool(offered) and all(
            qos.durability == QosDurability.TRANSIENT_LOCAL for qos in offered
        )
        return QoSProfile(
            depth=100,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

    def play(self) -> None:
        """Publish all messages once."""
        time.sleep(self._options.delay)
        started, first = time.monotonic(), self._reader.start_time
        for connection, stamp, data in self._reader.messages():
            due = started + (stamp - first) * 1e-9 / self._options.rate
            while True:
                if not rclpy.ok():
                    raise ExternalShutdownException()
                left = due - time.monotonic()
                now = min(time.monotonic(), due) - started
                self._tell(first + round(now * 1e9 * self._options.rate))
                if left <= 0:
                    break
                time.sleep(min(left, 1 / self._options.clock if self._clock else left))
            self._publishers[connection.topic].publish(bytes(data))

    def _tell(self, nanoseconds: int) -> None:
        if self._clock is not None:
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(nanoseconds, 10**9)
            self._clock.publish(message)

    def finish(self) -> None:
        """Wait until the subscribers have everything."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=5))


def play(options: argparse.Namespace) -> None:
    """Play a recording, again and again with --loop."""
    with Reader(Path(options.bag_path)) as reader:
        player = Player(options, reader)
        player.play()
        while options.loop:
            player.play()
        player.finish()


def main() -> None:
    """Run a verb; an interrupt ends it with status 0."""
    options = parser().parse_args()
    rclpy.init(args=[])
    try:
        {'record': record, 'play': play}[options.verb](options)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
