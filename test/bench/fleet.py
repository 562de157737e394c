# SPDX-License-Identifier: Apache-2.0
"""Benchmark of many robots in one process on one core, against one process for each robot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from bench.endurance import resident_bytes
from bench.fleet_peers import GARBAGE, name_of, row_of
from bench.load import cpu_seconds, print_verdict
from bench.load_peers import EPISODE_STEPS, features_of
from safe_bringup.live import LiveError, Process
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors.base import Detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout

WIDTH = 4096
ROBOTS = 40
SINGLES = 8
"""Robots of the comparison with one process each: a small machine has no time for more at 10 Hz."""
FREQUENCY = 10.0

_P99_MS = 20.0
_GARBAGE_MS = 2.0
"""By how much the garbage of one robot may raise the p99 of the others."""
_MEMORY_MB = 1200.0
_SINGLE_MB = 400.0
"""Memory of a process for one robot, a little more than measured."""
_TOLERANCE = 1e-5
_LATEST = 10.0
"""Time after the last step in which scores may come [s]; a later one is lost."""

Progress = Callable[[str], None]


@contextmanager
def on_one_core(*, others: bool = False) -> Iterator[None]:
    """Let the processes that are started now run on one core, with all their threads.

    ``others``: on all other cores, if there are some. The policies and the listener must not take
    the time of the monitors.
    """
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    os.sched_setaffinity(0, (allowed - one or one) if others else one)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def listener(robots: int, scores: int) -> Iterator[Callable[[], list[list[Any]]]]:
    """Run the process that hears scores; yields a function that returns them when it has all."""
    process = _peer('listen', robots, scores)

    def heard() -> list[list[Any]]:
        try:
            output, _ = process.communicate(timeout=_LATEST)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        found: list[list[Any]] = json.loads(output.splitlines()[-1])
        return found

    try:
        # It must be found by the monitors before the first score.
        time.sleep(3.0)
        yield heard
    finally:
        process.kill()


def _peer(*arguments: object) -> subprocess.Popen[str]:
    with on_one_core(others=True):
        return subprocess.Popen(
            [sys.executable, '-m', 'bench.fleet_peers', *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )


@contextmanager
def fleet_of(robots: int, detector: Path, folder: Path) -> Iterator[list[Process]]:
    """Run a fleet on one core; yields its process."""
    file = folder / f'robots{robots}.yaml'
    content = {
        'parameters': {'detector_folder': str(detector), 'max_identical_features': 0},
        'robots': [{'namespace': name_of(robot)} for robot in range(robots)],
    }
    file.write_text(yaml.safe_dump(content))
    with on_one_core():
        fleet = Process(
            'safe_monitor_node.nodes.fleet', {'robots_file': file}, folder / 'fleet.log'
        )
    with fleet:
        yield [fleet]


@contextmanager
def monitors_of(robots: int, detector: Path, folder: Path) -> Iterator[list[Process]]:
    """Run a monitor process for each robot, all of them on one core; yields the processes."""
    with ExitStack() as stack:
        processes = []
        for robot in range(robots):
            with on_one_core():
                process = Process(
                    'safe_monitor_node.nodes.monitor',
                    {'detector_folder': detector, 'max_identical_features': 0},
                    folder / f'monitor{robot}.log',
                    ['-r', f'__ns:=/{name_of(robot)}'],
                )
            processes.append(stack.enter_context(process))
        yield processes


@contextmanager
def garbage_of(kind: str, robot: int) -> Iterator[None]:
    """Let one robot do what nobody should do."""
    process = _peer('garbage', kind, robot, WIDTH)
    try:
        yield
        if process.poll() is not None:
            raise LiveError(f'the process of the garbage {kind!r} has ended')
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def check_memory(singles: int) -> str:
    """Return how much memory the comparison needs, in words.

    Raises
    ------
    LiveError
        The machine has not enough memory now.
    """
    lines = Path('/proc/meminfo').read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
    needed = singles * _SINGLE_MB
    if needed > available / 1e3:
        raise LiveError(
            f'--singles {singles}: expected about {needed:.0f} MB of free memory, found '
            f'{available / 1e3:.0f} MB; use fewer --singles'
        )
    return f'about {needed:.0f} of {available / 1e3:.0f} MB of free memory'


def measure(
    processes: Sequence[Process],
    robots: int,
    seconds: float,
    detector: Detector,
    episode: str,
    frequency: float = FREQUENCY,
) -> dict[str, Any]:
    """Let every robot send one episode; returns losses, delays, CPU and memory of the monitors."""
    scores_wanted = round(frequency * seconds) * robots
    with listener(robots, scores_wanted) as heard:
        publisher = _peer('publish', robots, frequency, seconds, WIDTH, episode)
        assert publisher.stdout is not None
        # It waits for all monitors, and for the listener.
        if not publisher.stdout.readline():
            raise processes[0].fail('did not listen to every robot')
        before, began = sum(cpu_seconds(p.pid) for p in processes), time.monotonic()
        output, _ = publisher.communicate(timeout=seconds + 60)
        took = time.monotonic() - began
        cpu = sum(cpu_seconds(p.pid) for p in processes) - before
        memory = sum(resident_bytes(p.pid) for p in processes) / 1e6
        sent = json.loads(output.splitlines()[-1])
        scores = heard()
    delays = np.array([one[5] for one in scores] or [np.inf])
    return {
        'robots': robots,
        'sent': sent['sent'],
        'lost': sent['sent'] - len(scores),
        'invalid': sum(one[4] for one in scores),
        'p50_ms': float(np.percentile(delays, 50)),
        'p99_ms': float(np.percentile(delays, 99)),
        'max_ms': float(delays.max()),
        'cpu_percent': 100 * cpu / took,
        'cpu_ms_per_step': 1e3 * cpu / max(sent['sent'], 1),
        'memory_mb': memory,
        'policy_late_ms': sent['latest_ms'],
        'largest_difference': largest_difference(scores, detector),
    }


def largest_difference(scores: Sequence[Sequence[Any]], detector: Detector) -> float:
    """Return the largest difference between live and offline scores; infinity if one is missing."""
    offline: dict[int, np.ndarray] = {}
    largest = 0.0
    for robot, _, step, score, _, _ in scores:
        if robot not in offline:
            rows = [row_of(robot, index) for index in range(EPISODE_STEPS)]
            rollout = Rollout(features_of(WIDTH)[rows], task='bench')
            offline[robot] = detector.score(rollout)
        difference = np.inf if score is None else abs(float(offline[robot][step]) - score)
        largest = max(largest, difference)
    return largest


def bench_fleet(
    seconds: float,
    detector: Detector,
    progress: Progress = lambda note: None,
    singles: int = SINGLES,
    frequency: float = FREQUENCY,
) -> dict[str, Any]:
    """Measure a fleet, the same with a robot that sends garbage, and both ways with few robots.

    Parameters
    ----------
    seconds : float
        Length of each measurement; an episode of at most 500 steps.
    detector : Detector
        On 4096 features.
    progress : callable
        Takes what is measured now.
    singles : int
        Robots of the comparison with one process each.
    frequency : float
        Their frequency [Hz].

    Raises
    ------
    LiveError
        The machine has not enough memory for the processes, or one of them has ended.
    """
    estimate = f'{singles} processes, {check_memory(singles)}'
    with tempfile.TemporaryDirectory(prefix='safe_bench_') as name:
        folder = Path(name)
        band = Band(
            np.array([0.1]), np.full((1, EPISODE_STEPS), 1e6), kind='benchmark', n_calibration=0
        )
        calibrated = CalibratedDetector(detector, FeatureSpec('features', WIDTH), band, 0.1)
        saved = calibrated.save(folder / 'detector')
        progress(f'fleet: {ROBOTS} robots')
        with fleet_of(ROBOTS, saved, folder) as fleet:
            many = measure(fleet, ROBOTS, seconds, detector, 'good')
            progress(f'fleet: {ROBOTS - 1} robots')
            others = measure(fleet, ROBOTS - 1, seconds, detector, 'others')
            garbage = {}
            for kind, what in GARBAGE.items():
                progress(f'fleet: {ROBOTS - 1} robots, and one: {what}')
                with garbage_of(kind, ROBOTS - 1):
                    garbage[kind] = measure(fleet, ROBOTS - 1, seconds, detector, kind)
        progress(f'fleet: {singles} robots')
        with fleet_of(singles, saved, folder) as fleet:
            few = measure(fleet, singles, seconds, detector, 'few', frequency)
        progress(f'fleet: {estimate}')
        with monitors_of(singles, saved, folder) as monitors:
            alone = measure(monitors, singles, seconds, detector, 'single', frequency)
    result = {
        'seconds': seconds,
        'estimate': estimate,
        'many': many,
        'others': others,
        'garbage': garbage,
        'few': few,
        'singles': alone,
        'frequency': frequency,
        'cpu_ratio': few['cpu_percent'] / max(alone['cpu_percent'], 1e-9),
        'memory_ratio': few['memory_mb'] / alone['memory_mb'],
    }
    result['failures'] = _failures(result)
    return result


def _rows(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    names = ('many', 'others', 'few', 'singles')
    return [(name, result[name]) for name in names] + [
        (f'garbage {kind}', one) for kind, one in result['garbage'].items()
    ]


def _failures(result: dict[str, Any]) -> list[str]:
    failures = []
    for name, one in _rows(result):
        if one['lost'] or one['invalid']:
            failures.append(f'{name}: lost {one["lost"]} steps, {one["invalid"]} were INVALID')
        if not one['largest_difference'] <= _TOLERANCE:
            failures.append(
                f'{name}: live and offline scores differ by {one["largest_difference"]:.2g}'
            )
    if not result['many']['p99_ms'] < _P99_MS:
        failures.append(f'many: p99 is {result["many"]["p99_ms"]:.1f} ms, not below {_P99_MS}')
    limit = result['others']['p99_ms'] + _GARBAGE_MS
    for kind, one in result['garbage'].items():
        if not one['p99_ms'] <= limit:
            failures.append(f'garbage {kind}: p99 is {one["p99_ms"]:.1f} ms, not {limit:.1f}')
    if result['many']['memory_mb'] > _MEMORY_MB:
        failures.append(f'many: {result["many"]["memory_mb"]:.0f} MB, not below {_MEMORY_MB:g}')
    return failures


def print_fleet(result: dict[str, Any]) -> None:
    """Print the table of the fleet."""
    titles = {
        'many': 'one process',
        'others': 'one process',
        **{f'garbage {kind}': f'and one more: {what}' for kind, what in GARBAGE.items()},
        'few': 'one process',
        'singles': 'a process for each',
    }
    rows = dict(_rows(result))
    table = Table(
        'robots',
        'how',
        'sent',
        'lost',
        'p50 [ms]',
        'p99 [ms]',
        'max [ms]',
        'CPU [%]',
        'CPU a step [ms]',
        'memory [MB]',
        box=box.SIMPLE_HEAD,
        title=f'{FREQUENCY:g} Hz, {WIDTH} features, SAFE-LSTM, one core, {result["seconds"]:g} s; '
        'published step -> received score',
    )
    for name, title in titles.items():
        one = rows[name]
        table.add_row(
            str(one['robots']),
            title,
            str(one['sent']),
            str(one['lost']),
            *(f'{one[key]:.1f}' for key in ('p50_ms', 'p99_ms', 'max_ms')),
            f'{one["cpu_percent"]:.0f}',
            f'{one["cpu_ms_per_step"]:.2f}',
            f'{one["memory_mb"]:.0f}',
        )
    console = Console(highlight=False, width=130)
    console.print(table)
    console.print(
        f'{result["few"]["robots"]} robots at {result["frequency"]:g} Hz, '
        f'one process / a process for each: CPU {result["cpu_ratio"]:.2f}, '
        f'memory {result["memory_ratio"]:.2f}; before the start: {result["estimate"]}'
    )
    print_verdict(console, result['failures'])
