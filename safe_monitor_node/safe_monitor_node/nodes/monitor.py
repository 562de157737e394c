# SPDX-License-Identifier: Apache-2.0
"""The monitor: scores policy steps and raises alarms. ``ros2 run safe_monitor_node monitor``."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections import deque
from typing import Any

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from safe_monitor_node.alarm import AlarmConfig, AlarmState, Verdict
from safe_monitor_node.episode_monitor import EpisodeMonitor, Judgement, MonitorError
from safe_monitor_node.folder import load_detector
from safe_monitor_node.nodes.lifecycle import ManagedNode
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.srv import LoadDetector
from vla_feature_bridge.messages import MessageError, step_from_message, time_from_message
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.nodes.parameters import Parameter, declare_parameters
from vla_feature_bridge.nodes.qos import (
    ALARM_QOS,
    DIAGNOSTICS_QOS,
    EPISODE_QOS,
    SCORE_QOS,
    STEP_QOS,
    STOP_QOS,
)

ADVICE = {
    'none': FailureAlarm.ADVICE_NONE,
    'slow': FailureAlarm.ADVICE_SLOW,
    'stop': FailureAlarm.ADVICE_STOP,
    'backtrack': FailureAlarm.ADVICE_BACKTRACK,
    'ask': FailureAlarm.ADVICE_ASK,
}
HALTING = (FailureAlarm.ADVICE_STOP, FailureAlarm.ADVICE_BACKTRACK, FailureAlarm.ADVICE_ASK)
BLIND = (AlarmState.STALE, AlarmState.INVALID)

PARAMETERS = (
    Parameter('detector_folder', '', 'Folder of the fitted detector.'),
    Parameter(
        'alpha',
        0.0,
        'Promised false-alarm rate; 0 takes the one the folder was made with.',
        0.0,
        0.99,
    ),
    Parameter(
        'warning_alpha',
        0.0,
        'False-alarm rate of the warning band; 0 takes twice alpha where calibrated, '
        'otherwise none.',
        0.0,
        0.99,
    ),
    Parameter('alarm_k', 1, 'Alarm when k of the last n steps are above the band: k.', 1, 1000),
    Parameter('alarm_n', 1, 'Alarm when k of the last n steps are above the band: n.', 1, 1000),
    Parameter(
        'stale_after',
        2.0,
        'STALE after this long without a step while an episode runs; 0 never [s].',
        0.0,
        3600.0,
    ),
    Parameter(
        'max_missing_steps',
        0,
        'Steps of an episode that may be missing or unreadable before the rest of it is INVALID.',
        0,
        100000,
    ),
    Parameter('alarm_advice', 'stop', 'Advice published with an alarm.', choices=tuple(ADVICE)),
    Parameter('stop_when_blind', True, 'Whether safe/stop is also true while STALE or INVALID.'),
    Parameter('stop_period', 0.1, 'Period of safe/stop [s].', 0.005, 10.0),
    Parameter('diagnostics_period', 1.0, 'Period of /diagnostics [s].', 0.05, 60.0),
    Parameter(
        'end_grace', 0.1, 'How long steps may arrive after the END of their episode [s].', 0.0, 10.0
    ),
    Parameter('threads', 1, 'CPU threads of PyTorch.', 1, 256),
    Parameter(
        'autostart', True, 'Configure and activate at start-up, without a lifecycle manager.'
    ),
)


class MonitorNode(ManagedNode):
    """Publishes ``safe/score``, ``safe/alarm`` and ``safe/stop`` from ``vla/policy_step``.

    Services: ``~/reset`` (std_srvs/Trigger) releases a latched alarm; ``~/load_detector`` replaces
    the detector. A message that cannot be judged gives an INVALID score and a diagnosis; the node
    lives on.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('monitor', **kwargs)
        self._p = declare_parameters(self, PARAMETERS)
        self._folder = self._p.detector_folder
        self._monitor: EpisodeMonitor | None = None
        self._next_monitor: EpisodeMonitor | None = None
        self._published: tuple[object, ...] = ()
        self._problem = ''
        self._latencies: deque[float] = deque(maxlen=1000)
        self._entities: list[Any] = []
        self._timers_made: list[Any] = []
        self._ending: Any = None
        # Diagnostics and services must work in every lifecycle state, a failed start-up above all.
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', DIAGNOSTICS_QOS)
        self.create_timer(self._p.diagnostics_period, self._publish_diagnostics)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(LoadDetector, '~/load_detector', self._on_load_detector)

    def autostart(self) -> None:
        """Configure and activate if the parameter says so; a failure is logged and diagnosed."""
        if not self._p.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- life cycle

    def _setup(self) -> None:
        self._monitor = self._make_monitor(self._folder)
        loaded = self._monitor.loaded
        torch.set_num_threads(self._p.threads)
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
        self._entities += [
            self.create_subscription(
                PolicyStepMessage,
                'vla/policy_step',
                self._on_step,
                STEP_QOS,
                qos_overriding_options=overriding,
            ),
            self.create_subscription(
                EpisodeEvent,
                'vla/episode',
                self._on_episode,
                EPISODE_QOS,
                qos_overriding_options=overriding,
            ),
        ]
        self._timers_made.append(self.create_timer(self._p.stop_period, self._on_tick))
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
            ),
            post_callback=self._on_clock_jump,
        )
        self.get_logger().info(
            f'detector {loaded.detector.name} on {loaded.feature} (width {loaded.feature.dim}), '
            f'alpha {self._monitor.threshold.alpha:g}, from {self._folder}'
        )

    def _make_monitor(self, folder: str) -> EpisodeMonitor:
        if not folder:
            raise MonitorError(
                'parameter detector_folder is empty; give a folder made by `safe_training fit`'
            )
        config = AlarmConfig(
            self._p.alarm_k, self._p.alarm_n, self._p.stale_after, self._p.max_missing_steps
        )
        return EpisodeMonitor(
            load_detector(folder),
            alpha=self._p.alpha,
            warning_alpha=self._p.warning_alpha,
            config=config,
        )

    def _teardown(self) -> None:
        self._cancel_ending()
        for timer in self._timers_made:
            self.destroy_timer(timer)
        for entity in self._entities:
            self.destroy_subscription(entity)
        for name in ('_scores', '_alarms', '_stops'):
            if (publisher := self.__dict__.pop(name, None)) is not None:
                self.destroy_lifecycle_publisher(publisher)
        if (jumps := self.__dict__.pop('_jumps', None)) is not None:
            jumps.unregister()
        self._timers_made.clear()
        self._entities.clear()
        self._monitor = self._next_monitor = None
        self._published = ()

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        # The detector's weights are permanent: keep the collector from walking them during a step.
        gc.collect()
        gc.freeze()
        self._announce()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._cancel_ending()
        if self._monitor is not None:
            self._monitor.abandon()
            # What is latched must not go on saying NOMINAL while nobody is watching.
            self._announce()
        return super().on_deactivate(state)

    # --- what comes in

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _on_step(self, message: PolicyStepMessage) -> None:
        received = time.perf_counter()
        if not self.active:
            return
        assert self._monitor is not None
        stamp = time_from_message(message.header.stamp)
        if self._monitor.begins(message.episode_id, message.step, stamp):
            self._finish_ending()
            self._take_next_monitor()
        try:
            judgement = self._monitor.step(step_from_message(message), self._now())
        except MessageError as error:
            judgement = self._monitor.refuse(
                message.episode_id, message.step, stamp, str(error), self._now()
            )
        if judgement is None:
            self.get_logger().warning(
                f'step {message.step} of episode {message.episode_id!r} came again, '
                'or after the end; ignored',
                throttle_duration_sec=5.0,
            )
            return
        if judgement.problem:
            self.get_logger().warning(judgement.problem, throttle_duration_sec=5.0)
        self._problem = judgement.problem
        self._publish_score(message, judgement, received)
        self._announce(message)

    def _on_episode(self, event: EpisodeEvent) -> None:
        if not self.active or self._monitor is None:
            return
        if event.kind == EpisodeEvent.KIND_START:
            self._finish_ending()
            if event.episode_id != self._current_id():
                self._take_next_monitor()
            self._monitor.start(event.episode_id, self._now())
        elif event.kind == EpisodeEvent.KIND_END and event.episode_id == self._current_id():
            # Steps and events are two topics: the last steps may be delivered after the END.
            self._cancel_ending()
            self._ending = self.create_timer(
                max(self._p.end_grace, 1e-3), self._finish_ending, clock=self._steady_clock()
            )
        self._announce()

    def _steady_clock(self) -> Any:
        return rclpy.clock.Clock(clock_type=ClockType.STEADY_TIME)

    def _current_id(self) -> str | None:
        return (
            self._monitor.episode_id
            if self._monitor is not None and self._monitor.running
            else None
        )

    def _cancel_ending(self) -> None:
        if self._ending is not None:
            self.destroy_timer(self._ending)
            self._ending = None

    def _finish_ending(self) -> None:
        if self._ending is None:
            return
        self._cancel_ending()
        if self._monitor is not None:
            self._monitor.end(self._monitor.episode_id)
        self._take_next_monitor()
        self._announce()

    def _take_next_monitor(self) -> None:
        if self._next_monitor is not None and self._monitor is not None:
            self._next_monitor.take_over(self._monitor)
            self._monitor, self._next_monitor = self._next_monitor, None

    def _on_tick(self) -> None:
        if not self.active or self._monitor is None:
            return
        if self._ending is None:
            self._monitor.tick(self._now())
        self._announce()
        self._publish_stop()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if self._monitor is None:
            return
        self.get_logger().info('the clock jumped or changed: the running episode is forgotten')
        self._cancel_ending()
        self._monitor.abandon()
        self._announce()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._monitor is None or not self.active:
            response.success, response.message = False, 'the monitor is not active'
            return response
        before = self._monitor.verdict.state
        self._monitor.reset()
        self._announce()
        response.success = True
        response.message = f'state was {before.name}, is {self._monitor.verdict.state.name}'
        return response

    def _on_load_detector(
        self, request: LoadDetector.Request, response: LoadDetector.Response
    ) -> LoadDetector.Response:
        try:
            monitor = self._make_monitor(request.folder)
        except Exception as error:  # whatever it is, the caller must hear it and the node live on
            self.get_logger().error(f'cannot load a detector: {error}')
            response.success, response.message = False, str(error)
            return response
        self._folder = request.folder
        name = f'{monitor.loaded.detector.name} on {monitor.loaded.feature}'
        response.success = True
        if self._monitor is None:
            response.success, response.message = self._configure_with(name)
        elif self._monitor.running:
            self._next_monitor = monitor
            response.message = f'{name} takes over with the next episode'
        else:
            monitor.take_over(self._monitor)
            self._monitor = monitor
            response.message = f'{name} is in use'
        self.get_logger().info(response.message)
        return response

    def _configure_with(self, name: str) -> tuple[bool, str]:
        """Start with a folder that was just checked, if the node starts by itself."""
        self.failure = ''
        if not self._p.autostart:
            return True, f'{name} will be used when the monitor is configured'
        try:
            self.autostart()
        except RuntimeError as error:
            return False, f'the monitor cannot be configured in its present state: {error}'
        return self.active, self.failure or f'configured with {name}'

    # --- what goes out

    def _publish_score(
        self, step: PolicyStepMessage, judgement: Judgement, received: float
    ) -> None:
        assert self._monitor is not None
        message = FailureScore(
            episode_id=step.episode_id,
            step=step.step,
            detector=self._monitor.loaded.detector.name,
            score=judgement.score,
            threshold=judgement.threshold,
            margin=judgement.score - judgement.threshold,
            probability=math.nan,
            alarm=judgement.verdict.state == AlarmState.ALARM,
            state=int(judgement.verdict.state),
        )
        message.header = step.header
        message.latency = time.perf_counter() - received
        self._scores.publish(message)
        self._latencies.append(message.latency)

    def _announce(self, step: PolicyStepMessage | None = None) -> None:
        """Publish the alarm topic when the verdict is another one, and safe/stop with it."""
        if self._monitor is None or not self.active:
            return
        verdict = self._monitor.verdict
        key = (verdict.state, self._monitor.episode_id if self._monitor.running else '')
        if key == self._published:
            return
        self._published = key
        message = FailureAlarm(
            episode_id=self._monitor.episode_id,
            step=verdict.step,
            detector=self._monitor.loaded.detector.name,
            state=int(verdict.state),
            reason=verdict.reason,
            score=verdict.score,
            threshold=verdict.threshold,
            advice=self._advice(verdict),
        )
        if step is not None:
            message.header = step.header
        else:
            message.header.stamp = self.get_clock().now().to_msg()
        self._alarms.publish(message)
        self._publish_stop()
        if verdict.state == AlarmState.ALARM:
            self.get_logger().warning(f'episode {message.episode_id!r}: {verdict.reason}')
        self._publish_diagnostics()

    def _advice(self, verdict: Verdict) -> int:
        if verdict.state == AlarmState.ALARM:
            return ADVICE[self._p.alarm_advice]
        if verdict.state in BLIND and self._p.stop_when_blind:
            return FailureAlarm.ADVICE_STOP
        return FailureAlarm.ADVICE_NONE

    def _publish_stop(self) -> None:
        if self._monitor is not None and self.active:
            self._stops.publish(Bool(data=self._advice(self._monitor.verdict) in HALTING))

    def _publish_diagnostics(self) -> None:
        status = DiagnosticStatus(
            name=f'{self.get_fully_qualified_name().lstrip("/")}: failure monitor',
            hardware_id='' if self._monitor is None else self._monitor.loaded.detector.name,
        )
        status.level, status.message = self._diagnosis()
        status.values = [
            KeyValue(key=key, value=str(value)) for key, value in self._facts().items()
        ]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _diagnosis(self) -> tuple[bytes, str]:
        if self._monitor is None:
            if self.failure:
                return DiagnosticStatus.ERROR, self.failure
            return DiagnosticStatus.STALE, 'not configured'
        if not self.active:
            return DiagnosticStatus.STALE, 'not active'
        verdict = self._monitor.verdict
        level = {
            AlarmState.NOMINAL: DiagnosticStatus.OK,
            AlarmState.WARNING: DiagnosticStatus.WARN,
            AlarmState.ALARM: DiagnosticStatus.ERROR,
            AlarmState.INVALID: DiagnosticStatus.ERROR,
        }.get(verdict.state, DiagnosticStatus.STALE)
        return level, f'{verdict.state.name}: {verdict.reason}'

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {'detector_folder': self._folder}
        if self._monitor is None:
            return facts
        loaded, counts = self._monitor.loaded, self._monitor.counts
        assert loaded.band is not None
        facts |= {
            'detector': loaded.detector.name,
            'features': f'{loaded.feature} (width {loaded.feature.dim})',
            'alpha (promised false-alarm rate)': f'{self._monitor.threshold.alpha:g}',
            'calibration rollouts': loaded.band.n_calibration,
            'band length [steps]': loaded.band.length,
            'episode': self._monitor.episode_id,
            'state': self._monitor.verdict.state.name,
            'episodes': counts.episodes,
            'steps scored': counts.scored,
            'steps invalid': counts.invalid,
            'steps missing': counts.missing,
            'steps out of order': counts.out_of_order,
            'last problem': self._problem,
        }
        if self._latencies:
            p50, p99 = np.percentile(self._latencies, (50, 99)) * 1e3
            facts |= {'latency p50 [ms]': f'{p50:.3f}', 'latency p99 [ms]': f'{p99:.3f}'}
        return facts


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
