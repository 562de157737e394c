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
* peers: whether an inference is late when bridge and monitor are killed or stopped.
* conversion: converting dumps against reading their files, its memory, and opening a set.

Only by name, with the exit status 1 if something is not as expected:

* load: one monitor at 1 kHz against a node that receives and discards, and alarms at 100 Hz.
* endurance: one monitor at 200 Hz for --minutes: memory, losses, scores equal to the offline ones.
* fleet: 40 robots at 10 Hz in one process on one core, 39 of them beside one that does what nobody
  should do, and 8 robots with a process for each.
* rollouts: time and memory of each verb on many rollouts, with few open files.
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
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.conversion import bench_conversion, print_conversion
from bench.detectors import bench_detectors, print_detectors
from bench.endurance import bench_endurance, print_endurance
from bench.fleet import FREQUENCY, SINGLES, bench_fleet, print_fleet
from bench.fleet import WIDTH as FLEET_WIDTH
from bench.handover import bench_handover, print_handover
from bench.latency import bench_latency, milliseconds, print_latency, untrained_lstm
from bench.load import (
    bench_throughput,
    failures_of_alarm,
    print_load,
)
from bench.peers import bench_peers, print_peers
from bench.relay import bench_relay, print_relay
from bench.rollouts import bench_rollouts, print_rollouts
from bench.sweep import bench_sweep, print_sweep
from bench.tap import bench_tap, print_tap
from vla_feature_bridge.step import PolicyStep

WIDTHS = (1024, 4096)
BLOCK = 50


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


def run_stream(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``stream``."""
    return [bench_stream(width, args.rounds) for width in WIDTHS]


def run_latency(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark ``latency``."""
    with tempfile.TemporaryDirectory() as folder:
        return [bench_latency(width, args.samples, Path(folder)) for width in WIDTHS]


def run_load(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark ``load``."""
    width = WIDTHS[0]
    with tempfile.TemporaryDirectory() as folder:
        throughput = bench_throughput(args.seconds, untrained_lstm(width), Path(folder))
        delay = bench_latency(width, args.samples, Path(folder), frequency=100.0)
    taken, own = delay['publish_to_alarm_ms'], delay['own_ms']
    alarm = {
        'samples': delay['samples'],
        **{f'{name}_ms': value for name, value in taken.items()},
        **{f'answer_{name}_ms': value for name, value in delay['publish_to_answer_ms'].items()},
        **{f'own_{name}_ms': value for name, value in own.items()},
    }
    failures = throughput['failures'] + failures_of_alarm(alarm)
    return {'throughput': throughput, 'alarm': alarm, 'failures': failures}


def run_endurance(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark ``endurance``."""
    with Console(stderr=True).status('endurance') as status:
        return bench_endurance(
            args.minutes, 200.0, untrained_lstm(WIDTHS[0]), lambda note: status.update(note)
        )


def run_fleet(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark ``fleet``."""
    with Console(stderr=True).status('fleet') as status:
        return bench_fleet(
            min(args.seconds, 50.0),
            untrained_lstm(FLEET_WIDTH),
            lambda note: status.update(note),
            args.singles,
            args.frequency,
        )


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
        return bench_tap(args.steps, lambda note: status.update(note), args.device)


def run_peers(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark ``peers``."""
    with Console(stderr=True).status('peers') as status:
        return bench_peers(args.steps, progress=lambda note: status.update(note))


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
    'peers': (run_peers, print_peers),
    'conversion': (run_conversion, print_conversion),
}
# They take long, or judge.
BY_NAME: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[Any], None]]] = {
    'load': (run_load, print_load),
    'endurance': (run_endurance, print_endurance),
    'fleet': (run_fleet, print_fleet),
    'rollouts': (run_rollouts, print_rollouts),
}


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--rollouts',
        type=int,
        default=20_000,
        help='rollouts of the largest set of the rollouts benchmark (default %(default)s)',
    )
    text = 'robots of fleet that have a process each (default %(default)s)'
    parser.add_argument('--singles', type=int, default=SINGLES, metavar='N', help=text)
    text = 'frequency of their steps [Hz] (default %(default)s)'
    parser.add_argument('--frequency', type=float, default=FREQUENCY, help=text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit status says whether it ran, and whether aims were missed."""
    parser = argparse.ArgumentParser(
        prog='bench', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help=f'{", ".join(BENCHMARKS)} (default: all of them); {", ".join(BY_NAME)}',
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
        '--device', default='cpu', help='where sweep and tap compute (default %(default)s)'
    )
    parser.add_argument(
        '--steps', type=int, default=100, help='steps to hand over (default %(default)s)'
    )
    parser.add_argument(
        '--seconds', type=float, default=20.0, help='length of load and fleet (default %(default)s)'
    )
    parser.add_argument(
        '--minutes', type=float, default=30.0, help='length of endurance (default %(default)s)'
    )
    parser.add_argument('--json', action='store_true', help='print JSON for machines')
    _add_sizes(parser)
    args = parser.parse_args(arguments)
    if args.rounds < 2 or min(args.samples, args.epochs, args.steps) < 1:
        parser.error('--rounds must be at least 2, --samples, --epochs and --steps at least 1')
    if min(args.seconds, 60 * args.minutes) < 1:
        parser.error('--seconds must be at least 1, --minutes at least 0.02')
    known = BENCHMARKS | BY_NAME
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f'no benchmark {unknown[0]!r}; there are: {", ".join(known)}')
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in args.names or BENCHMARKS:
        run, show = known[name]
        results[name] = run(args)
        if not args.json:
            show(results[name])
    if args.json:
        print(json.dumps(results, indent=2))
    # A result without aims is a list of rows.
    return int(any(isinstance(r, dict) and r.get('failures') for r in results.values()))


if __name__ == '__main__':
    sys.exit(main())
