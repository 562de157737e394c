# SPDX-License-Identifier: Apache-2.0
"""Looks at the ROS graph and at diagnostics, and prints what is wrong.

It publishes on no topic. It calls one service of each monitor, which changes nothing.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from rclpy.node import Node, NodeNameNonExistentError
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.utilities import get_rmw_implementation_identifier

from safe_monitor_node.looking.examination import (
    GraphSeen,
    Mark,
    MonitorSeen,
    Reader,
    Remark,
    Report,
    examine_bridge,
    examine_graph,
    examine_monitor,
)
from safe_monitor_node.looking.words import printable
from safe_monitor_node.nodes.monitor_calls import belongs_to, monitors_of, robot_of_monitor
from safe_monitor_node.nodes.monitor_messages import status_name
from safe_monitor_node.nodes.tool_node import ToolNode
from safe_monitor_node.storage.detector_folder import load_detector
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.ros.qos import STOP_QOS, alive_qos

_STEP, _EVENT = 'safe_msgs/msg/PolicyStep', 'safe_msgs/msg/EpisodeEvent'
_STOP = 'std_msgs/msg/Bool'
#: A monitor that runs answers in a few milliseconds; a busy computer connects more slowly [s].
_ANSWER_WITHIN = 3.0


def print_findings(robot: str, wait: float, detector: str) -> int:
    """Print the findings; returns 1 if there is a problem, else 0.

    Parameters
    ----------
    robot : str
        Name of the only robot to look at; empty for all.
    wait : float
        Time to look at nodes, topics and diagnostics [s].
    detector : str
        Detector folder to check too; empty for none.
    """

    @ends_on_interrupt
    def main(args: list[str] | None = None) -> int:
        return run_node('doctor', work, args)

    def work() -> int:
        node = ToolNode('safe_doctor')
        try:
            seen = _look(node, robot, wait)
        finally:
            node.destroy_node()
        found = [_print('ROS graph', examine_graph(seen, robot))]
        found += [
            _print(
                f'{each.name} (robot {robot_of_monitor(each.name)})', examine_monitor(each, wait)
            )
            for each in seen.monitors
        ]
        found += [
            _print(f'{name} (bridge)', examine_bridge(reports))
            for name, reports in sorted(seen.bridges.items())
        ]
        if detector:
            found.append(_print(f'detector folder {detector}', [_check_folder(detector)]))
        problems = sum(found)
        print(f'{problems} problem{"" if problems == 1 else "s"} found')
        return 1 if problems else 0

    return main([])


def _print(title: str, remarks: list[Remark]) -> int:
    """Print some remarks below a title; returns the number of problems."""
    print(title)
    for remark in remarks:
        print(f'  {remark.mark.value:<8} {printable(remark.text, 2000)}')
    return sum(remark.mark is Mark.PROBLEM for remark in remarks)


def _check_folder(folder: str) -> Remark:
    try:
        loaded = load_detector(folder)
    except (SafeError, OSError) as error:
        return Remark(Mark.PROBLEM, str(error))
    return Remark(
        Mark.OK, f'{loaded.detector.name} of features {loaded.feature}, alpha {loaded.alpha:g}'
    )


def _look(node: Node, robot: str, wait: float) -> GraphSeen:
    """Collect data of the graph and of diagnostics for some time [s]."""
    reports: dict[str, list[Report]] = defaultdict(list)

    def take(message: DiagnosticArray) -> None:
        for status in message.status:
            facts = {pair.key: pair.value for pair in status.values}
            level = int.from_bytes(status.level, 'little')
            report = Report(time.monotonic(), level, status.message, facts)
            reports[status.name].append(report)

    node.create_subscription(DiagnosticArray, '/diagnostics', take, QoSProfile(depth=100))
    deadline = time.monotonic() + wait
    while (left := deadline - time.monotonic()) > 0:
        rclpy.spin_once(node, timeout_sec=left)
    found = [name for name in monitors_of(node) if belongs_to(name, robot)]
    # A process that was suspended during the look has sent diagnostics, and is in the graph.
    answering = _answering(node, found)
    mine = node.get_fully_qualified_name()
    names = [f'{space.rstrip("/")}/{name}' for name, space in node.get_node_names_and_namespaces()]
    topics = node.get_topic_names_and_types()
    return GraphSeen(
        wait=wait,
        surroundings=_surroundings(),
        nodes=[name for name in names if name != mine and '/_' not in name],
        steps={topic: _publishers(node, topic, _STEP) for topic, types in topics if _STEP in types},
        monitors=[
            replace(
                _look_at(node, name, reports[status_name(name)]),
                answers=name in answering,
                until=time.monotonic(),
            )
            for name in found
        ],
        bridges=_bridges(reports, robot),
    )


def _bridges(reports: dict[str, list[Report]], robot: str) -> dict[str, dict[str, Report]]:
    """Return the last report of each part of each bridge, by the name of its node.

    A bridge in the root namespace serves all robots; its sources have the names of the robots.
    """
    last = {name.rpartition(': ')[::2]: found[-1] for name, found in reports.items()}
    bridges: dict[str, dict[str, Report]] = {
        f'/{node}': {} for node, part in last if part == 'bridge'
    }
    for (node, part), report in last.items():
        name = f'/{node}'
        source = part.removeprefix('source').strip()
        if name in bridges and (
            belongs_to(name, robot)
            or (name.count('/') == 1 and (part == 'bridge' or source == robot.strip('/')))
        ):
            bridges[name][part] = report
    return {name: parts for name, parts in bridges.items() if parts}


def _answering(node: Node, monitors: list[str]) -> set[str]:
    """Return the monitors that answer a call within some time."""
    clients = {name: node.create_client(GetState, f'{name}/get_state') for name in monitors}
    calls: dict[str, Any] = {}
    deadline = time.monotonic() + _ANSWER_WITHIN
    while time.monotonic() < deadline:
        for name, client in clients.items():
            if name not in calls and client.service_is_ready():
                calls[name] = client.call_async(GetState.Request())
        if len(calls) == len(clients) and all(call.done() for call in calls.values()):
            break
        rclpy.spin_once(node, timeout_sec=0.05)
    return {name for name, call in calls.items() if call.done()}


def _surroundings() -> str:
    domain = os.environ.get('ROS_DOMAIN_ID', '') or '0'
    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', '') or 'SUBNET'
    return f'ROS domain {domain}, discovery {reach}, {get_rmw_implementation_identifier()}'


def _look_at(node: Node, name: str, reports: list[Report]) -> MonitorSeen:
    space = robot_of_monitor(name).rstrip('/')
    steps = _topics_of(node, name, _STEP, publishes=False) or [f'{space}/vla/policy_step']
    events = _topics_of(node, name, _EVENT, publishes=False) or [f'{space}/vla/episode']
    (stop, *_) = _topics_of(node, name, _STOP, publishes=True) or [f'{space}/safe/stop']
    return MonitorSeen(
        name=name,
        reports=reports,
        step_topics=steps,
        step_publishers=[who for topic in steps for who in _publishers(node, topic, _STEP)],
        # The monitor itself publishes labels.
        event_publishers=[
            who for topic in events for who in _publishers(node, topic, _EVENT) if who != name
        ],
        stop_topic=stop,
        stop_readers=[_reader(node, stop, info) for info in _subscriptions(node, stop, name)],
    )


def _topics_of(node: Node, name: str, kind: str, *, publishes: bool) -> list[str]:
    """Return the topics of a type that a node publishes or subscribes to, also if remapped."""
    space, _, base = name.rpartition('/')
    look = (
        node.get_publisher_names_and_types_by_node
        if publishes
        else node.get_subscriber_names_and_types_by_node
    )
    try:
        found = look(base, space or '/')
    except NodeNameNonExistentError:
        return []
    return sorted(topic for topic, types in found if kind in types)


def _publishers(node: Node, topic: str, kind: str) -> list[str]:
    infos = node.get_publishers_info_by_topic(topic)
    return [_name(info) for info in infos if info.topic_type == kind]


def _subscriptions(node: Node, topic: str, monitor: str) -> list[Any]:
    """Return the subscriptions of other nodes; a monitor also subscribes to its own topic."""
    infos = node.get_subscriptions_info_by_topic(topic)
    return [info for info in infos if _name(info) != monitor]


def _reader(node: Node, topic: str, info: Any) -> Reader:
    offered = [
        other.qos_profile
        for other in node.get_publishers_info_by_topic(topic)
        if other.topic_type == _STOP
    ] or [alive_qos(STOP_QOS)]
    compatibility, reason = qos_check_compatible(offered[0], info.qos_profile)
    reason = reason.replace('ERROR: ', '').strip('; ').lower()
    bad = compatibility == QoSCompatibility.ERROR
    name = _name(info)
    records = bool(_topics_of(node, name, _STEP, publishes=False))
    return Reader(name, info.topic_type, reason if bad else '', records)


def _name(info: Any) -> str:
    return f'{info.node_namespace.rstrip("/")}/{info.node_name}'
