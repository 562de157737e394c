# SPDX-License-Identifier: Apache-2.0
"""Listens to what a bridge publishes, and starts policies in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from probe import EVENTS, RELIABLE
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory

from safe_msgs.msg import EpisodeEvent
from safe_msgs.msg import PolicyStep as PolicyStepMessage


class BridgeListener:
    """Keeps the steps, events, chunks, images and diagnoses of a bridge.

    Parameters
    ----------
    source : str
        Source whose topics are listened to.
    """

    def __init__(self, source: str = '') -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node('listener', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.steps: list[PolicyStepMessage] = []
        self.events: list[EpisodeEvent] = []
        self.chunks: list[JointTrajectory] = []
        self.images: list[Image] = []
        self.statuses: dict[str, DiagnosticStatus] = {}
        prefix = f'{source}/' if source else ''
        for kind, topic, keep, qos in (
            (PolicyStepMessage, 'vla/policy_step', self.steps.append, RELIABLE),
            (EpisodeEvent, 'vla/episode', self.events.append, EVENTS),
            (JointTrajectory, 'vla/action_chunk', self.chunks.append, RELIABLE),
            (Image, 'vla/image/wrist', self.images.append, RELIABLE),
        ):
            self.node.create_subscription(kind, prefix + topic, keep, qos)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_status, RELIABLE)

    def _on_status(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self.statuses[status.name.partition(': ')[2]] = status

    def close(self) -> None:
        """End all subscriptions."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def spin(self, seconds: float) -> None:
        """Handle messages for some time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def spin_until(self, condition: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
        """Handle messages until the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, (
                f'timed out waiting until {what}; {len(self.steps)} steps, '
                f'{[(e.kind, e.episode_id, e.reason) for e in self.events]}, {self.statuses}'
            )
            self.executor.spin_once(timeout_sec=0.02)

    def spin_until_found(self, topic: str, subscribers: int, settle: float = 1.0) -> None:
        """Wait until DDS knows the bridge and all subscribers of a topic that it will publish.

        The bridge can find this node later than this node finds the bridge: ``settle`` s are
        waited in addition.
        """
        self.spin_until(
            lambda: (
                'bridge' in self.node.get_node_names()
                and self.node.count_subscribers(topic) >= subscribers
            ),
            f'there are the bridge and {subscribers} subscribers of {topic}',
        )
        self.spin(settle)

    def call(self, kind: Any, name: str, **fields: object) -> Any:
        """Call a service and return its response."""
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=15)
        future = client.call_async(kind.Request(**fields))
        self.spin_until(future.done, f'{name} answers')
        return future.result()

    def message_of(self, name: str) -> str:
        """Return the latest sentence of a status; empty before the first."""
        return self.statuses[name].message if name in self.statuses else ''

    def level_of(self, name: str) -> int:
        """Return the latest level of a status; -1 before the first."""
        return self.statuses[name].level[0] if name in self.statuses else -1

    def fact(self, name: str, key: str) -> str:
        """Return a fact of a status; empty if there is none."""
        values = self.statuses[name].values if name in self.statuses else []
        return next((pair.value for pair in values if pair.key == key), '')

    def numbers(self, episode: str) -> list[int]:
        """Return the numbers of the steps of an episode in the order of their arrival."""
        return [step.step for step in self.steps if step.episode_id == episode]

    def kinds(self) -> list[tuple[str, str]]:
        """Return the kind and the episode of each event."""
        words = {
            EpisodeEvent.KIND_START: 'start',
            EpisodeEvent.KIND_END: 'end',
            EpisodeEvent.KIND_LABEL: 'label',
        }
        return [(words[event.kind], event.episode_id) for event in self.events]


class PolicyProcess:
    """``policy_process.py`` in a process of its own."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self._log = log
        with log.open('w') as output:
            self._popen = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name('policy_process.py'))]
                + [str(argument) for argument in arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'OMP_NUM_THREADS': '1'},
            )

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._popen.poll() is not None

    @property
    def output(self) -> str:
        """Everything that it has printed."""
        return self._log.read_text()

    def counted(self) -> dict[str, Any]:
        """Return what the policy counted, after its end."""
        assert self._popen.wait(60) == 0, self.output
        lines = [line for line in self.output.splitlines() if line.startswith('{')]
        return dict(json.loads(lines[-1]))

    def kill(self) -> None:
        """End the process as a crash does."""
        self._popen.kill()
        self._popen.wait()
