# SPDX-License-Identifier: Apache-2.0
"""The bridge node: receives the steps of policies from sockets or topics, and publishes them.

``bridge`` is its executable.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from safe_msgs.srv import EndEpisode, LabelEpisode, StartEpisode
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.bridge_boundaries import Boundary
from vla_feature_bridge.nodes.bridge_diagnosis import Diagnosis
from vla_feature_bridge.nodes.bridge_parameters import PARAMETERS, check_settings
from vla_feature_bridge.nodes.bridge_session import BridgeSession
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.nodes.levels import Finding, Level
from vla_feature_bridge.nodes.lifecycle import ManagedNode
from vla_feature_bridge.ros.clock_watch import ClockWatch
from vla_feature_bridge.ros.messages import success_of
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import declare_parameters
from vla_feature_bridge.ros.qos import DIAGNOSTICS_QOS

#: Period of checking the clock, the subscribers and the ends of episodes [s].
_TICK = 0.1


class BridgeNode(ManagedNode):
    """Publishes ``vla/policy_step`` and ``vla/episode`` for every source.

    Services: ``~/start_episode`` and ``~/end_episode`` if ``episode_from`` is ``service``;
    ``~/label_episode`` publishes an outcome on ``vla/episode``. Wrong data of a source never end
    the node. They are refused and counted, and ``/diagnostics`` lists them.

    Attributes
    ----------
    made_at : float
        When the node was made, on the steady clock [s].
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('bridge', **kwargs)
        self.made_at = time.monotonic()
        self._p = declare_parameters(self, PARAMETERS)
        self._unknown = check_overrides(self)
        if self._unknown:
            self.get_logger().warning(self._unknown)
        self._session: BridgeSession | None = None
        self._tick_timer: Any = None
        self._jumps: Any = None
        self._clock_watch = ClockWatch(self)
        # Diagnostics are also published while the ROS time does not change.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', DIAGNOSTICS_QOS)
        self.create_timer(self._p.diagnostics_period, self._publish_diagnostics, clock=self._steady)
        self.create_service(StartEpisode, '~/start_episode', partial(self._answer, self._start))
        self.create_service(EndEpisode, '~/end_episode', partial(self._answer, self._end))
        self.create_service(LabelEpisode, '~/label_episode', partial(self._answer, self._label))

    def autostart(self) -> None:
        """Configure and activate if ``autostart`` is true; a failure is logged and diagnosed."""
        if not self._p.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- life cycle

    def close(self) -> None:
        """Close all connections, so that all threads end."""
        self._teardown()

    def _setup(self) -> None:
        check_settings(self._p)
        self._session = BridgeSession(self, self._p)
        self._tick_timer = self.create_timer(_TICK, self._on_tick, clock=self._steady)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
            ),
            post_callback=self._on_clock_jump,
        )
        for sentence in self._session.introduction():
            self.get_logger().info(sentence)

    def _teardown(self) -> None:
        if self._tick_timer is not None:
            self.destroy_timer(self._tick_timer)
        if self._jumps is not None:
            self._jumps.unregister()
        if self._session is not None:
            self._session.close()
        self._tick_timer = self._jumps = self._session = None

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to publish."""
        result = super().on_activate(state)
        if self._session is not None:
            self._session.activated()
        return result

    def _on_tick(self) -> None:
        if self._session is not None:
            self._session.tick()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if self._session is not None:
            self.get_logger().info('the clock jumped or changed')
            self._session.clock_jumped()

    # --- services

    def _answer(self, work: Any, request: Any, response: Any) -> Any:
        """Answer a service with the text that ``work`` returns, or with the text of its error."""
        try:
            if self._session is None or not self.active:
                raise SafeError('the bridge is not active')
            response.message = work(self._session, request, response)
            response.success = True
        except Exception as error:  # Report every error to the caller; the node must keep running.
            response.success, response.message = False, str(error)
        return response

    def _start(
        self, session: BridgeSession, request: StartEpisode.Request, response: StartEpisode.Response
    ) -> str:
        boundary = Boundary(
            'start',
            episode_id=request.episode_id,
            task=request.task,
            instruction=request.instruction,
            reason='start_episode was called',
        )
        ids = session.serve(boundary, request.source)
        response.episode_id = ids[0] if ids else request.episode_id
        return f'started {", ".join(map(repr, ids))}' if ids else 'starts with the first source'

    def _end(
        self, session: BridgeSession, request: EndEpisode.Request, response: EndEpisode.Response
    ) -> str:
        boundary = Boundary(
            'end',
            success=success_of(request.outcome),
            reason=request.reason or 'end_episode was called',
        )
        ids = session.serve(boundary, request.source)
        if not ids:
            raise SafeError(where='end_episode', expected='a running episode', found='none')
        return f'ended {", ".join(map(repr, ids))}'

    def _label(
        self, session: BridgeSession, request: LabelEpisode.Request, response: LabelEpisode.Response
    ) -> str:
        reason = f'labelled through {self.get_fully_qualified_name()}/label_episode'
        return session.label(request.episode_id, success_of(request.outcome), reason)

    # --- diagnostics

    def _publish_diagnostics(self) -> None:
        node = self.get_fully_qualified_name().lstrip('/')
        array = DiagnosticArray(status=[_status(node, entry) for entry in self._diagnoses()])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _diagnoses(self) -> list[Diagnosis]:
        if self._session is None:
            level = Level.ERROR if self.failure else Level.STALE
            return [Diagnosis('bridge', level, self.failure or 'not configured')]
        clock = self._clock_watch.problem()
        if clock:
            clock += '; stamps of topics without a header, and of events, stand still'
        findings = [Finding(Level.WARN, text) for text in (self._unknown, clock) if text]
        if not self.active:
            findings.append(Finding(Level.STALE, 'not active'))
        return self._session.diagnoses(findings)


def _status(node: str, diagnosis: Diagnosis) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=bytes([diagnosis.level]),
        name=f'{node}: {diagnosis.name}',
        message=diagnosis.message[:2000],
        hardware_id=node.rpartition('/')[0],
        values=[KeyValue(key=key, value=str(value)) for key, value in diagnosis.facts.items()],
    )


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down."""

    def work() -> int:
        node = BridgeNode()
        try:
            node.autostart()
            rclpy.spin(node)
        finally:
            node.close()
            node.destroy_node()
        return 0

    return run_node('bridge', work, args)
