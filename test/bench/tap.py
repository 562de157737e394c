# SPDX-License-Identifier: Apache-2.0
"""What a tap costs the thread of a policy: alone, and with a sender to the bridge.

The policy is a flow-matching policy of about 0.1 s on one core, or on a GPU of about 0.05 s. Its
hidden states are as large as those of pi0: 10 denoising steps, horizon 50, width 1024. The ways
take turns in one run. The cost of a tap is far below the spread of whole inferences. Therefore the
functions of the tap are timed too, by the CPU clock of the thread. The wall time of an inference
shows what the other thread takes from the policy. On a GPU, it ends when the actions are on the
host.
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
from torch import nn

from vla_feature_bridge.taps import FeatureTap, capture, methods
from vla_feature_bridge.wire import StepReceiver, StepSender

DENOISE, HORIZON, WIDTH, ACTION_DIM = 10, 50, 1024, 7
#: Layers of the policy on the processor, and on a GPU.
LAYERS, LAYERS_GPU = 1, 48
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
    """Denoises a chunk of actions with transformer layers."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.input = nn.Linear(ACTION_DIM, WIDTH)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(WIDTH, 8, 2 * WIDTH, batch_first=True)
                for _ in range(layers)
            )
        )
        self.head = nn.Linear(WIDTH, ACTION_DIM)

    @torch.inference_mode()
    def predict_action_chunk(self, noise: torch.Tensor) -> torch.Tensor:
        """Return a chunk of actions, (1, horizon, action_dim)."""
        for _ in range(DENOISE):
            noise = noise - self.head(self.layers(self.input(noise))) / DENOISE
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


def bench_tap(
    inferences: int, progress: Callable[[str], None], device: str = 'cpu'
) -> list[dict[str, Any]]:
    """Measure inferences with every way, in turns.

    Parameters
    ----------
    inferences : int
        Number of inferences of each way.
    progress : callable
        Takes a note about what is measured.
    device : str
        Where the policy computes: ``'cpu'`` or ``'cuda'``.

    Returns
    -------
    list of dict
        For each way: CPU time of the thread for an inference and for the tap in it, and wall time
        of an inference [ms], medians; and the tap's share of the inference.
    """
    torch.manual_seed(0)
    with torch.device(device):
        policy = BenchPolicy(LAYERS if device == 'cpu' else LAYERS_GPU).eval()
        noise = torch.randn(1, HORIZON, ACTION_DIM)
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
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
                            watch.seconds = 0.0
                            wall, start = time.perf_counter(), time.thread_time()
                            policy.predict_action_chunk(noise).cpu()
                            whole[way].append(time.thread_time() - start)
                            walls[way].append(time.perf_counter() - wall)
                            inside[way].append(watch.seconds)
    return [
        row(
            f'{way}, {device}' if device != 'cpu' else way,
            np.array(whole[way][_WARM_UP:]),
            np.array(walls[way][_WARM_UP:]),
            np.array(inside[way][_WARM_UP:]),
        )
        for way in WAYS
    ]


def row(way: str, whole: np.ndarray, walls: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    """Return the medians of one way."""
    return {
        'way': way,
        'inferences': len(whole),
        'inference_ms': round(float(np.median(whole)) * 1e3, 3),
        'wall_ms': round(float(np.median(walls)) * 1e3, 3),
        'tap_ms': round(float(np.median(inside)) * 1e3, 3),
        'share': round(float(np.median(inside / whole)), 5),
    }


def print_tap(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    # A machine with a GPU may have nothing but PyTorch.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        'way',
        'wall p50 [ms]',
        'CPU p50 [ms]',
        'in the tap p50 [ms]',
        f'share [%] (aim < {100 * AIM:g})',
        box=box.SIMPLE_HEAD,
        title='a tap in the thread of a policy, in turns: '
        f'{results[0]["inferences"]} inferences of each way',
    )
    for entry in results:
        table.add_row(
            entry['way'],
            f'{entry["wall_ms"]:.1f}',
            f'{entry["inference_ms"]:.1f}',
            f'{entry["tap_ms"]:.2f}',
            f'{100 * entry["share"]:.2f}',
        )
    Console(highlight=False, width=100).print(table)
