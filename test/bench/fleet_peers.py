# SPDX-License-Identifier: Apache-2.0
"""The other processes of the fleet benchmark: the policies of many robots, and who hears scores.

``python -m bench.fleet_peers publish ROBOTS FREQUENCY SECONDS WIDTH EPISODE`` publishes the steps
of one episode of every robot, the robots one after another within a period. It prints a line when
it begins, and what it did as JSON at its end. ``python -m bench.fleet_peers listen ROBOTS SCORES``
prints what it heard as JSON when it has heard so many scores, or when it is interrupted.
``python -m bench.fleet_peers garbage KIND ROBOT WIDTH`` does with one robot what nobody should do,
until it is interrupted.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from bench.load_peers import features_of
from safe_msgs.msg import EpisodeEvent, FailureScore
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.srv import LabelEpisode, LoadDetector
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
    robots: int, frequency: float, seconds: float, width: int, episode: str
) -> dict[str, float]:
    """Publish the steps of an episode of every robot at a fixed pace.

    Returns
    -------
    dict
        ``sent`` steps, the time that it took ``seconds``, and the largest delay of a step
        ``latest_ms``.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.ALL)
    node = Node('bench_policies', start_parameter_services=False, enable_rosout=False)
    publishers = [
        node.create_publisher(PolicyStepMessage, f'/{name_of(robot)}/vla/policy_step', STEP_QOS)
        for robot in range(robots)
    ]
    good = _messages(features_of(width))
    deadline = time.monotonic() + 600
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
            message = good[row_of(robot, step)]
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
    return {'sent': steps * robots, 'seconds': took, 'latest_ms': latest * 1e3}


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
    # Otherwise the monitors send to it until they notice.
    node.destroy_node()
    rclpy.try_shutdown()
    return heard


def _bad_values(width: int, index: int) -> PolicyStepMessage:
    good_width = np.full(width, np.nan, np.float32)
    row = good_width if index % 2 else np.ones(width + 1, np.float32)
    return _messages(row[None])[0]


# To make the numbers takes milliseconds of a core, which would delay the other processes.
_features = functools.cache(features_of)


def _good_values(width: int, index: int) -> PolicyStepMessage:
    return _messages(_features(width)[index % 64][None])[0]


def _long_texts(width: int, index: int) -> PolicyStepMessage:
    message = _good_values(width, index)
    text = 'x' * 1_000_000
    if index % 3 == 0:
        message.instruction = text
    elif index % 3 == 1:
        message.features.name = text
    else:
        message.episode_id = text
    return message


def _set_episode(message: PolicyStepMessage, index: int, kind: str) -> None:
    message.step = 0 if kind == 'episodes' else index
    if kind == 'episodes':
        message.episode_id = f'{kind}{index}'
    elif len(message.episode_id) < 10:
        message.episode_id = kind


#: Frequency [Hz], and what makes a step of the garbage, by its kind.
_STEPS: dict[str, tuple[float, Callable[[int, int], PolicyStepMessage]]] = {
    'values': (10.0, _bad_values),
    'frequency': (100.0, _good_values),
    'texts': (10.0, _long_texts),
    'episodes': (10.0, _good_values),
    'stamps': (10.0, _good_values),
}
GARBAGE = {
    'values': 'NaN, or a wrong width',
    'frequency': '100 Hz',
    'events': 'START of a new episode, 500 Hz',
    'texts': 'texts of 1 MB',
    'episodes': 'each step a new episode',
    'stamps': 'stamps of 0',
    'services': 'services in a loop',
}
"""What one robot of the benchmark does, by its kind, for a person."""


def send_garbage(kind: str, robot: int, width: int) -> None:
    """Do with one robot what nobody should do, until an interrupt."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.ALL)
    node = Node('bench_garbage', start_parameter_services=False, enable_rosout=False)
    try:
        if kind == 'events':
            _send_events(node, robot)
        elif kind == 'services':
            _call_services(node, robot)
        else:
            _send_steps(node, kind, robot, width)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _send_steps(node: Node, kind: str, robot: int, width: int) -> None:
    frequency, make = _STEPS[kind]
    topic = f'/{name_of(robot)}/vla/policy_step'
    publisher = node.create_publisher(PolicyStepMessage, topic, STEP_QOS)
    for index in itertools.count():
        message = make(width, index)
        _set_episode(message, index, kind)
        if kind != 'stamps':
            stamp = message.header.stamp
            stamp.sec, stamp.nanosec = divmod(time.time_ns(), 10**9)
        publisher.publish(message)
        time.sleep(1 / frequency)


def _send_events(node: Node, robot: int) -> None:
    publisher = node.create_publisher(EpisodeEvent, f'/{name_of(robot)}/vla/episode', 10)
    for index in itertools.count():
        event = EpisodeEvent(kind=EpisodeEvent.KIND_START, episode_id=f'event{index}')
        publisher.publish(event)
        time.sleep(0.002)


def _call_services(node: Node, robot: int) -> None:
    monitor = f'/{name_of(robot)}/monitor'
    calls: list[tuple[Any, Any]] = [
        (node.create_client(Trigger, f'{monitor}/reset'), Trigger.Request()),
        (
            node.create_client(LoadDetector, f'{monitor}/load_detector'),
            LoadDetector.Request(folder='/no/such/detector'),
        ),
        (
            node.create_client(LabelEpisode, f'{monitor}/label_episode'),
            LabelEpisode.Request(episode_id='e', outcome=77),
        ),
    ]
    for client, request in itertools.cycle(calls):
        client.wait_for_service()
        # Several requests wait at the same time.
        futures = [client.call_async(request) for _ in range(8)]
        for future in futures:
            rclpy.spin_until_future_complete(node, future, timeout_sec=10.0)


def main(arguments: Sequence[str]) -> int:
    """Run one of the processes and print what it did."""
    if arguments[0] == 'publish':
        robots, frequency, seconds, width, episode = arguments[1:]
        done: Any = publish(int(robots), float(frequency), float(seconds), int(width), episode)
    elif arguments[0] == 'garbage':
        send_garbage(arguments[1], int(arguments[2]), int(arguments[3]))
        return 0
    else:
        done = listen(int(arguments[1]), int(arguments[2]))
    print(json.dumps(done), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
