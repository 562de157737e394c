# SPDX-License-Identifier: Apache-2.0
"""Starts servers and relays in processes of their own, and collects what reaches the bridge."""

import contextlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire.messages import Image
from vla_feature_bridge.wire.receiver import StepReceiver

PATIENCE = 30.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Process:
    """A process whose lines can be waited for; ends with the block."""

    def __init__(self, *command: object) -> None:
        self.lines: list[str] = []
        self._arrived = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            with self._arrived:
                self.lines.append(line.rstrip('\n'))
                self._arrived.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, text: str, count: int = 1) -> str:
        """Return the line with a text as soon as there are ``count`` of them."""

        def found():
            return [line for line in self.lines if text in line]

        with self._arrived:
            arrived = self._arrived.wait_for(lambda: len(found()) >= count, PATIENCE)
        assert arrived, f'no {text!r} in:\n' + '\n'.join(self.lines)
        return found()[count - 1]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def interrupt(self) -> int:
        """Send Ctrl-C; returns the exit status."""
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(PATIENCE)
        self._reader.join()
        return status

    def wait(self) -> int:
        status = self._process.wait(PATIENCE)
        self._reader.join()
        return status


def run_server(kind: str, port: int, *arguments: object) -> Process:
    """Start a server of ``relay_servers.py``; returns it when it answers."""
    server = Process(Path(__file__).with_name('relay_servers.py'), kind, port, *arguments)
    server.wait_for('ready')
    return server


def run_relay(policy: str, server_port: int, *arguments: object, bridge: str = '') -> Process:
    """Start a relay; its ``port`` is where clients connect."""
    port = free_port()
    relay = Process(
        '-m',
        'vla_feature_bridge.relays',
        policy,
        *('--listen', f'127.0.0.1:{port}'),
        *('--server', f'127.0.0.1:{server_port}'),
        *('--bridge', bridge or 'unix:/nonexistent/bridge.sock'),
        *(() if bridge else ('--wait-for-monitor', 0)),
        *arguments,
    )
    relay.port = port
    relay.wait_for('the server')
    return relay


class Bridge:
    """The receiving end of a bridge, and what reached it."""

    def __init__(self, folder: Path) -> None:
        self.address = f'unix:{folder}/bridge.sock'
        self._messages: queue.Queue = queue.Queue()
        self._receiver = StepReceiver([self.address], self._take)
        self._receiver.set_status(True)
        self.steps: list[PolicyStep] = []
        self.events: list[EpisodeEventRecord] = []
        self.images: list[Image] = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._receiver.close()

    def _take(self, source, message) -> None:
        self._messages.put(message)

    def wait_for(self, steps: int = 0, events: int = 0, images: int = 0) -> None:
        """Wait until at least so many have arrived."""
        deadline = time.monotonic() + PATIENCE
        wanted = ((self.steps, steps), (self.events, events), (self.images, images))
        while any(len(found) < count for found, count in wanted):
            with contextlib.suppress(queue.Empty):
                self._sort(self._messages.get(timeout=0.1))
            if time.monotonic() > deadline:
                raise AssertionError(
                    f'{len(self.steps)} steps, {len(self.events)} events, '
                    f'{len(self.images)} images arrived'
                )

    def wait_briefly(self) -> None:
        """Take what arrives within a moment."""
        with contextlib.suppress(queue.Empty):
            self._sort(self._messages.get(timeout=0.1))

    def _sort(self, message) -> None:
        if isinstance(message, PolicyStep):
            self.steps.append(message)
        elif isinstance(message, EpisodeEventRecord):
            self.events.append(message)
        else:
            self.images.append(message)
