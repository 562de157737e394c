# SPDX-License-Identifier: Apache-2.0
"""Benchmark of one monitor over hours: memory, losses, and scores that stay as offline."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.load import (
    LAST,
    WIDTH,
    answer_of,
    cpu_seconds,
    listening,
    print_verdict,
    start_peer,
    started_monitor,
)
from bench.load_peers import features_of_episode
from safe_monitor_node.detectors.base import Detector
from vla_feature_bridge.rollout import Rollout

_TOLERANCE = 1e-5
_BLOCKS = 20
_PAGE = os.sysconf('SC_PAGE_SIZE')

Progress = Callable[[str], None]


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * _PAGE


def bench_endurance(
    minutes: float, frequency: float, detector: Detector, progress: Progress = lambda note: None
) -> dict[str, Any]:
    """Send steps for a long time; returns memory, losses, and the scores against the offline ones.

    Parameters
    ----------
    minutes, frequency : float
        How long, and how fast [Hz].
    detector : Detector
    progress : callable
        Takes what is measured now.
    """
    with (
        tempfile.TemporaryDirectory(prefix='safe_bench_') as folder,
        listening(scores=True) as facts,
        started_monitor(detector, Path(folder), facts) as monitor,
    ):
        publisher = start_peer('publish', frequency, minutes * 60, WIDTH)
        before, began, samples = cpu_seconds(monitor.pid), time.monotonic(), []
        while publisher.poll() is None:
            facts.spin(1.0)
            samples.append((time.monotonic() - began, resident_bytes(monitor.pid)))
            progress(f'endurance: {samples[-1][0] / 60:.1f} of {minutes:g} min')
        cpu = cpu_seconds(monitor.pid) - before
        sent = answer_of(publisher)
        facts.spin(2.5)
        result = {
            'minutes': minutes,
            'frequency': frequency,
            'sent': sent['sent'],
            'scored': facts.number('steps scored'),
            'missing': facts.number('steps missing'),
            'invalid': facts.invalid,
            'heard': facts.received,
            'cpu_percent': 100 * cpu / sent['seconds'],
            'memory_mb': samples[-1][1] / 1e6,
            **memory_slope(samples),
            'largest_difference': largest_difference(list(facts.scores), detector),
            'compared': len(facts.scores),
        }
    result['failures'] = _failures_of_endurance(result)
    return result


def memory_slope(samples: list[tuple[float, int]]) -> dict[str, float]:
    """Return the slope of the resident memory and its standard error [MB/h].

    The first fifth of the samples is warm-up. Neighbouring samples are not independent; therefore
    the line is fitted to the means of 20 blocks.
    """
    kept = np.array(samples[len(samples) // 5 :], float)
    blocks = np.array([block.mean(axis=0) for block in np.array_split(kept, _BLOCKS) if len(block)])
    hours, megabytes = blocks[:, 0] / 3600, blocks[:, 1] / 1e6
    centred = hours - hours.mean()
    slope = float((centred * megabytes).sum() / (centred**2).sum())
    rest = megabytes - megabytes.mean() - slope * centred
    variance = float((rest**2).sum() / max(len(blocks) - 2, 1) / (centred**2).sum())
    return {
        'slope_mb_per_hour': slope,
        'slope_error': variance**0.5,
        'growth_mb': float(megabytes[-1] - megabytes[0]),
    }


def largest_difference(scores: list[tuple[str, int, float]], detector: Detector) -> float:
    """Return the largest difference between live and offline scores; infinity if one is NaN."""
    offline: dict[str, np.ndarray] = {}
    largest = 0.0
    for episode, step, score in scores:
        if episode not in offline:
            features = features_of_episode(int(episode[1:]), WIDTH)
            offline[episode] = detector.score(Rollout(features, task='bench'))
        difference = abs(float(offline[episode][step]) - score)
        largest = max(largest, difference if np.isfinite(difference) else np.inf)
    return largest


def _failures_of_endurance(result: dict[str, Any]) -> list[str]:
    failures = []
    for name in ('scored', 'heard'):
        if lost := result['sent'] - result[name]:
            failures.append(f'{lost} of {result["sent"]} steps were not {name}')
    if result['invalid']:
        failures.append(f'{result["invalid"]} steps were INVALID')
    if result['compared'] < LAST:
        failures.append(f'only {result["compared"]} scores could be compared, not {LAST}')
    if not result['largest_difference'] <= _TOLERANCE:
        failures.append(
            f'live and offline scores differ by {result["largest_difference"]:.2g}, '
            f'more than {_TOLERANCE:g}'
        )
    slope, error = result['slope_mb_per_hour'], result['slope_error']
    # A line through steps of single pages can be significant and small.
    if slope > 2 * error and result['growth_mb'] > 0.5:
        failures.append(f'the memory grows by {slope:.2f} +- {error:.2f} MB/h')
    return failures


def print_endurance(result: dict[str, Any]) -> None:
    """Print the table of endurance."""
    table = Table(
        'what',
        'value',
        box=box.SIMPLE_HEAD,
        title=f'{result["minutes"]:g} min at {result["frequency"]:g} Hz, {WIDTH} features',
    )
    rows = {
        'steps sent / scored / scores heard': (
            f'{result["sent"]} / {result["scored"]} / {result["heard"]}'
        ),
        'CPU of the monitor': f'{result["cpu_percent"]:.1f} %',
        'memory of the monitor': f'{result["memory_mb"]:.1f} MB',
        'slope of the memory': (
            f'{result["slope_mb_per_hour"]:.2f} +- {result["slope_error"]:.2f} MB/h'
        ),
        'growth after the warm-up': f'{result["growth_mb"]:.2f} MB',
        f'largest |live - offline| of the last {result["compared"]} scores': (
            f'{result["largest_difference"]:.1e}'
        ),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console(highlight=False, width=100)
    console.print(table)
    print_verdict(console, result['failures'])
