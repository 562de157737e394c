# SPDX-License-Identifier: Apache-2.0
"""Serves a web page that shows all robots live. ``dashboard`` is its executable."""

from __future__ import annotations

import sys
import threading
from typing import Any

import rclpy
from rclpy.node import Node

from safe_monitor_node.looking.board import RobotBoard
from safe_monitor_node.looking.web_access import DashboardError, WebAccess
from safe_monitor_node.looking.web_server import DashboardServer
from safe_monitor_node.nodes.robot_topics import AllRobots, call_every
from safe_msgs.srv import LabelEpisode
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import Parameter, declare_parameters

PARAMETERS = (
    Parameter(
        'address',
        '127.0.0.1',
        'Address that the web server listens on; any address other than 127.0.0.1 needs a token.',
    ),
    Parameter('port', 8770, 'Port of the web server; 0 chooses a free port.', 0, 65535),
    Parameter(
        'token',
        '',
        'Secret of at least 16 characters that every browser must give; empty: no token.',
    ),
    Parameter('labels', True, 'Whether the page has buttons that label episodes.'),
    Parameter('history', 600, 'Number of steps of the running episode that are shown.', 20, 10000),
    Parameter('period', 0.25, 'Time between two updates of the page [s].', 0.05, 10.0),
)

_LOOK_PERIOD = 0.5
_ANSWER_WITHIN = 5.0


class DashboardNode(Node):
    """Serves the page, and sends its labels to the monitors.

    Attributes
    ----------
    board : RobotBoard
    server : DashboardServer

    Raises
    ------
    DashboardError
        The page cannot be served with these parameters.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('dashboard', **kwargs)
        values = declare_parameters(self, PARAMETERS)
        if unknown := check_overrides(self):
            self.get_logger().warning(unknown)
        access = WebAccess(values.address, values.token)
        self.board = RobotBoard(values.history)
        self.server = DashboardServer(
            self.board,
            self._label if values.labels else None,
            (values.address, values.port),
            access,
            period=values.period,
            on_error=lambda text: self.get_logger().error(text),
        )
        self._robots = AllRobots(self, self.board)
        # The thread of a browser must not create a client while the executor runs.
        self._label_clients: dict[str, tuple[str, Any]] = {}
        call_every(self, _LOOK_PERIOD, self._look)
        self.server.start()
        need = ' with ?token=TOKEN at its end' if access.needs_token else ''
        self.get_logger().info(f'the dashboard is at {self.server.url}{need}')

    def _look(self) -> None:
        self._robots.update()
        for robot in self._robots.robots():
            monitor = robot.monitor()
            known, client = self._label_clients.get(robot.name, ('', None))
            if monitor and monitor != known:
                if client is not None:
                    self.destroy_client(client)
                made = self.create_client(LabelEpisode, f'{monitor}/label_episode')
                self._label_clients[robot.name] = monitor, made
        for name in self._label_clients.keys() - set(self.board.names()):
            self.destroy_client(self._label_clients.pop(name)[1])

    def _label(self, name: str, episode: str, outcome: int) -> tuple[bool, str]:
        """Label an episode; called in the thread of a browser."""
        monitor, client = self._label_clients.get(name, ('', None))
        if client is None:
            return False, 'no monitor of this robot is known'
        if not client.service_is_ready():
            return False, f'{monitor}/label_episode is not offered: is the monitor running?'
        done = threading.Event()
        future = client.call_async(LabelEpisode.Request(episode_id=episode, outcome=outcome))
        future.add_done_callback(lambda _: done.set())
        if not done.wait(_ANSWER_WITHIN):
            client.remove_pending_request(future)
            return False, (
                f'{monitor} has not answered within {_ANSWER_WITHIN:g} s; whether the label '
                'arrived is not known'
            )
        answer = future.result()
        return bool(answer.success), str(answer.message)

    def destroy_node(self) -> None:
        """Stop the web server and destroy the node."""
        self.server.close()
        super().destroy_node()


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down; returns 1 if the page cannot be served."""

    def work() -> int:
        try:
            node = DashboardNode()
        except DashboardError as error:
            print(f'dashboard: {error}', file=sys.stderr)
            return 1
        try:
            rclpy.spin(node)
        finally:
            node.destroy_node()
        return 0

    return run_node('dashboard', work, args)
