# SPDX-License-Identifier: Apache-2.0
"""The replay node: plays a rollout set as if its policy were running. ``replay`` runs it."""

from __future__ import annotations

import time

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.layout import RolloutSetError
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import Parameter, declare_parameters
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS, overridable

PARAMETERS = (
    Parameter('rollout_set', '', 'Folder of the rollout set to play.'),
    Parameter(
        'frequency',
        10.0,
        'Policy inferences per second if the recording has no time stamps [Hz].',
        0.01,
        1e4,
        old_name='rate',
    ),
    Parameter(
        'speed', 1.0, 'Speed factor relative to the recorded stamps (or to frequency).', 0.001, 1e4
    ),
    Parameter('tasks', [''], 'Names of the tasks to play; empty plays all.'),
    Parameter('episodes', [''], 'Ids of the episodes to play, in this order; empty plays all.'),
    Parameter('limit', 0, 'Play at most this many episodes; 0 plays all.', 0, 2**31 - 1),
    Parameter('loop', False, 'Begin again after the last episode, until the node is stopped.'),
    Parameter('gap', 0.2, 'Pause between episodes, not scaled by speed [s].', 0.0, 3600.0),
    Parameter(
        'subscribers', 1, 'Wait for this many subscribers of each topic before playing.', 0, 100
    ),
    Parameter(
        'subscribers_timeout', 30.0, 'Time-out for waiting for subscribers [s].', 0.0, 86400.0
    ),
)


class ReplayError(SafeError):
    """The parameters select episodes that do not exist. The message lists the possible values."""


def chosen_rollouts(
    rollouts: RolloutSet, tasks: list[str], episodes: list[str], limit: int
) -> list[int]:
    """Return the indices of the rollouts to play, in order.

    Raises
    ------
    ReplayError
        A task or an episode is not in the set.
    """
    tasks, episodes = [t for t in tasks if t], [e for e in episodes if e]
    known = {name: index for index, name in enumerate(rollouts.episode_ids)}
    for name in episodes:
        if name not in known:
            raise ReplayError(
                f'{rollouts.path}: expected an episode of the set, found {name!r}; '
                '`safe_training info` lists the episodes'
            )
    for name in tasks:
        if name not in rollouts.tasks:
            raise ReplayError(
                f'{rollouts.path}: expected a task among {", ".join(sorted(set(rollouts.tasks)))}, '
                f'found {name!r}'
            )
    indices = [known[name] for name in episodes] if episodes else list(range(len(rollouts)))
    if tasks:
        indices = [i for i in indices if rollouts.tasks[i] in tasks]
    if not indices:
        raise ReplayError(
            f'{rollouts.path}: expected at least one episode to play, found no episode that '
            'matches both parameters, tasks and episodes'
        )
    return indices[:limit] if limit else indices


def step_offsets(rollout: Rollout, frequency: float) -> list[float]:
    """Return the times of the steps relative to the first step [s].

    From the recorded stamps, or from a frequency.
    """
    if rollout.stamps is None or not rollout.stamps.any():
        return [t / frequency for t in range(len(rollout))]
    return [float(stamp - rollout.stamps[0]) * 1e-9 for stamp in rollout.stamps]


class ReplayNode(Node):
    """Publishes recorded steps and episode events at the pace of a running policy."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__('replay', **kwargs)
        self._parameters_now = declare_parameters(self, PARAMETERS)
        unknown = check_overrides(self)
        if unknown:
            self.get_logger().warning(unknown)
        self._steps = self.create_publisher(
            PolicyStepMessage, 'vla/policy_step', **overridable(STEP_QOS)
        )
        self._events = self.create_publisher(
            EpisodeEvent, 'vla/episode', **overridable(EPISODE_QOS)
        )

    def wait_for_subscribers(self) -> None:
        """Wait until both topics have the required number of subscribers.

        Raises
        ------
        ReplayError
            There were not enough subscribers before the time-out.
        """
        wanted = self._parameters_now.subscribers
        deadline = time.monotonic() + self._parameters_now.subscribers_timeout
        publishers = (self._steps, self._events)
        while any(p.get_subscription_count() < wanted for p in publishers):
            if time.monotonic() > deadline:
                found = min(p.get_subscription_count() for p in publishers)
                raise ReplayError(
                    f'{self._steps.topic_name}: expected {wanted} subscribers within '
                    f'{self._parameters_now.subscribers_timeout:g} s, found {found}; start the '
                    'monitor with the same ROS_DOMAIN_ID and namespace, and check that it is '
                    'active'
                )
            rclpy.spin_once(self, timeout_sec=0.02)

    def play(self) -> int:
        """Play the episodes that the parameters choose and return their number.

        With the parameter `loop`, play them again and again, until the node is shut down.

        Raises
        ------
        RolloutSetError, ReplayError
            The set cannot be read, or does not contain the chosen tasks or episodes.
        """
        p = self._parameters_now
        if not p.rollout_set:
            raise ReplayError(
                'parameter rollout_set: expected the folder of a rollout set, found none'
            )
        rollouts = RolloutSet.open(p.rollout_set)
        indices = chosen_rollouts(rollouts, p.tasks, p.episodes, p.limit)
        self.wait_for_subscribers()
        self._play_once(rollouts, indices)
        while p.loop:
            self.get_logger().info('played all episodes; they begin again')
            self._play_once(rollouts, indices)
        # Both topics are reliable: leave only when the subscribers have all messages.
        for publisher in (self._steps, self._events):
            publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=5))
        return len(indices)

    def _play_once(self, rollouts: RolloutSet, indices: list[int]) -> None:
        for count, index in enumerate(indices, start=1):
            self._play_episode(rollouts[index])
            self.get_logger().info(f'played episode {count} of {len(indices)}')
            self._pause_until(time.monotonic() + self._parameters_now.gap)

    def _play_episode(self, rollout: Rollout) -> None:
        self._event(rollout, EpisodeEvent.KIND_START, EpisodeEvent.OUTCOME_UNKNOWN)
        offsets = step_offsets(rollout, self._parameters_now.frequency)
        speed, start = self._parameters_now.speed, time.monotonic()
        for t, offset in enumerate(offsets):
            self._pause_until(start + offset / speed)
            step = rollout.step(t)
            step.stamp = self.get_clock().now().nanoseconds
            self._steps.publish(step_to_message(step))
        # The robot executes the last chunk before the episode ends.
        self._pause_until(start + (offsets[-1] + 1.0 / self._parameters_now.frequency) / speed)
        outcome = EpisodeEvent.OUTCOME_UNKNOWN
        if rollout.success is not None:
            outcome = (
                EpisodeEvent.OUTCOME_SUCCESS if rollout.success else EpisodeEvent.OUTCOME_FAILURE
            )
        self._event(rollout, EpisodeEvent.KIND_END, outcome)

    def _event(self, rollout: Rollout, kind: int, outcome: int) -> None:
        event = EpisodeEvent(
            episode_id=rollout.episode_id,
            task=rollout.task,
            instruction=rollout.instruction,
            kind=kind,
            outcome=outcome,
            reason='replayed',
        )
        event.header.stamp = self.get_clock().now().to_msg()
        self._events.publish(event)

    def _pause_until(self, deadline: float) -> None:
        # While waiting, the node processes services and shutdown. If a step is already late, do not
        # wait.
        while (left := deadline - time.monotonic()) > 0 and rclpy.ok():
            if left > 0.05:
                rclpy.spin_once(self, timeout_sec=left - 0.02)
            else:
                time.sleep(left)
        if not rclpy.ok():
            raise ExternalShutdownException()


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node and return 0 if all episodes were played, otherwise 1."""

    def work() -> int:
        node = ReplayNode()
        try:
            node.play()
        except (RolloutSetError, ReplayError) as error:
            node.get_logger().fatal(str(error))
            return 1
        finally:
            node.destroy_node()
        return 0

    return run_node('replay', work, args)
