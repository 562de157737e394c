# SPDX-License-Identifier: Apache-2.0
"""The monitor and time: /clock that is missing, stands or jumps, old steps, slow policies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from probe import Probe, suspend
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

from safe_bringup.live import Process
from safe_monitor_node.nodes.monitor_node import MonitorNode
from safe_msgs.msg import FailureAlarm, FailureScore
from vla_feature_bridge.ros.messages import step_to_message
from vla_feature_bridge.step import PolicyStep

Quiet = Callable[..., PolicyStep]


class Simulator:
    """A publisher of ``/clock``."""

    def __init__(self, probe: Probe) -> None:
        self._probe, self._publisher = probe, probe.node.create_publisher(Clock, '/clock', 10)
        self.seconds = 1000.0

    def run_until(self, condition: Callable[[], object], what: str) -> None:
        """Let the time go on until the condition holds."""

        def tick() -> object:
            self.seconds += 0.05
            self._publisher.publish(Clock(clock=Time(nanoseconds=self.nanoseconds).to_msg()))
            return condition()

        self._probe.spin_until(tick, what)

    def is_after(self, seconds: float) -> bool:
        return self.seconds > seconds

    @property
    def nanoseconds(self) -> int:
        return int(self.seconds * 1e9)


@pytest.fixture
def feed(probe: Probe, quiet: Quiet) -> Iterator[Callable[..., FailureScore]]:
    """Yield a function that publishes the next step of episode ``e`` and returns its score."""
    count = 0

    def publish(stamp: int = 0) -> FailureScore:
        nonlocal count
        step = quiet(count)
        step.stamp = stamp
        count += 1
        return probe.step(step)

    yield publish


def test_a_missing_clock_is_stale_and_said_although_steps_come(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    feed: Callable[..., FailureScore],
) -> None:
    run_monitor(detector_folder=mlp_folder, use_sim_time=True)
    probe.wait_until_active()
    probe.spin_until(lambda: feed().state == FailureScore.STATE_STALE, 'a step is STALE')
    probe.spin_until(
        lambda: probe.alarms[-1].reason.startswith('no /clock for '), 'the alarm says it too'
    )
    assert 'no node publishes /clock' in probe.alarms[-1].reason
    assert probe.alarms[-1].advice == FailureAlarm.ADVICE_STOP
    probe.spin_until(lambda: probe.stops[-1], 'safe/stop is true')
    # An earlier status can say it as a warning, before the state is STALE.
    probe.spin_until(
        lambda: (
            probe.status
            and 'no /clock for ' in probe.status.message
            and probe.status.level == DiagnosticStatus.STALE
        ),
        'it is diagnosed',
    )
    simulator = Simulator(probe)
    simulator.run_until(
        lambda: feed().state == FailureScore.STATE_NOMINAL, 'a clock that is there ends it'
    )


def test_a_clock_that_stops_or_jumps_ends_no_episode_and_no_heartbeat(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    feed: Callable[..., FailureScore],
) -> None:
    run_monitor(detector_folder=mlp_folder, use_sim_time=True, max_age=0.0)
    probe.wait_until_active()
    simulator = Simulator(probe)
    simulator.run_until(lambda: feed().state == FailureScore.STATE_NOMINAL, 'the clock runs')

    before = len(probe.stops)
    probe.spin_until(lambda: len(probe.stops) > before + 10, 'safe/stop goes on without a clock')
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_STALE, 'the silence is noticed too'
    )
    probe.spin_until(
        lambda: probe.status and 'the simulation is paused' in probe.status.message,
        'diagnostics go on and say it',
    )
    for seconds in (5000.0, 10.0):
        simulator.seconds = seconds
        simulator.run_until(
            lambda: feed(simulator.nanoseconds).state == FailureScore.STATE_NOMINAL,
            'the episode goes on',
        )
    assert probe.facts()['episodes'] == '1'
    assert probe.facts()['steps missing'] == '0'


def test_a_recording_that_is_played_again_is_scored_again(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object, quiet: Quiet
) -> None:
    run_monitor(detector_folder=mlp_folder, use_sim_time=True)
    probe.wait_until_active()
    simulator = Simulator(probe)
    for _ in range(2):
        simulator.seconds = 1000.0
        for t in range(3):
            # The time arrives on another topic: nobody knows which of the two comes first.
            later = simulator.seconds + 0.5
            simulator.run_until(partial(simulator.is_after, later), 'the time is known')
            step = quiet(t)
            step.stamp = simulator.nanoseconds
            assert probe.step(step).state == FailureScore.STATE_NOMINAL
    assert [s.step for s in probe.scores] == [0, 1, 2, 0, 1, 2]


def test_an_old_step_is_stale_and_a_fresh_one_ends_it(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    feed: Callable[..., FailureScore],
) -> None:
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    score = feed(time.time_ns() - 8 * 10**9)
    assert score.state == FailureScore.STATE_STALE
    assert score.score == score.score, 'it is scored'
    probe.spin_until(lambda: probe.alarms[-1].state == FailureAlarm.STATE_STALE, 'it is announced')
    assert 'expected an age of at most 5 s (max_age) at arrival, found' in probe.alarms[-1].reason
    probe.spin_until(lambda: probe.stops[-1], 'safe/stop is true')
    assert feed(time.time_ns()).state == FailureScore.STATE_NOMINAL
    probe.spin_until(
        lambda: 0.0 <= float(probe.facts()['age of the last step [s]']) < 5.0, 'the age is said'
    )
    # A stamp of 0 has no age. A stamp in the future is a warning.
    assert feed(0).state == FailureScore.STATE_NOMINAL
    probe.spin_until(lambda: probe.facts()['age of the last step [s]'] == 'unknown', 'no age')
    assert feed(time.time_ns() + 60 * 10**9).state == FailureScore.STATE_NOMINAL
    probe.spin_until(
        lambda: probe.status and probe.status.level == DiagnosticStatus.WARN, 'a warning'
    )
    assert probe.status is not None
    assert 's in the future' in probe.status.message
    assert feed(10**9).state == FailureScore.STATE_INVALID, 'of 1970, before the first step'


def test_a_backlog_is_not_judged_as_if_it_were_now(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: object, quiet: Quiet
) -> None:
    process = run_monitor(detector_folder=mlp_folder, max_age=1.0)
    probe.wait_until_active()
    suspend(process.pid)
    try:
        for t in range(5):
            step = quiet(t)
            step.stamp = time.time_ns()
            probe.publish(step_to_message(step))
        probe.spin_for(2.0)  # what the monitor sent before arrives, too
        probe.alarms.clear()
        probe.stops.clear()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    probe.spin_until(lambda: len(probe.scores) == 5, 'the backlog is scored')
    assert {s.state for s in probe.scores} == {FailureScore.STATE_STALE}
    probe.spin_until(lambda: probe.alarms and probe.stops, 'it is announced')
    assert FailureAlarm.STATE_NOMINAL not in {a.state for a in probe.alarms}
    assert all(probe.stops)


@pytest.mark.slow
def test_a_slow_policy_is_learned_and_said(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    feed: Callable[..., FailureScore],
) -> None:
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    feed()
    probe.spin_until(lambda: probe.status is not None, 'diagnostics come')
    assert probe.facts()['stale after [s]'] == '2 (learned: no period is known yet)'
    probe.spin_until(lambda: probe.alarms[-1].state == FailureAlarm.STATE_STALE, 'silence is STALE')
    assert 'no policy step has arrived for more than 2 s' in probe.alarms[-1].reason
    assert feed().state == FailureScore.STATE_NOMINAL
    probe.spin_until(
        lambda: '3 times the period of' in probe.facts()['stale after [s]'], 'the period is learned'
    )
    assert float(probe.facts()['stale after [s]'].split()[0]) > 6.0


def test_without_watching_for_silence_a_hung_policy_is_not_stale(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    feed: Callable[..., FailureScore],
) -> None:
    run_monitor(detector_folder=mlp_folder, stale_after=0.1, stale_mode='never')
    probe.wait_until_active()
    feed()
    before = len(probe.stops)
    probe.spin_until(lambda: len(probe.stops) > before + 10, 'a second goes by')
    assert probe.alarms[-1].state == FailureAlarm.STATE_NOMINAL
    assert probe.facts()['stale after [s]'] == 'never'


def test_every_periodic_call_of_the_node_is_of_the_steady_clock(
    probe: Probe, mlp_folder: object
) -> None:
    node = MonitorNode(
        context=probe.context,
        parameter_overrides=[Parameter('detector_folder', value=str(mlp_folder))],
    )
    try:
        node.autostart()
        assert node.active
        assert node.schedule.now is time.monotonic
        assert node.schedule.next_due() - time.monotonic() <= 0.1, 'safe/stop'
        assert not list(node.timers)
    finally:
        node.destroy_node()


FAKETIME = sorted(Path('/usr/lib').glob('*/faketime/libfaketimeMT.so.1'))


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME, reason='libfaketime is missing: apt install libfaketime')
def test_a_system_clock_that_is_set_back_stops_nothing(
    probe: Probe,
    run_monitor: Callable[..., Process],
    mlp_folder: object,
    feed: Callable[..., FailureScore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offset = tmp_path / 'offset'

    def set_clock(text: str) -> None:
        (tmp_path / 'new').write_text(text + '\n')
        (tmp_path / 'new').replace(offset)

    set_clock('+0')
    with monkeypatch.context() as patch:
        patch.setenv('LD_PRELOAD', str(FAKETIME[0]))
        patch.setenv('FAKETIME_TIMESTAMP_FILE', str(offset))
        patch.setenv('FAKETIME_NO_CACHE', '1')
        patch.setenv('FAKETIME_DONT_FAKE_MONOTONIC', '1')
        run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    assert feed(time.time_ns()).state == FailureScore.STATE_NOMINAL
    set_clock('-60s')
    before = len(probe.stops)
    probe.spin_until(lambda: len(probe.stops) > before + 10, 'safe/stop goes on')
    assert feed(time.time_ns()).state == FailureScore.STATE_NOMINAL, 'the episode goes on'
    probe.spin_until(
        lambda: probe.status and 's in the future' in probe.status.message, 'the age is not known'
    )
    probe.spin_until(
        lambda: probe.alarms[-1].state == FailureAlarm.STATE_STALE, 'silence is noticed'
    )


def test_a_late_step_of_an_earlier_episode_with_the_same_id_is_not_scored_as_the_next_step(
    probe: Probe, run_monitor: Callable[..., Process], mlp_folder: Path, quiet: Quiet
) -> None:
    run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()

    def message(t: int):
        step = quiet(t)
        step.stamp = time.time_ns()
        return step_to_message(step)

    probe.start('e')
    for t in range(3):
        probe.publish(message(t))
    late = message(3)
    probe.spin_until(lambda: len(probe.scores) == 3, 'the first episode is scored')
    probe.end('e')
    probe.start('e')
    for t in range(3):
        probe.publish(message(t))
    probe.spin_until(lambda: len(probe.scores) == 6, 'the second episode is scored')
    probe.publish(late)
    probe.spin_until(lambda: len(probe.scores) == 7, 'the late step is answered')
    assert [score.state for score in probe.scores] == [FailureScore.STATE_NOMINAL] * 6 + [
        FailureScore.STATE_INVALID
    ]
    probe.spin_until(
        lambda: 'a late step of an earlier episode' in probe.alarms[-1].reason, 'the alarm says why'
    )
    probe.spin_until(lambda: probe.stops[-1], 'the robot stops')
