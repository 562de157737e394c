# SPDX-License-Identifier: Apache-2.0
"""A black box process, a probe that plays policy and monitor, and what the files hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from probe import LATCHED, RELIABLE, Probe
from rosbags.rosbag2 import Reader
from std_srvs.srv import Trigger

from safe_bringup.live import Process
from safe_msgs.msg import EpisodeEvent, FailureAlarm
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.step import PolicyStep


class BlackBoxBench:
    """A black box in a process of its own.

    Parameters
    ----------
    start : callable
        ``start(**parameters)`` starts a process of the node.
    folder : Path
        Of the recordings.
    alarms : bool
        Publish ``safe/alarm`` from here, instead of from a monitor.
    """

    def __init__(
        self, start: Callable[..., Process], folder: Path, alarms: bool = True, **parameters: Any
    ) -> None:
        self.folder, self._start = folder, start
        self.status: DiagnosticStatus | None = None
        self.probe = Probe()
        node = self.probe.node
        self._subscription = node.create_subscription(
            DiagnosticArray, '/diagnostics', self._on_diagnostics, RELIABLE
        )
        self._alarms = (
            node.create_publisher(FailureAlarm, 'safe/alarm', LATCHED) if alarms else None
        )
        self._save = node.create_client(Trigger, 'black_box/save')
        self.process = self.restart(**parameters)

    def close(self) -> None:
        """End the probe."""
        self.probe.close()

    def restart(self, **parameters: Any) -> Process:
        """Start another process of the black box; returns when it listens, or cannot."""
        wanted = {'seconds_after': 0.3, 'diagnostics_period': 0.1, **parameters}
        self.status = None
        self.process = self._start(folder=self.folder, **wanted)
        self.probe.spin_until(
            lambda: self.status is not None and self.status.level != DiagnosticStatus.STALE,
            'the black box is configured',
        )
        if self._alarms is not None and self.status.level != DiagnosticStatus.ERROR:
            self.probe.spin_until(
                lambda: (
                    self._alarms.get_subscription_count() >= 2
                    and self.probe._steps.get_subscription_count() >= 1
                    and self.probe._events.get_subscription_count() >= 2
                ),
                'the black box listens',
            )
            self.spin(0.2)
        return self.process

    def until_active(self) -> None:
        """Wait until a monitor and the black box receive what the probe publishes."""
        probe = self.probe
        probe.spin_until(
            lambda: (
                probe._steps.get_subscription_count() == 2
                and probe._events.get_subscription_count() >= 4
                and probe.node.count_publishers('safe/score') == 1
                and probe.node.count_subscribers('safe/score') == 2
                and probe.stops
            ),
            'the monitor and the black box listen',
        )

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        if array.status[0].name.endswith(': black box'):
            self.status = array.status[0]

    def spin(self, seconds: float) -> None:
        """Handle messages for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.probe.executor.spin_once(timeout_sec=left)

    # --- what the policy and the monitor send

    def send(self, step: PolicyStep) -> None:
        """Publish a step with the present time as its stamp."""
        step.stamp = time.time_ns()
        self.probe.publish(step_to_message(step))

    def state(self, state: int, episode: str, step: int = 0) -> None:
        """Publish a state as a monitor does."""
        self._alarms.publish(
            FailureAlarm(episode_id=episode, state=state, step=step, reason='for a test')
        )

    def alarm(self, episode: str) -> None:
        """Publish NOMINAL and then ALARM of an episode."""
        self.state(FailureAlarm.STATE_NOMINAL, episode)
        self.state(FailureAlarm.STATE_ALARM, episode)

    def play(self, episode: str, steps: Callable[[int, str], PolicyStep], count: int) -> None:
        """Publish START and some steps of an episode."""
        self.probe.event(episode, EpisodeEvent.KIND_START)
        for index in range(count):
            self.send(steps(index, episode))
            self.spin(0.01)

    def save(self) -> Trigger.Response:
        """Call ``~/save``."""
        return self.probe._call(self._save, Trigger.Request())

    # --- what comes of it

    @property
    def facts(self) -> dict[str, str]:
        """The facts of the latest diagnosis of the black box."""
        return {} if self.status is None else {pair.key: pair.value for pair in self.status.values}

    @property
    def files(self) -> list[Path]:
        """The recordings, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(f for f in self.folder.glob('*.mcap') if not f.name.startswith('.'))

    def until_written(self, count: int, timeout: float = 15.0) -> list[Path]:
        """Wait until so many recordings were written; returns the files in the folder."""
        self.probe.spin_until(
            lambda: self.facts.get('recordings written') == str(count),
            f'{count} recordings are written; {self.status}',
            timeout,
        )
        return self.files

    def until_says(self, level: bytes, text: str, timeout: float = 15.0) -> None:
        """Wait for a diagnosis of this level that contains a text."""
        self.probe.spin_until(
            lambda: (
                self.status is not None
                and self.status.level == level
                and text in self.status.message
            ),
            f'the black box says {text!r}; found {self.status}',
            timeout,
        )


def content_of(path: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Return the messages of each topic of a recording, with their times [ns]."""
    found: dict[str, list[tuple[int, bytes]]] = {}
    with Reader(path) as reader:
        for connection in reader.connections:
            assert connection.msgdef.data, connection.topic
            found[connection.topic] = []
        for connection, stamp, data in reader.messages():
            found[connection.topic].append((stamp, bytes(data)))
    return found
