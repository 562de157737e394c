# SPDX-License-Identifier: Apache-2.0
"""Runs ``replay`` and ``monitor`` in separate processes, and records their messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from vla_feature_bridge.errors import SafeError

RELIABLE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


LONGEST_PLAY = 600.0
"""Longest time for all episodes together [s]."""


class LiveError(SafeError):
    """A process did not start, stopped with an error, or did not end.

    The message contains the name of the process.
    """


@dataclass
class LiveEpisode:
    """The messages received for one episode.

    Attributes
    ----------
    episode_id, task : str
    success : bool or None
        Outcome in the END event.
    steps : list of int
        Step index of each score received, in order of arrival.
    scores, thresholds, probabilities, latencies : list of float
        One for each step received; latency as the monitor measured it [s].
    alarm_step : int or None
        Step of the first ALARM on ``safe/alarm``.
    ended : bool
    """

    episode_id: str
    task: str = ''
    success: bool | None = None
    steps: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    alarm_step: int | None = None
    ended: bool = False


class Process:
    """A ROS node in a separate process.

    It is stopped by SIGINT at the end of the ``with`` block.
    """

    def __init__(
        self, module: str, parameters: dict[str, Any], log: Path, arguments: Sequence[str] = ()
    ) -> None:
        self.name = module.rpartition('.')[2]
        self._log_path = log
        self._log = log.open('w', encoding='utf-8')
        command = [sys.executable, '-m', module, '--ros-args']
        for key, value in parameters.items():
            command += ['-p', f'{key}:={value}']
        self._popen = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )

    def __enter__(self) -> Process:
        """Start the process and return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the process."""
        self.stop()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._popen.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status; None while the process runs."""
        return self._popen.poll()

    def stop(self) -> int:
        """Interrupt the process as Ctrl-C would, and return its exit status."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGINT)
            try:
                self._popen.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._log.close()
        return self._popen.returncode

    def log(self) -> str:
        """Return the output of the process so far."""
        return self._log_path.read_text(encoding='utf-8', errors='replace')

    def fail(self, what: str) -> LiveError:
        """Return an error that ends with the last lines of the process's log."""
        tail = '\n  '.join(self.log().strip().splitlines()[-8:])
        return LiveError(
            f'process {self.name} {what}; the last lines of the log {self._log_path}:\n  {tail}'
        )


class Observer:
    """Subscribes to scores, alarms and episode events, like a supervisor on the robot."""

    def __init__(self, on_ended: Callable[[LiveEpisode], None] | None = None) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node('observer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.episodes: dict[str, LiveEpisode] = {}
        self.events = 0
        self._on_ended = on_ended
        self._waiting: dict[str, float] = {}
        self.scores = self.node.create_subscription(
            FailureScore, 'safe/score', self._on_score, RELIABLE
        )
        self.node.create_subscription(FailureAlarm, 'safe/alarm', self._on_alarm, LATCHED)
        self.node.create_subscription(EpisodeEvent, 'vla/episode', self._on_event, LATCHED)

    def __enter__(self) -> Observer:
        """Return the observer. Its subscriptions already exist."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all subscriptions."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def spin(self, seconds: float) -> None:
        """Handle messages for this time [s]."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=min(left, 0.05))
        self._report_ended(settle=1.0)

    def monitor_is_up(self) -> bool:
        """Return True if a publisher of scores is connected to this observer."""
        return (
            self.node.count_publishers('safe/score') > 0
            and self.node.count_subscribers('vla/policy_step') > 0
        )

    def finish(self) -> None:
        """Report every ended episode that was not reported yet."""
        self._report_ended(settle=0.0)

    def _episode(self, episode_id: str) -> LiveEpisode:
        return self.episodes.setdefault(episode_id, LiveEpisode(episode_id))

    def _on_score(self, message: FailureScore) -> None:
        episode = self._episode(message.episode_id)
        episode.steps.append(message.step)
        episode.scores.append(message.score)
        episode.thresholds.append(message.threshold)
        episode.probabilities.append(message.probability)
        episode.latencies.append(message.latency)

    def _on_alarm(self, message: FailureAlarm) -> None:
        if message.state == FailureAlarm.STATE_ALARM:
            episode = self._episode(message.episode_id)
            if episode.alarm_step is None:
                episode.alarm_step = message.step

    def _on_event(self, message: EpisodeEvent) -> None:
        episode = self._episode(message.episode_id)
        episode.task = message.task
        if message.outcome != EpisodeEvent.OUTCOME_UNKNOWN:
            episode.success = message.outcome == EpisodeEvent.OUTCOME_SUCCESS
        if message.kind == EpisodeEvent.KIND_END:
            episode.ended = True
            self._waiting[message.episode_id] = time.monotonic()

    def _report_ended(self, settle: float) -> None:
        # END can arrive before the last scores and the alarm, which use other topics.
        now = time.monotonic()
        for episode_id in [e for e, ended in self._waiting.items() if now - ended >= settle]:
            del self._waiting[episode_id]
            if self._on_ended is not None:
                self._on_ended(self.episodes[episode_id])


def play_live(
    rollout_set: Path,
    detector_folder: Path,
    episodes: Sequence[str],
    *,
    logs: Path,
    frequency: float = 100.0,
    gap: float = 0.2,
    on_ended: Callable[[LiveEpisode], None] | None = None,
) -> list[LiveEpisode]:
    """Play episodes of a rollout set to a monitor and return its messages, in the same order.

    Parameters
    ----------
    logs : Path
        Folder for the logs of the two processes.
    frequency : float
        Policy inferences per second [Hz].
    gap : float
        Pause between episodes [s].
    on_ended : callable, optional
        Called with each episode when it has ended.

    Raises
    ------
    LiveError
        A process did not start, failed, or did not end in time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LONGEST_PLAY
    # With good_runs, labels of new tasks would change their thresholds while they are played.
    parameters = {'detector_folder': detector_folder.resolve(), 'good_runs': 0}
    listed = '[' + ', '.join(f'"{e}"' for e in episodes) + ']'
    with (
        Observer(on_ended) as observer,
        Process('safe_monitor_node.nodes.monitor', parameters, logs / 'monitor.log') as monitor,
    ):
        while not observer.monitor_is_up():
            observer.spin(0.05)
            if monitor.exit_status is not None:
                raise monitor.fail(f'ended with status {monitor.exit_status} before the replay')
            if time.monotonic() > deadline or 'cannot configure' in monitor.log():
                raise monitor.fail('did not become active')
        # A publisher can be visible in the ROS graph before it is connected to this subscriber.
        observer.spin(0.3)
        replayed = {
            'rollout_set': rollout_set.resolve(),
            'frequency': float(frequency),
            'gap': float(gap),
            'episodes': listed,
        }
        with Process('vla_feature_bridge.nodes.replay', replayed, logs / 'replay.log') as replay:
            while replay.exit_status is None:
                observer.spin(0.1)
                if monitor.exit_status is not None:
                    raise monitor.fail(
                        f'ended with status {monitor.exit_status} before the end of the replay'
                    )
                if time.monotonic() > deadline:
                    raise replay.fail(f'did not end within {LONGEST_PLAY:g} s')
            if replay.exit_status != 0:
                raise replay.fail(f'ended with status {replay.exit_status}')
        observer.spin(0.5)
        observer.finish()
        if (status := monitor.stop()) != 0:
            raise monitor.fail(f'ended with status {status} after an interrupt, expected status 0')
        missing = [e for e in episodes if e not in observer.episodes]
        if missing:
            raise monitor.fail(f'published no score of episode {missing[0]!r}')
        return [observer.episodes[e] for e in episodes]
