# SPDX-License-Identifier: Apache-2.0
"""Benchmark of training a grid of models together against one after the other, as is usual."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from safe_monitor_node.detectors.learned import SafeLstm, SafeMlp
from safe_monitor_node.detectors.networks import pad_steps
from safe_training.evaluation.protocol import HELD_OUT_PROTOCOL, choose_split
from safe_training.evaluation.splits import Split
from safe_training.fitting.batched import Precision, train_together
from safe_training.fitting.learned import (
    TrainingData,
    fresh_network,
    make_optimizer,
    score_loss,
)
from safe_training.fitting.losses import sum_of_squares
from safe_training.metrics.ranking import rank
from safe_training.sweep.run import fastest_precision
from vla_feature_bridge.rollout import Rollout

Learned = SafeMlp | SafeLstm

#: Features and rollouts, as the recorded pi0.5 rollouts have them, and those of OpenVLA.
SIZES = ((1024, 597), (4096, 500))
TIME_LIMIT = 44
RATES, REGULARISATIONS = (1e-4, 3e-4, 1e-3), (1e-3, 1e-2, 1e-1, 1.0)
#: The grid of the paper: poolings x rates x regularisations x seeds, and its epochs.
GRID_MODELS, GRID_EPOCHS = 3 * len(RATES) * len(REGULARISATIONS) * 3, 1000
#: Configurations that are also trained one at a time: a quarter of those of one pooling and seed.
ONE_AT_A_TIME = (2, 6, 9)


def synthetic_rollouts(width: int, count: int) -> list[Rollout]:
    """Return rollouts of 12 tasks whose failures run to the time limit and drift apart slowly."""
    generator = np.random.default_rng(0)
    tasks = generator.normal(size=(12, width))
    direction = generator.normal(size=width)
    direction /= np.linalg.norm(direction)
    rollouts = []
    for index in range(count):
        task, failed = index % 12, index % 7 == 0
        limit = 10 + (TIME_LIMIT - 10) * task // 11
        steps = limit if failed else int(generator.integers(3, 3 + limit // 2))
        features = tasks[task] + generator.normal(size=(steps, width))
        features += 1.5 * failed * np.linspace(0.2, 1, steps)[:, None] * direction
        rollouts.append(
            Rollout(
                features.astype(np.float32),
                task=f'task{task:02}',
                success=not failed,
                episode_index=index,
            )
        )
    return rollouts


def configurations(kind: type[Learned], epochs: int) -> list[Learned]:
    """Return the models of the grid for one pooling and one seed."""
    extra = {'accumulate': 'sum'} if kind is SafeMlp else {}
    return [
        kind(epochs=epochs, learning_rate=rate, lambda_reg=reg, **extra)  # type: ignore[arg-type]
        for rate, reg in itertools.product(RATES, REGULARISATIONS)
    ]


def train_padded(detector: Learned, data: TrainingData, device: str = 'cpu') -> None:
    """Train one model the usual way: on zero-padded rollouts, by ``torch.nn`` and autograd."""
    padded = pad_steps(data.flat, data.lengths).to(device)
    valid, failed = data.valid().to(device), data.failed.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(detector.seed)
        network: Any = fresh_network(detector, data.flat.shape[1]).to(device)
    optimizer = make_optimizer(detector, network.parameters())
    weights = data.weights(detector)
    for _ in range(detector.epochs):
        optimizer.zero_grad()
        if isinstance(detector, SafeLstm):
            p = torch.sigmoid(network.head(network.lstm(padded)[0]).squeeze(-1))
        else:
            p = torch.sigmoid(network.layers(padded).squeeze(-1))
        scores = network.accumulated(p)
        loss = score_loss(detector, scores, valid, failed, weights)
        (loss + detector.lambda_reg * sum_of_squares(network)).backward()
        optimizer.step()
    detector.set_network(network.cpu(), data.flat.shape[1])


def product_rate(steps: int, width: int, precision: Precision, device: str = 'cpu') -> float:
    """Measure the rate of a plain matrix product of these sizes [operations/s]."""
    dtype = getattr(torch, precision)
    a = torch.ones(steps, width, dtype=dtype, device=device)
    b = torch.ones(1024, width, dtype=dtype, device=device)
    out = torch.empty(steps, 1024, dtype=dtype, device=device)
    taken = [_seconds(lambda: torch.mm(a, b.t(), out=out)) for _ in range(8)]
    return 2 * steps * width * 1024 / min(taken)


def operations(detector: Learned, steps: int, width: int) -> int:
    """Return the multiplications and additions of one epoch's matrix products on valid steps."""
    hidden = detector.hidden
    if isinstance(detector, SafeMlp):
        return 2 * steps * 2 * width * hidden
    return 2 * steps * (2 * width * 4 * hidden + 3 * hidden * 4 * hidden)


def unseen_auc(detector: Learned, rollouts: Sequence[Rollout], split: Split) -> float:
    """Return the ROC-AUC of the largest score on unseen tasks, pooled."""
    unseen = [rollouts[i] for i in split.unseen]
    values = [float(scores.max()) for scores in detector.score_all(unseen)]
    return rank(values, [r.failed for r in unseen]).roc_auc


def bench_sweep(
    epochs: int = 30,
    progress: Callable[[str], None] = lambda note: None,
    device: str = 'cpu',
) -> list[dict[str, Any]]:
    """Time both ways of training on the same rollouts, one after the other in this process.

    ``fit`` trains on the processor whatever the device is.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return [row for size in SIZES for row in _bench_size(*size, epochs, progress, device)]
    finally:
        torch.set_num_threads(before)


def _bench_size(
    width: int, count: int, epochs: int, progress: Callable[[str], None], device: str
) -> list[dict[str, Any]]:
    rollouts = synthetic_rollouts(width, count)
    split = choose_split(rollouts, 0, HELD_OUT_PROTOCOL)
    training = [rollouts[i] for i in split.train]
    data = TrainingData.of(training)
    precision = fastest_precision(device)
    rows = []
    for kind in (SafeMlp, SafeLstm):
        note = f'{kind.name}, {width} features, '
        alone = [configurations(kind, epochs)[i] for i in ONE_AT_A_TIME]
        progress(note + 'one at a time, padded')
        train_padded(configurations(kind, 1)[0], data, device)
        padded_seconds = sum(_seconds(partial(train_padded, d, data, device)) for d in alone)
        fitted = [configurations(kind, epochs)[i] for i in ONE_AT_A_TIME]
        progress(note + 'one at a time, by fit')
        fit_seconds = sum(_seconds(partial(d.fit, training)) for d in fitted)
        modes: list[Precision] = ['float32']
        modes += [precision] if precision != 'float32' else []
        for mode in modes:
            progress(note + f'together, {mode}')
            group = configurations(kind, epochs)
            train_together(configurations(kind, 1), data, precision=mode, device=device)
            seconds = _seconds(partial(train_together, group, data, precision=mode, device=device))
            each = seconds / len(group) / epochs
            padded_each = padded_seconds / len(alone) / epochs
            aucs = [
                (unseen_auc(a, rollouts, split), unseen_auc(group[i], rollouts, split))
                for a, i in zip(alone, ONE_AT_A_TIME, strict=True)
            ]
            rate = product_rate(len(data.flat), width, mode, device)
            rows.append(
                {
                    'detector': kind.name,
                    'features': width,
                    'rollouts': count,
                    'training_steps': len(data.flat),
                    'training_steps_padded': int(data.valid().numel()),
                    'precision': mode,
                    'device': device,
                    'epochs': epochs,
                    'models_together': len(group),
                    'models_alone': len(alone),
                    'seconds_per_model_epoch': each,
                    'padded_seconds_per_model_epoch': padded_each,
                    'fit_seconds_per_model_epoch': fit_seconds / len(alone) / epochs,
                    'ratio_to_padded': padded_each / each,
                    'share_of_product_rate': operations(group[0], len(data.flat), width)
                    / each
                    / rate,
                    'product_rate': rate,
                    'auc_alone': [a for a, _ in aucs],
                    'auc_together': [b for _, b in aucs],
                    'whole_grid_minutes': each * GRID_MODELS * GRID_EPOCHS / 60,
                    'whole_grid_minutes_padded': padded_each * GRID_MODELS * GRID_EPOCHS / 60,
                }
            )
    return rows


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def print_sweep(rows: Sequence[dict[str, Any]]) -> None:
    """Print the comparison, and what the ratios mean for the whole grid."""
    table = Table(
        'detector',
        'features',
        'precision',
        'padded, alone\n[ms/model/epoch]',
        'fit, alone',
        'together',
        'ratio to\npadded (aim >= 4)',
        'share of\nproduct rate',
        'unseen AUC\nalone, together',
        box=box.SIMPLE_HEAD,
        title=(
            f'Training a grid: {len(ONE_AT_A_TIME)} of its models one at a time, '
            f'{rows[0]["models_together"]} together, {rows[0]["epochs"]} epochs each, '
            f'on {rows[0]["device"]}'
        ),
    )
    for row in rows:
        table.add_row(
            row['detector'],
            str(row['features']),
            row['precision'],
            f'{row["padded_seconds_per_model_epoch"] * 1e3:.1f}',
            f'{row["fit_seconds_per_model_epoch"] * 1e3:.1f}',
            f'{row["seconds_per_model_epoch"] * 1e3:.1f}',
            f'{row["ratio_to_padded"]:.1f}',
            f'{row["share_of_product_rate"]:.2f}',
            f'{np.mean(row["auc_alone"]):.3f} {np.mean(row["auc_together"]):.3f}',
        )
    console = Console(highlight=False, width=130)
    console.print(table)
    for width, precision in dict.fromkeys((r['features'], r['precision']) for r in rows):
        both = [r for r in rows if (r['features'], r['precision']) == (width, precision)]
        padded = sum(r['whole_grid_minutes_padded'] for r in both)
        together = sum(r['whole_grid_minutes'] for r in both)
        first = both[0]
        console.print(
            f'{width} features, {first["rollouts"]} rollouts, {precision}: '
            f'{first["training_steps"]} steps train, padded {first["training_steps_padded"]}; '
            f'the whole grid ({GRID_MODELS} models of each detector, {GRID_EPOCHS} epochs, '
            f'extrapolated) {together:.0f} min together, {padded:.0f} min one at a time: '
            f'{padded / together:.1f} times'
        )
