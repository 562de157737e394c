# SPDX-License-Identifier: Apache-2.0
"""The other processes of the load benchmarks: a policy, and nodes that do the least.

``python -m bench.load_peers publish FREQUENCY SECONDS WIDTH`` publishes steps at a fixed pace and
prints what it did as JSON. ``python -m bench.load_peers discard`` receives steps and prints their
number when it is interrupted. ``python -m bench.load_peers answer`` also publishes an alarm for
each step ``ALARM_STEP``.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from safe_msgs.msg import FailureAlarm
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.ros.qos import ALARM_QOS, STEP_QOS
from vla_feature_bridge.step import PolicyStep

EPISODE_STEPS = 500
"""Steps of an episode."""

ALARM_STEP = 4
"""Step of each episode that raises an alarm, in the benchmark of its latency."""

_DIFFERENT = 64


def start_peer(*arguments: object) -> subprocess.Popen[str]:
    """Start one of the processes of ``bench.load_peers``."""
    return subprocess.Popen(
        [sys.executable, '-m', 'bench.load_peers', *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )


def answer_of(peer: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a process printed at its end."""
    output, _ = peer.communicate(timeout=60)
    if peer.returncode != 0:
        raise RuntimeError(f'a process of the benchmark ended with status {peer.returncode}')
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def features_of(width: int) -> np.ndarray:
    """Return the features that the policy repeats, shape (64, width), always the same numbers."""
    return np.random.default_rng(0).normal(size=(_DIFFERENT, width)).astype(np.float32)


def features_of_episode(episode: int, width: int) -> np.ndarray:
    """Return the features of an episode, shape (EPISODE_STEPS, width)."""
    return features_of(width)[(np.arange(EPISODE_STEPS) + 7 * episode) % _DIFFERENT]


def publish(frequency: float, seconds: float, width: int) -> dict[str, float]:
    """Publish steps of episode after episode at a fixed pace.

    Returns
    -------
    dict
        ``sent``, the time that it took ``seconds``, and the largest delay of a step
        ``latest_ms``.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.ALL)
    node = Node('bench_policy', start_parameter_services=False, enable_rosout=False)
    publisher = node.create_publisher(PolicyStepMessage, 'vla/policy_step', STEP_QOS)
    messages = [
        step_to_message(PolicyStep(row, feature_name='features', episode_id='e'))
        for row in features_of(width)
    ]
    deadline = time.monotonic() + 30
    while not publisher.get_subscription_count():
        if time.monotonic() > deadline:
            raise SystemExit('nobody listens to vla/policy_step')
        time.sleep(0.02)
    time.sleep(0.5)
    gc.collect()
    gc.disable()
    count, latest, began = round(frequency * seconds), 0.0, time.perf_counter()
    for number in range(count):
        episode, step = divmod(number, EPISODE_STEPS)
        message = messages[(step + 7 * episode) % _DIFFERENT]
        message.episode_id, message.step = f'e{episode}', step
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
        due = began + number / frequency
        if (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        else:
            latest = max(latest, -left)
        publisher.publish(message)
    took = time.perf_counter() - began
    publisher.wait_for_all_acked(Duration(seconds=10))
    node.destroy_node()
    rclpy.shutdown()
    return {'sent': count, 'seconds': took, 'latest_ms': latest * 1e3}


def receive(*, answers: bool = False) -> dict[str, int]:
    """Receive steps until an interrupt; returns their number.

    Parameters
    ----------
    answers : bool
        Publish an alarm for each step ``ALARM_STEP``.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.ALL)
    node = Node('bench_receiver', start_parameter_services=False, enable_rosout=False)
    publisher = node.create_publisher(FailureAlarm, 'safe/alarm', ALARM_QOS) if answers else None
    received = 0

    def on_step(message: PolicyStepMessage) -> None:
        nonlocal received
        received += 1
        if publisher is not None and message.step == ALARM_STEP:
            state = FailureAlarm.STATE_ALARM
            publisher.publish(FailureAlarm(episode_id=message.episode_id, state=state))

    node.create_subscription(PolicyStepMessage, 'vla/policy_step', on_step, STEP_QOS)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return {'received': received}


def main(arguments: Sequence[str]) -> int:
    """Run one of the processes and print what it did."""
    if list(arguments[:1]) == ['publish']:
        frequency, seconds, width = map(float, arguments[1:4])
        print(json.dumps(publish(frequency, seconds, int(width))), flush=True)
    else:
        print(json.dumps(receive(answers=list(arguments[:1]) == ['answer'])), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
