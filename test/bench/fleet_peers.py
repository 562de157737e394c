# SPDX-License-Identifier: Apache-2.0
"""The other processes of the fleet benchmark: the policies of many robots, and who hears scores.

``python -m bench.fleet_peers publish ROBOTS FREQUENCY SECONDS WIDTH EPISODE GARBAGE`` publishes the
steps of one episode of every robot, the robots one after another within a period. The last robots
(GARBAGE of them) send what no detector can score. It prints a line when it begins, and what it did
as JSON at its end. ``python -m bench.fleet_peers listen ROBOTS SCORES`` prints what it heard as
JSON when it has heard so many scores, or when it is interrupted.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from bench.load_peers import features_of
from safe_msgs.msg import FailureScore
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.ros.qos import STEP_QOS
from vla_feature_bridge.step import PolicyStep


def name_of(robot: int) -> str:
    """Return the namespace of a robot."""
    return f'r{robot:02d}'


def row_of(robot: int, step: int) -> int:
    """Return which of the features a robot sends at a step."""
    return (step + 7 * robot) % 64


def publish(
    robots: int, frequency: float, seconds: float, width: int, episode: str, garbage: int
) -> dict[str, float]:
    """Publish the steps of an episode of every robot at a fixed pace.

    Returns
    -------
    dict
        ``sent`` steps of the good robots, the time that it took ``seconds``, and the largest delay
        of a step ``latest_ms``.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.ALL)
    node = Node('bench_policies', start_parameter_services=False, enable_rosout=False)
    publishers = [
        node.create_publisher(PolicyStepMessage, f'/{name_of(robot)}/vla/policy_step', STEP_QOS)
        for robot in range(robots)
    ]
    good = _messages(features_of(width))
    bad = _messages(np.full((64, width), np.nan, np.float32))
    bad[1::2] = _messages(np.ones((32, width + 1), np.float32))
    deadline = time.monotonic() + 120
    while not all(publisher.get_subscription_count() for publisher in publishers):
        if time.monotonic() > deadline:
            raise SystemExit('not every robot has a monitor')
        time.sleep(0.05)
    time.sleep(1.0)
    gc.collect()
    gc.disable()
    print('begin', flush=True)
    steps, latest, began = round(frequency * seconds), 0.0, time.perf_counter()
    for step in range(steps):
        for robot, publisher in enumerate(publishers):
            messages = bad if robot >= robots - garbage else good
            message = messages[row_of(robot, step)]
            message.episode_id, message.step = episode, step
            due = began + (step + robot / robots) / frequency
            if (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            else:
                latest = max(latest, -left)
            stamp = message.header.stamp
            stamp.sec, stamp.nanosec = divmod(time.time_ns(), 10**9)
            publisher.publish(message)
    took = time.perf_counter() - began
    for publisher in publishers:
        publisher.wait_for_all_acked(Duration(seconds=5))
    node.destroy_node()
    rclpy.shutdown()
    return {'sent': steps * (robots - garbage), 'seconds': took, 'latest_ms': latest * 1e3}


def _messages(features: np.ndarray) -> list[PolicyStepMessage]:
    return [
        step_to_message(PolicyStep(row, feature_name='features', episode_id='e'))
        for row in features
    ]


def listen(robots: int, scores: int) -> list[list[Any]]:
    """Hear a number of scores of all robots, or as many as come until an interrupt.

    Returns
    -------
    list
        For each score: robot, episode, step, score (None if it is not finite), whether it is
        INVALID, and the time from publishing the step to receiving its score [ms].
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.ALL)
    node = Node('bench_listener', start_parameter_services=False, enable_rosout=False)
    heard: list[list[Any]] = []

    def on_score(robot: int, message: FailureScore, info: dict[str, Any]) -> None:
        stamp = message.header.stamp
        sent = stamp.sec * 10**9 + stamp.nanosec
        # When the middleware received it: this process may be busy with other scores.
        delay = (info['received_timestamp'] - sent) * 1e-6
        score = message.score if np.isfinite(message.score) else None
        invalid = message.state == FailureScore.STATE_INVALID
        heard.append([robot, message.episode_id, message.step, score, invalid, delay])

    qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
    for robot in range(robots):
        node.create_subscription(
            FailureScore,
            f'/{name_of(robot)}/safe/score',
            lambda message, info, robot=robot: on_score(robot, message, info),
            qos,
        )
    try:
        while len(heard) < scores:
            rclpy.spin_once(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return heard


def main(arguments: Sequence[str]) -> int:
    """Run one of the processes and print what it did."""
    if arguments[0] == 'publish':
        robots, frequency, seconds, width, episode, garbage = arguments[1:]
        done: Any = publish(
            int(robots), float(frequency), float(seconds), int(width), episode, int(garbage)
        )
    else:
        done = listen(int(arguments[1]), int(arguments[2]))
    print(json.dumps(done), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
