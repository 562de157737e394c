# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of conversion: throughput, memory, and how soon a converted set is open.

Dumps of the sizes that the published ones have are written into a temporary folder and converted.
What is printed as a ratio is measured side by side: MB/s against reading the same files from
beginning to end, memory against the size of one episode. The files come from the page cache in
both cases, so that the ratio is one of work, not of disks.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from safe_training.recordings.convert import convert
from safe_training.recordings.readers.base import EpisodeSource
from safe_training.recordings.sources import open_source
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

MEGABYTE = 1e6
OPEN_EPISODES, OPEN_WIDTH, OPEN_LIMIT = 500, 4096, 0.2
MEMORY_LIMIT = 2.0
_ROUNDS = 3

_MEMORY_PROBE = """
import json, sys
from safe_training.recordings.convert import convert

def peak():
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith('VmHWM'))

small, large, place, keep = sys.argv[1:]
convert(small, place + '/small_set', keep=keep)
before = peak()
convert(large, place + '/large_set', keep=keep)
print(json.dumps([before, peak()]))
"""
_OPEN_PROBE = """
import json, sys, time
from vla_feature_bridge.rollout_set.reader import RolloutSet

start = time.perf_counter()
import pyarrow.parquet
imported = time.perf_counter()
opened = RolloutSet.open(sys.argv[1])
print(json.dumps([imported - start, time.perf_counter() - imported, len(opened)]))
"""


# -- dumps as large as real ones


def write_openvla(folder: Path, episodes: int, steps: int) -> None:
    """Write OpenVLA episodes: 7 tokens of 4096 bfloat16 at each step."""
    folder.mkdir(parents=True)
    names = [f'action/{n}' for n in ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')]
    names += [f'action/token_{i}_{what}' for i in range(7) for what in ('prob', 'entropy')]
    for episode in range(episodes):
        generator = torch.Generator().manual_seed(episode)
        record = {
            'hidden_states': torch.randn(steps, 7, 4096, generator=generator).bfloat16(),
            'task_suite_name': 'bench',
            'task_id': 0,
            'task_description': 'bench',
            'eposide_idx': episode,
            'episode_success': True,
        }
        stem = folder / f'task0--ep{episode}--succ1'
        stem.with_suffix('.pkl').write_bytes(pickle.dumps(record))
        row = ','.join(f'{0.01 * column}' for column in range(len(names)))
        stem.with_suffix('.csv').write_text('\n'.join([','.join(names), *[row] * steps]) + '\n')


def _write_openpi(root: Path, episodes: int, steps: int, record: Callable[[int], dict]) -> None:
    (root / 'env_records').mkdir(parents=True)
    (root / 'policy_records').mkdir()
    number = 0
    for episode in range(episodes):
        env = {
            'task_suite_name': 'bench',
            'task_id': 0,
            'task_description': 'bench',
            'episode_idx': episode,
            'episode_success': True,
            'model_infer_times': steps,
            'replan_steps': 5,
        }
        file = root / 'env_records' / f'task0--ep{episode}--succ1.pkl'
        file.write_bytes(pickle.dumps(env))
        for step in range(steps):
            name = f'step_{number}--bench--task_0--ep_{episode}--t_{5 * step}--meta.pkl'
            (root / 'policy_records' / name).write_bytes(pickle.dumps(record(number)))
            number += 1


def write_pi0(root: Path, episodes: int, steps: int) -> None:
    """Write pi0 records: 10 denoising steps, horizon 50, 1024 wide, float32."""

    def record(number: int) -> dict[str, Any]:
        rng = np.random.default_rng(number)
        return {
            'pre_velocity': rng.standard_normal((10, 50, 1024), np.float32),
            'actions': rng.standard_normal((50, 7)),
            'raw_actions': rng.standard_normal((50, 32), np.float32),
        }

    _write_openpi(root, episodes, steps, record)


def write_pi0_fast(root: Path, episodes: int, steps: int) -> None:
    """Write pi0-FAST records: 30 to 50 tokens, three arrays 2048 wide, bfloat16."""

    def record(number: int) -> dict[str, Any]:
        rng = np.random.default_rng(number)
        shape = (30 + number % 21, 2048)
        arrays = {
            name: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for name in ('encoded', 'pre_logits', 'logits')
        }
        return {**arrays, 'actions': rng.standard_normal((10, 7))}

    _write_openpi(root, episodes, steps, record)


#: Format -> how it is written, inferences of one episode.
DUMPS: dict[str, tuple[Callable[[Path, int, int], None], int]] = {
    'openvla': (write_openvla, 250),
    'pi0': (write_pi0, 12),
    'pi0_fast': (write_pi0_fast, 50),
}


# -- measurements


def bench_throughput(dump: Path, folder: Path) -> dict[str, Any]:
    """Convert a dump in one process and read the same files, in turns; the fastest counts."""
    source = open_source(dump)
    assert isinstance(source, EpisodeSource)
    files = [file for index in range(source.episode_count) for file in source.files(index)]
    size = sum(file.stat().st_size for file in files)
    reading, converting = [], []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for file in files:
            file.read_bytes()
        reading.append(time.perf_counter() - start)
        start = time.perf_counter()
        convert(dump, folder / 'set', overwrite=True, jobs=1)
        converting.append(time.perf_counter() - start)
    return {
        'megabytes': size / MEGABYTE,
        'reading_mb_per_s': size / MEGABYTE / min(reading),
        'converting_mb_per_s': size / MEGABYTE / min(converting),
        'ratio': min(reading) / min(converting),
    }


def bench_memory(
    write: Callable[[Path, int, int], None], steps: int, keep: str, folder: Path
) -> dict[str, Any]:
    """Measure how much a process grows while it converts episodes much larger than its own."""
    write(folder / 'small', 1, 2)
    write(folder / 'large', 2, 4 * steps)
    source = open_source(folder / 'large')
    assert isinstance(source, EpisodeSource)
    episode = sum(file.stat().st_size for file in source.files(0))
    before, peak = _probe(
        _MEMORY_PROBE, str(folder / 'small'), str(folder / 'large'), str(folder), keep
    )
    return {
        'episode_mb': episode / MEGABYTE,
        'growth_mb': (peak - before) / MEGABYTE,
        'ratio': (peak - before) / episode,
        'limit': MEMORY_LIMIT,
    }


def bench_start() -> float:
    """Time in seconds until another process is ready to convert, the smallest of several."""
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, '-c', 'import safe_training.recordings.convert_workers'], check=True
        )
        times.append(time.perf_counter() - start)
    return min(times)


def bench_open(folder: Path) -> dict[str, Any]:
    """Time opening a set for the first time in a fresh process, and importing pyarrow for it."""
    spec = FeatureSpec('hidden_states', OPEN_WIDTH, ('token',), (('token', 'last'),))
    features = np.zeros((4, OPEN_WIDTH), np.float32)
    with RolloutSetWriter(folder / 'many', feature=spec, policy='bench') as writer:
        for index in range(OPEN_EPISODES):
            writer.add(Rollout(features, f'task {index % 10}', True, f'{index}'))
    imported, first, episodes = _probe(_OPEN_PROBE, str(folder / 'many'))
    return {
        'episodes': episodes,
        'width': OPEN_WIDTH,
        'first_s': first,
        'import_s': imported,
        'limit_s': OPEN_LIMIT,
        'ratio': first / OPEN_LIMIT,
    }


def _probe(code: str, *arguments: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, '-c', code, *arguments], check=True, capture_output=True, text=True
    )
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bench_conversion(episodes: int = 6) -> dict[str, Any]:
    """Run all of it.

    Parameters
    ----------
    episodes : int
        Of each dump; six are about 100 MB.

    Returns
    -------
    dict
        ``throughput`` by format, ``memory`` by format and what is kept, ``start_s``, ``open``.
    """
    results: dict[str, Any] = {'throughput': {}, 'memory': {}, 'start_s': bench_start()}
    for name, (write, steps) in DUMPS.items():
        with tempfile.TemporaryDirectory(prefix='safe_bench_') as place:
            folder = Path(place)
            write(folder / 'dump', episodes, steps)
            results['throughput'][name] = bench_throughput(folder / 'dump', folder)
        for keep in ('pooled', 'raw'):
            with tempfile.TemporaryDirectory(prefix='safe_bench_') as place:
                found = bench_memory(write, steps, keep, Path(place))
                results['memory'][f'{name}, {keep}'] = found
    with tempfile.TemporaryDirectory(prefix='safe_bench_') as place:
        results['open'] = bench_open(Path(place))
    return results


def print_conversion(results: dict[str, Any], console: Console | None = None) -> None:
    """Print what :func:`bench_conversion` returned as tables."""
    console = console or Console()
    table = Table(title='convert in one process, against reading the same files', box=box.SIMPLE)
    for column in ('format', 'MB', 'reading MB/s', 'convert MB/s', 'ratio'):
        table.add_column(column, justify='left' if column == 'format' else 'right')
    for name, row in results['throughput'].items():
        table.add_row(
            name,
            f'{row["megabytes"]:.0f}',
            f'{row["reading_mb_per_s"]:.0f}',
            f'{row["converting_mb_per_s"]:.0f}',
            f'{row["ratio"]:.2f}',
        )
    console.print(table)
    console.print(f'another process is ready after {results["start_s"]:.2f} s')
    table = Table(title='memory of one process, against one episode', box=box.SIMPLE)
    for column in ('format', 'episode MB', 'growth MB', 'ratio', 'limit'):
        table.add_column(column, justify='left' if column == 'format' else 'right')
    for name, row in results['memory'].items():
        table.add_row(
            name,
            f'{row["episode_mb"]:.0f}',
            f'{row["growth_mb"]:.0f}',
            f'{row["ratio"]:.2f}',
            f'{row["limit"]:.2f}',
        )
    console.print(table)
    row = results['open']
    console.print(
        f'opening {row["episodes"]} episodes x {row["width"]} features: {row["first_s"]:.3f} s, '
        f'{row["ratio"]:.2f} of the limit of {row["limit_s"]} s (importing pyarrow before: '
        f'{row["import_s"]:.3f} s)'
    )


if __name__ == '__main__':
    print_conversion(bench_conversion())
