# SPDX-License-Identifier: Apache-2.0
"""Prints one line for each robot; the exit status shows the worst state."""

from __future__ import annotations

import sys
import time

from safe_monitor_node.looking.status import NO_ROBOT, exit_status, status_json, status_line
from safe_monitor_node.looking.terminal import NO_ROBOT_YET
from safe_monitor_node.nodes.watch_node import WatchNode
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node


def print_status(robot: str, wait: float, *, as_json: bool) -> int:
    """Print the robots and return the exit status (see ``looking.status``).

    Parameters
    ----------
    robot : str
        Name of the only robot to show; empty for all.
    wait : float
        Time to find the robots [s].
    as_json : bool
        Whether each line is a JSON object.
    """

    @ends_on_interrupt
    def main(args: list[str] | None = None) -> int:
        return run_node('status', lambda: _look(robot, wait, as_json), args)

    return main([])


def _look(robot: str, wait: float, as_json: bool) -> int:
    node = WatchNode()
    name = '/' + robot.strip('/')
    try:
        node.look(wait, name if robot else '')
        views = node.board.views(time.monotonic())
    finally:
        node.destroy_node()
    shown = [view for view in views if not robot or view.name == name]
    for view in shown:
        print(status_json(view) if as_json else status_line(view))
    if not shown:
        others = ', '.join(view.name for view in views)
        text = f'{name}: no such robot; the robots are {others}' if views else NO_ROBOT_YET
        print(f'status: {text}', file=sys.stderr)
        return NO_ROBOT
    return exit_status(shown)
