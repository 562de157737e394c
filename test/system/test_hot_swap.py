# SPDX-License-Identifier: Apache-2.0
"""Another detector and other parameters while steps arrive at 200 Hz: no step is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import rclpy
from probe import RELIABLE, Probe
from rclpy.context import Context
from rclpy.node import Node
from signal_detectors import LOW, save_signal_detector, signal_step

from safe_bringup.live import Process
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import FailureScore
from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.srv import LoadDetector
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.step import PolicyStep

FREQUENCY = 200.0
EPISODE_STEPS = 40
# 100 stored steps are half a second: another process may take the processor for longer.
DEEP = {'qos_overrides./vla/policy_step.subscription.depth': 1000}


class Policy:
    """Publishes episodes of 40 steps at 200 Hz, in a thread and a DDS participant of its own."""

    def __init__(self, quiet: Callable[..., PolicyStep]) -> None:
        self.sent: list[tuple[str, int]] = []
        self.late = 0.0
        self._steps = [step_to_message(quiet(t)) for t in range(EPISODE_STEPS)]
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = Node('policy', context=self._context)
        self._publisher = self._node.create_publisher(
            PolicyStepMessage, 'vla/policy_step', RELIABLE
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._publisher.get_subscription_count():
            time.sleep(0.01)
        time.sleep(0.3)
        began, count = time.monotonic(), 0
        while not self._stop.is_set():
            episode, step = divmod(count, EPISODE_STEPS)
            message = self._steps[step]
            message.episode_id = f'e{episode}'
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
            self._publisher.publish(message)
            self.sent.append((message.episode_id, step))
            count += 1
            left = began + count / FREQUENCY - time.monotonic()
            self.late = max(self.late, -left)
            time.sleep(max(left, 0.0))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Publish while the block lasts."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def close(self) -> None:
        """End the participant."""
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.fixture
def policy(probe: Probe, quiet: Callable[..., PolicyStep]) -> Iterator[Policy]:
    """A policy that does not publish yet; the probe publishes no steps."""
    probe.leave()
    made = Policy(quiet)
    yield made
    made.close()


def spin(probe: Probe, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        probe.executor.spin_once(timeout_sec=left)


def check_nothing_was_lost(probe: Probe, policy: Policy) -> None:
    probe.spin_until(
        lambda: len(probe.scores) >= len(policy.sent), 'every step is answered', timeout=20
    )
    assert [(s.episode_id, s.step) for s in probe.scores] == policy.sent
    assert {s.state for s in probe.scores} <= {
        FailureScore.STATE_NOMINAL,
        FailureScore.STATE_WARNING,
        FailureScore.STATE_ALARM,
    }


def episodes_of(scores: list[FailureScore]) -> list[list[FailureScore]]:
    return [list(group) for _, group in groupby(scores, key=lambda s: s.episode_id)]


@pytest.mark.slow
def test_another_detector_during_a_stream_loses_no_step_and_shows_in_the_score(
    probe: Probe,
    policy: Policy,
    run_monitor: Callable[..., Process],
    mlp_folder: Path,
    lstm_folder: Path,
    quiet: Callable[..., PolicyStep],
) -> None:
    run_monitor(detector_folder=mlp_folder, **DEEP)
    probe.spin_until(lambda: probe.stops, 'the monitor is active')
    with policy.running():
        spin(probe, 1.5)
        response = probe.load_detector(lstm_folder)
        assert response.success, response.message
        spin(probe, 1.5)
        response = probe.load_detector(mlp_folder.parent / 'missing')
        assert not response.success
        spin(probe, 0.5)
    check_nothing_was_lost(probe, policy)

    order = [name for name, _ in groupby(s.detector for s in probe.scores)]
    assert order == ['safe_mlp', 'safe_lstm']
    for episode in episodes_of(probe.scores):
        assert len({s.detector for s in episode}) == 1, 'a detector judges whole episodes'
    loaded = {'safe_mlp': load_detector(mlp_folder), 'safe_lstm': load_detector(lstm_folder)}
    for name, calibrated in loaded.items():
        whole = [
            e
            for e in episodes_of(probe.scores)
            if e[0].detector == name and len(e) == EPISODE_STEPS
        ]
        assert len(whole) >= 2
        stream = calibrated.detector.stream()
        offline = [stream.step(quiet(t)) for t in range(EPISODE_STEPS)]
        for episode in (whole[0], whole[-1]):
            np.testing.assert_allclose([s.score for s in episode], offline, rtol=0, atol=1e-5)
            thresholds = calibrated.band.at(0.2).upper[:EPISODE_STEPS]
            np.testing.assert_allclose([s.threshold for s in episode], thresholds, rtol=1e-6)


@pytest.mark.slow
def test_a_parameter_change_during_a_stream_loses_no_step_and_shows_in_the_score(
    probe: Probe,
    policy: Policy,
    run_monitor: Callable[..., Process],
    mlp_folder: Path,
) -> None:
    band = load_detector(mlp_folder).band
    other = next(float(alpha) for alpha in band.alphas if alpha > 0.25)
    run_monitor(detector_folder=mlp_folder, warning_alpha=0.0, **DEEP)
    probe.spin_until(lambda: probe.stops, 'the monitor is active')
    with policy.running():
        spin(probe, 1.5)
        result = probe.set_parameters(alpha=other, warning_alpha=other)
        assert result.successful, result.reason
        result = probe.set_parameters(max_age=2.0, alarm_advice='slow')
        assert result.successful, result.reason
        spin(probe, 0.5)
        result = probe.set_parameters(alpha=0.98, alarm_k=5)
        assert not result.successful
        spin(probe, 1.0)
    check_nothing_was_lost(probe, policy)

    assert {s.detector for s in probe.scores} == {'safe_mlp'}
    found = []
    for episode in episodes_of(probe.scores):
        thresholds = np.array([s.threshold for s in episode])
        alphas = [
            alpha
            for alpha in (0.2, other)
            if np.allclose(thresholds, band.at(alpha).upper[: len(episode)], rtol=1e-6)
        ]
        assert len(alphas) == 1, 'one band for each episode'
        found.append(alphas[0])
    assert [alpha for alpha, _ in groupby(found)] == [0.2, other]


@pytest.fixture
def without_torch(
    run_monitor: Callable[..., Process], probe: Probe, tmp_path: Path
) -> tuple[Process, Callable[[int], None]]:
    """Return a monitor that has not imported PyTorch, and what publishes a step to it."""
    process = run_monitor(detector_folder=save_signal_detector(tmp_path / 'signal', 'a', 10_000))
    probe.wait_until_active()
    return process, lambda t: probe.publish(step_to_message(signal_step(t, 'e', {'a': LOW})))


def test_steps_are_scored_while_pytorch_is_imported(
    without_torch: tuple[Process, Callable[[int], None]], probe: Probe, mlp_folder: Path
) -> None:
    _, publish = without_torch
    answer = probe._load.call_async(LoadDetector.Request(folder=str(mlp_folder)))
    scored_before_answer = count = 0
    while not answer.done():
        publish(count)
        count += 1
        probe.spin_for(0.05)
        scored_before_answer = scored_before_answer if answer.done() else len(probe.scores)
    assert answer.result().success, answer.result().message
    assert scored_before_answer > 3, 'the monitor stood while it imported PyTorch'
    probe.spin_until(lambda: len(probe.scores) == count, 'every step is scored')
    assert {score.state for score in probe.scores} == {FailureScore.STATE_NOMINAL}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_monitor_that_imports_pytorch(
    without_torch: tuple[Process, Callable[[int], None]],
    probe: Probe,
    mlp_folder: Path,
    number: int,
) -> None:
    process, _ = without_torch
    probe._load.wait_for_service()
    answer = probe._load.call_async(LoadDetector.Request(folder=str(mlp_folder)))
    probe.spin_for(0.5)
    assert not answer.done()
    os.kill(process.pid, number)
    probe.spin_until(lambda: process.exit_status is not None, 'the monitor has ended')
    assert process.exit_status == 0
