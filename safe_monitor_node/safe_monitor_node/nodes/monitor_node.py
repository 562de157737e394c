# SPDX-License-Identifier: Apache-2.0
"""The monitor node: life cycle, steps, events and periodic calls."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.logging import LoggingSeverity

from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.scoring import Scoring, scored_alone
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.steps import Publication, StepId
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.nodes.diagnosis import introduce
from safe_monitor_node.nodes.monitor_inputs import MonitorInputs
from safe_monitor_node.nodes.monitor_messages import (
    detector_messages,
    label_of,
    label_sentence,
    score_message,
)
from safe_monitor_node.nodes.monitor_outputs import MonitorOutputs
from safe_monitor_node.nodes.monitor_parameters import PARAMETERS, settings_of
from safe_monitor_node.nodes.monitor_services import MonitorServices
from safe_monitor_node.nodes.schedule import Call, Schedule
from safe_monitor_node.threads import NOT_LIMITED, limit_threads
from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.nodes.levels import Finding, Level
from vla_feature_bridge.nodes.lifecycle import ManagedNode
from vla_feature_bridge.ros.clock_watch import ClockWatch
from vla_feature_bridge.ros.messages import MessageError, step_from_message, time_from_message
from vla_feature_bridge.ros.parameter_changes import ParameterChanges
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import declare_parameters

_SLACK = 0.2
"""Share of its period by which a periodic call may be made earlier, after a step."""
_MOST_SLACK = 0.02
"""Longest such time [s]."""
_PROBLEM_PERIOD = 5.0
"""Time between two lines of the log about steps that cannot be scored [s]."""


class MonitorNode(ManagedNode):
    """Publishes ``safe/score``, ``safe/alarm`` and ``safe/stop`` from ``vla/policy_step``.

    Services: ``~/reset`` (std_srvs/Trigger) clears a latched alarm; ``~/load_detector`` replaces
    the detector; ``~/label_episode`` publishes an outcome on ``vla/episode``. Outcomes on
    ``vla/episode`` update the thresholds of later episodes if ``adaptation_step`` is not 0. For a
    message that cannot be scored, the node publishes an INVALID score and a diagnosis, and keeps
    running.

    Periodic calls and the times of the session use the steady clock, because the ROS clock can be
    set back, stop or be missing. The ROS clock is used for the stamps of messages and the age of
    steps.

    ``MonitorLoop`` takes the messages of the node and makes its periodic calls.

    Parameters
    ----------
    schedule : Schedule, optional
        For the periodic calls.

    Attributes
    ----------
    schedule : Schedule
        The periodic calls, which somebody must make.
    values : SimpleNamespace
        The values of the parameters.
    folders : list of str
        Folder of each detector that was loaded last, or is to be loaded.
    session : MonitorSession or None
        None while the node is not configured.
    inputs : MonitorInputs
    outputs : MonitorOutputs
    answers : MonitorServices
    look_period : float
        Time between two looks at the nodes around the monitor [s].
    """

    look_period = 0.5
    inputs_class: type[MonitorInputs] = MonitorInputs

    def __init__(self, schedule: Schedule | None = None, **kwargs: Any) -> None:
        super().__init__('monitor', **kwargs)
        self.schedule = schedule or Schedule(time.monotonic)
        self.values: SimpleNamespace = declare_parameters(self, PARAMETERS)
        # Without global arguments, the command line is for other nodes of the process.
        own = sys.argv if kwargs.get('use_global_arguments', True) else []
        self._unknown = check_overrides(self, own)
        if self._unknown:
            self.get_logger().warning(self._unknown)
        more = [folder for folder in self.values.more_detectors if folder.strip()]
        self.folders: list[str] = [self.values.detector_folder, *more]
        self.session: MonitorSession | None = None
        self._clock_watch = ClockWatch(self)
        self._active_since = 0.0
        # How far the clocks of the publishers of steps are ahead of the clock here [ns].
        self._ahead = 0
        self._next_problem = 0.0
        self._findings: list[Finding] = []
        self._tick_call: Call | None = None
        self._grace_call: Call | None = None
        self.inputs = self.inputs_class(self, self._on_step, self._on_episode)
        self.outputs = MonitorOutputs(self)
        self.answers = MonitorServices(self)
        self._changes = ParameterChanges(
            self, PARAMETERS, self.values, self._check_change, self._on_change
        )
        self._often(self.values.diagnostics_period, self.outputs.publish_diagnostics)
        self._often(self.look_period, self._look_around)

    def autostart(self) -> None:
        """Configure and activate if ``autostart`` is true; a failure is logged and diagnosed."""
        if not self.values.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _every(self, period: float, callback: Callable[[], object], slack: float = 0.0) -> Call:
        return self.schedule.every(period, lambda: self.guarded(callback), slack)

    def _often(self, period: float, callback: Callable[[], object]) -> Call:
        return self._every(period, callback, slack=min(_MOST_SLACK, _SLACK * period))

    def guarded(self, call: Callable[[], Any]) -> Any:
        """Call a function. An error in the code ends the process."""
        return call()

    def fail(self, error: Exception) -> None:
        """Handle an error in the code."""
        raise error

    # --- life cycle

    def _setup(self) -> None:
        first, *more = self.folders
        settings = replace(settings_of(self.values), more_folders=tuple(more))
        self.session = MonitorSession(first, settings, self._on_episode_ended)
        self.limit_threads()
        ensemble = self.session.ensemble
        self.outputs.open(ensemble.names if ensemble.several else ())
        self.inputs.open()
        self._tick_call = self._often(self.values.stop_period, self._on_tick)
        for sentence in introduce(self.session):
            self.get_logger().info(sentence)

    def limit_threads(self) -> None:
        """Limit the threads of NumPy and PyTorch to the parameter."""
        if not limit_threads(self.values.threads):
            self.get_logger().warning(NOT_LIMITED, once=True)

    def _teardown(self) -> None:
        self._cancel_grace()
        if self.session is not None:
            self.session.keep_adaptation()
            self.log_file_problem(self.session)
        if self._tick_call is not None:
            self._tick_call.cancel()
        self.inputs.close()
        self.outputs.close()
        self._tick_call = self.session = None
        self._findings = []

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to score and to publish."""
        result = super().on_activate(state)
        self._settle_memory()
        self._active_since = time.monotonic()
        if self.session is not None:
            self.session.activate(self._active_since)
        self.outputs.announce()
        return result

    def _settle_memory(self) -> None:
        """Exclude the weights from garbage collection, so that a collection is short."""
        gc.collect()
        gc.freeze()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the running episode and stop publishing."""
        if self.session is not None:
            self.session.finish_episode()
            self.outputs.announce_inactive()
            self.session.deactivate()
        return super().on_deactivate(state)

    # --- parameters that change

    def _check_change(self, values: SimpleNamespace) -> None:
        settings = settings_of(values)
        if self.session is not None:
            self.session.check(settings)

    def _on_change(self) -> None:
        if self.session is not None:
            self.session.change(settings_of(self.values))
        self.outputs.announce()
        self.outputs.publish_diagnostics()

    # --- steps and episodes

    def _on_step(self, message: PolicyStepMessage, info: Mapping[str, Any]) -> None:
        scored_alone(self.scoring(message, info))

    def scoring(self, message: PolicyStepMessage, info: Mapping[str, Any]) -> Scoring[None]:
        """Score a step and publish the result; the caller computes the scores."""
        received = time.perf_counter()
        session = self.session
        if session is None:
            return
        if not self.active:
            session.watch.stepped(message.episode_id)
            return
        ros_time = self._look_at_clock(session)
        stamp = time_from_message(message.header.stamp)
        now = time.monotonic()
        age = (ros_time - stamp) * 1e-9 if stamp != 0 and ros_time != 0 else None
        published = Publication(info['publication_sequence_number'], info['source_timestamp'])
        self._ahead = max(self._ahead, published.time - time.time_ns())
        try:
            step = step_from_message(message)
        except MessageError as error:
            step_id = StepId(message.episode_id, message.step, stamp, publication=published)
            result = session.refuse(step_id, str(error), now, age)
        else:
            result = yield from session.scoring(step, now, age, published)
        if self._grace_call is not None and session.monitor.order.waits_after(published):
            self._grace_call.reset()
        if result is None:
            self._log_remarks(session)
            return
        # The alarm goes first, because a robot waits for it. A line of the log takes longer than to
        # publish the alarm.
        is_new = self.outputs.publish_state(message)
        score = score_message(session.ensemble.lead_name, message, result)
        of_detectors = detector_messages(session, message)
        score.latency = time.perf_counter() - received
        self.outputs.publish_scores(score, of_detectors)
        session.latencies.append(score.latency)
        self._log_remarks(session)
        if result.problem not in ('', result.verdict.reason) and now >= self._next_problem:
            # To suppress a line takes rclpy as long as to write it.
            self._next_problem = now + _PROBLEM_PERIOD
            self.get_logger().warning(result.problem)
        if self.get_logger().is_enabled_for(LoggingSeverity.DEBUG):
            self.get_logger().debug(
                f'episode {message.episode_id!r}, step {message.step}: score {result.score:.4g}, '
                f'threshold {result.threshold:.4g}, {result.verdict.state.name}'
            )
        if is_new:
            self.explain()

    def _log_remarks(self, session: MonitorSession) -> None:
        for text in session.remarks.take_new():
            self.get_logger().warning(text)
        for text in session.take_news():
            self.get_logger().info(text)
        for text in session.ensemble.take_faults():
            self.get_logger().error(text)

    def _on_episode(self, event: EpisodeEvent, info: Mapping[str, Any]) -> None:
        session = self.session
        if session is None:
            return
        now, task = time.monotonic(), event.task or event.instruction
        earlier = not self.active or self._is_from_before(info, now)
        grace = max(self.values.end_grace, 1e-3)
        # The clock of the publisher can be ahead of the clock of the policy.
        published_at = min(info['source_timestamp'], time.time_ns() + self._ahead)
        if event.kind == EpisodeEvent.KIND_END and session.monitor.order.take_end_of_last(
            event.episode_id, published_at
        ):
            session.remarks.end_came_late(event.episode_id, now)
            self._log_remarks(session)
            return
        if event.kind == EpisodeEvent.KIND_LABEL or (
            # An END without outcome does not withdraw an earlier label. A LABEL without outcome
            # does.
            event.kind == EpisodeEvent.KIND_END and event.outcome != EpisodeEvent.OUTCOME_UNKNOWN
        ):
            self._take_label(session, event, earlier)
        if event.kind == EpisodeEvent.KIND_START and earlier:
            session.began_earlier(event.episode_id, now, task)
        elif event.kind == EpisodeEvent.KIND_START:
            if session.start(event.episode_id, now, task, grace, published_at):
                self._end_after(grace, session)
        elif event.kind == EpisodeEvent.KIND_END and session.end(
            event.episode_id, now, grace, ended_at=published_at, earlier=earlier
        ):
            self._end_after(grace, session)
        self._log_remarks(session)
        if not earlier:
            # More events from before may follow: an END alone would say that no episode runs, and
            # release the stop until the next periodic call sees the START after it.
            self.outputs.announce()

    def _is_from_before(self, info: Mapping[str, Any], now: float) -> bool:
        """Return True for an event that was published before the node was active.

        ``vla/episode`` is latched, so that such events arrive when the node becomes active.
        """
        # The system clock may have been set since then. It is read only now.
        age = (time.time_ns() - info['source_timestamp']) * 1e-9
        return age > now - self._active_since

    def _on_episode_ended(self) -> None:
        self._cancel_grace()
        if self.session is not None:
            self._log_remarks(self.session)
        self.outputs.announce()

    def _end_after(self, grace: float, session: MonitorSession) -> None:
        self._cancel_grace()
        self._grace_call = self._every(grace, session.finish_episode)

    def _cancel_grace(self) -> None:
        if self._grace_call is not None:
            self._grace_call.cancel()
            self._grace_call = None

    def _take_label(self, session: MonitorSession, event: EpisodeEvent, earlier: bool) -> None:
        try:
            label = label_of(event)
        except MonitorError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == EpisodeEvent.KIND_LABEL and session.own_labels.take(label):
            return
        effect, news = session.label(label), session.take_news()
        if earlier and effect is LabelEffect.UNKNOWN_EPISODE and not news:
            return  # Of up to 100 latched events, each would be a line at every start.
        if effect is not LabelEffect.OFF or news:
            self.get_logger().info(label_sentence(label, effect, session.effects, news))
            self.log_file_problem(session)

    def log_file_problem(self, session: MonitorSession) -> None:
        """Log that the adaptation file cannot be written, if it cannot."""
        if session.file_problem:
            self.get_logger().error(session.file_problem, throttle_duration_sec=10.0)

    def explain(self) -> None:
        """Log and diagnose a new state."""
        self.outputs.explain()

    # --- time

    def _on_tick(self) -> None:
        if not self.active or self.session is None:
            return
        self._look_at_clock(self.session)
        self.session.tick(time.monotonic())
        self.log_file_problem(self.session)
        self.outputs.announce()
        self.outputs.publish_stop()

    def _look_at_clock(self, session: MonitorSession) -> int:
        """Return the ROS time [ns], and tell the session what is wrong with the ROS clock."""
        look = self._clock_watch.look()
        if look.ran_back:
            self.get_logger().warning(
                f'the ROS time ran back by {look.ran_back:.3g} s; the running episode continues, '
                'and a step 0 with the same episode_id begins the episode again'
            )
            session.clock_ran_back()
        session.freshness.clock_problem = look.problem
        return look.time

    def _look_around(self) -> None:
        """Check the nodes around the monitor; new problems are diagnosed at once."""
        findings = self.inputs.findings()
        if findings != self._findings:
            for finding in findings:
                if finding not in self._findings:
                    self.get_logger().warning(finding.text)
            self._findings = findings
            self.outputs.publish_diagnostics()

    def problems(self) -> list[Finding]:
        """Return the problems of clock, parameters and other nodes, for a person."""
        texts = (self._clock_watch.problem(), self._unknown)
        return [Finding(Level.WARN, text) for text in texts if text] + self._findings
