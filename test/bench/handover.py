# SPDX-License-Identifier: Apache-2.0
"""What handing over a step costs the thread of the policy: StepSender, StepPublisher, neither.

A policy infers now and then, so each call meets cold caches. Therefore the calls are 0.1 s apart,
and the ways take turns in one run. The readers live in another process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rich import box
from rich.console import Console
from rich.table import Table

from vla_feature_bridge.ros import StepPublisher
from vla_feature_bridge.wire import StepSender

FREQUENCY = 10.0  # [Hz]
#: Shapes of the features: a pooled vector (4 KB), raw pre-velocity states of pi0 (2 MB).
SHAPES = ((1024,), (10, 50, 1024))
CHUNK = (1, 50, 7)
WAYS = ('nothing', 'StepSender', 'StepPublisher')
_WARM_UP = 5
_PATIENCE = 60.0

_READER = """
import sys
import rclpy
from safe_msgs.msg import EpisodeEvent, PolicyStep
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS
from vla_feature_bridge.wire import StepReceiver

from rclpy.executors import ExternalShutdownException

rclpy.init()
node = rclpy.create_node('handover_reader')
node.create_subscription(PolicyStep, 'vla/policy_step', lambda message: None, STEP_QOS)
node.create_subscription(EpisodeEvent, 'vla/episode', lambda message: None, EPISODE_QOS)
receiver = StepReceiver([sys.argv[1]], lambda source, message: None)
receiver.set_status(True)
print('ready', flush=True)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""


def bench_handover(steps: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure the calls of ``publish`` for every shape of features.

    Parameters
    ----------
    steps : int
        Number of calls of each way and shape.
    progress : callable
        Takes a note about what is measured.

    Returns
    -------
    list of dict
        For each shape: size of the features [bytes], CPU time of the calling thread and wall time
        of each way [ms], and the ratio of the medians of CPU time.
    """
    context = Context()
    rclpy.init(context=context)
    try:
        with tempfile.TemporaryDirectory() as folder:
            address = f'unix:{Path(folder) / "reader.sock"}'
            with _reader(address):
                return [_measure(context, address, shape, steps, progress) for shape in SHAPES]
    finally:
        rclpy.try_shutdown(context=context)


@contextmanager
def _reader(address: str) -> Iterator[None]:
    """Run the process that reads both ways."""
    with subprocess.Popen(
        [sys.executable, '-c', _READER, address], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != 'ready':
                raise RuntimeError('the reader of the handover benchmark did not start')
            yield
        finally:
            process.terminate()


def _measure(
    context: Context,
    address: str,
    shape: tuple[int, ...],
    steps: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    node = rclpy.create_node('handover', context=context)
    publisher = StepPublisher(node, 'f', 8, wait_for_monitor=_PATIENCE, strict=True)
    sender = StepSender(
        address, feature_name='f', exec_horizon=8, wait_for_monitor=_PATIENCE, strict=True
    )
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    chunk = np.random.default_rng(1).normal(size=CHUNK).astype(np.float32)
    try:
        publisher.start()
        sender.start()
        calls: dict[str, Callable[[], object]] = {
            'nothing': lambda: None,
            'StepSender': lambda: sender.publish(features, chunk),
            'StepPublisher': lambda: publisher.publish(features, chunk),
        }
        progress(f'handover, {features.nbytes} bytes')
        taken = _take_turns(calls, steps)
        if sender.last_error or publisher.last_error:
            raise RuntimeError(sender.last_error or publisher.last_error)
    finally:
        sender.close()
        publisher.close()
        node.destroy_node()
    medians = {way: float(np.median(taken[way][:, 0])) for way in WAYS}
    return {
        'bytes': features.nbytes,
        'ways': {way: _milliseconds(taken[way]) for way in WAYS},
        'cpu_ratio_sender_to_publisher': round(medians['StepSender'] / medians['StepPublisher'], 3),
    }


def _take_turns(calls: dict[str, Callable[[], object]], steps: int) -> dict[str, np.ndarray]:
    """Return CPU and wall time [s] of every call, shape (steps, 2), for each way."""
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in calls}
    pause = 1 / FREQUENCY / len(calls)
    for _ in range(steps + _WARM_UP):
        for way, call in calls.items():
            time.sleep(pause)
            wall, cpu = time.perf_counter(), time.thread_time()
            call()
            spent = time.thread_time() - cpu
            taken[way].append((spent, time.perf_counter() - wall))
    return {way: np.array(times[_WARM_UP:]) for way, times in taken.items()}


def _milliseconds(times: np.ndarray) -> dict[str, float]:
    cpu, wall = np.median(times, axis=0) * 1e3
    return {
        'cpu_p50': round(float(cpu), 3),
        'wall_p50': round(float(wall), 3),
        'wall_max': round(float(times[:, 1].max() * 1e3), 3),
    }


def print_handover(rows: list[dict[str, Any]]) -> None:
    """Print the table of the ways."""
    table = Table(
        'features',
        'way',
        'CPU p50 [ms]',
        'wall p50 [ms]',
        'wall max [ms]',
        'CPU, sender / publisher',
        box=box.SIMPLE_HEAD,
        title=f'handing over one step at {FREQUENCY:g} Hz, in the thread of the policy',
    )
    for row in rows:
        for way, times in row['ways'].items():
            is_sender = way == 'StepSender'
            table.add_row(
                f'{row["bytes"] / 1024:.0f} KB',
                way,
                f'{times["cpu_p50"]:.2f}',
                f'{times["wall_p50"]:.2f}',
                f'{times["wall_max"]:.2f}',
                f'{row["cpu_ratio_sender_to_publisher"]:.2f}' if is_sender else '',
            )
    Console(highlight=False, width=100).print(table)
