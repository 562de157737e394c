# SPDX-License-Identifier: Apache-2.0
"""Calls the services of running monitors, for the command line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node, NodeNameNonExistentError
from std_srvs.srv import Trigger

from safe_monitor_node.nodes.tool_node import ToolNode
from safe_msgs.srv import LabelEpisode, LoadDetector
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node

#: A service that only monitors have. It is used to find them.
_MARK, _MARK_TYPE = '/load_detector', 'safe_msgs/srv/LoadDetector'
_OUTCOMES = {'unknown': 0, 'success': 1, 'failure': 2}
#: How long to search for further monitors after the first one [s]. Without the name of a robot, the
#: time is longer: on a busy computer, only one of two monitors was found within one second in two
#: of three tries. The label would then go to a wrong robot.
_ALL_FOUND, _ALL_FOUND_UNNAMED = 1.0, 2.5


class MonitorCallError(SafeError):
    """A monitor was not found, is not the only one, or does not answer."""


def label_episode(robot: str, wait: float, outcome: str, episode: str) -> int:
    """Set the outcome of an episode, print the answer and return the exit status."""
    request = LabelEpisode.Request(episode_id=episode, outcome=_OUTCOMES[outcome])
    return _call('label', robot, wait, (LabelEpisode, 'label_episode', request))


def reset_alarm(robot: str, wait: float) -> int:
    """Clear a latched alarm, print the answer and return the exit status."""
    return _call('reset', robot, wait, (Trigger, 'reset', Trigger.Request()))


def load_folder(robot: str, wait: float, folder: str) -> int:
    """Replace a detector, print the answer and return the exit status.

    A relative path of a folder on this computer is made absolute, because the monitor may run in
    another folder.
    """
    name, equals, path = folder.rpartition('=')
    if Path(folder).exists():
        name, equals, path = '', '', folder
    if Path(path).exists():
        path = os.path.abspath(path)
    request = LoadDetector.Request(folder=f'{name}{equals}{path}')
    return _call('load', robot, wait, (LoadDetector, 'load_detector', request))


def monitors_of(node: Node) -> list[str]:
    """Return the full names of all monitors in the ROS graph, sorted.

    Each node is asked, because the list of all services also has services without a server.
    """
    found = set()
    for name, space in node.get_node_names_and_namespaces():
        try:
            services = node.get_service_names_and_types_by_node(name, space)
        except NodeNameNonExistentError:  # it has ended in the meantime
            continue
        found |= {service.removesuffix(_MARK) for service, types in services if _MARK_TYPE in types}
    return sorted(found)


def robot_of_monitor(monitor: str) -> str:
    """Return the name of the robot of a monitor: its namespace, ``/`` without one."""
    return monitor.rpartition('/')[0] or '/'


def belongs_to(monitor: str, robot: str) -> bool:
    """Return whether a monitor belongs to a robot, or has this name itself; '' is any robot."""
    return not robot or '/' + robot.strip('/') in (robot_of_monitor(monitor), monitor)


def _call(verb: str, robot: str, wait: float, call: tuple[Any, str, Any]) -> int:
    @ends_on_interrupt
    def main(args: list[str] | None = None) -> int:
        return run_node(verb, work, args)

    def work() -> int:
        node = ToolNode(f'safe_{verb}')
        try:
            monitor = _find(node, robot, wait)
            _warn_of_twins(verb, node, monitor)
            answer = _answer(node, monitor, call, wait)
        except MonitorCallError as error:
            print(f'{verb}: {error}', file=sys.stderr)
            return 1
        finally:
            node.destroy_node()
        print(f'{monitor}: {answer.message}', file=sys.stdout if answer.success else sys.stderr)
        return 0 if answer.success else 1

    return main([])


def _spin_until(node: Node, done: Callable[[], bool], wait: float) -> bool:
    deadline = time.monotonic() + wait
    while not done():
        if time.monotonic() > deadline:
            return False
        rclpy.spin_once(node, timeout_sec=0.05)
    return True


def _find(node: Node, robot: str, wait: float) -> str:
    """Return the name of the only monitor of a robot."""

    def found() -> list[str]:
        return [name for name in monitors_of(node) if belongs_to(name, robot)]

    _spin_until(node, lambda: bool(found()), wait)
    if found():
        _spin_until(node, lambda: False, _ALL_FOUND if robot else _ALL_FOUND_UNNAMED)
    names = found()
    if len(names) == 1:
        return names[0]
    others = ', '.join(monitors_of(node))
    where = f'robot {robot}' if robot else 'monitor'
    if names:
        raise MonitorCallError(
            where=where,
            expected='one monitor',
            found=', '.join(names),
            advice=f'add --robot with one of {", ".join(map(_choice, names))}',
        )
    raise MonitorCallError(
        where=where,
        expected=f'a monitor within {wait:g} s',
        found=others or 'none',
        advice='start a monitor (a process that hangs is not found), or use the same '
        'ROS_DOMAIN_ID; `doctor` says more'
        if not others
        else 'give --robot the namespace of one of them',
    )


def _warn_of_twins(verb: str, node: Node, monitor: str) -> None:
    """Print a warning if several nodes have the name of a monitor: only one answer is received."""
    names = [f'{space.rstrip("/")}/{name}' for name, space in node.get_node_names_and_namespaces()]
    if (count := names.count(monitor)) > 1:
        print(
            f'{verb}: {monitor}: expected one node of this name, found {count}; the answer is that '
            'of one of them: end the others (a killed node is listed for up to 20 s)',
            file=sys.stderr,
        )


def _choice(monitor: str) -> str:
    """Return a name for ``--robot`` that selects only this monitor."""
    return robot_of_monitor(monitor) if monitor.endswith('/monitor') else monitor


def _answer(node: Node, monitor: str, call: tuple[Any, str, Any], wait: float) -> Any:
    kind, service, request = call
    client = node.create_client(kind, f'{monitor}/{service}')
    deadline = time.monotonic() + wait
    # A process that hangs is in the ROS graph, but does not connect.
    if _spin_until(node, client.service_is_ready, wait):
        future = client.call_async(request)
        if _spin_until(node, future.done, deadline - time.monotonic()):
            return future.result()
    raise MonitorCallError(
        where=f'{monitor}/{service}',
        expected=f'an answer within {wait:g} s',
        found='none',
        advice='check whether the process of the monitor hangs or was killed (a killed node is '
        'listed for up to 20 s), or use a longer --wait',
    )
