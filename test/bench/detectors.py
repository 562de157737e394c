# SPDX-License-Identifier: Apache-2.0
"""Benchmark of every registered detector: one live step against the BLAS calls it cannot avoid."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from safe_monitor_node.detectors import DETECTORS, Detector, make_detector
from safe_monitor_node.detectors.learned import LearnedDetector
from safe_monitor_node.threads import limit_threads
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.signals import rollout_signals

# Fitting time does not matter here, so training is short; the fitted arrays have their full size.
SHORT_TRAINING = {
    'safe_lstm': {'epochs': 1},
    'safe_mlp': {'epochs': 1},
    'rnd': {'epochs': 1, 'batch_size': 4},
    'logpzo': {'epochs': 1, 'batch_size': 4},
}
# Detectors whose size does not grow with the training rollouts, and whose training is slow.
FEW_ROLLOUTS = ('rnd', 'logpzo')
STEPS = 25


def synthetic_rollouts(width: int, count: int) -> list[Rollout]:
    """Return rollouts of noise with everything that a detector may need, half of them failures."""
    generator = np.random.default_rng(0)
    rollouts = []
    for index in range(count):
        actions = generator.normal(size=(STEPS, 10, 8, 7)).astype(np.float32)
        rollouts.append(
            Rollout(
                generator.normal(size=(STEPS, width)).astype(np.float32),
                task=f'task{index % 3}',
                success=(index // 3) % 2 == 0,
                episode_index=index,
                actions=actions,
                exec_horizon=4,
                token_probability=generator.uniform(0.01, 1, (STEPS, 7)).astype(np.float32),
                token_entropy=generator.uniform(0, 3, (STEPS, 7)).astype(np.float32),
                signals=rollout_signals(actions, 4),
            )
        )
    return rollouts


def unavoidable(detector: Detector) -> Callable[[], object] | None:
    """Return a function that multiplies every fitted matrix by a vector, and does nothing else.

    The products are those of the library that the detector uses, PyTorch or NumPy. None for
    detectors without a matrix, and for detectors whose arrays are convolutions.
    """
    arrays = [np.asarray(a) for a in detector.state().values() if a.dtype.kind == 'f']
    if any(a.ndim > 2 for a in arrays):
        return None
    pairs = [(m, np.ones(m.shape[1], m.dtype)) for m in arrays if m.ndim == 2 and min(m.shape) > 0]
    if not pairs:
        return None
    if isinstance(detector, LearnedDetector):
        tensors = [(torch.from_numpy(m), torch.from_numpy(v)) for m, v in pairs]
        return lambda: [torch.mv(matrix, vector) for matrix, vector in tensors]
    return lambda: [matrix @ vector for matrix, vector in pairs]


def bench_detector(
    name: str, rollouts: Sequence[Rollout], width: int, calls: int
) -> dict[str, Any]:
    """Time live steps of one detector, in turns with the products it cannot avoid."""
    if name in FEW_ROLLOUTS:
        rollouts = rollouts[:12]
    detector = make_detector(name, **SHORT_TRAINING.get(name, {}))
    started = time.perf_counter()
    detector.fit(rollouts)
    fit_seconds = time.perf_counter() - started
    reference = unavoidable(detector)
    steps = [rollouts[0].step(t) for t in range(STEPS)]
    ours: list[float] = []
    theirs: list[float] = []
    budget = time.perf_counter() + 20
    while len(ours) < calls + STEPS and time.perf_counter() < budget:
        stream = detector.stream()
        for step in steps:
            start = time.perf_counter()
            stream.step(step)
            ours.append(time.perf_counter() - start)
        for _ in range(STEPS if reference else 0):
            start = time.perf_counter()
            reference()  # type: ignore[misc]
            theirs.append(time.perf_counter() - start)
    p50, p99 = np.percentile(ours[STEPS:], (50, 99)) * 1e3
    bare = float(np.median(theirs[STEPS:])) * 1e3 if theirs else None
    return {
        'detector': name,
        'features': width,
        'p50_ms': round(float(p50), 4),
        'p99_ms': round(float(p99), 4),
        'unavoidable_p50_ms': None if bare is None else round(bare, 4),
        'ratio': None if bare is None else round(float(p50) / bare, 2),
        'memory_mb': round(sum(a.nbytes for a in detector.state().values()) / 1e6, 3),
        'fit_seconds': round(fit_seconds, 2),
        'training_steps': sum(map(len, rollouts)),
    }


def bench_detectors(
    widths: Sequence[int],
    rollouts: int = 40,
    calls: int = 500,
    names: Sequence[str] = (),
    progress: Callable[[str], None] = lambda note: None,
) -> list[dict[str, Any]]:
    """Benchmark detectors (all by default) on noise of each width, on one thread."""
    limit_threads(1)
    results = []
    for width in widths:
        data = synthetic_rollouts(width, rollouts)
        for name in names or sorted(DETECTORS):
            progress(f'{name}, {width} features')
            results.append(bench_detector(name, data, width, calls))
    return results


def print_detectors(results: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        'detector',
        'features',
        'step p50 [ms]',
        'p99 (aim < 5)',
        'products p50',
        'ratio',
        'memory [MB]',
        box=box.SIMPLE_HEAD,
        title='One live step on one thread, against one matrix-vector product per fitted matrix',
    )
    for row in results:
        bare = row['unavoidable_p50_ms']
        table.add_row(
            row['detector'],
            str(row['features']),
            f'{row["p50_ms"]:.3f}',
            f'{row["p99_ms"]:.3f}',
            '-' if bare is None else f'{bare:.3f}',
            '-' if bare is None else f'{row["ratio"]:.2f}',
            f'{row["memory_mb"]:.2f}',
        )
    Console(highlight=False, width=110).print(table)
