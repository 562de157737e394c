# SPDX-License-Identifier: Apache-2.0
"""A probe: publishes policy steps to a monitor process and keeps everything it answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.srv import LabelEpisode, LoadDetector
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.step import PolicyStep

RELIABLE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
EVENTS = QoSProfile(
    depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


def suspend(pid: int) -> None:
    """Suspend a process with SIGSTOP, and return when all its threads stand."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while True:
        stats = [path.read_text() for path in Path(f'/proc/{pid}/task').glob('*/stat')]
        if all(stat.rpartition(')')[2].split()[0] == 'T' for stat in stats):
            return
        assert time.monotonic() < deadline, f'process {pid} goes on after SIGSTOP'
        time.sleep(0.01)


class Probe:
    """Publishes steps and events to a monitor, and keeps everything it publishes.

    Parameters
    ----------
    namespace : str
        Namespace of the robot; empty: none.
    """

    def __init__(self, namespace: str = '') -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.namespace = namespace
        self.node = Node('probe', namespace=namespace, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.scores: list[FailureScore] = []
        self.alarms: list[FailureAlarm] = []
        self.stops: list[bool] = []
        self.status: DiagnosticStatus | None = None
        node = self.node
        self._steps = node.create_publisher(PolicyStepMessage, 'vla/policy_step', RELIABLE)
        self._events = node.create_publisher(EpisodeEvent, 'vla/episode', EVENTS)
        self._subscriptions = [
            node.create_subscription(FailureScore, 'safe/score', self.scores.append, RELIABLE),
            node.create_subscription(FailureAlarm, 'safe/alarm', self.alarms.append, LATCHED),
            node.create_subscription(
                Bool, 'safe/stop', lambda m: self.stops.append(m.data), RELIABLE
            ),
            node.create_subscription(
                DiagnosticArray, '/diagnostics', self._on_diagnostics, RELIABLE
            ),
        ]
        self._reset = node.create_client(Trigger, 'monitor/reset')
        self._label = node.create_client(LabelEpisode, 'monitor/label_episode')
        self._load = node.create_client(LoadDetector, 'monitor/load_detector')
        self._change = node.create_client(ChangeState, 'monitor/change_state')
        self._set = node.create_client(SetParametersAtomically, 'monitor/set_parameters_atomically')

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        if not self.namespace or array.status[0].hardware_id == self.namespace:
            self.status = array.status[0]

    def close(self) -> None:
        """End all subscriptions."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def spin_until(self, condition: Callable[[], Any], what: str, timeout: float = 15.0) -> None:
        """Handle messages until the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, (
                f'timed out waiting until {what}; diagnostics: {self.status}'
            )
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float) -> None:
        """Handle messages for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def wait_until_active(self) -> None:
        """Return once every topic is connected both ways and the monitor is active."""
        self.spin_until(
            lambda: (
                self._steps.get_subscription_count() == 1
                and self._events.get_subscription_count() >= 1
                and self.node.count_publishers('safe/score') == 1
                and self.stops
            ),
            'the monitor is active and connected',
        )

    def leave(self) -> None:
        """Stop to publish steps."""
        self.node.destroy_publisher(self._steps)

    def join(self) -> None:
        """Publish steps again; returns when the monitor listens."""
        self._steps = self.node.create_publisher(PolicyStepMessage, 'vla/policy_step', RELIABLE)
        self.spin_until(self._steps.get_subscription_count, 'the monitor listens')

    def listen_to_events(self) -> list[EpisodeEvent]:
        """Return a list that will hold every event on vla/episode."""
        events: list[EpisodeEvent] = []
        self._subscriptions.append(
            self.node.create_subscription(EpisodeEvent, 'vla/episode', events.append, EVENTS)
        )
        return events

    def event(
        self,
        episode: str,
        kind: int,
        outcome: int = EpisodeEvent.OUTCOME_UNKNOWN,
        task: str = '',
    ) -> None:
        """Publish an event of an episode."""
        self._events.publish(
            EpisodeEvent(episode_id=episode, task=task, kind=kind, outcome=outcome)
        )

    def start(self, episode: str, task: str = '') -> None:
        """Publish the START of an episode."""
        self.event(episode, EpisodeEvent.KIND_START, task=task)

    def end(self, episode: str, outcome: int = EpisodeEvent.OUTCOME_UNKNOWN) -> None:
        """End an episode that has a scored step; returns when the monitor has ended it."""
        # The state may still be on its way when the score of its step is there.
        self.spin_until(
            lambda: self.alarms and self.alarms[-1].state != FailureAlarm.STATE_UNKNOWN,
            'the state of the episode arrives',
        )
        self.event(episode, EpisodeEvent.KIND_END, outcome)
        self.spin_until(
            lambda: self.alarms and self.alarms[-1].state == FailureAlarm.STATE_UNKNOWN,
            'END is handled',
        )

    def publish(self, message: PolicyStepMessage) -> None:
        """Publish a step as it is."""
        self._steps.publish(message)

    def step(self, step: PolicyStep) -> FailureScore:
        """Publish one step and return the score that answers it."""
        before = len(self.scores)
        self.publish(step_to_message(step))
        self.spin_until(lambda: len(self.scores) > before, f'step {step.step} is answered')
        assert len(self.scores) == before + 1
        return self.scores[-1]

    def reset(self) -> Trigger.Response:
        """Call the service that clears an alarm."""
        return self._call(self._reset, Trigger.Request())

    def label_episode(self, episode: str, outcome: int) -> LabelEpisode.Response:
        """Call the service that labels an episode."""
        return self._call(self._label, LabelEpisode.Request(episode_id=episode, outcome=outcome))

    def load_detector(self, folder: Path) -> LoadDetector.Response:
        """Call the service that replaces the detector."""
        return self._call(self._load, LoadDetector.Request(folder=str(folder)))

    def change_state(self, transition: int) -> bool:
        """Ask for a lifecycle transition by its id, as a lifecycle manager does."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self._call(self._change, request).success)

    def set_parameters(self, **values: Any) -> SetParametersResult:
        """Set parameters of the running monitor, all together."""
        parameters = [Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        return self._call(self._set, request).result

    def _call(self, client: Any, request: Any) -> Any:
        assert client.wait_for_service(timeout_sec=10)
        future = client.call_async(request)
        self.spin_until(future.done, f'{client.srv_name} answers')
        return future.result()

    def facts(self) -> dict[str, str]:
        """Return the pairs of the latest diagnostics; none before the first."""
        return {} if self.status is None else {p.key: p.value for p in self.status.values}
