# SPDX-License-Identifier: Apache-2.0
"""The publishers of the monitor node: scores, the alarm, ``safe/stop`` and ``/diagnostics``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.event_handler import PublisherEventCallbacks
from std_msgs.msg import Bool

from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.alarm_policy import Advice
from safe_monitor_node.monitor.step_order import shown
from safe_monitor_node.nodes.diagnosis import diagnose, facts_of
from safe_monitor_node.nodes.monitor_messages import (
    alarm_message,
    diagnostic_status,
    inactive_message,
)
from safe_monitor_node.nodes.monitor_parameters import demands
from safe_msgs.msg import FailureAlarm, FailureScore, PolicyStep
from vla_feature_bridge.ros.qos import (
    ALARM_QOS,
    DIAGNOSTICS_QOS,
    SCORE_QOS,
    STOP_QOS,
    alive_qos,
    overridable,
    stop_deadline,
)

if TYPE_CHECKING:
    from safe_monitor_node.nodes.monitor_node import MonitorNode


class MonitorOutputs:
    """Publishers of a monitor node.

    ``/diagnostics`` is published in every lifecycle state, because it shows why a configure failed.
    The other publishers exist from configure to cleanup.
    """

    def __init__(self, node: MonitorNode) -> None:
        self._node = node
        self._published: tuple[object, ...] = ()
        self._advice = Advice.NONE
        self._to_log: list[str] = []
        self._open: dict[str, Any] = {}
        self._diagnostics = node.create_publisher(
            DiagnosticArray,
            '/diagnostics',
            DIAGNOSTICS_QOS,
            event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
        )

    def open(self, names: Sequence[str] = ()) -> None:
        """Create the publishers of an active node.

        Parameters
        ----------
        names : sequence of str
            Names of the detectors whose scores have topics of their own.
        """
        deadline = stop_deadline(self._node.values.stop_period)
        for topic, kind, qos in (
            ('safe/score', FailureScore, SCORE_QOS),
            *((topic_of(name), FailureScore, SCORE_QOS) for name in names),
            ('safe/alarm', FailureAlarm, alive_qos(ALARM_QOS)),
            ('safe/stop', Bool, alive_qos(STOP_QOS, deadline=deadline)),
        ):
            self._open[topic] = self._node.create_lifecycle_publisher(
                kind, topic, **overridable(qos)
            )

    def close(self) -> None:
        """Destroy the publishers, also if only some publishers exist."""
        while self._open:
            self._node.destroy_lifecycle_publisher(self._open.popitem()[1])
        self._published = ()

    def publish_scores(
        self, message: FailureScore, of_detectors: Mapping[str, FailureScore]
    ) -> None:
        """Publish the score of a step, and the scores of several detectors by their names."""
        self._open['safe/score'].publish(message)
        for name, score in of_detectors.items():
            score.latency = message.latency
            self._open[topic_of(name)].publish(score)

    def announce(self) -> None:
        """Publish the state and explain it, if it has changed."""
        if self.publish_state():
            self._node.explain()

    def explain(self) -> None:
        """Log an alarm or INVALID of an episode once, and publish the diagnosis."""
        self.log_states()
        self.publish_diagnostics()

    def log_states(self) -> None:
        """Log each alarm or INVALID of an episode that is not logged yet."""
        if self._to_log:
            self._node.get_logger().warning('\n'.join(self._to_log))
            self._to_log = []

    def publish_state(self, step: PolicyStep | None = None) -> bool:
        """Publish ``safe/alarm`` and ``safe/stop`` if state, episode, advice or cause is new.

        They are also published if the number of good runs of the task has changed.

        Parameters
        ----------
        step : PolicyStep, optional
            The step that made the state; the alarm gets its header.

        Returns
        -------
        bool
            True if they were published. The caller must then call `MonitorNode.explain`, after all
            urgent messages.
        """
        session = self._node.session
        if session is None or not self._node.active:
            return False
        verdict = session.verdict
        advice = session.advise(verdict, time.monotonic(), stepped=step is not None)
        # The cause of INVALID can become more precise with the next step.
        cause = session.ensemble.cause if verdict.state == AlarmState.INVALID else ''
        key = (verdict.state, session.running_id or '', advice, cause, session.learning)
        if key == self._published:
            return False
        is_new = key[:2] != self._published[:2]
        self._published, self._advice = key, advice
        message = alarm_message(session, verdict, advice)
        if step is not None:
            message.header = step.header
        else:
            message.header.stamp = self._node.get_clock().now().to_msg()
        self._open['safe/alarm'].publish(message)
        self.publish_stop()
        if is_new and verdict.state in (AlarmState.ALARM, AlarmState.INVALID):
            episode = shown(message.episode_id)
            self._to_log.append(f'{verdict.state.name}, episode {episode}: {verdict.reason}')
        return True

    def announce_inactive(self) -> None:
        """Publish that the node becomes inactive: no state is known from now on.

        The last message on ``safe/alarm`` is latched and must not say NOMINAL. A robot that was
        stopped stays stopped: the last ``safe/stop`` and the last advice do not change.
        """
        session = self._node.session
        if session is None:
            return
        message = inactive_message(session, self._advice)
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._open['safe/alarm'].publish(message)
        self._published = ()

    def publish_stop(self) -> None:
        """Publish ``safe/stop`` for the last advice; `announce` keeps it up to date."""
        if self._node.session is not None and self._node.active:
            self._open['safe/stop'].publish(Bool(data=self._advice.halts))

    def publish_diagnostics(self) -> None:
        """Publish the diagnosis of the node."""
        node = self._node
        level, message = diagnose(node.session, node.active, node.failure, node.problems())
        facts: dict[str, object] = {'detector_folder': node.folders[0]}
        if node.session is not None:
            facts |= facts_of(node.session)
        facts |= demands(node.values)
        if node.active:
            facts['advice'] = self._advice.name
        name = node.get_fully_qualified_name()
        status = diagnostic_status(name, level, message, facts)
        # Two robots are two devices, even if they run the same detector.
        status.hardware_id = node.get_namespace().strip('/')
        array = DiagnosticArray(status=[status])
        array.header.stamp = node.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def topic_of(name: str) -> str:
    """Return the topic of the scores of one of several detectors."""
    return f'safe/{name}/score'
