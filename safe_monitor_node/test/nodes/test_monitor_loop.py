# SPDX-License-Identifier: Apache-2.0
"""The loop of monitors over DDS: the order of messages, and what does not wait while steps come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is needed')
pytest.importorskip('safe_msgs.msg', reason='the messages must be built')

from rclpy.duration import Duration  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from scripted_episodes import make_band, make_step, scripted  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from safe_monitor_node.nodes.monitor_loop import BUSY, MonitorLoop  # noqa: E402
from safe_monitor_node.nodes.monitor_node import MonitorNode  # noqa: E402
from safe_msgs.msg import EpisodeEvent, FailureScore  # noqa: E402
from safe_msgs.msg import PolicyStep as PolicyStepMessage  # noqa: E402
from vla_feature_bridge.ros.messages import step_to_message  # noqa: E402
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS  # noqa: E402

SPACE = f'/loop_{os.getpid()}'
LIMIT = 20.0
# Of the band: more than the steps of any test.
MAX_STEPS = 20_000
STEP_PERIOD = 0.003


class Bench:
    """A monitor in its loop, and a policy in the same process.

    Parameters
    ----------
    folder : path
    other_node : bool
        Whether the loop runs another node, too.
    **values
        Other parameters of the monitor.
    """

    def __init__(self, folder: Any, other_node: bool, **values: Any) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.monitor = MonitorNode(
            context=self.context,
            namespace=SPACE,
            parameter_overrides=[
                Parameter(name, value=value)
                for name, value in {'detector_folder': str(folder), **values}.items()
            ],
        )
        self.loop = MonitorLoop(self.monitor.schedule, context=self.context)
        self.loop.add(self.monitor)
        self.nodes = [self.monitor]
        if other_node:
            self.nodes.append(Node('other', namespace=SPACE, context=self.context))
            self.loop.add(self.nodes[-1])
        self.monitor.autostart()
        assert self.monitor.active
        self.policy = Node('policy', namespace=SPACE, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.policy)
        self.scores: list[FailureScore] = []
        self.policy.create_subscription(FailureScore, 'safe/score', self.scores.append, 100)
        self.steps = self.policy.create_publisher(PolicyStepMessage, 'vla/policy_step', STEP_QOS)
        self.events = self.policy.create_publisher(EpisodeEvent, 'vla/episode', EPISODE_QOS)
        self.turn_until(
            lambda: (
                self.steps.get_subscription_count() == 1
                and self.events.get_subscription_count() == 2
                and self.policy.count_publishers(f'{SPACE}/safe/score')
            )
        )

    def turn_until(self, condition: Callable[[], Any]) -> None:
        """Run the loop and the policy until the condition holds."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, self.monitor.session.problem
            self.loop.turn(0.02)
            # One turn can publish several scores, and a callback takes one of them.
            for _ in range(4):
                self.executor.spin_once(timeout_sec=0.0)

    def step(self, index: int, episode: str) -> None:
        self.steps.publish(step_to_message(make_step(index, episode=episode)))

    def event(self, episode: str, kind: int) -> None:
        self.events.publish(EpisodeEvent(episode_id=episode, kind=kind))

    def delivered(self) -> None:
        """Return when every message waits in the monitor."""
        for publisher in (self.steps, self.events):
            assert publisher.wait_for_all_acked(Duration(seconds=10))

    def close(self) -> None:
        self.executor.shutdown()
        for node in (*self.nodes, self.policy):
            node.destroy_node()
        self.loop.shutdown()
        rclpy.shutdown(context=self.context)


@pytest.fixture(params=[False, True], ids=['alone', 'with another node'])
def bench(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Bench]:
    made = Bench(scripted(make_band(length=MAX_STEPS)).save(tmp_path / 'detector'), request.param)
    yield made
    made.close()


def test_events_arrive_with_the_default_depth_of_the_middleware(tmp_path: Any) -> None:
    depth = {f'qos_overrides.{SPACE}/vla/episode.subscription.depth': 0}
    bench = Bench(scripted(make_band(length=9)).save(tmp_path / 'detector'), False, **depth)
    try:
        bench.event('e', EpisodeEvent.KIND_START)
        bench.turn_until(lambda: bench.monitor.session.running_id == 'e')
    finally:
        bench.close()


def says_loss(bench: Bench) -> bool:
    return any('may be lost' in finding.text for finding in bench.monitor.inputs.findings())


def test_a_depth_that_the_user_has_set_is_no_loss_at_every_event(
    tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = scripted(make_band(length=9)).save(tmp_path / 'detector')
    depth = {f'qos_overrides.{SPACE}/vla/episode.subscription.depth': 1}
    bench = Bench(folder, False, **depth)
    session = bench.monitor.session
    assert session is not None
    try:
        for number in range(3):
            bench.event(f'e{number}', EpisodeEvent.KIND_START)
            bench.turn_until(lambda number=number: session.running_id == f'e{number}')
            bench.event(f'e{number}', EpisodeEvent.KIND_END)
            bench.turn_until(lambda: session.running_id is None)
        assert not says_loss(bench)
        bench.event('e3', EpisodeEvent.KIND_START)
        bench.event('e3', EpisodeEvent.KIND_END)
        bench.delivered()
        bench.turn_until(lambda: says_loss(bench))
    finally:
        bench.close()
    assert capfd.readouterr().err.count('the subscription to 1, below 100') == 1


def test_events_from_before_that_come_after_a_new_one_are_no_loss(bench: Bench) -> None:
    """A policy with more events than it keeps has published one while the monitor connected."""
    bench.policy.destroy_publisher(bench.events)
    bench.turn_until(lambda: bench.monitor.inputs._count_publishers() == 0)
    for number in (477, 379, 380):
        event = EpisodeEvent(episode_id=f'e{number}', kind=EpisodeEvent.KIND_START)
        info = {'source_timestamp': number, 'publication_sequence_number': number}
        bench.monitor.inputs._on_event(event, info)
    assert not says_loss(bench)


def test_steps_after_an_end_of_a_clock_that_is_ahead_are_invalid(bench: Bench) -> None:
    """They were published after END, and END says that it was published in the future."""
    session = bench.monitor.session
    assert session is not None
    bench.step(0, 'e')
    bench.turn_until(lambda: bench.scores)
    ahead = {'source_timestamp': time.time_ns() + 3600 * 10**9}
    bench.monitor._on_episode(EpisodeEvent(episode_id='e', kind=EpisodeEvent.KIND_END), ahead)
    bench.turn_until(lambda: session.running_id is None)
    bench.step(1, 'e')
    bench.turn_until(lambda: len(bench.scores) == 2)
    assert bench.scores[-1].state == FailureScore.STATE_INVALID


def test_a_policy_whose_clock_is_ahead_has_its_start_and_its_end(bench: Bench) -> None:
    session = bench.monitor.session
    assert session is not None

    def info() -> dict[str, int]:
        ahead = time.time_ns() + 3600 * 10**9
        return {'source_timestamp': ahead, 'publication_sequence_number': ahead}

    def step(index: int, episode: str) -> None:
        message = step_to_message(make_step(index, episode=episode, stamp=time.time_ns()))
        bench.monitor._on_step(message, info())

    def event(episode: str, kind: int) -> None:
        bench.monitor._on_episode(EpisodeEvent(episode_id=episode, kind=kind), info())

    step(0, 'a')
    event('a', EpisodeEvent.KIND_END)
    event('b', EpisodeEvent.KIND_START)
    bench.turn_until(lambda: session.running_id != 'a')
    assert session.running_id == 'b', 'START came in the grace of END'
    for _ in range(2):
        step(0, 'b')
        step(1, 'b')
    event('b', EpisodeEvent.KIND_END)
    bench.turn_until(lambda: session.running_id is None)


def test_an_error_during_a_load_of_a_detector_ends_the_loop(bench: Bench) -> None:
    def broken() -> None:
        raise ValueError('broken')

    bench.monitor.schedule.every(0.01, broken)
    # A service reports every error of its load to the caller.
    with pytest.raises(ValueError, match='broken'):
        bench.loop.run_beside(lambda: time.sleep(0.2))
    with pytest.raises(ValueError, match='broken'):
        bench.loop.turn(0.0)


def test_the_inputs_can_be_closed_soon_after_events_were_lost(bench: Bench) -> None:
    for number in range(60):
        bench.event(f'e{number}', EpisodeEvent.KIND_START)
        bench.event(f'e{number}', EpisodeEvent.KIND_END)
    bench.turn_until(lambda: says_loss(bench))
    bench.monitor.trigger_deactivate()
    bench.monitor.trigger_cleanup()
    assert not says_loss(bench)


def test_no_step_is_lost_over_several_ends_of_episodes(bench: Bench) -> None:
    """All messages wait together, as after a pause of the process."""
    episodes = [f'e{number}' for number in range(4)]
    for episode in episodes:
        bench.event(episode, EpisodeEvent.KIND_START)
        for index in range(15):
            bench.step(index, episode)
        bench.event(episode, EpisodeEvent.KIND_END)
    bench.delivered()
    expected = [(episode, index) for episode in episodes for index in range(15)]
    bench.turn_until(lambda: len(bench.scores) >= len(expected))
    assert [(score.episode_id, score.step) for score in bench.scores] == expected
    assert {score.state for score in bench.scores} == {FailureScore.STATE_NOMINAL}
    session = bench.monitor.session
    assert session is not None
    assert not session.problem and not session.remarks.texts
    # END was the last message.
    bench.turn_until(lambda: session.running_id is None)


def test_a_service_is_answered_while_steps_come(bench: Bench) -> None:
    client = bench.policy.create_client(Trigger, 'monitor/reset')
    bench.turn_until(client.service_is_ready)
    bench.step(0, 'e')
    bench.turn_until(lambda: bench.scores)
    answer, index = client.call_async(Trigger.Request()), 1
    last = time.monotonic()

    def answered() -> bool:
        nonlocal index, last
        if time.monotonic() - last >= STEP_PERIOD:
            bench.step(index, 'e')
            index += 1
            last = time.monotonic()
        return bool(answer.done())

    began = time.monotonic()
    bench.turn_until(answered)
    assert answer.result().success
    if len(bench.nodes) == 1:
        # The loop has not waited for the policy to pause. This is wide for a busy machine.
        assert time.monotonic() - began < 100 * BUSY
    bench.turn_until(lambda: len(bench.scores) == index)
    assert [score.step for score in bench.scores] == list(range(index))


@pytest.mark.parametrize('bench', [False], indirect=True, ids=['alone'])
def test_a_step_is_scored_before_a_request_that_came_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = bench.monitor.session
    assert session is not None
    reset, scored = session.reset, []

    def spy() -> None:
        scored.append(session.monitor.counts.scored)
        reset()

    monkeypatch.setattr(session, 'reset', spy)
    client = bench.policy.create_client(Trigger, 'monitor/reset')
    bench.turn_until(client.service_is_ready)
    for index in range(5):
        # The loop waits for everything again, and both messages are there when it looks.
        time.sleep(2 * BUSY)
        answer = client.call_async(Trigger.Request())
        time.sleep(0.1)
        bench.step(index, 'e')
        bench.delivered()
        bench.turn_until(answer.done)
        bench.turn_until(lambda: session.monitor.counts.scored > index)  # noqa: B023
    assert scored == [1, 2, 3, 4, 5]


def test_a_loop_without_messages_sleeps(bench: Bench) -> None:
    turns, until = 0, time.monotonic() + 1.5
    began = time.thread_time()
    while time.monotonic() < until:
        bench.loop.turn()
        turns += 1
    # safe/stop comes 10 times a second, and this node gets it back.
    assert turns < 150
    assert time.thread_time() - began < 0.75


def test_the_loop_waits_for_what_is_created_later(bench: Bench) -> None:
    monitor = bench.monitor
    monitor.trigger_deactivate()
    monitor.trigger_cleanup()
    bench.turn_until(lambda: bench.steps.get_subscription_count() == 0)
    monitor.autostart()
    bench.turn_until(lambda: bench.steps.get_subscription_count() == 1)
    bench.step(0, 'e')
    bench.turn_until(lambda: bench.scores)
    assert bench.scores[0].state == FailureScore.STATE_NOMINAL
