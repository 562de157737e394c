# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the time from the step that raises an alarm to the alarm, between two processes.

The same is measured with a node of rclpy that answers such a step with an alarm at once: no monitor
can be faster on this machine.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.load_peers import ALARM_STEP, answer_of, start_peer
from safe_bringup.live import Process
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors.learned import SafeLstm
from safe_msgs.msg import FailureAlarm
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.ros.qos import ALARM_QOS, DIAGNOSTICS_QOS, STEP_QOS
from vla_feature_bridge.step import PolicyStep

WARM_UP = 20
"""Episodes that are not counted: discovery and caches."""


def untrained_lstm(width: int) -> SafeLstm:
    """Return SAFE-LSTM of default size, untrained: its speed does not depend on the weights."""
    detector = SafeLstm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector.set_network(detector.build(width), width)
    return detector


def milliseconds(seconds: np.ndarray) -> dict[str, float]:
    """Return p50 and p99 [ms]."""
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {'p50': round(float(p50), 4), 'p99': round(float(p99), 4)}


def alarming_folder(width: int, folder: Path) -> Path:
    """Write a detector whose band every score crosses at ``ALARM_STEP``, and none before it."""
    levels = np.where(np.arange(8) < ALARM_STEP, 1e6, -1.0)[None]
    band = Band(np.array([0.1]), levels, kind='benchmark', n_calibration=0)
    feature = FeatureSpec('features', width)
    return CalibratedDetector(untrained_lstm(width), feature, band, 0.1).save(folder)


class Peer(Protocol):
    """A process that answers with alarms."""

    def fail(self, problem: str) -> Exception:
        """Return the error that says what is wrong with the process."""


class AnsweringNode:
    """A process with a node of rclpy that answers the alarming step with an alarm at once."""

    def __enter__(self) -> AnsweringNode:
        self._peer = start_peer('answer')
        return self

    def __exit__(self, *error: object) -> None:
        self._peer.send_signal(signal.SIGINT)
        try:
            answer_of(self._peer)
        finally:
            self._peer.kill()

    def fail(self, problem: str) -> Exception:
        """Return the error that says what is wrong with the process."""
        return RuntimeError(f'the node that answers {problem}')


class AlarmWatch:
    """Publishes steps to a monitor and keeps the time at which each episode's alarm arrives."""

    def __init__(self) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        # No more than is measured: rclpy looks at every service of a node before it takes a
        # message.
        self._node = Node(
            'bench', context=self._context, start_parameter_services=False, enable_rosout=False
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._node.create_subscription(FailureAlarm, 'safe/alarm', self._on_alarm, ALARM_QOS)
        self._publisher = self._node.create_publisher(
            PolicyStepMessage, 'vla/policy_step', STEP_QOS
        )
        self._arrived: dict[str, float] = {}
        self._published = 0.0

    def _on_alarm(self, message: FailureAlarm) -> None:
        if message.state == FailureAlarm.STATE_ALARM:
            self._arrived.setdefault(message.episode_id, time.perf_counter())

    def close(self) -> None:
        """End the subscription."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_for(self, monitor: Peer) -> None:
        """Return once steps reach the monitor and its alarms would arrive here."""
        self._spin_until(
            lambda: (
                self._publisher.get_subscription_count() > 0
                and self._node.count_publishers('safe/alarm') > 0
            ),
            monitor,
            'it did not come up',
        )

    def own_share(self, monitor: Peer) -> dict[str, float]:
        """Return the time from receiving a step to publishing its score, p50 and p99 [ms]."""
        facts: dict[str, str] = {}

        def on_diagnostics(array: DiagnosticArray) -> None:
            facts.update((pair.key, pair.value) for pair in array.status[0].values)

        self._node.create_subscription(
            DiagnosticArray, '/diagnostics', on_diagnostics, DIAGNOSTICS_QOS
        )
        self._spin_until(lambda: 'latency p99 [ms]' in facts, monitor, 'no diagnostics')
        return {name: float(facts[f'latency {name} [ms]']) for name in ('p50', 'p99')}

    def measure(self, episode: Iterable[PolicyStep], period: float, monitor: Peer) -> float:
        """Return the time from publishing the last step of an episode to receiving its alarm [s].

        The steps are published with a period [s], like those of a policy.
        """
        for step in episode:
            message = step_to_message(step)
            due = self._published + period
            while (left := due - time.perf_counter()) > 0:
                self._executor.spin_once(timeout_sec=left)
            self._published = start = time.perf_counter()
            self._publisher.publish(message)
        name = step.episode_id
        self._spin_until(lambda: name in self._arrived, monitor, f'no alarm for {name}')
        return self._arrived[name] - start

    def _spin_until(self, condition: Callable[[], bool], monitor: Peer, what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            if time.monotonic() > deadline:
                raise monitor.fail(f'gave no sign of life: {what}')
            self._executor.spin_once(timeout_sec=0.5)


def _delays(
    watch: AlarmWatch, monitor: Peer, width: int, samples: int, frequency: float, what: str
) -> dict[str, float]:
    """Return the time from a step to its alarm, p50 and p99 [ms]."""
    features = np.random.default_rng(0).normal(size=width).astype(np.float32)
    watch.wait_for(monitor)
    taken = []
    for i in track(
        range(samples + WARM_UP),
        f'latency, {width} features, {what}',
        console=Console(stderr=True),
        transient=True,
    ):
        episode = [
            PolicyStep(features, feature_name='features', episode_id=f'{what}{i}', step=t)
            for t in range(ALARM_STEP + 1)
        ]
        taken.append(watch.measure(episode, 1 / frequency, monitor))
    return milliseconds(np.array(taken[WARM_UP:]))


def bench_latency(
    width: int, samples: int, folder: Path, frequency: float = 50.0
) -> dict[str, Any]:
    """Measure publish to alarm received, from this process to the monitor's and back.

    Parameters
    ----------
    width, samples : int
        Features of a step, and number of episodes. Each raises an alarm at its last step.
    folder : Path
        For the detector and the log.
    frequency : float
        Steps a second [Hz].
    """
    detector = alarming_folder(width, folder / f'detector{width}')
    watch = AlarmWatch()
    try:
        with AnsweringNode() as node:
            answered = _delays(watch, node, width, samples, frequency, 'node')
    finally:
        watch.close()
    watch = AlarmWatch()
    try:
        with Process(
            'safe_monitor_node.nodes.monitor',
            {'detector_folder': detector, 'max_identical_features': 0},
            folder / f'monitor{width}.log',
        ) as monitor:
            taken = _delays(watch, monitor, width, samples, frequency, 'monitor')
            own = watch.own_share(monitor)
    finally:
        watch.close()
    return {
        'features': width,
        'samples': samples,
        'publish_to_answer_ms': answered,
        'publish_to_alarm_ms': taken,
        'own_ms': own,
    }


def print_latency(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of latencies."""
    table = Table(
        'features',
        'samples',
        'p50 [ms]',
        'p99 [ms] (aim < 5)',
        'of a node that answers at once: p50',
        'p99',
        box=box.SIMPLE_HEAD,
        title='publish a step -> alarm received, two processes over DDS',
    )
    for row in rows:
        delays = (row['publish_to_alarm_ms'], row['publish_to_answer_ms'])
        table.add_row(
            str(row['features']),
            str(row['samples']),
            *(f'{delay[name]:.2f}' for delay in delays for name in ('p50', 'p99')),
        )
    Console(highlight=False, width=100).print(table)
