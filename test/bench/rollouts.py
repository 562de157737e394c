# SPDX-License-Identifier: Apache-2.0
"""Benchmark of sets with many rollouts: time and memory of each verb, with few open files.

Dumps of three sizes are written, each ten times as large as the one before. Every verb runs in a
process of its own that may open 256 files. Times are CPU times, so that other processes change them
little. The smallest size shows the cost of the start of a process. Therefore growth is the extra
cost of a rollout between the second and the third size, in units of the extra cost between the
first and the second. Growth of 1 is linear.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

OPEN_FILES = 256
VERBS = ('convert', 'fit', 'evaluate', 'judge', 'report')
_TOKENS, _WIDTH, _TASKS = 7, 32, 10
_NAMES = [f'action/{n}' for n in ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')]
_NAMES += [f'action/token_{i}_{what}' for i in range(_TOKENS) for what in ('prob', 'entropy')]

_PROBE = """
import json, resource, sys, time

report, files, *words = sys.argv[1:]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), hard))
from safe_training.cli.main import main

status = main(words)
with open('/proc/self/status') as lines:
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))
with open(report, 'w') as out:
    json.dump({'cpu_seconds': time.process_time(), 'peak_bytes': peak}, out)
sys.exit(status)
"""


def write_dump(folder: Path, episodes: int) -> None:
    """Write OpenVLA episodes of 10 to 19 steps; failures drift away from successes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(episodes):
        task, episode = number % _TASKS, number // _TASKS
        success, steps = bool(rng.random() < 0.7), int(rng.integers(10, 20))
        hidden = rng.normal(size=(steps, _TOKENS, _WIDTH)) + task
        if not success:
            hidden += np.linspace(0, 1, steps)[:, None, None]
        record = {
            'hidden_states': hidden.astype(np.float32),
            'task_suite_name': 'bench',
            'task_id': task,
            'task_description': f'task {task}',
            'episode_idx': episode,
            'episode_success': success,
        }
        name = f'task{task}--ep{episode}--succ{int(success)}'
        (folder / f'{name}.pkl').write_bytes(pickle.dumps(record))
        rows = rng.uniform(0.01, 0.99, (steps, len(_NAMES))).round(4).astype(str).tolist()
        lines = [','.join(_NAMES), *map(','.join, rows)]
        (folder / f'{name}.csv').write_text('\n'.join(lines) + '\n')


def bench_rollouts(
    rollouts: int, progress: Callable[[str], None] = lambda note: None
) -> list[dict[str, Any]]:
    """Return time and peak memory of each verb on sets of three sizes, the largest last."""
    sizes = [max(20, rollouts // 100), max(200, rollouts // 10), max(2000, rollouts)]
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            progress(f'{size} rollouts: writing the dump')
            write_dump(folder / 'dump', size)
            for verb in VERBS:
                progress(f'{size} rollouts: {verb}')
                rows.append({'rollouts': size, 'verb': verb, **_measure(folder, verb)})
            page = (folder / 'page.html').stat().st_size
            rows.append({'rollouts': size, 'verb': 'page', 'file_bytes': page})
    return rows


def _measure(folder: Path, verb: str) -> dict[str, float]:
    rollouts, detector = str(folder / 'set'), str(folder / 'detector')
    words = {
        # Memory of this process is measured, so this process has to do the work.
        'convert': (str(folder / 'dump'), rollouts, '--jobs', '1'),
        'fit': (rollouts, '--detector', 'safe_mlp', '--param', 'epochs=20', '--out', detector),
        'evaluate': (rollouts, '--detector', 'safe_mlp', '--param', 'epochs=20', '--splits', '2'),
        'judge': (rollouts, detector),
        'report': (rollouts, detector, '--out', str(folder / 'page.html')),
    }[verb]
    report = folder / 'report.json'
    done = subprocess.run(
        [sys.executable, '-c', _PROBE, str(report), str(OPEN_FILES), verb, *words],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{verb} ended with status {done.returncode}: {done.stderr[-2000:]}')
    found: dict[str, float] = json.loads(report.read_text())
    return found


def growth(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the last slope in units of the first; NaN if the first is not positive."""
    first = (values[1] - values[0]) / (sizes[1] - sizes[0])
    last = (values[2] - values[1]) / (sizes[2] - sizes[1])
    return last / first if first > 0 else float('nan')


def print_rollouts(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line for each verb."""
    sizes = sorted({row['rollouts'] for row in rows})
    table = Table(
        'verb',
        *(f'{size} rollouts\nCPU s, peak MB' for size in sizes),
        'time, last\nto the one before',
        'memory',
        'growth of time\n(1: linear)',
        'growth of\nmemory',
        box=box.SIMPLE_HEAD,
        title=f'Many rollouts of {_WIDTH} features, with at most {OPEN_FILES} open files',
    )
    for verb in VERBS:
        mine = [row for row in rows if row['verb'] == verb]
        times, peaks = ([row[key] for row in mine] for key in ('cpu_seconds', 'peak_bytes'))
        cells = [f'{t:.1f}, {p / 1e6:.0f}' for t, p in zip(times, peaks, strict=True)]
        table.add_row(
            verb,
            *cells,
            f'{times[-1] / times[-2]:.1f}',
            f'{peaks[-1] / peaks[-2]:.1f}',
            f'{growth(times, sizes):.2f}',
            f'{growth(peaks, sizes):.2f}',
        )
    console = Console(highlight=False, width=130)
    console.print(table)
    pages = [f'{row["file_bytes"] / 1e6:.1f} MB' for row in rows if row['verb'] == 'page']
    console.print(f'report page: {", ".join(pages)}')
