# SPDX-License-Identifier: Apache-2.0
"""Publishes the steps and the episodes of a policy from the process of the policy.

::

    publisher = StepPublisher(node, 'hidden_states[token=last]', exec_horizon=8, policy='openvla')
    publisher.start(task='pick_up_the_mug', instruction='pick up the mug')
    while not done:
        ...
        publisher.publish(hidden_state, chunks)
    publisher.end(success=True)
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from rclpy.node import Node

from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.episode_steps import EpisodeEventRecord, EpisodeSteps
from vla_feature_bridge.ros.messages import event_to_message, step_to_message
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS, overridable
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.step_sink import EpisodeSink


@dataclass(eq=False, repr=False)
class StepPublisher(EpisodeSink):
    """Publishes one message for each inference, and an event when an episode starts and ends.

    Steps are numbered, checked and refused as :class:`~vla_feature_bridge.step_sink.EpisodeSink`
    says: after its construction, a publisher raises no error into the loop of the policy, unless it
    is strict. Problems are logged by the logger of the node. Publishing copies the arrays once and
    never waits for a subscriber.

    Parameters
    ----------
    node : rclpy.node.Node
        Publishes on its ``vla/policy_step`` and ``vla/episode``.
    feature_name, exec_horizon, policy
        As in :class:`~vla_feature_bridge.episode_steps.EpisodeSteps`.
    step_qos, episode_qos : rclpy.qos.QoSProfile
        Quality of service of the two topics; ``qos_overrides`` parameters of the node change it.
    action_space
        As in :class:`~vla_feature_bridge.episode_steps.EpisodeSteps`.
    wait_for_monitor : float
        How long the first :meth:`start` waits until both topics have a subscriber [s]; 0 does not
        wait. A subscriber that appears later does not receive the steps before.
    strict : bool
        Raise errors: for development and tests.

    Raises
    ------
    StepError
        A parameter is wrong.
    """

    node: Node
    feature_name: str
    exec_horizon: int
    policy: str = ''
    step_qos: Any = field(default_factory=lambda: STEP_QOS)
    episode_qos: Any = field(default_factory=lambda: EPISODE_QOS)
    _: KW_ONLY
    action_space: str = ''
    wait_for_monitor: float = 5.0
    strict: bool = False

    def __post_init__(self) -> None:
        clock = self.node.get_clock()
        steps = EpisodeSteps(
            self.feature_name,
            self.exec_horizon,
            self.policy,
            self.action_space,
            clock=lambda: int(clock.now().nanoseconds),
        )
        logger = self.node.get_logger()
        EpisodeSink.__init__(
            self,
            steps,
            lambda text: logger.warning(text),
            strict=self.strict,
            wait_for_monitor=self.wait_for_monitor,
        )
        self._steps = self.node.create_publisher(
            PolicyStepMessage, 'vla/policy_step', **overridable(self.step_qos)
        )
        self._events = self.node.create_publisher(
            EpisodeEvent, 'vla/episode', **overridable(self.episode_qos)
        )

    def close(self) -> None:
        self.deferred.settle()
        with self._calls:
            if self._is_closed:
                return
            self._is_closed = True
            if not self._is_mine:  # The middleware would tell everybody that the parent is gone.
                return
            try:
                self.node.destroy_publisher(self._steps)
                self.node.destroy_publisher(self._events)
            except Exception as error:  # The node was destroyed before.
                self._note(error)

    def _send_step(self, step: PolicyStep) -> None:
        self._steps.publish(step_to_message(step))

    def _send_event(self, event: EpisodeEventRecord) -> None:
        self._events.publish(event_to_message(event))

    def _monitor_listens(self) -> bool:
        return not self._is_closed and all(
            publisher.get_subscription_count() > 0 for publisher in (self._steps, self._events)
        )
