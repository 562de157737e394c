# SPDX-License-Identifier: Apache-2.0
"""Steps that waited for a bridge reach every subscriber, also one that the bridge finds late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bridge_listener import BridgeListener
from probe import RELIABLE

from safe_bringup.live import Process
from safe_msgs.msg import PolicyStep
from vla_feature_bridge.wire import StepSender, link


class StepCounter:
    """``step_counter.py`` in a process of its own."""

    def __init__(self, output: Path) -> None:
        self._output = output
        script = Path(__file__).with_name('step_counter.py')
        with output.open('w') as out:
            self._popen = subprocess.Popen([sys.executable, script], stdout=out)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the steps in the order of their arrival."""
        return [int(line) for line in self._output.read_text().rpartition('\n')[0].splitlines()]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End the process."""
        self._popen.kill()
        self._popen.wait()


@pytest.fixture
def counter(own_domain: int, tmp_path: Path) -> Iterator[StepCounter]:
    """Yield a subscriber that can be suspended."""
    made = StepCounter(tmp_path / 'numbers.txt')
    yield made
    made.kill()


@pytest.fixture
def listeners(own_domain: int) -> Iterator[list[BridgeListener]]:
    """Yield three subscribers, because the middleware finds one of three early."""
    made = [BridgeListener() for _ in range(3)]
    yield made
    for listener in made:
        listener.close()


@pytest.fixture
def run_bridge(own_domain: int, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start bridges; each ends with 0 on interrupt, without a traceback, or is killed."""
    started: list[Process] = []

    def start(**parameters: Any) -> Process:
        settings = {'listen': [f'unix:{tmp_path}/bridge.sock'], 'diagnostics_period': 0.1}
        log = tmp_path / f'bridge{len(started)}.log'
        node = 'vla_feature_bridge.nodes.bridge'
        started.append(Process(node, {**settings, **parameters}, log))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() in (0, -9), process.log()
        assert 'Traceback' not in process.log(), process.log()


@pytest.mark.slow
def test_the_backlog_reaches_a_subscriber_that_a_new_bridge_finds_late(
    run_bridge: Callable[..., Process],
    listeners: list[BridgeListener],
    counter: StepCounter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, 'LONGEST_PAUSE', 0.1)  # connects as soon as the new bridge is there
    first = run_bridge(wait_for_subscribers=1.0)
    listener = listeners[0]
    listener.spin_until_found('vla/policy_step', 4)
    sender = StepSender(
        f'unix:{tmp_path}/bridge.sock', feature_name='h', exec_horizon=1, wait_for_monitor=20.0
    )
    sender.start(episode_id='e')

    def publish_until(condition: Callable[[], Any], what: str) -> None:
        """Publish 20 steps a second until the condition holds."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, (what, listener.numbers('e'), counter.numbers)
            sender.publish(np.full(4, sender.published, np.float32), np.ones((1, 2, 3)))
            listener.spin(0.05)

    def publish_for(seconds: float) -> None:
        until = time.monotonic() + seconds
        publish_until(lambda: time.monotonic() >= until, 'the time is over')

    publish_until(lambda: min(map(len, (listener.steps, counter.numbers))) > 3, 'steps arrive')
    os.kill(first.pid, signal.SIGKILL)
    counter.send(signal.SIGSTOP)
    publish_for(1.0)
    before = listener.numbers('e')
    second = run_bridge()
    publish_until(lambda: 'connected' in second.log(), 'the new bridge has the backlog')
    publish_for(1.0)
    counter.send(signal.SIGCONT)
    publish_until(lambda: len(listener.numbers('e')) > len(before), 'steps arrive again')
    publish_for(1.0)
    last = sender.published - 1
    listener.spin_until(lambda: listener.numbers('e')[-1] >= last, 'the listener has them')
    listener.spin_until(lambda: counter.numbers[-1] >= last, 'the late subscriber has them')
    resumed = listener.numbers('e')[len(before)]
    listener.spin_until(
        lambda: listener.fact('source', 'steps lost') == str(resumed), 'the loss is said'
    )
    assert listener.numbers('e') == [*before, *range(resumed, last + 1)]
    late = counter.numbers
    assert late[late.index(resumed) :] == list(range(resumed, last + 1))
    assert resumed - before[-1] <= 4, 'only what was on its way to the killed bridge'
    assert (sender.dropped, sender.refused) == (0, 0)
    sender.close()


@pytest.mark.slow
def test_a_backlog_is_published_with_pauses(
    run_bridge: Callable[..., Process], listeners: list[BridgeListener], tmp_path: Path
) -> None:
    listener = listeners[0]
    times: list[int] = []

    def keep(step: PolicyStep, info: dict[str, int]) -> None:
        times.append(info['source_timestamp'])

    listener.node.create_subscription(PolicyStep, 'vla/policy_step', keep, RELIABLE)
    sender = StepSender(
        f'unix:{tmp_path}/bridge.sock', feature_name='h', exec_horizon=1, wait_for_monitor=0.0
    )
    sender.start(episode_id='e')
    for number in range(200):
        sender.publish(np.full(4, number, np.float32), np.ones((1, 2, 3)))
    run_bridge()
    listener.spin_until(lambda: len(times) == 200, 'all steps arrive')
    assert listener.numbers('e') == list(range(200))
    assert (times[-1] - times[0]) * 1e-9 > 199 * 0.005, 'a subscriber keeps only 100 steps'
    sender.close()


def test_a_sender_does_not_wait_for_a_monitor_where_only_steps_are_recorded(
    run_bridge: Callable[..., Process], listeners: list[BridgeListener], tmp_path: Path
) -> None:
    for listener in listeners:
        for subscription in list(listener.node.subscriptions):
            if subscription.topic_name == '/vla/episode':
                listener.node.destroy_subscription(subscription)
    run_bridge(wait_for_subscribers=20.0)
    listeners[0].spin_until_found('vla/policy_step', 3)
    listeners[0].spin(4.0)  # The bridge has found all subscribers.
    sender = StepSender(
        f'unix:{tmp_path}/bridge.sock', feature_name='h', exec_horizon=1, wait_for_monitor=5.0
    )
    sender.start(episode_id='e')
    assert sender.last_error == ''
    sender.close()
