# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: ``./dev bench [NAME ...]``.

Ratios are measured side by side in one run; single times depend on the machine.

* stream: one live step of SAFE-LSTM against one bare ``torch.nn.LSTMCell`` of the same size.
* latency: from publishing the step that raises an alarm to receiving the alarm, between two
  processes over DDS.
* detectors: one live step of every detector against the matrix products it cannot avoid.
* sweep: training a grid of SAFE-MLPs and SAFE-LSTMs together against one at a time.
* handover: handing over a step to the bridge or to ROS 2, in the thread of the policy.
* relay: an answer of a policy server through a relay against without one.
* tap: the cost of a tap in the thread of a policy.
* conversion: converting dumps against reading their files, its memory, and opening a set.
* rollouts: time and memory of each verb on many rollouts, with few open files; only if named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.conversion import bench_conversion, print_conversion
from bench.detectors import bench_detectors, print_detectors
from bench.handover import bench_handover, print_handover
from bench.relay import bench_relay, print_relay
from bench.rollouts import bench_rollouts, print_rollouts
from bench.sweep import bench_sweep, print_sweep
from bench.tap import bench_tap, print_tap
from safe_bringup.live import Process
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors.learned import SafeLstm
from safe_msgs.msg import FailureAlarm
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.ros.qos import ALARM_QOS, STEP_QOS
from vla_feature_bridge.step import PolicyStep

WIDTHS = (1024, 4096)
BLOCK = 50


def untrained_lstm(width: int) -> SafeLstm:
    """Return SAFE-LSTM of default size, untrained: its speed does not depend on the weights."""
    detector = SafeLstm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector.set_network(detector.build(width), width)
    return detector


def side_by_side(
    a: Callable[[], object], b: Callable[[], object], rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Time two calls in turns of :data:`BLOCK`, so that both meet the same weather.

    Returns the seconds per call of each.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, taken in zip((a, b), times, strict=True):
            for _ in range(BLOCK):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
    # The first round warms caches and allocators.
    return np.array(times[0][BLOCK:]), np.array(times[1][BLOCK:])


def bench_stream(width: int, rounds: int) -> dict[str, Any]:
    """Time ``Stream.step`` of SAFE-LSTM against the bare cell on the same vector."""
    detector = untrained_lstm(width)
    features = np.random.default_rng(0).normal(size=width).astype(np.float32)
    stream, step = detector.stream(), PolicyStep(features)
    cell = torch.nn.LSTMCell(width, detector.hidden)
    vector = torch.from_numpy(features)[None]
    state = [(torch.zeros(1, detector.hidden), torch.zeros(1, detector.hidden))]

    def bare() -> None:
        state[0] = cell(vector, state[0])

    with torch.inference_mode():
        ours, theirs = side_by_side(lambda: stream.step(step), bare, rounds)
    return {
        'features': width,
        'step_ms': milliseconds(ours),
        'bare_cell_ms': milliseconds(theirs),
        'ratio_of_medians': round(float(np.median(ours) / np.median(theirs)), 3),
    }


def milliseconds(seconds: np.ndarray) -> dict[str, float]:
    """Return p50 and p99 [ms]."""
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {'p50': round(float(p50), 4), 'p99': round(float(p99), 4)}


def alarming_folder(width: int, folder: Path) -> Path:
    """Write a detector whose band lies below every score: each episode alarms at its first step."""
    band = Band(np.array([0.1]), np.full((1, 8), -1.0), kind='benchmark', n_calibration=0)
    feature = FeatureSpec('features', width)
    return CalibratedDetector(untrained_lstm(width), feature, band, 0.1).save(folder)


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

    def _on_alarm(self, message: FailureAlarm) -> None:
        if message.state == FailureAlarm.STATE_ALARM:
            self._arrived.setdefault(message.episode_id, time.perf_counter())

    def close(self) -> None:
        """End the subscription."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_for(self, monitor: Process) -> None:
        """Return once steps reach the monitor and its alarms would arrive here."""
        self._spin_until(
            lambda: (
                self._publisher.get_subscription_count() > 0
                and self._node.count_publishers('safe/alarm') > 0
            ),
            monitor,
            'it did not come up',
        )

    def measure(self, step: PolicyStep, monitor: Process) -> float:
        """Return the time from publishing a step to receiving the alarm of its episode [s]."""
        message = step_to_message(step)
        start = time.perf_counter()
        self._publisher.publish(message)
        episode = step.episode_id
        self._spin_until(lambda: episode in self._arrived, monitor, f'no alarm for {episode}')
        return self._arrived[episode] - start

    def _spin_until(self, condition: Callable[[], bool], monitor: Process, what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            if time.monotonic() > deadline:
                raise monitor.fail(f'gave no sign of life: {what}')
            self._executor.spin_once(timeout_sec=0.5)


def bench_latency(width: int, samples: int, folder: Path) -> dict[str, Any]:
    """Measure publish to alarm received, from this process to the monitor's and back."""
    detector = alarming_folder(width, folder / f'detector{width}')
    features = np.random.default_rng(0).normal(size=width).astype(np.float32)
    watch, taken = AlarmWatch(), []
    try:
        with Process(
            'safe_monitor_node.nodes.monitor',
            {'detector_folder': detector},
            folder / f'monitor{width}.log',
        ) as monitor:
            watch.wait_for(monitor)
            for i in track(
                range(samples + 20),
                f'latency, {width} features',
                console=Console(stderr=True),
                transient=True,
            ):
                step = PolicyStep(features, feature_name='features', episode_id=f'e{i}')
                taken.append(watch.measure(step, monitor))
                # A policy infers now and then; without a pause the processes would never sleep.
                time.sleep(0.02)
    finally:
        watch.close()
    # The first samples are discovery and warm-up.
    return {
        'features': width,
        'samples': samples,
        'publish_to_alarm_ms': milliseconds(np.array(taken[20:])),
    }


def print_stream(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of live steps."""
    table = Table(
        'features',
        'step p50 [ms]',
        'step p99',
        'bare cell p50',
        'ratio (aim <= 1.3)',
        box=box.SIMPLE_HEAD,
        title='SAFE-LSTM, one live step against a bare torch LSTM cell, one thread',
    )
    for row in rows:
        step, cell = row['step_ms'], row['bare_cell_ms']
        table.add_row(
            str(row['features']),
            f'{step["p50"]:.3f}',
            f'{step["p99"]:.3f}',
            f'{cell["p50"]:.3f}',
            f'{row["ratio_of_medians"]:.2f}',
        )
    Console(highlight=False, width=100).print(table)


def print_latency(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of latencies."""
    table = Table(
        'features',
        'samples',
        'p50 [ms]',
        'p99 [ms] (aim < 5)',
        box=box.SIMPLE_HEAD,
        title='publish a step -> alarm received, two processes over DDS',
    )
    for row in rows:
        taken = row['publish_to_alarm_ms']
        table.add_row(
            str(row['features']),
            str(row['samples']),
            f'{taken["p50"]:.2f}',
            f'{taken["p99"]:.2f}',
        )
    Console(highlight=False, width=100).print(table)


def run_stream(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``stream``."""
    return [bench_stream(width, args.rounds) for width in WIDTHS]


def run_latency(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``latency``."""
    with tempfile.TemporaryDirectory() as folder:
        return [bench_latency(width, args.samples, Path(folder)) for width in WIDTHS]


def run_detectors(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``detectors``."""
    with Console(stderr=True).status('detectors') as status:
        return bench_detectors(WIDTHS, progress=lambda note: status.update(note))


def run_conversion(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark ``conversion``."""
    with Console(stderr=True).status('conversion'):
        return bench_conversion()


def run_relay(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``relay``."""
    with Console(stderr=True).status('relay') as status:
        return bench_relay(args.samples, progress=lambda note: status.update(note))


def run_sweep(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``sweep``."""
    with Console(stderr=True).status('sweep') as status:
        return bench_sweep(args.epochs, lambda note: status.update(note), args.device)


def run_handover(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``handover``."""
    with Console(stderr=True).status('handover') as status:
        return bench_handover(args.steps, progress=lambda note: status.update(note))


def run_tap(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``tap``."""
    with Console(stderr=True).status('tap') as status:
        return bench_tap(args.steps, progress=lambda note: status.update(note))


def run_rollouts(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``rollouts``."""
    with Console(stderr=True).status('rollouts') as status:
        return bench_rollouts(args.rollouts, lambda note: status.update(note))


BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[Any], None]]] = {
    'stream': (run_stream, print_stream),
    'latency': (run_latency, print_latency),
    'detectors': (run_detectors, print_detectors),
    'sweep': (run_sweep, print_sweep),
    'handover': (run_handover, print_handover),
    'relay': (run_relay, print_relay),
    'tap': (run_tap, print_tap),
    'conversion': (run_conversion, print_conversion),
    'rollouts': (run_rollouts, print_rollouts),
}
#: Benchmarks that take many minutes: they run only if they are named.
_LONG = ('rollouts',)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit status says whether it ran, never whether it was fast."""
    parser = argparse.ArgumentParser(
        prog='bench', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help=f'{", ".join(BENCHMARKS)} (default: all but {_LONG[0]})',
    )
    parser.add_argument(
        '--rounds', type=int, default=40, help=f'turns of {BLOCK} steps (default %(default)s)'
    )
    parser.add_argument(
        '--samples',
        type=int,
        default=500,
        help='alarms to time, and answers of each relay (default %(default)s)',
    )
    parser.add_argument(
        '--epochs', type=int, default=30, help='epochs of the sweep benchmark (default %(default)s)'
    )
    parser.add_argument(
        '--device', default='cpu', help='where the sweep benchmark trains (default %(default)s)'
    )
    parser.add_argument(
        '--steps', type=int, default=100, help='steps to hand over (default %(default)s)'
    )
    parser.add_argument(
        '--rollouts',
        type=int,
        default=20_000,
        help='rollouts of the largest set of the rollouts benchmark (default %(default)s)',
    )
    parser.add_argument('--json', action='store_true', help='print JSON for machines')
    args = parser.parse_args(arguments)
    if args.rounds < 2 or min(args.samples, args.epochs, args.steps) < 1:
        parser.error('--rounds must be at least 2, --samples, --epochs and --steps at least 1')
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f'no benchmark {unknown[0]!r}; there are: {", ".join(BENCHMARKS)}')
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in args.names or [name for name in BENCHMARKS if name not in _LONG]:
        run, show = BENCHMARKS[name]
        results[name] = run(args)
        if not args.json:
            show(results[name])
    if args.json:
        print(json.dumps(results, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
