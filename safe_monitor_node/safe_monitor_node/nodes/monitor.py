# SPDX-License-Identifier: Apache-2.0
"""The monitor: scores policy steps and raises alarms. ``ros2 run safe_monitor_node monitor``."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.session import MonitorSession, name_of_detector
from safe_monitor_node.monitor.steps import StepId
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.nodes.diagnosis import introduce
from safe_monitor_node.nodes.monitor_messages import (
    alarm_message,
    diagnostic_status,
    label_message,
    label_of,
    label_sentence,
    score_message,
)
from safe_monitor_node.nodes.monitor_parameters import PARAMETERS, advice_of, settings_of
from safe_monitor_node.threads import NOT_LIMITED, limit_threads
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.srv import LabelEpisode, LoadDetector
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.nodes.lifecycle import ManagedNode
from vla_feature_bridge.ros.messages import MessageError, step_from_message, time_from_message
from vla_feature_bridge.ros.parameters import declare_parameters
from vla_feature_bridge.ros.qos import (
    ALARM_QOS,
    DIAGNOSTICS_QOS,
    EPISODE_QOS,
    SCORE_QOS,
    STEP_QOS,
    STOP_QOS,
)

HALTING = (FailureAlarm.ADVICE_STOP, FailureAlarm.ADVICE_BACKTRACK, FailureAlarm.ADVICE_ASK)


class MonitorNode(ManagedNode):
    """Publishes ``safe/score``, ``safe/alarm`` and ``safe/stop`` from ``vla/policy_step``.

    Services: ``~/reset`` (std_srvs/Trigger) releases a latched alarm; ``~/load_detector`` replaces
    the detector; ``~/label_episode`` publishes an outcome on ``vla/episode``. Outcomes on
    ``vla/episode`` update the thresholds of later episodes if ``adaptation_step`` is not 0. For a
    message that cannot be scored, the node publishes an INVALID score and a diagnosis, and keeps
    running.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('monitor', **kwargs)
        self._p = declare_parameters(self, PARAMETERS)
        self._folder = self._p.detector_folder
        self._session: MonitorSession | None = None
        self._published: tuple[object, ...] = ()
        self._subscriptions_made: list[Any] = []
        self._tick_timer: Any = None
        self._grace_timer: Any = None
        self._jumps: Any = None
        # Diagnostics and services must work in every lifecycle state, above all after a failed
        # configure.
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', DIAGNOSTICS_QOS)
        self.create_timer(self._p.diagnostics_period, self._publish_diagnostics)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(LoadDetector, '~/load_detector', self._on_load_detector)
        # Create the publisher now, so that subscribers are connected before the first label.
        self._label_publisher = self.create_publisher(
            EpisodeEvent,
            'vla/episode',
            EPISODE_QOS,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self.create_service(LabelEpisode, '~/label_episode', self._on_label_episode)

    def autostart(self) -> None:
        """Configure and activate if the parameter says so; a failure is logged and diagnosed."""
        if not self._p.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- life cycle

    def _setup(self) -> None:
        self._session = MonitorSession(self._folder, settings_of(self._p), self._on_episode_ended)
        self._limit_threads()
        overriding = QoSOverridingOptions.with_default_policies()
        self._scores = self.create_lifecycle_publisher(
            FailureScore, 'safe/score', SCORE_QOS, qos_overriding_options=overriding
        )
        self._alarms = self.create_lifecycle_publisher(
            FailureAlarm, 'safe/alarm', ALARM_QOS, qos_overriding_options=overriding
        )
        self._stops = self.create_lifecycle_publisher(
            Bool, 'safe/stop', STOP_QOS, qos_overriding_options=overriding
        )
        for message, topic, callback, qos in (
            (PolicyStepMessage, 'vla/policy_step', self._on_step, STEP_QOS),
            (EpisodeEvent, 'vla/episode', self._on_episode, EPISODE_QOS),
        ):
            self._subscriptions_made.append(
                self.create_subscription(
                    message, topic, callback, qos, qos_overriding_options=overriding
                )
            )
        self._tick_timer = self.create_timer(self._p.stop_period, self._on_tick)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
            ),
            post_callback=self._on_clock_jump,
        )
        for sentence in introduce(self._session):
            self.get_logger().info(sentence)

    def _limit_threads(self) -> None:
        if not limit_threads(self._p.threads):
            self.get_logger().warning(NOT_LIMITED, once=True)

    def _teardown(self) -> None:
        self._cancel_grace()
        if self._session is not None:
            self._session.keep_adaptation()
            self._log_file_problem(self._session)
        if self._tick_timer is not None:
            self.destroy_timer(self._tick_timer)
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        for name in ('_scores', '_alarms', '_stops'):
            if (publisher := self.__dict__.pop(name, None)) is not None:
                self.destroy_lifecycle_publisher(publisher)
        if self._jumps is not None:
            self._jumps.unregister()
        self._tick_timer = self._jumps = self._session = None
        self._subscriptions_made.clear()
        self._published = ()

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to score and to publish."""
        result = super().on_activate(state)
        # The weights stay in memory. Exclude them from garbage collection, so that a collection
        # during a step is short.
        gc.collect()
        gc.freeze()
        self._announce()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the running episode and stop publishing."""
        self._cancel_grace()
        if self._session is not None:
            self._session.abandon()
            # The latched message must not stay NOMINAL while the monitor is inactive.
            self._announce()
        return super().on_deactivate(state)

    # --- steps and episodes

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _on_step(self, message: PolicyStepMessage) -> None:
        received = time.perf_counter()
        session = self._session
        if not self.active or session is None:
            return
        try:
            step = step_from_message(message)
        except MessageError as error:
            stamp = time_from_message(message.header.stamp)
            step_id = StepId(message.episode_id, message.step, stamp)
            result = session.refuse(step_id, str(error), self._now())
        else:
            result = session.step(step, self._now())
        if result is None:
            self.get_logger().warning(
                f'step {message.step} of episode {message.episode_id!r} is ignored, because the '
                'step is a repetition or arrived after the end of its episode',
                throttle_duration_sec=5.0,
            )
            return
        if result.problem:
            self.get_logger().warning(result.problem, throttle_duration_sec=5.0)
        score = score_message(session, message, result)
        score.latency = time.perf_counter() - received
        self._scores.publish(score)
        session.latencies.append(score.latency)
        self._announce(message)

    def _on_episode(self, event: EpisodeEvent) -> None:
        session = self._session
        if session is None:
            return
        if event.kind == EpisodeEvent.KIND_LABEL or (
            # An END without outcome does not withdraw an earlier label. A LABEL without outcome
            # does.
            event.kind == EpisodeEvent.KIND_END and event.outcome != EpisodeEvent.OUTCOME_UNKNOWN
        ):
            self._take_label(session, event)
        if not self.active:
            return
        if event.kind == EpisodeEvent.KIND_START:
            session.start(event.episode_id, self._now(), event.task or event.instruction)
        elif event.kind == EpisodeEvent.KIND_END and session.end(event.episode_id):
            self._cancel_grace()
            self._grace_timer = self.create_timer(
                max(self._p.end_grace, 1e-3),
                session.finish_episode,
                clock=Clock(clock_type=ClockType.STEADY_TIME),
            )
        self._announce()

    def _on_episode_ended(self) -> None:
        self._cancel_grace()
        self._announce()

    def _cancel_grace(self) -> None:
        if self._grace_timer is not None:
            self.destroy_timer(self._grace_timer)
            self._grace_timer = None

    def _on_tick(self) -> None:
        if not self.active or self._session is None:
            return
        self._session.tick(self._now())
        self._log_file_problem(self._session)
        self._announce()
        self._publish_stop()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if self._session is None:
            return
        self.get_logger().info(
            'the running episode is abandoned, because the clock jumped back or its source changed'
        )
        self._cancel_grace()
        self._session.abandon()
        self._announce()

    # --- labels

    def _take_label(self, session: MonitorSession, event: EpisodeEvent) -> None:
        try:
            label = label_of(event)
        except MonitorError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == EpisodeEvent.KIND_LABEL and session.is_own(label):
            return
        effect = session.label(label)
        if effect is not LabelEffect.OFF:
            self.get_logger().info(label_sentence(label, effect))
            self._log_file_problem(session)

    def _label_episode(self, episode_id: str, outcome: int) -> str:
        """Publish a label and apply it; return a sentence about its effect."""
        session = self._session
        if not episode_id and session is not None:
            episode_id = session.monitor.latest_id
        event = label_message(episode_id, outcome, self.get_fully_qualified_name())
        event.header.stamp = self.get_clock().now().to_msg()
        label = label_of(event)
        if session is None:
            self._label_publisher.publish(event)
            return label_sentence(label, None)
        session.expect_own(label)
        self._label_publisher.publish(event)
        sentence = label_sentence(label, session.label(label))
        self._log_file_problem(session)
        return f'{sentence}; {session.file_problem}' if session.file_problem else sentence

    def _log_file_problem(self, session: MonitorSession) -> None:
        if session.file_problem:
            self.get_logger().error(session.file_problem, throttle_duration_sec=10.0)

    # --- services

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._session is None or not self.active:
            response.success, response.message = False, 'the monitor is not active'
            return response
        before = self._session.verdict.state
        after = self._session.monitor.reset().state
        self._announce()
        response.success = True
        response.message = f'the state before was {before.name}, the state now is {after.name}'
        return response

    def _on_load_detector(
        self, request: LoadDetector.Request, response: LoadDetector.Response
    ) -> LoadDetector.Response:
        try:
            monitor = settings_of(self._p).monitor_of(request.folder)
            # The detector may have loaded PyTorch.
            self._limit_threads()
        except Exception as error:  # Report every error to the caller; the node must keep running.
            self.get_logger().error(f'cannot load a detector: {error}')
            response.success, response.message = False, str(error)
            return response
        self._folder = request.folder
        response.success = True
        if self._session is None:
            response.success, response.message = self._configure_with(name_of_detector(monitor))
        else:
            response.message = self._session.replace(monitor, request.folder)
        self.get_logger().info(response.message)
        return response

    def _configure_with(self, name: str) -> tuple[bool, str]:
        """Configure and activate with a folder that was just checked, if ``autostart`` is true."""
        self.failure = ''
        if not self._p.autostart:
            return True, f'{name} will be used when the monitor is configured'
        try:
            self.autostart()
        except RuntimeError as error:
            return False, f'the monitor cannot be configured in its current state: {error}'
        return self.active, self.failure or f'configured with {name}'

    def _on_label_episode(
        self, request: LabelEpisode.Request, response: LabelEpisode.Response
    ) -> LabelEpisode.Response:
        try:
            response.message = self._label_episode(request.episode_id, request.outcome)
            response.success = True
        except Exception as error:  # Report every error to the caller; the node must keep running.
            self.get_logger().error(f'cannot label an episode: {error}')
            response.success, response.message = False, str(error)
        return response

    # --- what goes out

    def _announce(self, step: PolicyStepMessage | None = None) -> None:
        """Publish ``safe/alarm`` if the verdict has changed, and ``safe/stop`` with it."""
        session = self._session
        if session is None or not self.active:
            return
        verdict = session.verdict
        key = (verdict.state, session.running_id or '')
        if key == self._published:
            return
        self._published = key
        message = alarm_message(session, verdict, advice_of(self._p, verdict))
        if step is not None:
            message.header = step.header
        else:
            message.header.stamp = self.get_clock().now().to_msg()
        self._alarms.publish(message)
        self._publish_stop()
        if verdict.state == AlarmState.ALARM:
            self.get_logger().warning(f'episode {message.episode_id!r}: {verdict.reason}')
        self._publish_diagnostics()

    def _publish_stop(self) -> None:
        if self._session is not None and self.active:
            self._stops.publish(Bool(data=advice_of(self._p, self._session.verdict) in HALTING))

    def _publish_diagnostics(self) -> None:
        node = self.get_fully_qualified_name()
        status = diagnostic_status(node, self._folder, self._session, self.active, self.failure)
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down."""

    def work() -> int:
        node = MonitorNode()
        try:
            node.autostart()
            rclpy.spin(node)
        finally:
            node.destroy_node()
        return 0

    return run_node('monitor', work, args)


if __name__ == '__main__':
    sys.exit(main())
