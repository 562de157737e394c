# SPDX-License-Identifier: Apache-2.0
"""The black box node: topics, service and diagnostics. ``black_box`` is its executable."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.serialization import deserialize_message
from std_srvs.srv import Trigger

from safe_monitor_node.black_box.folder import Bounds, RecordingFolder, RecordingFolderError
from safe_monitor_node.black_box.place import step_place
from safe_monitor_node.black_box.recorder import BlackBox, Span
from safe_monitor_node.monitor.alarm import CALL_RESET
from safe_monitor_node.nodes.black_box_parameters import ALARM_OR_BLIND, PARAMETERS
from safe_monitor_node.nodes.black_box_topics import (
    LATCHED,
    MOST_TOPICS,
    TOPICS,
    RecordedTopics,
    channel_of,
)
from safe_msgs.msg import EpisodeEvent, FailureAlarm
from vla_feature_bridge.mcap_writer import Channel
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.nodes.levels import Finding, Level, summarise
from vla_feature_bridge.nodes.lifecycle import ManagedNode
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import declare_parameters
from vla_feature_bridge.ros.qos import DIAGNOSTICS_QOS

_TICK = 0.1
_MB = 1e6
_LONGEST_TEXT = 2000
_STATES = {
    FailureAlarm.STATE_ALARM: 'ALARM',
    FailureAlarm.STATE_STALE: 'STALE',
    FailureAlarm.STATE_INVALID: 'INVALID',
}


class BlackBoxNode(ManagedNode):
    """Records the last seconds of all topics of a monitor when an alarm is raised.

    Service: ``~/save`` (std_srvs/Trigger) makes a recording without an alarm. The node publishes
    only ``/diagnostics``. It does not read the arrays of messages, and no other node waits for it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('black_box', **kwargs)
        self._values: SimpleNamespace = declare_parameters(self, PARAMETERS)
        self._unknown = check_overrides(self)
        if self._unknown:
            self.get_logger().warning(self._unknown)
        self._folder: RecordingFolder | None = None
        self._box: BlackBox | None = None
        self._topics: RecordedTopics | None = None
        self._channels: list[Channel] = []
        self._tick_timer: Any = None
        self._active_since = 0.0
        self._state: tuple[int, str] = (FailureAlarm.STATE_UNKNOWN, '')
        self._episode = ''
        self._unreadable = 0
        self._takes = {
            'vla/policy_step': self._on_step,
            'vla/episode': self._on_event,
            'safe/alarm': self._on_alarm,
        }
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', DIAGNOSTICS_QOS)
        self.create_timer(
            self._values.diagnostics_period, self._publish_diagnostics, clock=self._steady
        )
        self.create_service(Trigger, '~/save', self._save)

    def autostart(self) -> None:
        """Configure and activate if ``autostart`` is true; a failure is logged and diagnosed."""
        if not self._values.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- life cycle

    def _setup(self) -> None:
        values = self._values
        if not values.folder:
            raise RecordingFolderError(
                where=f'parameter folder of {self.get_fully_qualified_name()}',
                expected='the folder of the recordings',
                found='no folder',
                advice='give it: -p folder:=/var/log/safe',
            )
        bounds = Bounds(values.max_files, int(values.max_folder_mb * _MB), values.when_full)
        self._folder = RecordingFolder(Path(values.folder).expanduser().absolute(), bounds)
        self._folder.open()
        for path in self._folder.unfinished:
            self.get_logger().warning(_left_behind(path))
        self._channels = [channel_of(self, topic) for topic in TOPICS]
        self._box = BlackBox(
            self._channels,
            LATCHED,
            Span(values.seconds_before, values.seconds_after, values.whole_episodes),
            int(values.memory_mb * _MB),
            self._folder,
        )
        self._tick_timer = self.create_timer(_TICK, self._on_tick, clock=self._steady)
        self.get_logger().info(
            f'records {values.seconds_before:g} s before and {values.seconds_after:g} s after an '
            f'alarm in {self._folder.path}, which holds {len(self._folder.recordings)} recordings'
        )

    def _teardown(self) -> None:
        self._stop_listening()
        if self._tick_timer is not None:
            self.destroy_timer(self._tick_timer)
        if self._box is not None:
            self._box.close()
            self._log_news()
        if self._folder is not None:
            self._folder.close()
        self._tick_timer = self._box = self._folder = None

    def close(self) -> None:
        """Write the pending recordings, and release the folder."""
        self._teardown()

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to keep messages."""
        result = super().on_activate(state)
        self._active_since = time.monotonic()
        self._state = (FailureAlarm.STATE_UNKNOWN, '')
        self._topics = RecordedTopics(self, self._channels, self._take)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop keeping messages. Pending recordings are written immediately."""
        self._stop_listening()
        return super().on_deactivate(state)

    def _stop_listening(self) -> None:
        if self._topics is not None:
            self._topics.close()
            self._topics = None

    # --- messages

    def _take(self, topic: int, data: bytes, published: int) -> None:
        box = self._box
        if box is None:
            return
        now = time.monotonic_ns()
        # The window must know that an episode begins before it keeps the first message.
        name = TOPICS[topic].name if topic < len(TOPICS) else ''
        if (look := self._takes.get(name)) is not None:
            try:
                look(box, data, published, now)
            except Exception:  # The bytes of other nodes are recorded without changes.
                self._unreadable += 1
        box.take(topic, data, published, now)

    def _on_step(self, box: BlackBox, data: bytes, published: int, now: int) -> None:
        place = step_place(data)
        if place is None:
            self._unreadable += 1
            return
        self._episode, step = place
        box.window.stepped(self._episode, step, now)

    def _on_event(self, box: BlackBox, data: bytes, published: int, now: int) -> None:
        event = deserialize_message(data, EpisodeEvent)
        if event.kind == EpisodeEvent.KIND_START:
            box.window.began(event.episode_id, now)
        elif event.kind == EpisodeEvent.KIND_END:
            box.window.ended(event.episode_id, now)

    def _on_alarm(self, box: BlackBox, data: bytes, published: int, now: int) -> None:
        alarm = deserialize_message(data, FailureAlarm)
        state, before = (alarm.state, alarm.episode_id), self._state
        self._state = state
        wanted = {FailureAlarm.STATE_ALARM}
        if self._values.record_on == ALARM_OR_BLIND:
            wanted |= {FailureAlarm.STATE_STALE, FailureAlarm.STATE_INVALID}
        if state == before or alarm.state not in wanted or self._is_from_before(published):
            return
        if before[0] == alarm.state and alarm.reason.endswith(CALL_RESET):
            return  # the latched alarm of an earlier episode is already recorded
        name = _STATES[alarm.state]
        box.trigger(alarm.episode_id, f'{name} at step {alarm.step}: {alarm.reason}', now)
        self.get_logger().info(
            f'{name} of episode {alarm.episode_id[:100]!r} at step {alarm.step}: a recording will '
            f'be written in {self._values.seconds_after:g} s'
        )

    def _is_from_before(self, published: int) -> bool:
        """Return True for a message that was published before the node listened.

        ``safe/alarm`` is latched. The messages before an earlier alarm were not received.
        """
        age = (time.time_ns() - published) * 1e-9
        return age > time.monotonic() - self._active_since

    def _save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._box is None or not self.active:
            response.success, response.message = False, 'the black box is not active'
            return response
        self._box.trigger(self._episode, '~/save was called', time.monotonic_ns())
        response.success = True
        response.message = (
            f'a recording will be written to {self._values.folder} in '
            f'{self._values.seconds_after:g} s; /diagnostics gives its name'
        )
        return response

    def _on_tick(self) -> None:
        if self._topics is not None:
            self._topics.update()
        if self._box is not None:
            self._box.tick(time.monotonic_ns())
            self._log_news()

    def _log_news(self) -> None:
        while self._box is not None and self._box.counts.news:
            good, text = self._box.counts.news.pop(0)
            if good:
                self.get_logger().info(text)
            else:
                self.get_logger().error(text)

    # --- diagnostics

    def _publish_diagnostics(self) -> None:
        if self._topics is not None:
            self._topics.look_for_scores()
        findings = self._findings()
        level, message = summarise(findings, 'keeps the last seconds for an alarm')
        status = DiagnosticStatus(
            level=bytes([level]),
            name=status_name(self.get_fully_qualified_name()),
            message=message[:_LONGEST_TEXT],
            hardware_id=self.get_namespace().strip('/'),
            values=[
                KeyValue(key=key, value=str(value)[:_LONGEST_TEXT])
                for key, value in self._facts().items()
            ],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _findings(self) -> list[Finding]:
        unknown = [Finding(Level.WARN, self._unknown)] if self._unknown else []
        box, folder = self._box, self._folder
        if box is None or folder is None:
            if self.failure:
                return [Finding(Level.ERROR, self.failure), *unknown]
            return [Finding(Level.STALE, 'not configured'), *unknown]
        if not self.active:
            return [Finding(Level.STALE, 'not active'), *unknown]
        texts = [_left_behind(path) for path in folder.unfinished]
        if self._topics is not None and not self._topics.has_monitor():
            topic = self.resolve_topic_name('safe/alarm')
            texts.append(f'no monitor publishes {topic}: no alarm will be recorded')
        if self._topics is not None and self._topics.left_out:
            texts.append(
                f'the scores of {len(self._topics.left_out)} detectors are not recorded, such as '
                f'{min(self._topics.left_out)}: a black box records at most {MOST_TOPICS} topics; '
                'record the others with `ros2 bag record`'
            )
        if box.window.dropped:
            texts.append(
                f'{box.window.dropped} messages were dropped early, because memory_mb is too small'
            )
        if self._unreadable:
            texts.append(f'{self._unreadable} messages could not be read; they are recorded')
        found = [Finding(Level.WARN, text) for text in texts]
        problems = dict.fromkeys(filter(None, (folder.problem, box.counts.problem)))
        found += [Finding(Level.ERROR, problem) for problem in problems]
        return found + unknown

    def _facts(self) -> dict[str, object]:
        box, folder = self._box, self._folder
        if box is None or folder is None:
            return {'folder': self._values.folder}
        return {
            'folder': folder.path,
            'recordings in the folder': len(folder.recordings),
            'size of the folder [MB]': f'{folder.size / _MB:.1f}',
            'recordings written': box.counts.written,
            'recordings lost': box.counts.lost,
            'recordings deleted': folder.deleted,
            'last recording': box.counts.last,
            'recordings that wait for their end': len(box.pending),
            'writes now': str(box.writing).lower(),
            'messages in memory': len(box.window),
            'memory [MB]': f'{box.memory.used / _MB:.1f} of {self._values.memory_mb:g}',
            'messages dropped early': box.window.dropped,
        }


def status_name(node: str) -> str:
    """Return the name of the diagnosis of a black box node with this full name."""
    return f'{node.lstrip("/")}: black box'


def _left_behind(path: Path) -> str:
    return (
        f'{path} is an unfinished recording of a process that was killed; read its whole part with '
        f'`python -m safe_training convert --skip-bad`, or delete it'
    )


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down."""

    def work() -> int:
        node = BlackBoxNode()
        try:
            node.autostart()
            rclpy.spin(node)
        finally:
            node.close()
            node.destroy_node()
        return 0

    return run_node('black_box', work, args)
