# SPDX-License-Identifier: Apache-2.0
"""The topics that the bridge publishes for one source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory

from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.chunks import chunk_to_message, image_to_message
from vla_feature_bridge.ros.messages import event_to_message, step_to_message
from vla_feature_bridge.ros.qos import CHUNK_QOS, EPISODE_QOS, IMAGE_QOS, STEP_QOS, overridable
from vla_feature_bridge.step import PolicyStep

_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]{0,62}')
_MOST_IMAGES = 16


class OutputError(SafeError):
    """A name, a message or an image of a source cannot be published."""


class SourceOutputs:
    """Publishes steps, episodes, action chunks and images of one source.

    Parameters
    ----------
    node : rclpy.node.Node
    source : str
        Namespace of the topics below the namespace of the node; empty for none.
    joint_names, action_period
        As in :func:`~vla_feature_bridge.ros.chunks.chunk_to_message`.
    publishes_events : bool
        False if another node publishes START and END on the same topic; labels are published.

    Raises
    ------
    OutputError
        The source has a name that no topic can have.
    """

    def __init__(
        self,
        node: Node,
        source: str,
        joint_names: Sequence[str],
        action_period: float,
        publishes_events: bool = True,
    ) -> None:
        check_source_name(source)
        self._node = node
        self._prefix = f'{source}/' if source else ''
        self.joint_names, self._action_period = joint_names, action_period
        self._publishes_events = publishes_events
        self._images: dict[str, Any] = {}
        self._steps = self._publisher(PolicyStepMessage, 'vla/policy_step', STEP_QOS)
        self._events = self._publisher(EpisodeEvent, 'vla/episode', EPISODE_QOS)
        self._chunks = self._publisher(JointTrajectory, 'vla/action_chunk', CHUNK_QOS)

    def _publisher(self, kind: Any, topic: str, qos: Any) -> Any:
        return self._node.create_publisher(kind, self._prefix + topic, **overridable(qos))

    @property
    def step_topic(self) -> str:
        """Full name of the topic of steps."""
        return str(self._steps.topic_name)

    @property
    def subscribers(self) -> int:
        """Number of subscribers of the steps: monitors and recorders."""
        return int(self._steps.get_subscription_count())

    @property
    def has_all_subscribers(self) -> bool:
        """Whether steps have subscribers, and all of them are connected.

        A subscriber of events is needed too, because a black box subscribes to steps also without a
        monitor.
        """
        there = self._node.count_subscribers(self.step_topic)
        return 0 < there <= self.subscribers and self._events.get_subscription_count() > 0

    def other_publishers(self) -> list[str]:
        """Return the names of other nodes that publish steps on the same topic."""
        mine = self._node.get_fully_qualified_name()
        found = [
            f'{info.node_namespace.rstrip("/")}/{info.node_name}'
            for info in self._node.get_publishers_info_by_topic(self.step_topic)
        ]
        if mine in found:
            found.remove(mine)
        return sorted(found)

    def publish_step(self, step: PolicyStep) -> None:
        """Publish a step, and its executed chunk if a node subscribes to chunks.

        Raises
        ------
        MessageError
            An array has a dtype that a message cannot hold.
        """
        self._steps.publish(step_to_message(step))
        if self._chunks.get_subscription_count() > 0:
            chunk = chunk_to_message(step, self.joint_names, self._action_period)
            if chunk is not None:
                self._chunks.publish(chunk)

    def publish_event(self, event: EpisodeEventRecord) -> None:
        """Publish an event of an episode."""
        if self._publishes_events or event.kind == 'label':
            self._events.publish(event_to_message(event))

    def publish_image(self, name: str, array: np.ndarray, stamp: int) -> None:
        """Publish an image on ``vla/image/NAME``.

        Raises
        ------
        OutputError
            The name cannot be part of a topic, or the source has too many images.
        ImageError
            The array is not an image.
        """
        message = image_to_message(array, stamp)
        if name not in self._images:
            if not _NAME.fullmatch(name):
                raise OutputError(
                    where='image', expected='a name of letters, digits and _', found=repr(name[:80])
                )
            if len(self._images) >= _MOST_IMAGES:
                raise OutputError(
                    where=f'image {name!r}',
                    expected=f'at most {_MOST_IMAGES} images of a source',
                    found='one more',
                )
            self._images[name] = self._publisher(Image, f'vla/image/{name}', IMAGE_QOS)
        self._images[name].publish(message)

    def destroy(self) -> None:
        """Destroy all publishers."""
        for publisher in (self._steps, self._events, self._chunks, *self._images.values()):
            self._node.destroy_publisher(publisher)
        self._images.clear()


def check_source_name(source: str) -> None:
    """Check that the name of a source can be a namespace; empty is allowed.

    Raises
    ------
    OutputError
        The name cannot be a namespace.
    """
    if source and not _NAME.fullmatch(source):
        raise OutputError(
            where='source',
            expected='a name of letters, digits and _ that begins with a letter, or no name',
            found=repr(source[:80]),
            advice='give the StepSender another source',
        )
