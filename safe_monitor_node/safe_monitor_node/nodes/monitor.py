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

from safe_monitor_node.bands.adaptive_band import name_of
from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmState, Verdict
from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor, Judgement, MonitorError
from safe_monitor_node.monitor.label_feedback import Lesson
from safe_monitor_node.nodes.lifecycle import ManagedNode
from safe_monitor_node.storage.adaptation_file import AdaptationFile, AdaptationFileError
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.srv import LabelEpisode, LoadDetector
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.ros.messages import MessageError, step_from_message, time_from_message
from vla_feature_bridge.ros.parameters import Parameter, declare_parameters
from vla_feature_bridge.ros.qos import (
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
OUTCOMES = {
    EpisodeEvent.OUTCOME_UNKNOWN: None,
    EpisodeEvent.OUTCOME_SUCCESS: True,
    EpisodeEvent.OUTCOME_FAILURE: False,
}
OUTCOME_NAMES = {None: 'unknown', True: 'a success', False: 'a failure'}

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
    Parameter(
        'adaptation_step',
        0.0,
        'Step size with which labelled successes move the thresholds, for example a tenth of '
        'alpha; 0 leaves them as calibrated.',
        0.0,
        1.0,
    ),
    Parameter(
        'adaptation_file',
        '',
        'File that keeps what labelled episodes taught; empty keeps it in memory only.',
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
    the detector; ``~/label_episode`` publishes an outcome on ``vla/episode``. Outcomes from there
    move the thresholds of later episodes, if ``adaptation_step`` is not 0. A message that cannot be
    judged gives an INVALID score and a diagnosis; the node lives on.
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
        self._file: AdaptationFile | None = None
        self._file_problem = ''
        # Labels that this node published itself and that have not come back yet.
        self._own_labels: deque[EpisodeEvent] = deque(maxlen=100)
        # Diagnostics and services must work in every lifecycle state, a failed start-up above all.
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', DIAGNOSTICS_QOS)
        self.create_timer(self._p.diagnostics_period, self._publish_diagnostics)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(LoadDetector, '~/load_detector', self._on_load_detector)
        # Made now, so that subscribers know it long before the first label.
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
        self._monitor = self._make_monitor(self._folder)
        loaded = self._monitor.loaded
        self._file = self._open_adaptation_file(self._monitor)
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
        if (adaptation := self._monitor.adaptation) is not None:
            moving = adaptation.of('')
            self.get_logger().info(
                f'thresholds adapt to labelled episodes at rate {adaptation.gamma:g}: level '
                f'{moving.level:.4g} after {moving.successes} successes'
                + (f', kept in {self._p.adaptation_file}' if self._file is not None else '')
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
            adaptation_step=self._p.adaptation_step,
        )

    def _open_adaptation_file(self, monitor: EpisodeMonitor) -> AdaptationFile | None:
        if not self._p.adaptation_file:
            return None
        if monitor.adaptation is None:
            raise MonitorError(
                f'parameter adaptation_file is {self._p.adaptation_file!r}, but adaptation_step is '
                '0, so nothing is learned; set a rate, for example a tenth of alpha, or leave the '
                'file empty'
            )
        return AdaptationFile(self._p.adaptation_file, monitor.loaded, monitor.adaptation)

    def _teardown(self) -> None:
        self._cancel_ending()
        self._keep_adaptation()
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
        self._monitor = self._next_monitor = self._file = None
        self._file_problem = ''
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
        if self._monitor is None:
            return
        if event in self._own_labels:
            self._own_labels.remove(event)  # learned already, when it was published
            return
        if event.kind == EpisodeEvent.KIND_LABEL or (
            # An END that says nothing takes no earlier label back, a LABEL does.
            event.kind == EpisodeEvent.KIND_END and event.outcome != EpisodeEvent.OUTCOME_UNKNOWN
        ):
            self._take_label(event)
        if not self.active:
            return
        if event.kind == EpisodeEvent.KIND_START:
            self._finish_ending()
            if event.episode_id != self._current_id():
                self._take_next_monitor()
            task = event.task or event.instruction
            self._monitor.start(event.episode_id, self._now(), task)
        elif event.kind == EpisodeEvent.KIND_END and event.episode_id == self._current_id():
            # Steps and events are two topics: the last steps may be delivered after the END.
            self._cancel_ending()
            self._ending = self.create_timer(
                max(self._p.end_grace, 1e-3), self._finish_ending, clock=self._steady_clock()
            )
        self._announce()

    def _take_label(self, event: EpisodeEvent) -> None:
        assert self._monitor is not None
        if event.outcome not in OUTCOMES:
            self.get_logger().warning(
                f'vla/episode: expected an outcome of {sorted(OUTCOMES)} for episode '
                f'{event.episode_id!r}, found {event.outcome}; ignored'
            )
            return
        success = OUTCOMES[event.outcome]
        lesson = self._monitor.label(event.episode_id, success)
        if lesson is not Lesson.OFF:
            self.get_logger().info(self._label_sentence(event.episode_id, success, lesson))
            self._keep_adaptation()

    @staticmethod
    def _label_sentence(episode_id: str, success: bool | None, lesson: Lesson) -> str:
        return f'episode {episode_id!r}, outcome {OUTCOME_NAMES[success]}: {lesson.value}'

    def _keep_adaptation(self) -> None:
        """Write what was learned, if there is a file for it and something is new."""
        if self._file is None:
            return
        try:
            self._file.keep()
        except AdaptationFileError as error:
            self._file_problem = str(error)
            self.get_logger().error(self._file_problem, throttle_duration_sec=10.0)
        else:
            self._file_problem = ''

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
            self._keep_adaptation()
        self._take_next_monitor()
        self._announce()

    def _take_next_monitor(self) -> None:
        if self._next_monitor is not None and self._monitor is not None:
            monitor, self._next_monitor = self._next_monitor, None
            self._use_monitor(monitor)

    def _use_monitor(self, monitor: EpisodeMonitor) -> None:
        """Put a monitor in the place of the present one; what it learns, it learns anew."""
        assert self._monitor is not None
        self._keep_adaptation()
        monitor.take_over(self._monitor)
        self._monitor = monitor
        adaptation = monitor.adaptation
        if self._file is None or adaptation is None:
            return
        if self._file.belongs_to(monitor.loaded, adaptation):
            self._file.start_anew(adaptation)

    def _on_tick(self) -> None:
        if not self.active or self._monitor is None:
            return
        if self._ending is None:
            self._monitor.tick(self._now())
        self._keep_adaptation()
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
            response.message = f'{name} takes over with the next episode{self._anew(monitor)}'
        else:
            response.message = f'{name} is in use{self._anew(monitor)}'
            self._use_monitor(monitor)
        self.get_logger().info(response.message)
        return response

    def _anew(self, monitor: EpisodeMonitor) -> str:
        """Say what becomes of the adaptation with another monitor; empty without adaptation."""
        if monitor.adaptation is None:
            return ''
        if self._file is None or self._file.belongs_to(monitor.loaded, monitor.adaptation):
            return '; its thresholds adapt anew'
        return (
            f'; its thresholds adapt anew, and only in memory: {self._file.path} stays with the '
            'detector before it'
        )

    def _on_label_episode(
        self, request: LabelEpisode.Request, response: LabelEpisode.Response
    ) -> LabelEpisode.Response:
        try:
            response.message = self._label_episode(request.episode_id, request.outcome)
            response.success = True
        except Exception as error:  # whatever it is, the caller must hear it and the node live on
            self.get_logger().error(f'cannot label an episode: {error}')
            response.success, response.message = False, str(error)
        return response

    def _label_episode(self, episode_id: str, outcome: int) -> str:
        """Publish a label and learn from it; returns what was done, for a person."""
        if outcome not in OUTCOMES:
            raise MonitorError(
                f'outcome: expected one of {sorted(OUTCOMES)} (unknown, success, failure), found '
                f'{outcome}; nothing was labelled'
            )
        if not episode_id:
            episode_id = '' if self._monitor is None else self._monitor.latest_id
        if not episode_id:
            raise MonitorError(
                'no episode runs or has run here, so nothing was labelled; give its episode_id'
            )
        event = EpisodeEvent(
            episode_id=episode_id,
            kind=EpisodeEvent.KIND_LABEL,
            outcome=outcome,
            reason=f'labelled through {self.get_fully_qualified_name()}/label_episode',
        )
        event.header.stamp = self.get_clock().now().to_msg()
        # It comes back, later and perhaps after somebody else's label: it is learned now or never.
        self._own_labels.append(event)
        self._label_publisher.publish(event)
        success = OUTCOMES[outcome]
        if self._monitor is None:
            return f'episode {episode_id!r}, outcome {OUTCOME_NAMES[success]}: published only'
        lesson = self._monitor.label(episode_id, success)
        self._keep_adaptation()
        sentence = self._label_sentence(episode_id, success, lesson)
        return f'{sentence}; {self._file_problem}' if self._file_problem else sentence

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
        if self._file_problem and level == DiagnosticStatus.OK:
            return DiagnosticStatus.WARN, f'{verdict.state.name}, but {self._file_problem}'
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
            'task': self._monitor.task,
            'band': self._monitor.band_name,
            'state': self._monitor.verdict.state.name,
            'episodes': counts.episodes,
            'steps scored': counts.scored,
            'steps invalid': counts.invalid,
            'steps missing': counts.missing,
            'steps out of order': counts.out_of_order,
            'last problem': self._problem,
        }
        facts |= self._adaptation_facts(self._monitor)
        if self._latencies:
            p50, p99 = np.percentile(self._latencies, (50, 99)) * 1e3
            facts |= {'latency p50 [ms]': f'{p50:.3f}', 'latency p99 [ms]': f'{p99:.3f}'}
        return facts

    def _adaptation_facts(self, monitor: EpisodeMonitor) -> dict[str, object]:
        """Return how far the thresholds in use have moved; nothing where they do not move."""
        if (adaptation := monitor.adaptation) is None:
            return {}
        facts: dict[str, object] = {'adaptation rate': f'{adaptation.gamma:g}'}
        for task in adaptation.tasks:
            moving = adaptation.of(task)
            if not moving.successes and task != monitor.threshold.task:
                continue
            share = 'none yet'
            if moving.successes:
                share = f'{moving.false_alarms / moving.successes:.3g}'
            facts[f'adaptation of {name_of(task)}'] = (
                f'level {moving.level:.4g}; false alarms {moving.false_alarms} of '
                f'{moving.successes} labelled successes, realised {share}, wanted '
                f'{moving.alpha:g}'
            )
        kept = 'none, kept in memory only'
        if self._file is not None and self._file.keeps(adaptation):
            kept = self._file_problem or str(self._file.path)
        facts['adaptation file'] = kept
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
