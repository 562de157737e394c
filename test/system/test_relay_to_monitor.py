# SPDX-License-Identifier: Apache-2.0
"""A policy server and its client know nothing of SAFE; relay, bridge and monitor score them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from safe_bringup.live import Observer, Process
from safe_monitor_node.storage.detector_folder import load_detector
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet

pytest.importorskip('openpi_client', reason='no openpi-client')
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.sync.server import serve


@pytest.fixture
def server_port(rollouts: RolloutSet) -> Iterator[int]:
    """Serve recorded rollouts as an openpi server does: the request says which step."""

    def answer(websocket) -> None:
        websocket.send(msgpack_numpy.packb({}))
        for message in websocket:
            request = msgpack_numpy.unpackb(message)
            rollout, step = rollouts[request['rollout']], request['step']
            websocket.send(
                msgpack_numpy.packb(
                    {
                        'actions': rollout.actions[step, 0],
                        'safe/features': rollout.features[step],
                        'policy_timing': {'infer_ms': 20.0},
                    }
                )
            )

    with serve(answer, '127.0.0.1', 0, compression=None, max_size=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.socket.getsockname()[1]
        server.shutdown()


@pytest.fixture
def relay_port(server_port: int, tmp_path: Path, mlp_folder: Path) -> Iterator[int]:
    """Run the command ``relay`` between the server and a free port."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = f"""
        openpi --listen 127.0.0.1:{port} --server 127.0.0.1:{server_port}
        --bridge unix:{tmp_path}/bridge.sock --episode instruction --exec-horizon 4
        --feature-key safe/features --feature-name {load_detector(mlp_folder).feature}
    """
    with subprocess.Popen(
        [sys.executable, '-m', 'vla_feature_bridge.relays', *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as relay:
        lines = []
        for line in relay.stdout:
            lines.append(line)
            if 'answers;' in line:
                break
        yield port
        relay.send_signal(signal.SIGINT)
        lines += relay.stdout.readlines()
    assert relay.returncode == 0, ''.join(lines)


@pytest.fixture
def run_bridge(own_domain: int, tmp_path: Path) -> Iterator[Callable[[], Process]]:
    with contextlib.ExitStack() as stack:

        def start() -> Process:
            parameters = {'listen': [f'unix:{tmp_path}/bridge.sock']}
            log = tmp_path / 'bridge.log'
            return stack.enter_context(Process('vla_feature_bridge.nodes.bridge', parameters, log))

        yield start


def play(client: WebsocketClientPolicy, number: int, rollout: Rollout) -> None:
    """Ask for each step of a rollout, as a robot does that executes what it gets."""
    for step in range(len(rollout)):
        reply = client.infer({'rollout': number, 'step': step, 'prompt': f'task {number}'})
        np.testing.assert_array_equal(reply['actions'], rollout.actions[step, 0])
        time.sleep(0.05)  # a policy is slower than the topic


@pytest.mark.slow
def test_the_scores_are_those_of_the_rollouts(
    run_bridge: Callable[[], Process],
    run_monitor: Callable[..., Process],
    relay_port: int,
    mlp_folder: Path,
    rollouts: RolloutSet,
) -> None:
    detector = load_detector(mlp_folder).detector
    run_monitor(detector_folder=mlp_folder)
    run_bridge()
    client = WebsocketClientPolicy('127.0.0.1', relay_port)
    with Observer() as observer:
        while not observer.node.count_subscribers('vla/policy_step'):
            observer.spin(0.2)
        for number in (0, 1):
            play(client, number, rollouts[number])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(observer.episodes) < 2:
            observer.spin(0.2)
        observer.spin(2.0)
        episodes = list(observer.episodes.values())
    client._ws.close()
    assert len(episodes) == 2
    for number, episode in enumerate(episodes):
        offline = detector.score(rollouts[number])
        assert episode.steps == list(range(len(offline)))
        np.testing.assert_allclose(episode.scores, offline, rtol=0, atol=1e-5)
