# SPDX-License-Identifier: Apache-2.0
"""Monitors of several robots in one process over DDS: none of them notices what another meets."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from probe import RELIABLE, Probe
from rclpy.serialization import serialize_message
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from safe_bringup.live import Process
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors.learned import SafeLstm
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore
from safe_msgs.srv import LoadDetector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.step import PolicyStep

Quiet = Callable[..., PolicyStep]
NOMINAL, INVALID, UNKNOWN = (
    FailureScore.STATE_NOMINAL,
    FailureScore.STATE_INVALID,
    FailureScore.STATE_UNKNOWN,
)
MISSING = '/no/such/detector'


class Fleet:
    """A process of ``fleet``, and a probe for each of its robots."""

    def __init__(self, process: Process, robots: dict[str, Probe]) -> None:
        self.process = process
        self.robots = robots

    def __getitem__(self, name: str) -> Probe:
        return self.robots[name]


@pytest.fixture
def start(own_domain: int, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Start a fleet; it must end with 0 on interrupt, without a traceback."""
    fleets: list[Fleet] = []

    def run(
        common: dict[str, Any],
        robots: dict[str, dict[str, Any]],
        module: str = 'safe_monitor_node.nodes.fleet',
    ) -> Fleet:
        file = tmp_path / 'robots.yaml'
        listed = [{'namespace': name, 'parameters': own} for name, own in robots.items()]
        values = {'good_runs': 0, 'diagnostics_period': 0.2, **common}
        file.write_text(yaml.safe_dump({'parameters': values, 'robots': listed}))
        process = Process(module, {'robots_file': file}, tmp_path / 'fleet.log')
        fleets.append(Fleet(process, {name: Probe(name) for name in robots}))
        return fleets[-1]

    yield run
    for fleet in fleets:
        for probe in fleet.robots.values():
            probe.close()
        status = fleet.process.stop()
        assert status == 0, fleet.process.log()
        if fleet.process.name != 'faulty_fleet':
            assert 'Traceback' not in fleet.process.log(), fleet.process.log()


def level_of(probe: Probe) -> int:
    assert probe.status is not None
    return int.from_bytes(probe.status.level, 'little')


ERROR = int.from_bytes(DiagnosticStatus.ERROR, 'little')


def find_modules_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes find the modules beside this file."""
    places = [str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(places))


def wide_lstm(folder: Path) -> Path:
    """Write an untrained SAFE-LSTM on 4096 features, whose weights have 17 MB."""
    detector = SafeLstm()
    detector.set_network(detector.build(4096), 4096)
    band = Band(np.array([0.1]), np.full((1, 10), 0.9), kind='test', n_calibration=20)
    return CalibratedDetector(detector, FeatureSpec('wide', 4096), band, 0.1).save(folder)


def damaged_copy(detector: Path, folder: Path) -> Path:
    """Return a copy of a detector folder whose weights are not its weights."""
    copy = shutil.copytree(detector, folder / 'damaged')
    (copy / 'weights.safetensors').write_bytes(b'not the weights')
    return copy


def stream_until(
    fleet: Fleet, robot: str, quiet: Quiet, done: Callable[[], bool], first: int
) -> tuple[int, float]:
    """Let a robot send steps at 50 Hz until done; return the next step and the longest pause."""
    probe, index, due, heard = fleet[robot], first, time.monotonic(), time.monotonic()
    longest, deadline = 0.0, time.monotonic() + 60
    while not (done() and len(probe.scores) == index):
        now = time.monotonic()
        assert now < deadline, f'{len(probe.scores)} of {index} scores'
        if now >= due and not done():
            probe.publish(step_to_message(quiet(index % 10, f'e{index // 10}')))
            index, due = index + 1, now + 0.02
        before = len(probe.scores)
        for each in fleet.robots.values():
            each.executor.spin_once(timeout_sec=0.002)
        if len(probe.scores) > before:
            longest, heard = max(longest, time.monotonic() - heard), time.monotonic()
    return index, longest


def garbage(t: int) -> PolicyStep:
    """Return what no detector can score: NaN, or a wrong width."""
    wrong = np.full(64, np.nan, np.float32) if t % 2 else np.ones(7 + t, np.float32)
    return PolicyStep(wrong, episode_id='g', step=t)


def test_garbage_of_one_robot_leaves_the_scores_of_the_others_alone(
    start: Callable[..., Fleet], rollouts: RolloutSet, lstm_folder: Path
) -> None:
    common = {'detector_folder': str(lstm_folder), 'stale_mode': 'never'}
    fleet = start(common, {'a': {}, 'b': {}, 'c': {}})
    for probe in fleet.robots.values():
        probe.wait_until_active()
    loaded = load_detector(lstm_folder)
    threshold = loaded.band.at(0.2)
    calm = [r for r in rollouts if threshold.first_crossing(loaded.detector.score(r)) is None]
    played: dict[str, Rollout] = {'a': calm[0], 'b': calm[1]}
    longest = max(map(len, played.values()))
    for t in range(longest):
        for name, rollout in played.items():
            if t < len(rollout):
                step = replace(rollout.step(t), episode_id=name)
                fleet[name].publish(step_to_message(step))
        message = step_to_message(garbage(t))
        fleet['c'].publish(message)
        # Bytes that are no message are dropped by the middleware.
        fleet['c'].publish(serialize_message(message)[: 8 + t])
        time.sleep(0.01)
    fleet['c'].spin_until(lambda: len(fleet['c'].scores) == longest, 'each step is answered')
    for name, rollout in played.items():
        probe = fleet[name]
        probe.spin_until(
            lambda probe=probe, rollout=rollout: len(probe.scores) == len(rollout),
            'each step is answered',
        )
        assert [score.step for score in probe.scores] == list(range(len(rollout)))
        offline = loaded.detector.score(rollout)
        found = [score.score for score in probe.scores]
        np.testing.assert_allclose(found, offline, rtol=0, atol=1e-5)
        assert {score.state for score in probe.scores} == {NOMINAL}
        assert {score.episode_id for score in probe.scores} == {name}
    assert {score.state for score in fleet['c'].scores} == {INVALID}
    assert all(np.isnan(score.score) for score in fleet['c'].scores)
    fleet['c'].spin_until(lambda: level_of(fleet['c']) == ERROR, 'c is diagnosed')
    assert 'INVALID' in fleet['c'].status.message
    for name in played:
        fleet[name].spin_until(lambda name=name: not fleet[name].stops[-1], 'it may go on')
        assert level_of(fleet[name]) != ERROR
    fleet['c'].spin_until(lambda: fleet['c'].stops[-1], 'c is stopped')


def test_a_robot_without_a_detector_is_an_error_of_its_own(
    start: Callable[..., Fleet], mlp_folder: Path, quiet: Quiet
) -> None:
    fleet = start(
        {'detector_folder': str(mlp_folder)}, {'a': {}, 'b': {'detector_folder': MISSING}}
    )
    a, b = fleet['a'], fleet['b']
    of_fleet: list[DiagnosticStatus] = []
    a.node.create_subscription(
        DiagnosticArray,
        '/diagnostics',
        lambda array: of_fleet.extend(s for s in array.status if 'fleet of monitors' in s.name),
        RELIABLE,
    )
    a.wait_until_active()
    assert a.step(quiet(0)).state == NOMINAL
    b.spin_until(lambda: b.status is not None and level_of(b) == ERROR, 'b is diagnosed')
    assert MISSING in b.status.message
    a.spin_until(
        lambda: of_fleet and of_fleet[-1].message == '1 of 2 monitors are active', 'it is told'
    )
    assert b.load_detector(mlp_folder).success
    b.wait_until_active()
    assert b.step(quiet(0)).state == NOMINAL
    assert a.step(quiet(1)).state == NOMINAL
    a.spin_until(lambda: of_fleet[-1].message == '2 of 2 monitors are active', 'it is told')


def test_a_robot_that_loads_its_detector_does_not_keep_the_others_waiting(
    start: Callable[..., Fleet],
    mlp_folder: Path,
    quiet: Quiet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_modules_here(monkeypatch)
    wide = wide_lstm(tmp_path / 'wide')
    robots = {'a': {}, 'b': {'detector_folder': str(wide), 'autostart': False}}
    fleet = start({'detector_folder': str(mlp_folder)}, robots, 'slow_fleet')
    a, b = fleet['a'], fleet['b']
    a.wait_until_active()
    index = 0

    def during(client: Any, request: Any) -> Any:
        """Return the answer to a request; the steps of a are scored meanwhile."""
        nonlocal index
        assert client.wait_for_service(timeout_sec=10)
        future, began = client.call_async(request), time.monotonic()
        index, longest = stream_until(fleet, 'a', quiet, future.done, index)
        took = time.monotonic() - began
        # The time that the slow disk takes is 2 s.
        assert longest < took / 2, f'no score for {longest:.2f} s of {took:.2f} s'
        return future.result(), took

    configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    answer, took = during(b._change, configure)
    assert answer.success
    assert took > 2.0
    # The robot itself goes on with its detector while another one is read.
    damaged = damaged_copy(wide, tmp_path)
    answer, took = during(a._load, LoadDetector.Request(folder=str(damaged)))
    assert not answer.success
    assert f'{damaged}/weights.safetensors: expected' in answer.message
    assert took > 2.0
    assert index > 100
    steps = [(score.episode_id, score.step) for score in a.scores]
    assert steps == [(f'e{i // 10}', i % 10) for i in range(index)], 'none is lost'
    assert {score.state for score in a.scores} <= {NOMINAL, FailureScore.STATE_ALARM}


def test_a_flood_of_events_and_requests_is_handled_in_order(
    start: Callable[..., Fleet], mlp_folder: Path, quiet: Quiet
) -> None:
    fleet = start({'detector_folder': str(mlp_folder)}, {'a': {}, 'b': {}})
    a, b = fleet['a'], fleet['b']
    for probe in (a, b):
        probe.wait_until_active()
    assert a._reset.wait_for_service(timeout_sec=10)
    resets = [a._reset.call_async(Trigger.Request()) for _ in range(10)]
    for flood in range(3):
        # The queue of a monitor keeps the last ten.
        for index in range(30):
            a.start(f'{flood}.{index}')
        assert b.step(quiet(flood)).state == NOMINAL
        for index in range(2):
            assert a.step(quiet(index, f'{flood}.29')).state == NOMINAL
    a.spin_until(lambda: all(reset.done() for reset in resets), 'all requests are answered')
    assert all(reset.result().success for reset in resets)
    assert {score.state for score in (*a.scores, *b.scores)} == {NOMINAL}


def test_a_fleet_ends_while_a_detector_is_read(
    start: Callable[..., Fleet],
    mlp_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_modules_here(monkeypatch)
    fleet = start({'detector_folder': str(mlp_folder)}, {'a': {}}, 'slow_fleet')
    a = fleet['a']
    a.wait_until_active()
    damaged = damaged_copy(mlp_folder, tmp_path)
    assert a._load.wait_for_service(timeout_sec=10)
    future = a._load.call_async(LoadDetector.Request(folder=str(damaged)))
    a.spin_for(1.0)
    assert not future.done()
    fleet.process._popen.send_signal(signal.SIGINT)
    assert fleet.process._popen.wait(timeout=15) == 0


def test_life_cycle_and_services_of_one_robot_leave_the_others_alone(
    start: Callable[..., Fleet], mlp_folder: Path, quiet: Quiet
) -> None:
    fleet = start({'detector_folder': str(mlp_folder)}, {'a': {'alarm_advice': 'ask'}, 'b': {}})
    a, b = fleet['a'], fleet['b']
    for probe in (a, b):
        probe.wait_until_active()
        assert probe.step(quiet(0)).state == NOMINAL
    assert a.change_state(Transition.TRANSITION_DEACTIVATE)
    assert not a.change_state(Transition.TRANSITION_CONFIGURE), 'refused, and nobody dies'
    assert a.reset().message == 'the monitor is not active'
    before = len(b.stops)
    b.spin_until(lambda: len(b.stops) > before + 3, 'safe/stop of b goes on')
    assert b.step(quiet(1)).state == NOMINAL
    assert b.reset().message == 'the state before was NOMINAL, the state now is NOMINAL'
    assert b.set_parameters(max_age=7.0).successful
    assert not b.set_parameters(threads=2).successful
    a.spin_until(lambda: a.facts().get('alarm_advice') == 'ask', 'a has its own parameters')
    assert b.facts()['alarm_advice'] == 'stop'
    events = b.listen_to_events()
    answer = b.label_episode('e', EpisodeEvent.OUTCOME_SUCCESS)
    assert answer.success
    b.spin_until(lambda: events, 'the label is published for b')
    assert a.change_state(Transition.TRANSITION_ACTIVATE)
    # Its episode runs still, and steps may have been missed.
    a.spin_until(lambda: a.alarms and a.alarms[-1].state == INVALID, 'a is not sure')
    assert b.step(quiet(2)).state == NOMINAL
    assert a.change_state(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert b.step(quiet(3)).state == NOMINAL


def test_episodes_follow_the_rules_of_a_single_monitor(
    start: Callable[..., Fleet], mlp_folder: Path, quiet: Quiet
) -> None:
    fleet = start(
        {'detector_folder': str(mlp_folder), 'end_grace': 0.3, 'stale_after': 0.5},
        {'a': {}, 'b': {}},
    )
    a, b = fleet['a'], fleet['b']
    for probe in (a, b):
        probe.wait_until_active()
        probe.start('one')
        assert probe.step(quiet(0, 'one')).state == NOMINAL
    a.event('one', EpisodeEvent.KIND_END)
    # A START that arrives before the last step of the previous episode waits for it.
    a.start('two')
    late = a.step(quiet(1, 'one'))
    assert (late.episode_id, late.state) == ('one', NOMINAL)
    assert a.step(quiet(0, 'two')).state == NOMINAL
    b.spin_until(
        lambda: b.alarms[-1].state == FailureAlarm.STATE_STALE and b.stops[-1], 'b is silent'
    )
    a.end('two')
    assert a.alarms[-1].reason == 'no episode is running'


def test_a_step_has_the_age_of_the_newest_time(
    start: Callable[..., Fleet], mlp_folder: Path, quiet: Quiet
) -> None:
    fleet = start({'detector_folder': str(mlp_folder), 'use_sim_time': True}, {'a': {}})
    a = fleet['a']
    a.wait_until_active()
    clock = a.node.create_publisher(Clock, '/clock', 10)

    def at(seconds: float, index: int) -> FailureScore:
        step = quiet(index)
        step.stamp = int(seconds * 1e9)
        clock.publish(Clock(clock=Time(nanoseconds=step.stamp).to_msg()))
        time.sleep(0.02)  # time and steps are two topics
        return a.step(step)

    a.spin_until(lambda: clock.get_subscription_count(), 'it hears the time')
    at(900.0, 0)
    for index in range(1, 8):
        assert at(900.0 + 40 * index, index).step == index
    a.spin_until(lambda: a.facts()['age of the last step [s]'] == '0.000', 'its age is right')
    # A recording that begins again: its first step must find the earlier time.
    assert at(900.0, 0).state == NOMINAL
    assert [score.step for score in a.scores][-2:] == [7, 0]


def test_an_error_in_the_code_ends_one_monitor(
    start: Callable[..., Fleet],
    mlp_folder: Path,
    quiet: Quiet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_modules_here(monkeypatch)
    fleet = start({'detector_folder': str(mlp_folder)}, {'a': {}, 'b': {}}, 'faulty_fleet')
    a, b = fleet['a'], fleet['b']
    for probe in (a, b):
        probe.wait_until_active()
        assert probe.step(quiet(0)).state == NOMINAL
    a.publish(step_to_message(quiet(0, 'fault')))
    a.spin_until(lambda: a.status is not None and level_of(a) == ERROR, 'a is diagnosed')
    assert 'ZeroDivisionError: an error in the code' in a.status.message
    assert a.alarms[-1].state == UNKNOWN
    assert b.step(quiet(1)).state == NOMINAL
    assert a.change_state(Transition.TRANSITION_CONFIGURE)
    assert a.change_state(Transition.TRANSITION_ACTIVATE)
    a.wait_until_active()
    assert a.step(quiet(0, 'again')).state == NOMINAL


@pytest.mark.parametrize(
    ('robots', 'message'),
    [
        ('robots: [{namespace: a}, {namespace: a}]', r'robots\[1\]: expected a namespace of its'),
        ('robots: [{namespace: a, parameters: {alpha: 7}}]', 'alpha: expected a value of type'),
    ],
    ids=['twice', 'parameter'],
)
def test_a_wrong_file_ends_the_start_with_the_reason(
    own_domain: int, tmp_path: Path, robots: str, message: str
) -> None:
    file = tmp_path / 'robots.yaml'
    file.write_text(robots)
    command = [sys.executable, '-m', 'safe_monitor_node.nodes.fleet']
    done = subprocess.run(
        [*command, '--ros-args', '-p', f'robots_file:={file}'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f'fleet: {file}: ')
    assert re.search(message, done.stderr)
    assert 'Traceback' not in done.stderr


def test_sigterm_ends_a_fleet_cleanly(start: Callable[..., Fleet], mlp_folder: Path) -> None:
    fleet = start({'detector_folder': str(mlp_folder)}, {'a': {}, 'b': {}})
    fleet['a'].wait_until_active()
    fleet.process._popen.send_signal(signal.SIGTERM)
    assert fleet.process._popen.wait(timeout=15) == 0
