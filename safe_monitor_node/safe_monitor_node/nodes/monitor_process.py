# SPDX-License-Identifier: Apache-2.0
"""Runs one monitor node in its loop. ``monitor`` is the executable."""

from __future__ import annotations

from safe_monitor_node.nodes.monitor_loop import MonitorLoop
from safe_monitor_node.nodes.monitor_node import MonitorNode
from safe_monitor_node.storage.shared_detectors import run_loads_with
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node


def run_monitor() -> int:
    """Run a monitor node until the context is shut down."""
    node = MonitorNode()
    try:
        loop = MonitorLoop(node.schedule)
        loop.add(node)
        node.autostart()
        run_loads_with(loop.run_beside)
        loop.spin()
    finally:
        run_loads_with()
        node.destroy_node()
    return 0


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down; returns 1 if a parameter is refused."""
    return run_node('monitor', run_monitor, args)
