# SPDX-License-Identifier: Apache-2.0
"""Senders and receivers as processes of their own, and bytes on bare sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire.address import parse_address
from vla_feature_bridge.wire.frame import FrameReader

PATIENCE = 60.0

RECEIVER = """
import json, sys
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire import StepReceiver

def take(source, message):
    what = message.step if isinstance(message, PolicyStep) else getattr(message, 'kind', 'image')
    print(json.dumps([source, getattr(message, 'episode_id', ''), what]), flush=True)

receiver = StepReceiver(sys.argv[1:], take)
receiver.set_status(True)
print(json.dumps(receiver.addresses), flush=True)
sys.stdin.read()
"""

SENDER = """
import sys, time
import numpy as np
from vla_feature_bridge.wire import StepSender

sender = StepSender(
    sys.argv[1], source=sys.argv[2], feature_name='f', exec_horizon=1, wait_for_monitor=0
)
sender.start(episode_id=sys.argv[3])
for step in range(1_000_000):
    sender.publish(np.full(4, step, np.float32))
    print(step, flush=True)
    time.sleep(0.005)
"""


def wait_for(condition, what='', timeout=PATIENCE):
    """Return the result of a condition once it is true."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.01)
    return found


class Lines:
    """A process, and the lines that it has written."""

    def __init__(self, script, *arguments):
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, '-c', script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        """Kill the process without a chance to say goodbye."""
        self.process.kill()
        self.process.wait()
        self._thread.join()

    def __enter__(self):
        wait_for(lambda: self.lines or self.process.poll() is not None)
        assert self.lines
        return self

    def __exit__(self, *exception):
        self.process.send_signal(signal.SIGCONT)
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


class ReceiverProcess(Lines):
    """A bridge without ROS; ``messages`` are [source, episode, step or kind of event]."""

    def __init__(self, *addresses):
        super().__init__(RECEIVER, *addresses)

    @property
    def messages(self):
        return self.lines[1:]


class Inbox:
    """Collects the messages of a receiver in this process."""

    def __init__(self):
        self.messages = []

    def __call__(self, source, message):
        self.messages.append((source, message))

    def short(self, source=None):
        """Return [episode, step or kind of event] of every step and event."""
        return [
            [m.episode_id, m.step if isinstance(m, PolicyStep) else m.kind]
            for name, m in self.messages
            if source in (None, name) and isinstance(m, (PolicyStep, EpisodeEventRecord))
        ]


@contextmanager
def bare_connection(address):
    """Connect without a sender."""
    with parse_address(address).connect(PATIENCE) as connection:
        yield connection


def read_frame(connection):
    """Return the next frame; None at the end of the stream."""
    reader = FrameReader()
    while True:
        try:
            count = connection.recv_into(reader.space())
        except ConnectionResetError:
            return None
        if count == 0:
            return None
        if (frame := reader.filled(count)) is not None:
            return frame


@contextmanager
def bare_bridge(path):
    """Listen without a receiver; yields a function that accepts a connection."""

    def accept():
        connection, _ = listening.accept()
        connection.settimeout(PATIENCE)
        return connection

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(str(path))
        listening.listen()
        yield accept
