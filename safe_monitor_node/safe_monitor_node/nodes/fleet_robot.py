# SPDX-License-Identifier: Apache-2.0
"""One robot of a fleet: a monitor node whose steps are scored together with those of the others."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rclpy.executors import ExternalShutdownException
from rclpy.parameter import Parameter

from safe_monitor_node.nodes.fleet_file import Robot
from safe_monitor_node.nodes.fleet_inputs import FleetInputs
from safe_monitor_node.nodes.monitor_node import MonitorNode
from safe_monitor_node.nodes.schedule import Schedule

_LOOKS_AT_THE_SAME = 4
_EXPLAIN_DELAY = 0.25
"""Time between a new state and its line in the log and its diagnosis [s]."""


class FleetRobot(MonitorNode):
    """The monitor of a robot: same topics, states, diagnostics, services and rules as alone.

    What differs is who calls it: its periodic calls are in the schedule of the fleet, and the loop
    of the fleet takes its messages. An error in its code ends the work of this monitor only.

    Parameters
    ----------
    robot : Robot
    schedule : Schedule
        The schedule of the fleet.
    threads : int
        CPU threads of the process.
    """

    # A look takes longer, the more topics there are: the looks of all robots together would take
    # half of a core.
    look_period = 1.5
    inputs_class = FleetInputs
    inputs: FleetInputs

    def __init__(self, robot: Robot, schedule: Schedule, threads: int) -> None:
        self._looks = 0
        self._counted: tuple[int, ...] = ()
        values = {**robot.parameters, 'threads': threads}
        super().__init__(
            schedule,
            namespace=robot.namespace,
            # The command line is that of the fleet; a new name there would name every robot.
            use_global_arguments=False,
            parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
        )
        self._explanation = self._every(_EXPLAIN_DELAY, self._explain_now)
        self._explanation.cancel()

    def _settle_memory(self) -> None:
        # A collection over all robots would make their steps wait.
        gc.freeze()

    def explain(self) -> None:
        """Log and diagnose a new state soon; several new states get one line and one diagnosis.

        The first steps of the episodes of many robots can come at the same time. An explanation
        takes as long as half a step, and would delay these steps.
        """
        if self._explanation.due == math.inf:
            self._explanation.reset()

    def _explain_now(self) -> None:
        self._explanation.cancel()
        self.outputs.explain()

    def destroy_node(self) -> None:
        """Log the states of the last 0.25 s, and destroy the node."""
        self.outputs.log_states()
        super().destroy_node()

    def _look_around(self) -> None:
        # A complete look takes 1 ms, so most looks only count the publishers. It is made if a
        # number has changed, and every fourth time. A look at a robot without a policy takes
        # longest, because it searches the topics of all robots.
        self._looks += 1
        publishers = self.inputs.publishers
        changed, self._counted = publishers != self._counted, publishers
        steps = self.inputs.steps
        silent = steps is not None and not steps.get_publisher_count()
        doubtful = self._findings and not silent
        if changed or doubtful or not self._looks % _LOOKS_AT_THE_SAME:
            super()._look_around()

    # --- errors

    def guarded(self, call: Callable[[], Any]) -> Any:
        """Call a function; an exception ends the work of this robot, not of the fleet."""
        try:
            return call()
        except Exception as error:  # The other robots must not notice.
            self.fail(error)
            return None

    def fail(self, error: Exception) -> None:
        """Stop to watch because of an error in the code. The diagnosis has the reason.

        A lifecycle manager or a person can configure the monitor again.

        Raises
        ------
        ExternalShutdownException
            The process is ending: calls of ROS fail then, which is no error in the code.
        """
        if not self.context.ok():
            raise ExternalShutdownException from error
        self.get_logger().fatal(''.join(traceback.format_exception(error)).rstrip())
        self.failure = (
            f'the monitor has ended its work because of an error in its code: '
            f'{type(error).__name__}: {error}; configure it again, and report the error'
        )
        for transition in (self.trigger_deactivate, self.trigger_cleanup):
            # Not every transition is possible in every state, and each can meet the same error.
            with suppress(Exception):
                transition()
        with suppress(Exception):
            self.outputs.publish_diagnostics()
