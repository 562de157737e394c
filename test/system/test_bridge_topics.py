# SPDX-License-Identifier: Apache-2.0
"""The bridge without senders: steps joined from topics of other nodes, episodes from signs."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_msgs.msg import GoalStatus, GoalStatusArray
from bridge_listener import BridgeListener
from builtin_interfaces.msg import Time
from probe import EVENTS
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float32MultiArray, Float64MultiArray, Int32, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from safe_bringup.live import Process
from safe_msgs.msg import EpisodeEvent, TensorStamped
from vla_feature_bridge.ros.messages import tensor_to_message
from vla_feature_bridge.signals import rollout_signals

BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
OK, WARN, ERROR, STALE = 0, 1, 2, 3
CHUNKS = np.random.default_rng(5).normal(size=(12, 3, 2))


@pytest.fixture
def real_filters() -> None:
    """Skip a test of joins where the real ``message_filters`` is missing."""
    pytest.importorskip(
        'message_filters',
        reason='message_filters is missing, so that NO JOIN IS TESTED: it comes with a ROS 2 '
        'distribution, not from PyPI; put the folder src of ros2/message_filters on PYTHONPATH',
    )


@pytest.fixture
def robot(own_domain: int) -> Iterator[BridgeListener]:
    """Yield a listener whose node also publishes what a robot publishes."""
    made = BridgeListener()
    yield made
    made.close()


@pytest.fixture
def run_bridge(own_domain: int, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a bridge without senders; it must end with 0 on interrupt, without a traceback."""
    started: list[Process] = []

    def start(**parameters: Any) -> Process:
        settings = {'listen': ['none'], 'diagnostics_period': 0.1, **parameters}
        log = tmp_path / f'bridge{len(started)}.log'
        started.append(Process('vla_feature_bridge.nodes.bridge', settings, log))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0, process.log()
        assert 'Traceback' not in process.log(), process.log()


def connected(robot: BridgeListener, *publishers: Any) -> None:
    """Return once the bridge subscribes to all these topics and is heard."""
    robot.spin_until(
        lambda: (
            all(publisher.get_subscription_count() > 0 for publisher in publishers)
            and robot.node.count_publishers('vla/policy_step') > 0
        ),
        'the bridge has subscribed',
    )
    robot.spin(0.5)


def at(milliseconds: int) -> Time:
    """Return a stamp."""
    return Time(sec=1_700_000_000 + milliseconds // 1000, nanosec=milliseconds % 1000 * 1_000_000)


def milliseconds_of(step: Any) -> int:
    """Return the stamp of a step, as :func:`at` takes it."""
    stamp = step.header.stamp
    return int((stamp.sec - 1_700_000_000) * 1000 + stamp.nanosec // 1_000_000)


def chunk(number: int, stamp: int | None = None, names: tuple[str, ...] = ('a', 'b')) -> Any:
    """Return a chunk of three actions of two joints as a trajectory."""
    points = [JointTrajectoryPoint(positions=row.tolist()) for row in CHUNKS[number % 12]]
    message = JointTrajectory(joint_names=list(names), points=points)
    if stamp is not None:
        message.header.stamp = at(stamp)
    return message


def features(number: int, stamp: int) -> Any:
    """Return features that hold their number, with a stamp."""
    message = TensorStamped(tensor=tensor_to_message(np.full(4, number, np.float32)))
    message.header.stamp = at(stamp)
    return message


def values(step: Any) -> int:
    """Return the number that features hold."""
    return int(np.frombuffer(step.features.data, np.float32)[0])


def actions_of(step: Any) -> np.ndarray:
    """Return the actions of a step."""
    return np.frombuffer(step.actions.data, np.float64).reshape(step.actions.shape)


# --- topics only: no features, nothing to join


def doctor() -> subprocess.CompletedProcess[str]:
    """Run the verb that looks for faults."""
    words = [sys.executable, '-m', 'safe_monitor_node', 'doctor', '--wait', '4']
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_chunks_of_a_best_effort_publisher_become_black_box_steps(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    publisher = robot.node.create_publisher(JointTrajectory, '/arm/chunk', BEST_EFFORT)
    run_bridge(
        actions_topic='/arm/chunk',
        episode_from='gap',
        episode_gap=1.0,
        exec_horizon=2,
        joint_names=['b', 'a'],
        policy='theirs',
        action_space='robot',
        task='stack',
    )
    connected(robot, publisher)
    for number in range(5):
        publisher.publish(chunk(number))
        robot.spin(0.05)
    robot.spin_until(lambda: len(robot.events) == 2, 'the gap ends the episode')
    assert [kind for kind, _ in robot.kinds()] == ['start', 'end']
    assert robot.events[0].task == 'stack'
    assert [step.step for step in robot.steps] == [0, 1, 2, 3, 4]
    step = robot.steps[0]
    assert (step.features.name, step.policy, step.action_space) == ('none', 'theirs', 'robot')
    assert step.header.stamp.sec > 1_700_000_000, 'a stamp of 0 becomes the time of receiving'
    np.testing.assert_array_equal(actions_of(step)[0], CHUNKS[0][:, ::-1])
    expected = rollout_signals(CHUNKS[:5, None, :, ::-1], 2)
    for name, row in expected.items():
        found = [dict(zip(s.signal_names, s.signals, strict=True))[name] for s in robot.steps]
        assert found == pytest.approx(list(row), rel=1e-5)


def test_a_best_effort_publisher_that_joins_a_reliable_one_is_heard_too(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    first = robot.node.create_publisher(Float64MultiArray, '/commands', RELIABLE)
    run_bridge(actions_topic='/commands', episode_from='gap', episode_gap=30.0)
    connected(robot, first)
    first.publish(Float64MultiArray(data=[1.0, 2.0]))
    robot.spin_until(lambda: len(robot.steps) == 1, 'a step of the reliable publisher')
    second = robot.node.create_publisher(Float64MultiArray, '/commands', BEST_EFFORT)
    connected(robot, second)
    robot.spin(1.0)
    second.publish(Float64MultiArray(data=[3.0, 4.0]))
    robot.spin_until(lambda: len(robot.steps) == 2, 'a step of the best-effort publisher')
    np.testing.assert_array_equal(actions_of(robot.steps[1]), [[[3.0, 4.0]]])
    robot.spin_until(
        lambda: '2 nodes publish /commands' in robot.message_of('source'), 'both are noticed'
    )


def test_messages_that_cannot_be_read_leave_a_gap_and_are_named(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    publisher = robot.node.create_publisher(JointTrajectory, '/chunk', RELIABLE)
    process = run_bridge(
        actions_topic='/chunk', episode_from='gap', episode_gap=30.0, joint_names=['a', 'b']
    )
    connected(robot, publisher)
    bad = chunk(1)
    bad.points[0].positions[0] = float('nan')
    for message in (chunk(0), chunk(1, names=('x', 'y')), bad, JointTrajectory(), chunk(2)):
        publisher.publish(message)
        robot.spin(0.05)
    robot.spin_until(lambda: len(robot.steps) == 2, 'two steps can be read')
    assert [step.step for step in robot.steps] == [0, 4]
    robot.spin_until(lambda: robot.fact('source', 'steps refused') == '3', 'the others are counted')
    assert robot.level_of('source') == WARN
    assert 'expected the joints a, b, found x, y' in robot.message_of('source')
    assert process.exit_status is None


# --- joins


@pytest.mark.usefixtures('real_filters')
def test_an_exact_join_counts_what_is_dropped_and_sorts_nothing_wrongly(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    hidden = robot.node.create_publisher(TensorStamped, '/hidden', RELIABLE)
    chunks = robot.node.create_publisher(JointTrajectory, '/chunk', RELIABLE)
    run_bridge(
        features_topic='/hidden',
        actions_topic='/chunk',
        feature_name='h',
        episode_from='gap',
        episode_gap=30.0,
        join_queue_size=4,
    )
    connected(robot, hidden, chunks)
    dropped_features, dropped_chunks = {6}, {3, 9}
    shuffled = random.Random(1)
    for number in range(1, 21):
        pair = [
            (hidden, features(number, 100 * number), number not in dropped_features),
            (chunks, chunk(number, 100 * number), number not in dropped_chunks),
        ]
        shuffled.shuffle(pair)
        for publisher, message, is_sent in pair:
            if is_sent:
                publisher.publish(message)
        robot.spin(0.03)
    joined = [n for n in range(1, 21) if n not in dropped_features | dropped_chunks]
    robot.spin_until(lambda: len(robot.steps) == len(joined), 'all pairs are joined')
    assert [values(step) for step in robot.steps] == joined
    assert [milliseconds_of(step) for step in robot.steps] == [100 * n for n in joined]
    for step, number in zip(robot.steps, joined, strict=True):
        np.testing.assert_array_equal(actions_of(step)[0], CHUNKS[number % 12])
    # A feature without its chunk is an inference that is missing; its number is left out. A feature
    # that was never sent is not known.
    numbers = [n - 1 - (n > 6) for n in joined]
    assert [step.step for step in robot.steps] == numbers
    robot.spin_until(lambda: robot.fact('source', 'steps lost') == '2', 'the losses are said')
    assert 'found no partners' in robot.message_of('source')
    for name, received in (('features', 19), ('actions', 18)):
        robot.spin_until(
            lambda n=name, r=received: robot.fact('source', f'{n} messages').startswith(
                f'{r} received, 17 joined'
            ),
            'every message is accounted for',
        )


@pytest.mark.usefixtures('real_filters')
def test_an_approximate_join_takes_messages_without_header_by_their_arrival(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    hidden = robot.node.create_publisher(Float32MultiArray, '/hidden', BEST_EFFORT)
    commands = robot.node.create_publisher(JointState, '/commands', RELIABLE)
    run_bridge(
        features_topic='/hidden',
        actions_topic='/commands',
        feature_name='h',
        episode_from='gap',
        episode_gap=30.0,
        join='approximate',
        join_slop=0.15,
    )
    connected(robot, hidden, commands)
    for number in range(1, 11):
        state = JointState(name=['a', 'b'], position=[float(number), 0.0])
        state.header.stamp = robot.node.get_clock().now().to_msg()
        hidden.publish(Float32MultiArray(data=[float(number)] * 4))
        commands.publish(state)
        robot.spin(0.4)
    robot.spin_until(lambda: len(robot.steps) == 10, 'all pairs are joined')
    assert [values(step) for step in robot.steps] == list(range(1, 11))
    assert [actions_of(step)[0, 0, 0] for step in robot.steps] == list(range(1, 11))
    robot.spin_until(
        lambda: '10 without stamp' in robot.fact('source', 'features messages'), 'it is said'
    )
    assert '0 without stamp' in robot.fact('source', 'actions messages')


@pytest.mark.usefixtures('real_filters')
def test_a_step_has_the_stamp_of_its_observation(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    camera = robot.node.create_publisher(Image, '/camera', BEST_EFFORT)
    chunks = robot.node.create_publisher(JointTrajectory, '/chunk', RELIABLE)
    run_bridge(
        observation_topic='/camera',
        actions_topic='/chunk',
        episode_from='gap',
        episode_gap=30.0,
        join='approximate',
        join_slop=0.1,
    )
    connected(robot, camera, chunks)
    for number in range(1, 6):
        image = Image(height=100, width=100, step=300, encoding='rgb8', data=bytes(30_000))
        image.header.stamp = at(1000 * number)
        camera.publish(image)
        chunks.publish(chunk(number, 1000 * number + 40))
        robot.spin(0.1)
    robot.spin_until(lambda: len(robot.steps) == 5, 'all pairs are joined')
    assert [milliseconds_of(step) for step in robot.steps] == [1000 * n for n in range(1, 6)]


@pytest.mark.usefixtures('real_filters')
def test_a_step_that_comes_after_a_later_one_is_left_out(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    hidden = robot.node.create_publisher(TensorStamped, '/hidden', RELIABLE)
    chunks = robot.node.create_publisher(JointTrajectory, '/chunk', RELIABLE)
    run_bridge(
        features_topic='/hidden',
        actions_topic='/chunk',
        feature_name='h',
        episode_from='gap',
        episode_gap=30.0,
    )
    connected(robot, hidden, chunks)
    for number in (1, 3, 2, 4):
        hidden.publish(features(number, 100 * number))
        chunks.publish(chunk(number, 100 * number))
        robot.spin(0.05)
    robot.spin_until(lambda: len(robot.steps) == 3, 'the steps are there')
    assert [values(step) for step in robot.steps] == [1, 3, 4]
    assert [step.step for step in robot.steps] == [0, 1, 3], 'the reader notices the gap'
    robot.spin_until(lambda: robot.fact('source', 'late steps') == '1', 'it is counted')
    assert 'after another one' in robot.message_of('source')


@pytest.mark.usefixtures('real_filters')
@pytest.mark.parametrize(
    ('kind', 'join', 'text'),
    [
        (String, 'exact', 'found std_msgs/msg/String'),
        (Float32MultiArray, 'exact', 'set the parameter join to approximate'),
    ],
)
def test_a_topic_that_cannot_be_joined_is_an_error_with_the_reason(
    kind: Any, join: str, text: str, run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    hidden = robot.node.create_publisher(kind, '/hidden', RELIABLE)
    process = run_bridge(
        features_topic='/hidden',
        actions_topic='/chunk',
        feature_name='h',
        episode_from='gap',
        join=join,
    )
    robot.spin_until(lambda: robot.level_of('source') >= 0, 'diagnostics come')
    robot.spin_until(
        lambda: hidden.publish(kind()) or text in robot.message_of('source'), 'the reason is said'
    )
    robot.spin(2.0)
    assert process.log().count(text) == 1, 'the log has it once'
    assert robot.level_of('source') == ERROR
    assert 'actions_topic /chunk: no publisher' in robot.message_of('source')
    assert process.exit_status is None


def test_without_message_filters_a_join_is_refused_and_the_node_lives(
    run_bridge: Callable[..., Process],
    robot: BridgeListener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / 'message_filters.py').write_text("raise ImportError('it is not installed')\n")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    process = run_bridge(
        features_topic='/hidden', actions_topic='/chunk', feature_name='h', episode_from='gap'
    )
    robot.spin_until(lambda: robot.level_of('bridge') == ERROR, 'the failure is diagnosed')
    assert 'apt: ros-DISTRO-message-filters' in robot.message_of('bridge')
    assert process.exit_status is None
    done = doctor()
    assert 'problem  not configured: joining topics: expected the package' in done.stdout
    assert done.returncode == 1


def test_a_bridge_logs_once_that_a_topic_has_the_wrong_type_and_the_doctor_repeats_it(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    robot.node.create_publisher(String, '/chunk', RELIABLE)
    process = run_bridge(actions_topic='/chunk', episode_from='gap')
    text = 'found std_msgs/msg/String'
    robot.spin_until(lambda: text in process.log(), 'the reason is logged')
    assert 'reading /chunk' in process.log()
    done = doctor()
    assert 'problem  source: actions_topic /chunk: topic /chunk: expected' in done.stdout
    assert text in done.stdout
    assert process.log().count(text) == 1, 'the log has it once'


def test_a_bridge_without_senders_and_topics_says_that_no_steps_can_come(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    process = run_bridge()
    robot.spin_until(lambda: 'no source of steps: listen is none' in process.log(), 'it is said')


# --- signs of episodes


def steps_by_episode(robot: BridgeListener) -> list[list[int]]:
    """Return the numbers of the steps of each episode that had a START."""
    return [robot.numbers(episode) for kind, episode in robot.kinds() if kind == 'start']


class Commands:
    """Publishes commands, which are steps of a black box."""

    def __init__(self, robot: BridgeListener) -> None:
        self._robot = robot
        self._sent = 0
        self.publisher = robot.node.create_publisher(Float64MultiArray, '/commands', RELIABLE)

    def send(self, count: int, are_steps: bool = True) -> None:
        """Publish some commands, and wait for them."""
        robot = self._robot
        for _ in range(count):
            self.publisher.publish(Float64MultiArray(data=[1.0, 2.0]))
        if are_steps:
            self._sent += count
            robot.spin_until(lambda: len(robot.steps) == self._sent, 'the steps arrive')
        else:
            before = int(robot.fact('source', 'steps outside an episode') or 0)
            robot.spin_until(
                lambda: (
                    int(robot.fact('source', 'steps outside an episode') or 0) == before + count
                ),
                'the steps are left out',
            )


@pytest.mark.parametrize(
    ('kind', 'parameters', 'signs'),
    [
        pytest.param(Bool, {}, (True, False, True, False), id='bool'),
        pytest.param(
            String,
            {
                'episode_start_values': ['start'],
                'episode_success_values': ['finish'],
                'episode_failure_values': ['fail'],
            },
            ('start', 'finish', 'start', 'fail'),
            id='string',
        ),
        pytest.param(Int32, {'episode_start_values': ['6']}, (6, 2, 6, 0), id='phase'),
    ],
)
def test_values_of_a_topic_begin_and_end_episodes(
    kind: Any,
    parameters: dict[str, object],
    signs: tuple[Any, ...],
    run_bridge: Callable[..., Process],
    robot: BridgeListener,
) -> None:
    commands = Commands(robot)
    sign = robot.node.create_publisher(kind, '/episode', RELIABLE)
    run_bridge(
        actions_topic='/commands', episode_from='topic', episode_topic='/episode', **parameters
    )
    connected(robot, commands.publisher, sign)
    commands.send(2, are_steps=False)
    for number, value in enumerate(signs):
        sign.publish(kind(data=value))
        sign.publish(kind(data=value))
        robot.spin_until(lambda n=number: len(robot.events) == n + 1, 'the sign is read')
        commands.send(3, are_steps=number % 2 == 0)
    assert [kind for kind, _ in robot.kinds()] == ['start', 'end', 'start', 'end']
    assert steps_by_episode(robot) == [[0, 1, 2], [0, 1, 2]]
    outcomes = [event.outcome for event in robot.events if event.kind == EpisodeEvent.KIND_END]
    assert outcomes == ([1, 2] if kind is String else [0, 0])


def test_a_counter_begins_the_next_episode_with_each_value(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    commands = Commands(robot)
    counter = robot.node.create_publisher(Int32, '/env/episode', RELIABLE)
    run_bridge(actions_topic='/commands', episode_from='topic', episode_topic='/env/episode')
    connected(robot, commands.publisher, counter)
    for value, events in ((0, 1), (1, 3)):
        counter.publish(Int32(data=value))
        robot.spin_until(lambda n=events: len(robot.events) == n, 'the sign is read')
        commands.send(2)
    assert [kind for kind, _ in robot.kinds()] == ['start', 'end', 'start']
    assert steps_by_episode(robot) == [[0, 1], [0, 1]]


def test_an_executing_goal_is_an_episode_also_for_a_bridge_that_comes_late(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    commands = Commands(robot)
    status = robot.node.create_publisher(GoalStatusArray, '/run_policy/_action/status', LATCHED)
    goals: dict[bytes, int] = {}

    def publish(goal: bytes, state: int) -> None:
        goals[goal] = state
        message = GoalStatusArray()
        for number, (name, value) in enumerate(goals.items()):
            entry = GoalStatus(status=value)
            entry.goal_info.goal_id.uuid = list(name)
            entry.goal_info.stamp = at(number)
            message.status_list.append(entry)
        status.publish(message)

    first, second = uuid.uuid4(), uuid.uuid4()
    publish(first.bytes, GoalStatus.STATUS_EXECUTING)
    run_bridge(
        actions_topic='/commands',
        episode_from='action_status',
        episode_action='/run_policy',
        action_gives_outcome=True,
    )
    connected(robot, commands.publisher, status)
    robot.spin_until(lambda: robot.events, 'the running goal is an episode')
    commands.send(2)
    publish(first.bytes, GoalStatus.STATUS_SUCCEEDED)
    robot.spin_until(lambda: len(robot.events) == 2, 'it ends')
    publish(second.bytes, GoalStatus.STATUS_ACCEPTED)
    publish(second.bytes, GoalStatus.STATUS_EXECUTING)
    robot.spin_until(lambda: len(robot.events) == 3, 'the next one begins')
    commands.send(1)
    publish(second.bytes, GoalStatus.STATUS_ABORTED)
    robot.spin_until(lambda: len(robot.events) == 4, 'it ends')
    ids = [first.hex, first.hex, second.hex, second.hex]
    assert robot.kinds() == list(zip(['start', 'end'] * 2, ids, strict=True))
    assert [event.outcome for event in robot.events] == [0, 1, 0, 2]
    assert 'ABORTED' in robot.events[-1].reason
    assert steps_by_episode(robot) == [[0, 1], [0]]


def test_an_instruction_begins_an_episode_and_goes_into_its_steps(
    run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    commands = Commands(robot)
    instruction = robot.node.create_publisher(String, '/instruction', LATCHED)
    instruction.publish(String(data='pick up the mug'))
    run_bridge(
        actions_topic='/commands',
        episode_from='instruction',
        instruction_topic='/instruction',
    )
    connected(robot, commands.publisher, instruction)
    robot.spin_until(lambda: robot.events, 'the latched instruction begins an episode')
    commands.send(2)
    instruction.publish(String(data='put it down'))
    robot.spin_until(lambda: len(robot.events) == 3, 'the next one begins')
    commands.send(1)
    assert [event.instruction for event in robot.events] == [
        *('pick up the mug', 'pick up the mug', 'put it down')
    ]
    assert [step.instruction for step in robot.steps] == ['pick up the mug'] * 2 + ['put it down']


@pytest.mark.parametrize('topic', ['', '/robot/episode'])
def test_events_of_another_node_begin_episodes_and_are_not_doubled(
    topic: str, run_bridge: Callable[..., Process], robot: BridgeListener
) -> None:
    commands = Commands(robot)
    events = robot.node.create_publisher(EpisodeEvent, topic or 'vla/episode', EVENTS)
    given = {'episode_topic': topic} if topic else {}
    run_bridge(actions_topic='/commands', episode_from='event', **given)
    connected(robot, commands.publisher)
    robot.spin_until(lambda: events.get_subscription_count() == (1 if topic else 2), 'connected')
    start, end = EpisodeEvent.KIND_START, EpisodeEvent.KIND_END
    begin = EpisodeEvent(kind=start, episode_id='a', task='t', instruction='pick')
    begin.header.stamp = at(1000)
    events.publish(begin)
    robot.spin_until(lambda: robot.fact('source', 'episode') == 'a', 'the bridge follows')
    commands.send(2)
    other = EpisodeEvent(kind=end, episode_id='another')
    events.publish(other)
    commands.send(1)
    events.publish(EpisodeEvent(kind=end, episode_id='a', outcome=EpisodeEvent.OUTCOME_SUCCESS))
    robot.spin_until(lambda: robot.fact('source', 'episode') == '', 'the episode is over')
    if topic:
        events.publish(begin)  # as the middleware does for a subscription that is made anew
    commands.send(1, are_steps=False)
    assert steps_by_episode(robot) == [[0, 1, 2]], robot.events
    heard = [item for item in robot.kinds() if item[1] == 'a']
    assert heard == [('start', 'a'), ('end', 'a')], 'each event is there once'
    assert robot.events[0].task == 't'
    assert robot.events[-1].outcome == EpisodeEvent.OUTCOME_SUCCESS
