# SPDX-License-Identifier: Apache-2.0
"""The monitors of many robots in one process. ``fleet`` is the executable.

``fleet_file`` says which robots there are. Each is a ``FleetRobot``: a monitor node of its own.
``FleetLoop`` runs all of them, and scores the steps that wait at the same time together.
"""

from __future__ import annotations

import gc
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from safe_monitor_node.nodes.fleet_file import Robot, read_robots
from safe_monitor_node.nodes.fleet_loop import FleetLoop
from safe_monitor_node.nodes.fleet_parameters import PARAMETERS
from safe_monitor_node.nodes.fleet_robot import FleetRobot
from safe_monitor_node.nodes.monitor_loop import BatchCounts
from safe_monitor_node.nodes.schedule import Schedule
from safe_monitor_node.storage.shared_detectors import import_code, run_loads_with
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.nodes.levels import Level
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import declare_parameters
from vla_feature_bridge.ros.qos import DIAGNOSTICS_QOS


def fleet_status_name(node: str) -> str:
    """Return the name of the status of a fleet in ``/diagnostics``, from the name of its node."""
    return f'{node.lstrip("/")}: fleet of monitors'


class FleetNode(Node):
    """Knows which robots there are, and tells how the process does. It judges nothing.

    Attributes
    ----------
    values : SimpleNamespace
        The values of the parameters.
    robots : tuple of Robot

    Raises
    ------
    ParameterError
        A parameter or the file of the robots cannot be used.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('fleet', **kwargs)
        self.values = declare_parameters(self, PARAMETERS)
        self._unknown = check_overrides(self)
        if self._unknown:
            self.get_logger().warning(self._unknown)
        self.robots: tuple[Robot, ...] = read_robots(self.values.robots_file, self.get_namespace())
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', DIAGNOSTICS_QOS)

    def publish_diagnostics(self, monitors: list[FleetRobot], counts: BatchCounts) -> None:
        """Publish how many monitors are active, and how many steps are scored together.

        What is wrong with a robot is in the diagnosis of its monitor.
        """
        active = sum(monitor.active for monitor in monitors)
        level = Level.WARN if self._unknown or active < len(monitors) else Level.OK
        message = f'{active} of {len(monitors)} monitors are active'
        each = counts.steps / counts.batches if counts.batches else 0.0
        facts = {
            'robots': len(monitors),
            'active': active,
            'steps': counts.steps,
            'steps in one batch (mean)': f'{each:.2f}',
            'steps in one batch (largest)': counts.largest,
        }
        status = DiagnosticStatus(
            level=bytes([level]),
            name=fleet_status_name(self.get_fully_qualified_name()),
            message=f'{message}; {self._unknown}' if self._unknown else message,
            values=[KeyValue(key=key, value=str(value)) for key, value in facts.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def folders_of(robot: Robot) -> list[str]:
    """Return the detector folders of a robot."""
    first, more = (robot.parameters.get(name) for name in ('detector_folder', 'more_detectors'))
    several = [first, *(more if isinstance(more, list) else [])]
    return [folder for folder in several if isinstance(folder, str) and folder.strip()]


def run_fleet() -> int:
    """Make the monitors of a fleet and run them until the context is shut down."""
    fleet = FleetNode()
    schedule = Schedule(time.monotonic)
    loop = FleetLoop(schedule)
    monitors: list[FleetRobot] = []
    try:
        loop.add(fleet)
        # Before the first robot works, because all of them would wait for it.
        for folder in sorted({folder for robot in fleet.robots for folder in folders_of(robot)}):
            import_code(folder)
        run_loads_with(loop.run_beside)
        for robot in fleet.robots:
            monitor = FleetRobot(robot, schedule, fleet.values.threads)
            monitors.append(monitor)
            monitor.guarded(monitor.autostart)
            # Not earlier: a request must not change the state in the middle of the start.
            loop.add(monitor)
            # The robots that have started must not wait for the others.
            loop.turn(longest_wait=0.0)
        gc.collect()
        gc.freeze()
        schedule.every(
            fleet.values.diagnostics_period,
            lambda: fleet.publish_diagnostics(monitors, loop.counts),
        )
        loop.spin()
    finally:
        run_loads_with()
        for monitor in monitors:
            monitor.destroy_node()
        fleet.destroy_node()
    return 0


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the fleet until it is shut down; returns 1 if a parameter or its file is refused."""
    return run_node('fleet', run_fleet, args)
