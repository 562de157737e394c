# SPDX-License-Identifier: Apache-2.0
"""Finds all robots, and subscribes to the topics of their monitors, for nodes that show robots."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile

from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_msgs.msg import FailureAlarm, FailureScore
from vla_feature_bridge.ros.qos import ALARM_QOS, LEASE, SCORE_QOS, alive_qos

_SCORE, _ALARM = 'safe/score', 'safe/alarm'
_SCORE_TYPE = 'safe_msgs/msg/FailureScore'
_INFINITE = 10**9 * 10**9
#: How long DDS may take to report the liveliness of a new monitor [s].
FIRST_WORD = 2.0


def call_every(node: Node, period: float, callback: Callable[[], None]) -> None:
    """Call a function periodically, also while ``/clock`` has stopped or is missing.

    Otherwise the last state of a dead monitor would be shown as its present state.
    """
    node.create_timer(period, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))


def robot_of(topic: str) -> str:
    """Return the name of the robot that a topic ``NAMESPACE/safe/score`` belongs to."""
    return topic.removesuffix(_SCORE).rstrip('/') or '/'


class RobotTopics:
    """Subscriptions of the scores and states of one robot; they fill a board.

    Liveliness shows within seconds that the monitor is dead. The ROS graph still lists a killed
    process for 20 s.

    Parameters
    ----------
    node : rclpy.node.Node
    board : RobotBoard
    name : str
        Name of the robot on the board; it is added.
    prefix : str
        Text before ``safe/score`` in the topic; empty for the namespace of the node.
    """

    def __init__(self, node: Node, board: RobotBoard, name: str, prefix: str = '') -> None:
        self._node, self._board, self.name = node, board, name
        self._alive_count: int | None = None  # None until DDS has reported it
        self._found_at = time.monotonic()
        self.score_topic = node.resolve_topic_name(prefix + _SCORE)
        self.alarm_topic = node.resolve_topic_name(prefix + _ALARM)
        board.add(name)
        self._subscriptions = [
            node.create_subscription(FailureScore, prefix + _SCORE, self._on_score, SCORE_QOS),
            node.create_subscription(FailureAlarm, prefix + _ALARM, self._on_alarm, ALARM_QOS),
            # Only of publishers that offer liveliness: monitors, but not every recording.
            node.create_subscription(
                FailureAlarm,
                prefix + _ALARM,
                _ignore,
                alive_qos(QoSProfile(depth=1), 2.0 * LEASE),
                raw=True,
                event_callbacks=SubscriptionEventCallbacks(
                    liveliness=self._on_liveliness,
                    incompatible_qos=_ignore,
                    incompatible_type=_ignore,
                ),
            ),
        ]

    def update(self) -> None:
        """Check whether the monitor is running."""
        infos = self._node.get_publishers_info_by_topic(self.alarm_topic)
        offering = sum(map(_offers_liveliness, infos))
        told = self._alive_count
        if told is None and time.monotonic() - self._found_at < FIRST_WORD:
            told = offering  # a new monitor must not be shown as GONE
        alive = len(infos) - offering + min(told or 0, offering)
        if not infos:
            # A recording may have scores only.
            alive = self._node.count_publishers(self.score_topic)
        self._board.set_alive(self.name, alive > 0, time.monotonic())

    def close(self) -> None:
        """End the subscriptions."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def monitor(self) -> str:
        """Return the full name of the node that publishes the scores; empty without a publisher."""
        for info in self._node.get_publishers_info_by_topic(self.score_topic):
            if 'UNKNOWN' not in info.node_name:
                return f'{info.node_namespace.rstrip("/")}/{info.node_name}'
        return ''

    def _on_score(self, message: FailureScore) -> None:
        sample = ScoreSample(
            message.episode_id,
            message.step,
            message.score,
            message.threshold,
            message.probability,
            message.state,
            message.detector,
        )
        self._board.take_score(self.name, sample, time.monotonic())

    def _on_alarm(self, message: FailureAlarm) -> None:
        sample = AlarmSample(
            message.episode_id, message.step, message.state, message.advice, message.reason
        )
        self._board.take_alarm(self.name, sample)

    def _on_liveliness(self, info: Any) -> None:
        self._alive_count = info.alive_count


class AllRobots:
    """Finds every robot whose monitor publishes ``.../safe/score``, in all namespaces.

    A topic that was remapped to another name is not found.

    Parameters
    ----------
    node : rclpy.node.Node
    board : RobotBoard
    """

    def __init__(self, node: Node, board: RobotBoard) -> None:
        self._node, self._board = node, board
        self._robots: dict[str, RobotTopics] = {}

    def update(self) -> None:
        """Search new robots, and check whether the monitors are running."""
        for topic, types in self._node.get_topic_names_and_types():
            name = robot_of(topic)
            if not topic.endswith(f'/{_SCORE}') or _SCORE_TYPE not in types:
                continue
            if name in self._robots or not self._node.count_publishers(topic):
                continue
            if self._board.add(name):
                prefix = topic.removesuffix(_SCORE)
                self._robots[name] = RobotTopics(self._node, self._board, name, prefix)
            else:
                self._node.get_logger().warning(
                    f'{topic}: not shown, because {self._board.most_robots} robots are shown '
                    'already',
                    throttle_duration_sec=60.0,
                )
        known = set(self._board.names())
        for name in [*self._robots]:
            if name in known:
                self._robots[name].update()
            else:
                self._robots.pop(name).close()

    def robot(self, name: str) -> RobotTopics | None:
        """Return the subscriptions of a robot; None if no robot has this name."""
        return self._robots.get(name)

    def robots(self) -> list[RobotTopics]:
        """Return the subscriptions of all robots."""
        return list(self._robots.values())


def _offers_liveliness(info: Any) -> bool:
    return bool(info.qos_profile.liveliness_lease_duration.nanoseconds < _INFINITE)


def _ignore(event: Any) -> None:
    """Do nothing: the liveliness contains the needed information."""
