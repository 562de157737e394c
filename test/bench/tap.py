# SPDX-License-Identifier: Apache-2.0
"""What a tap costs the thread of a policy: alone, and with a sender to the bridge.

The policy is a flow-matching policy of about 0.1 s on one core. Its hidden states are as large as
those of pi0: 10 denoising steps, horizon 50, width 1024. The ways take turns in one run. The cost
of a tap is far below the spread of whole inferences. Therefore the functions of the tap are timed
too, by the CPU clock of the thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from vla_feature_bridge.taps import FeatureTap, capture, methods
from vla_feature_bridge.wire import StepReceiver, StepSender

DENOISE, HORIZON, WIDTH, ACTION_DIM = 10, 50, 1024, 7
WAYS = ('no tap', 'tap', 'tap + sender', 'tap + sender, raw')
AIM = 0.01
_WARM_UP = 3
_FIELDS: dict[str, Any] = {
    'calls': DENOISE,
    'axes': ['denoise', 'horizon'],
    'pooling': ['horizon=mean', 'denoise=mean'],
    'ends': 'predict_action_chunk',
    'actions': ['batch', 'horizon', 'action'],
    'exec_horizon': HORIZON,
}


class BenchPolicy(nn.Module):
    """Denoises a chunk of actions with one transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(ACTION_DIM, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 8, 2 * WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, ACTION_DIM)

    @torch.inference_mode()
    def predict_action_chunk(self, noise: torch.Tensor) -> torch.Tensor:
        """Return a chunk of actions, (1, horizon, action_dim)."""
        for _ in range(DENOISE):
            noise = noise - self.head(self.layer(self.input(noise))) / DENOISE
        return noise


class Stopwatch:
    """Adds up the CPU time of the calling thread inside some functions [s]."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def run(*args: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args)
            finally:
                self.seconds += time.thread_time() - start

        return run


@contextmanager
def tapped(policy: BenchPolicy, way: str, address: str, watch: Stopwatch) -> Iterator[None]:
    """Attach what a way needs; the functions that the policy calls are timed."""
    if way == WAYS[0]:
        yield
        return
    fields = {**_FIELDS, 'pooling': []} if way == WAYS[3] else _FIELDS
    sender = None
    with (
        mock.patch.object(methods, 'outside_graphs', watch.timed),
        mock.patch.object(capture, 'outside_graphs', watch.timed),
    ):
        tap = FeatureTap(policy, 'head', **fields)
        if way != WAYS[1]:
            tap.detach()
            sender = StepSender(address, **tap.sink_options(), wait_for_monitor=30)
            tap = FeatureTap(policy, 'head', sink=sender, **fields)
    with tap:
        if sender is not None:
            sender.start()
        yield
        assert tap.last is not None and not tap.problems, tap.problems
    if sender is not None:
        assert not sender.refused, sender.last_error
        sender.close()


def bench_tap(inferences: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure inferences with every way, in turns.

    Parameters
    ----------
    inferences : int
        Number of inferences of each way.
    progress : callable
        Takes a note about what is measured.

    Returns
    -------
    list of dict
        For each way: CPU time of the thread for an inference and for the tap in it [ms], medians;
        and the tap's share of the inference.
    """
    torch.manual_seed(0)
    policy = BenchPolicy().eval()
    noise = torch.randn(1, HORIZON, ACTION_DIM)
    whole: dict[str, list[float]] = {way: [] for way in WAYS}
    inside: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        address = f'unix:{Path(folder) / "bridge.sock"}'
        with StepReceiver([address], lambda source, message: None) as bridge:
            bridge.set_status(True)
            for number in range(0, inferences + _WARM_UP, _WARM_UP):
                progress(f'tap, {number} of {inferences} inferences')
                for way in WAYS:
                    watch = Stopwatch()
                    with tapped(policy, way, address, watch):
                        for _ in range(_WARM_UP):
                            watch.seconds, start = 0.0, time.thread_time()
                            policy.predict_action_chunk(noise)
                            whole[way].append(time.thread_time() - start)
                            inside[way].append(watch.seconds)
    return [
        row(way, np.array(whole[way][_WARM_UP:]), np.array(inside[way][_WARM_UP:])) for way in WAYS
    ]


def row(way: str, whole: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    """Return the medians of one way."""
    return {
        'way': way,
        'inferences': len(whole),
        'inference_ms': round(float(np.median(whole)) * 1e3, 3),
        'tap_ms': round(float(np.median(inside)) * 1e3, 3),
        'share': round(float(np.median(inside / whole)), 5),
    }


def print_tap(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        'way',
        'inference p50 [ms]',
        'in the tap p50 [ms]',
        f'share [%] (aim < {100 * AIM:g})',
        box=box.SIMPLE_HEAD,
        title='CPU time of the thread of a policy on one core, in turns: '
        f'{results[0]["inferences"]} inferences of each way',
    )
    for entry in results:
        table.add_row(
            entry['way'],
            f'{entry["inference_ms"]:.1f}',
            f'{entry["tap_ms"]:.2f}',
            f'{100 * entry["share"]:.2f}',
        )
    Console(highlight=False, width=100).print(table)
