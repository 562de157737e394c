# SPDX-License-Identifier: Apache-2.0
"""Benchmark of one monitor at 1 kHz against a node that receives and discards.

It says what is expected of the monitor, and what is not as expected.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rich import box
from rich.console import Console
from rich.table import Table

from bench.load_peers import EPISODE_STEPS, answer_of, start_peer
from safe_bringup.live import Process
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors.base import Detector
from safe_msgs.msg import FailureScore
from vla_feature_bridge.pooling import FeatureSpec

WIDTH = 1024
LAST = 1000
"""Number of the last scores that are compared with the offline ones."""

_P99_MS = 3.0
_TICKS = os.sysconf('SC_CLK_TCK')


def quiet_folder(detector: Detector, folder: Path) -> Path:
    """Write a detector whose band lies above every score: it never alarms."""
    band = Band(
        np.array([0.1]), np.full((1, EPISODE_STEPS), 1e6), kind='benchmark', n_calibration=0
    )
    return CalibratedDetector(detector, FeatureSpec('features', WIDTH), band, 0.1).save(folder)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used [s]."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Facts:
    """Listens to the diagnostics of the monitor, and to its scores if they are wanted."""

    def __init__(self, scores: bool = False) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = Node(
            'bench_facts',
            context=self._context,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        self.facts: dict[str, str] = {}
        self.scores: deque[tuple[str, int, float]] = deque(maxlen=LAST)
        self.received = self.invalid = 0
        self._node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, qos)
        if scores:
            self._node.create_subscription(FailureScore, 'safe/score', self._on_score, qos)

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        if 'failure monitor' in array.status[0].name:
            self.facts = {pair.key: pair.value for pair in array.status[0].values}

    def _on_score(self, score: FailureScore) -> None:
        self.received += 1
        if score.state == FailureScore.STATE_INVALID:
            self.invalid += 1
            return
        self.scores.append((score.episode_id, score.step, score.score))

    def spin(self, seconds: float) -> None:
        """Listen for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def number(self, name: str) -> int:
        """Return a fact that is a number; 0 before the first diagnosis."""
        return int(self.facts.get(name, '0'))

    def close(self) -> None:
        """End all subscriptions."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


@contextmanager
def listening(scores: bool = False) -> Iterator[Facts]:
    """Yield a listener."""
    facts = Facts(scores)
    try:
        yield facts
    finally:
        facts.close()


def stream_to(pid: int, frequency: float, seconds: float, facts: Facts | None) -> dict[str, Any]:
    """Publish steps to one process; returns what was sent and the CPU time of the process."""
    publisher = start_peer('publish', frequency, seconds, WIDTH)
    before = cpu_seconds(pid)
    while publisher.poll() is None:
        if facts is None:
            time.sleep(0.05)
        else:
            facts.spin(0.05)
    sent = answer_of(publisher)
    time.sleep(0.5)
    return {**sent, 'cpu_seconds': cpu_seconds(pid) - before}


def bench_throughput(seconds: float, detector: Detector, folder: Path) -> dict[str, Any]:
    """Send 1 kHz to a node that discards, then to a monitor."""
    peer = start_peer('discard')
    try:
        time.sleep(3.0)
        discard = stream_to(peer.pid, 1000.0, seconds, None)
        peer.send_signal(signal.SIGINT)
        discard['received'] = answer_of(peer)['received']
    finally:
        peer.kill()
    with listening() as facts, started_monitor(detector, folder, facts) as monitor:
        judged = stream_to(monitor.pid, 1000.0, seconds, facts)
        facts.spin(2.5)
        judged['received'] = facts.number('steps scored')
        judged['missing'] = facts.number('steps missing')
        judged['invalid'] = facts.number('steps invalid')
    return {
        'seconds': seconds,
        'discard': discard,
        'monitor': judged,
        'cpu_ratio': judged['cpu_seconds'] / max(discard['cpu_seconds'], 1e-9),
        'failures': _failures_of_throughput(discard, judged),
    }


def _failures_of_throughput(discard: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    failures = []
    for name, one in (('discard', discard), ('monitor', judged)):
        rate = one['sent'] / one['seconds']
        if rate < 990:
            failures.append(f'{name}: the policy sent {rate:.0f} Hz, not 1000: a busy machine')
        if lost := one['sent'] - one['received']:
            failures.append(f'{name}: lost {lost} of {one["sent"]} steps')
    if judged['invalid']:
        failures.append(f'monitor: {judged["invalid"]} steps were INVALID')
    return failures


@contextmanager
def started_monitor(detector: Detector, folder: Path, facts: Facts) -> Iterator[Process]:
    """Run a monitor that never alarms; yields it when it is active."""
    log = folder / 'monitor.log'
    parameters = {
        'detector_folder': quiet_folder(detector, folder / 'quiet'),
        'max_identical_features': 0,
    }
    with Process('safe_monitor_node.nodes.monitor', parameters, log) as monitor:
        deadline = time.monotonic() + 30
        while facts.facts.get('state') is None:
            if time.monotonic() > deadline:
                raise monitor.fail('did not become active')
            facts.spin(0.1)
        yield monitor


def print_load(result: dict[str, Any]) -> None:
    """Print the tables of load."""
    table = Table(
        'process',
        'sent',
        'lost',
        'CPU [%]',
        'CPU a step [ms]',
        box=box.SIMPLE_HEAD,
        title=f'1 kHz for {result["throughput"]["seconds"]:g} s, {WIDTH} features',
    )
    for name in ('discard', 'monitor'):
        one = result['throughput'][name]
        table.add_row(
            name,
            str(one['sent']),
            str(one['sent'] - one['received']),
            f'{100 * one["cpu_seconds"] / one["seconds"]:.0f}',
            f'{1e3 * one["cpu_seconds"] / one["sent"]:.3f}',
        )
    console = Console(highlight=False, width=100)
    console.print(table)
    console.print(f'CPU of the monitor / CPU of discard: {result["throughput"]["cpu_ratio"]:.2f}')
    delay = result['alarm']
    table = Table(
        'samples',
        'p50 [ms]',
        f'p99 [ms] (aim < {_P99_MS:g})',
        'of a node that answers at once: p50',
        'p99',
        'own share of the monitor, all steps: p50',
        'p99',
        box=box.SIMPLE_HEAD,
        title='publish a step -> alarm received, at 100 Hz',
    )
    table.add_row(
        str(delay['samples']),
        *(
            f'{delay[key]:.2f}'
            for key in (
                'p50_ms',
                'p99_ms',
                'answer_p50_ms',
                'answer_p99_ms',
                'own_p50_ms',
                'own_p99_ms',
            )
        ),
    )
    console.print(table)
    print_verdict(console, result['failures'])


def failures_of_alarm(delay: dict[str, Any]) -> list[str]:
    """Return what is not as expected of the delay of an alarm."""
    if delay['p99_ms'] < _P99_MS:
        return []
    return [f'p99 from step to alarm is {delay["p99_ms"]:.2f} ms, not below {_P99_MS:g} ms']


def print_verdict(console: Console, failures: list[str]) -> None:
    """Print what is not as expected, and how busy the machine is."""
    for failure in failures:
        console.print(f'NOT AS EXPECTED: {failure}')
    if not failures:
        console.print('as expected')
    console.print(f'load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
