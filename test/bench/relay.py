# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the relays: how much later an answer arrives than without one.

A client asks the same server directly, through a program that only copies bytes between two
sockets, and through the relay, in turns. An observation has 301 KB. The server does nothing but
decode, hash and answer. The relay sends steps to a receiver in this process.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import json_numpy
import msgpack
import numpy as np
import zmq
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from rich import box
from rich.console import Console
from rich.table import Table

from vla_feature_bridge.wire.receiver import StepReceiver

SERVERS = Path(__file__).parents[2] / 'vla_feature_bridge/test/relays/relay_servers.py'
LIMIT = 1.0
_TURN = 10
_PAUSE = 0.01

COPIER = """
import socket, sys, threading

def copy(source, sink):
    while data := source.recv(1 << 16):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)

listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('ready', flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection(('127.0.0.1', int(sys.argv[2])))
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for ends in ((client, server), (server, client)):
        threading.Thread(target=copy, args=ends, daemon=True).start()
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(ready: str, *command: object) -> Iterator[None]:
    """Run a Python program while the block lasts, from the line on that has ``ready``."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            if not any(ready in line for line in process.stdout):
                raise RuntimeError(f'{command[0]} ended before it said {ready!r}')
            # A full pipe would stop the program.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield
        finally:
            process.kill()


def _image(width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (224, width, 3), np.uint8)


def openpi_client(port: int) -> Callable[[], object]:
    """Return a call of openpi's own client: two images of 224 x 224."""
    client = WebsocketClientPolicy('127.0.0.1', port)
    request = {'image': _image(224), 'wrist': _image(224), 'prompt': 'fold the towel'}
    return lambda: client.infer(request)


def groot_client(port: int) -> Callable[[], object]:
    """Return a call of a REQ socket with the same two images."""
    client: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(f'tcp://127.0.0.1:{port}')
    image = {
        b'nd': True,
        b'type': '|u1',
        b'kind': b'',
        b'shape': (1, 1, 224, 448, 3),
        b'data': _image(448).tobytes(),
    }
    observation = {'video': {'ego': image}, 'language': {'task': [['pick up']]}}
    data = {'observation': observation, 'options': None}
    request = msgpack.packb({'endpoint': 'get_action', 'data': data})

    def call() -> object:
        client.send(request)
        return client.recv()

    return call


def openvla_client(port: int) -> Callable[[], object]:
    """Return a POST with an image whose base64 has 301 KB, on a connection of its own."""
    body = json_numpy.dumps({'image': _image(336), 'instruction': 'pick up'})
    headers = {'Content-Type': 'application/json'}

    def call() -> object:
        connection = http.client.HTTPConnection('127.0.0.1', port)
        connection.request('POST', '/act', body, headers)
        reply = json.loads(connection.getresponse().read())
        connection.close()
        return reply

    return call


#: Relay -> its server, its client, and its options.
RELAYS: dict[str, tuple[str, Callable[[int], Callable[[], object]], tuple[str, ...]]] = {
    'openpi': ('openpi', openpi_client, ('--episode', 'none', '--exec-horizon', '5')),
    'groot': ('groot_nd', groot_client, ('--exec-horizon', '5')),
    'openvla': ('openvla', openvla_client, ('--episode', 'none')),
}


def bench_one(name: str, samples: int, folder: Path) -> dict[str, Any]:
    """Measure one relay; returns medians and 90 % quantiles in ms."""
    kind, make_client, options = RELAYS[name]
    server, copier, relay = free_port(), free_port(), free_port()
    bridge = f'unix:{folder}/{name}.sock'
    receiver = StepReceiver([bridge], lambda source, message: None)
    receiver.set_status(True)
    listen = ('--listen', f'127.0.0.1:{relay}', '--server', f'127.0.0.1:{server}')
    command = ('-m', 'vla_feature_bridge.relays', name, *listen, '--bridge', bridge, *options)
    with ExitStack() as stack:
        stack.callback(receiver.close)
        stack.enter_context(running('ready', SERVERS, kind, server))
        stack.enter_context(running('ready', '-c', COPIER, copier, server))
        stack.enter_context(running('answers;', *command))
        taken = _in_turns([make_client(port) for port in (server, copier, relay)], samples)
    ways = dict(zip(('direct', 'copied', 'relayed'), taken, strict=True))
    medians = {way: float(np.median(times)) * 1e3 for way, times in ways.items()}
    return {
        'relay': name,
        'samples': samples,
        **{f'{way}_ms': medians[way] for way in ways},
        **{f'{way}_p90_ms': float(np.quantile(times, 0.9)) * 1e3 for way, times in ways.items()},
        'added_ms': medians['relayed'] - medians['direct'],
        'beyond_copy_ms': medians['relayed'] - medians['copied'],
        'limit_ms': LIMIT,
    }


def _in_turns(calls: list[Callable[[], object]], samples: int) -> list[list[float]]:
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(samples // _TURN + 1):
        for call, times in zip(calls, taken, strict=True):
            for _ in range(_TURN):
                start = time.perf_counter()
                call()
                if turn:  # the first turn warms up
                    times.append(time.perf_counter() - start)
                # A policy infers now and then: between inferences the relay sends its step.
                time.sleep(_PAUSE)
    return taken


def bench_relay(
    samples: int, progress: Callable[[str], None] = lambda note: None
) -> list[dict[str, Any]]:
    """Measure every relay.

    Parameters
    ----------
    samples : int
        Requests of each way.
    progress : callable
        Takes what is measured now.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix='safe_bench_') as folder:
        for name in RELAYS:
            progress(f'relay {name}')
            rows.append(bench_one(name, samples, Path(folder)) | {'load': os.getloadavg()[0]})
    return rows


def print_relay(rows: list[dict[str, Any]]) -> None:
    """Print what :func:`bench_relay` returned as a table."""
    table = Table(
        'relay',
        'direct p50 [ms]',
        'copied p50',
        'relayed p50',
        'relayed p90',
        'added p50',
        f'beyond the copy (aim < {LIMIT:g})',
        box=box.SIMPLE_HEAD,
        title='an observation of 301 KB: the time until the answer',
    )
    for row in rows:
        keys = ('direct_ms', 'copied_ms', 'relayed_ms', 'relayed_p90_ms', 'added_ms')
        table.add_row(row['relay'], *(f'{row[key]:.2f}' for key in (*keys, 'beyond_copy_ms')))
    console = Console(highlight=False, width=110)
    console.print(table)
    console.print(f'load of the machine: {rows[-1]["load"]:.1f} on {os.cpu_count()} cores')
