# SPDX-License-Identifier: Apache-2.0
"""The services of the monitor node: reset, another detector, and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rclpy.event_handler import PublisherEventCallbacks
from std_srvs.srv import Trigger

from safe_monitor_node.monitor.slot import DetectorSlot, name_of_detector
from safe_monitor_node.nodes.monitor_messages import label_message, label_of, label_sentence
from safe_monitor_node.nodes.monitor_parameters import settings_of
from safe_msgs.msg import EpisodeEvent
from safe_msgs.srv import LabelEpisode, LoadDetector
from vla_feature_bridge.ros.qos import EPISODE_QOS, overridable

if TYPE_CHECKING:
    from safe_monitor_node.nodes.monitor_node import MonitorNode


class MonitorServices:
    """``~/reset``, ``~/load_detector`` and ``~/label_episode``, in every lifecycle state.

    Every error is reported to the caller. No error ends the node.
    """

    def __init__(self, node: MonitorNode) -> None:
        self._node = node
        node.create_service(Trigger, '~/reset', self.reset)
        node.create_service(LoadDetector, '~/load_detector', self.load_detector)
        # Create the publisher now, so that subscribers are connected before the first label.
        self._labels = node.create_publisher(
            EpisodeEvent,
            'vla/episode',
            event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
            **overridable(EPISODE_QOS),
        )
        node.create_service(LabelEpisode, '~/label_episode', self.label_episode)

    def reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Clear a latched alarm."""
        session = self._node.session
        if session is None or not self._node.active:
            response.success, response.message = False, 'the monitor is not active'
            return response
        before = session.verdict.state
        session.reset()
        after = session.verdict.state
        self._node.outputs.announce()
        response.success = True
        response.message = f'the state before was {before.name}, the state now is {after.name}'
        return response

    def load_detector(
        self, request: LoadDetector.Request, response: LoadDetector.Response
    ) -> LoadDetector.Response:
        """Check another detector folder and use it."""
        node = self._node
        try:
            if node.finalized:
                raise RuntimeError(
                    'the monitor was shut down and cannot be configured again; start it again'
                )
            slot, folder = self._slot_of(request.folder)
            monitor = settings_of(node.values).monitor_of(folder)
            # The detector may have loaded PyTorch.
            node.limit_threads()
            if node.session is not None:
                response.message = node.session.replace(monitor, folder, slot)
        except Exception as error:  # Report every error to the caller; the node must keep running.
            node.get_logger().error(f'cannot load a detector: {error}')
            response.success, response.message = False, str(error)
            return response
        response.success = True
        if node.session is None:
            node.folders[0] = folder
            response.success, response.message = self._configure_with(name_of_detector(monitor))
        else:
            node.folders = [each.folder for each in node.session.ensemble.slots]
        node.get_logger().info(response.message)
        return response

    def _slot_of(self, text: str) -> tuple[DetectorSlot | None, str]:
        """Return the detector that a request replaces, and the folder of the new detector.

        ``NAME=FOLDER`` selects one of several detectors. Without a name, the first detector is
        replaced.
        """
        session = self._node.session
        if session is not None and session.ensemble.several:
            for slot in session.ensemble.slots:
                if text.startswith(f'{slot.name}='):
                    return slot, text.removeprefix(f'{slot.name}=')
        return None, text

    def _configure_with(self, name: str) -> tuple[bool, str]:
        """Configure and activate with a folder that was just checked, if ``autostart`` is true."""
        node = self._node
        node.failure = ''
        if not node.values.autostart:
            return True, f'{name} will be used when the monitor is configured'
        try:
            node.autostart()
        except RuntimeError as error:
            return False, f'the monitor cannot be configured in its current state: {error}'
        return node.active, node.failure or f'configured with {name}'

    def label_episode(
        self, request: LabelEpisode.Request, response: LabelEpisode.Response
    ) -> LabelEpisode.Response:
        """Set the outcome of an episode."""
        try:
            response.message = self._label(request.episode_id, request.outcome)
            response.success = True
        except Exception as error:  # Report every error to the caller; the node must keep running.
            self._node.get_logger().error(f'cannot label an episode: {error}')
            response.success, response.message = False, str(error)
        return response

    def _label(self, episode_id: str, outcome: int) -> str:
        """Publish a label and apply it; return a sentence about its effect."""
        node, session = self._node, self._node.session
        if not episode_id and session is not None:
            episode_id = session.monitor.latest_id
        event = label_message(episode_id, outcome, node.get_fully_qualified_name())
        event.header.stamp = node.get_clock().now().to_msg()
        label = label_of(event)
        if session is None:
            self._labels.publish(event)
            return label_sentence(label, None)
        session.own_labels.expect(label)
        self._labels.publish(event)
        effect = session.label(label)
        sentence = label_sentence(label, effect, session.effects, session.take_news())
        if not session.remarks.knows(episode_id):
            sentence += (
                '; neither a START nor a step of this episode has come since the monitor was '
                'configured: if it should have, check the episode_id'
            )
        node.log_file_problem(session)
        return f'{sentence}; {session.file_problem}' if session.file_problem else sentence
