# SPDX-License-Identifier: Apache-2.0
"""The bridge in a process of its own: policies on one side, the monitor on the other, crashes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bridge_listener import BridgeListener, PolicyProcess
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from safe_bringup.live import Observer, Process
from safe_monitor_node.storage.detector_folder import load_detector
from safe_msgs.msg import EpisodeEvent
from safe_msgs.srv import EndEpisode, LabelEpisode, StartEpisode
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.wire import StepSender

OK, WARN, ERROR, STALE = (
    int.from_bytes(level, 'little')
    for level in (
        DiagnosticStatus.OK,
        DiagnosticStatus.WARN,
        DiagnosticStatus.ERROR,
        DiagnosticStatus.STALE,
    )
)


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Return an address of a bridge of this test only."""
    return f'unix:{tmp_path}/bridge.sock'


@pytest.fixture
def run_bridge(own_domain: int, tmp_path: Path, address: str) -> Iterator[Callable[..., Process]]:
    """Start bridges; each ends with 0 on interrupt, without a traceback, or is killed."""
    started: list[Process] = []

    def start(**parameters: Any) -> Process:
        process = Process(
            'vla_feature_bridge.nodes.bridge',
            {'listen': [address], 'diagnostics_period': 0.1, **parameters},
            tmp_path / f'bridge{len(started)}.log',
        )
        started.append(process)
        return process

    yield start
    for process in started:
        status = process.stop()
        assert status in (0, -9), process.log()
        assert 'Traceback' not in process.log(), process.log()


@pytest.fixture
def run_policy(tmp_path: Path, address: str, rollout_folder: Path) -> Iterator[Callable[..., Any]]:
    """Start policies in processes of their own."""
    started: list[PolicyProcess] = []

    def start(episode: str, *options: object) -> PolicyProcess:
        log = tmp_path / f'policy{len(started)}.log'
        started.append(PolicyProcess(log, address, rollout_folder, episode, *options))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def listener(own_domain: int) -> Iterator[BridgeListener]:
    """Yield a listener in a domain of its own."""
    made = BridgeListener()
    yield made
    made.close()


@pytest.fixture
def alarming(rollouts: RolloutSet, mlp_folder: Path) -> tuple[Rollout, int]:
    """Return a failed rollout with an alarm after two quiet steps, and the step of the alarm."""
    loaded = load_detector(mlp_folder)
    threshold = loaded.band.at(0.2)
    for rollout in rollouts:
        step = threshold.first_crossing(loaded.detector.score(rollout))
        if rollout.failed and step is not None and 2 <= step < len(rollout) - 3:
            return rollout, step
    pytest.fail('no rollout of the shipped set alarms late enough for this test')


def sender_to(address: str, **options: Any) -> StepSender:
    """Return a sender of this process that raises its errors."""
    settings = {'feature_name': 'h', 'exec_horizon': 1, 'strict': True, 'wait_for_monitor': 20.0}
    return StepSender(address, **{**settings, **options})


def send_steps(sender: StepSender, count: int) -> None:
    """Send some small steps."""
    for _ in range(count):
        sender.publish(np.ones(4, np.float32), np.ones((1, 2, 3)))


# --- from the policy to the alarm


def test_live_scores_of_a_policy_without_ros_equal_offline_scores(
    run_bridge: Callable[..., Process],
    run_monitor: Callable[..., Process],
    run_policy: Callable[..., PolicyProcess],
    mlp_folder: Path,
    alarming: tuple[Rollout, int],
) -> None:
    rollout, alarm_step = alarming
    offline = load_detector(mlp_folder).detector.score(rollout)
    run_bridge()
    run_monitor(detector_folder=mlp_folder)
    with Observer() as observer:
        policy = run_policy(rollout.episode_id)
        while not policy.has_ended:
            observer.spin(0.1)
        counted = policy.counted()
        observer.spin(1.0)
        episode = observer.episodes[rollout.episode_id]
    assert (counted['inferences'], counted['dropped']) == (len(rollout), 0)
    assert counted['published'] == counted['sent'] == len(rollout)
    assert episode.steps == list(range(len(rollout)))
    np.testing.assert_allclose(episode.scores, offline, rtol=0, atol=1e-5)
    assert episode.alarm_step == alarm_step
    assert episode.ended
    assert episode.success is False


def test_a_bridge_that_starts_last_gets_everything(
    run_bridge: Callable[..., Process],
    run_policy: Callable[..., PolicyProcess],
    listener: BridgeListener,
    alarming: tuple[Rollout, int],
) -> None:
    rollout, _ = alarming
    policy = run_policy(rollout.episode_id, '--wait', 0.0, '--close', 30.0)
    listener.spin_until(lambda: 'started' in policy.output, 'the policy works')
    run_bridge()
    counted = None
    listener.spin_until(lambda: policy.has_ended, 'the policy ends')
    counted = policy.counted()
    listener.spin_until(lambda: ('end', rollout.episode_id) in listener.kinds(), 'END arrives')
    assert counted['published'] == len(rollout)
    # Steps and events are two topics: END can arrive before the last steps.
    listener.spin_until(
        lambda: len(listener.numbers(rollout.episode_id)) >= len(rollout), 'all steps arrive'
    )
    assert listener.numbers(rollout.episode_id) == list(range(len(rollout)))
    assert listener.kinds() == [('start', rollout.episode_id), ('end', rollout.episode_id)]


# --- crashes


@pytest.mark.slow
def test_a_killed_bridge_stops_no_policy_and_says_what_was_lost(
    run_bridge: Callable[..., Process],
    run_policy: Callable[..., PolicyProcess],
    listener: BridgeListener,
    rollouts: RolloutSet,
    alarming: tuple[Rollout, int],
) -> None:
    episode = alarming[0].episode_id
    first = run_bridge()
    policy = run_policy(episode, '--period', 0.25)
    listener.spin_until(lambda: len(listener.numbers(episode)) > 5, 'steps flow')
    kill(first)
    listener.spin(0.5)
    before = len(listener.numbers(episode))
    listener.statuses.clear()
    run_bridge()
    listener.spin_until(lambda: len(listener.numbers(episode)) > before, 'steps flow again')
    # The bridge that came in mid-episode has the START, and says which steps it has not seen.
    # Events and steps are two topics, so that each is waited for.
    listener.spin_until(lambda: len(listener.kinds()) > 1, 'the START comes again')
    assert listener.kinds() == [('start', episode)] * 2
    listener.spin_until(
        lambda: 'missing before step' in listener.message_of('source'), 'the loss is said'
    )
    assert int(listener.fact('source', 'steps lost')) > 5
    listener.spin_until(lambda: ('end', episode) in listener.kinds(), 'END arrives')
    counted = policy.counted()
    assert counted['inferences'] == counted['published'] == len(alarming[0])
    listener.spin_until(
        lambda: listener.numbers(episode)[-1] == len(alarming[0]) - 1, 'the last step arrives'
    )
    numbers = listener.numbers(episode)
    assert numbers == sorted(set(numbers)), 'each step once, in order'


@pytest.mark.slow
def test_a_killed_monitor_disturbs_nobody_and_the_next_one_scores_the_next_episode(
    run_bridge: Callable[..., Process],
    run_monitor: Callable[..., Process],
    run_policy: Callable[..., PolicyProcess],
    mlp_folder: Path,
    alarming: tuple[Rollout, int],
    tmp_path: Path,
) -> None:
    rollout, _ = alarming
    bridge = run_bridge()
    killed = Process(
        'safe_monitor_node.nodes.monitor', {'detector_folder': mlp_folder}, tmp_path / 'killed.log'
    )
    with Observer() as observer:
        # Slow enough that the observer is connected to the monitor before the policy ends.
        policy = run_policy(rollout.episode_id, '--again', 2, '--period', 0.1)
        while not (scored := observer.episodes.get(rollout.episode_id)) or len(scored.steps) < 3:
            observer.spin(0.1)
            assert not policy.has_ended, policy.output
        kill(killed)
        while not policy.has_ended:
            observer.spin(0.1)
        counted = policy.counted()
        observer.episodes.clear()
        # The middleware takes the killed monitor for a subscriber until its lease is over.
        known = subscribers(observer)
        run_monitor(detector_folder=mlp_folder)
        while subscribers(observer) <= known:
            observer.spin(0.1)
        observer.spin(1.0)
        policy = run_policy(rollout.episode_id)
        while not policy.has_ended:
            observer.spin(0.1)
        observer.spin(1.0)
        last = observer.episodes[rollout.episode_id]
    assert counted['inferences'] == counted['sent'] == 2 * len(rollout)
    assert bridge.exit_status is None
    assert last.steps == list(range(len(rollout)))
    offline = load_detector(mlp_folder).detector.score(rollout)
    np.testing.assert_allclose(last.scores, offline, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_episode_of_a_killed_policy_stays_open_until_the_next_one_begins(
    run_bridge: Callable[..., Process],
    run_policy: Callable[..., PolicyProcess],
    listener: BridgeListener,
    alarming: tuple[Rollout, int],
    rollouts: RolloutSet,
) -> None:
    episode = alarming[0].episode_id
    other = next(name for name in rollouts.episode_ids if name != episode)
    bridge = run_bridge()
    policy = run_policy(episode, '--period', 0.05)
    listener.spin_until(lambda: len(listener.numbers(episode)) > 3, 'steps flow')
    policy.kill()
    listener.spin_until(
        lambda: 'not connected while an episode runs' in listener.message_of('source'),
        'the loss is said',
    )
    assert listener.level_of('source') == STALE
    assert listener.kinds() == [('start', episode)]
    run_policy(other)
    listener.spin_until(lambda: ('end', other) in listener.kinds(), 'the next episode is there')
    assert listener.kinds()[:3] == [('start', episode), ('end', episode), ('start', other)]
    assert listener.events[1].outcome == EpisodeEvent.OUTCOME_UNKNOWN
    assert listener.numbers(other) == list(range(len(listener.numbers(other))))
    assert bridge.exit_status is None


def test_the_episode_of_a_lost_source_can_be_ended_after_a_time(
    run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    run_bridge(end_lost_after=0.5)
    sender = sender_to(address)
    sender.start(episode_id='a')
    send_steps(sender, 2)
    sender.close()
    listener.spin_until(lambda: ('end', 'a') in listener.kinds(), 'the episode is ended')
    assert listener.events[-1].reason == 'the connection of the source was lost'
    assert listener.events[-1].outcome == EpisodeEvent.OUTCOME_UNKNOWN
    assert listener.numbers('a') == [0, 1]


def subscribers(observer: Observer) -> set[bytes]:
    """Return which subscriptions of steps are known."""
    found = observer.node.get_subscriptions_info_by_topic('vla/policy_step')
    return {bytes(info.endpoint_gid) for info in found}


def kill(process: Process) -> None:
    """End a node as a crash does."""
    process._popen.kill()
    process._popen.wait()
    process.stop()


# --- several sources


def test_two_sources_have_topics_of_their_own(
    run_bridge: Callable[..., Process], listener: BridgeListener, own_domain: int, address: str
) -> None:
    run_bridge()
    left, right = BridgeListener('left'), BridgeListener('right')
    try:
        senders = {name: sender_to(address, source=name) for name in ('left', 'right')}
        for name, sender in senders.items():
            sender.start(episode_id=f'of {name}', task='t')
        for _ in range(5):
            for sender in senders.values():
                send_steps(sender, 1)
        for sender in senders.values():
            sender.end(success=True)
        for name, heard in (('left', left), ('right', right)):
            heard.spin_until(lambda h=heard, n=name: ('end', f'of {n}') in h.kinds(), 'END')
            heard.spin_until(lambda h=heard: len(h.steps) == 5, 'all steps are there')
            assert heard.numbers(f'of {name}') == [0, 1, 2, 3, 4]
            heard.spin_until(lambda h=heard: len(h.statuses) == 3, 'all diagnoses are there')
            heard.spin_until(
                lambda h=heard, n=name: h.fact(f'source {n}', 'steps published') == '5', 'facts'
            )
            assert heard.level_of(f'source {name}') == OK
        assert listener.steps == []
        for sender in senders.values():
            sender.close()
    finally:
        left.close()
        right.close()


def test_two_senders_with_one_name_are_told_apart_and_the_second_is_refused(
    run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    run_bridge()
    first = sender_to(address)
    first.start(episode_id='a')
    send_steps(first, 1)
    second = sender_to(address, strict=False, wait_for_monitor=0.0)
    listener.spin_until(lambda: second.state == 'refused', 'the second one is refused')
    assert 'no connected sender' in second.last_error
    second.start(episode_id='b')
    send_steps(second, 3)
    send_steps(first, 2)
    listener.spin_until(lambda: len(listener.steps) == 3, 'the steps of the first one arrive')
    listener.spin_until(lambda: listener.level_of('bridge') == ERROR, 'the refusal is diagnosed')
    assert 'no connected sender' in listener.message_of('bridge')
    listener.spin(0.3)
    assert listener.numbers('a') == [0, 1, 2]
    assert listener.numbers('b') == []
    first.end()
    first.close()
    listener.spin_until(lambda: ('start', 'b') in listener.kinds(), 'the second one has its turn')
    second.close()


@pytest.mark.parametrize('source', ['my-arm', '7', 'a/b'])
def test_a_source_whose_name_no_topic_can_have_is_named(
    source: str, run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    process = run_bridge()
    sender = sender_to(address, source=source, strict=False, wait_for_monitor=0.0)
    sender.start()
    send_steps(sender, 1)
    listener.spin_until(lambda: listener.level_of('bridge') == ERROR, 'the name is refused')
    assert f'found {source!r}' in listener.message_of('bridge')
    sender.close()
    assert process.exit_status is None


# --- what else a source sends


def test_chunks_and_images_are_published_for_people(
    run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    run_bridge(joint_names=['x', 'y', 'z'], action_period=0.5)
    sender = sender_to(address)
    sender.start()
    stamp = 1_700_000_000_123_456_789
    chunk = np.arange(12.0).reshape(1, 4, 3)
    sender.image('wrist', np.full((4, 5, 3), 7, np.uint8), stamp)
    listener.spin_until(
        lambda: listener.node.count_publishers('vla/image/wrist') == 1, 'the image has a topic'
    )
    # Discovery takes a moment; a policy sends images all the time.
    for _ in range(100):
        sender.image('wrist', np.full((4, 5, 3), 7, np.uint8), stamp)
        sender.publish(np.ones(4, np.float32), chunk, stamp=stamp)
        listener.spin(0.05)
        if listener.images and listener.chunks:
            break
    image, trajectory = listener.images[0], listener.chunks[0]
    assert (image.encoding, image.height, image.width, set(image.data)) == ('rgb8', 4, 5, {7})
    assert image.header.stamp == trajectory.header.stamp == listener.steps[0].header.stamp
    assert image.header.stamp.sec == 1_700_000_000
    assert trajectory.joint_names == ['x', 'y', 'z']
    np.testing.assert_array_equal([p.positions for p in trajectory.points], chunk[0])
    assert trajectory.points[1].time_from_start.sec == 1
    sender.close()


def test_a_step_of_a_black_box_has_no_features(
    run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    run_bridge()
    sender = sender_to(address, feature_name='none', action_space='robot')
    sender.start(episode_id='a')
    sender.publish(None, np.ones((1, 2, 3)))
    listener.spin_until(lambda: listener.steps, 'the step arrives')
    step = listener.steps[0]
    assert (step.features.name, list(step.features.shape)) == ('none', [0])
    assert step.action_space == 'robot'
    assert 'action_norm' in step.signal_names
    sender.close()


def test_garbage_is_refused_and_the_bridge_lives(
    run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    process = run_bridge()
    listener.spin_until(lambda: listener.level_of('bridge') >= 0, 'the bridge is up')
    for garbage in (b'GET / HTTP/1.1\r\n\r\n', b'SAFT' + bytes(200), bytes(range(256)) * 40):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address.removeprefix('unix:'))
            connection.sendall(garbage)
            connection.settimeout(10)
            while connection.recv(4096):
                pass
    listener.spin_until(lambda: listener.level_of('bridge') == ERROR, 'garbage is diagnosed')
    assert int(listener.fact('bridge', 'connections refused')) == 3
    sender = sender_to(address)
    sender.start(episode_id='a')
    send_steps(sender, 2)
    listener.spin_until(lambda: listener.numbers('a') == [0, 1], 'a policy is served')
    sender.close()
    assert process.exit_status is None


# --- services and settings


def test_services_begin_end_and_label_episodes(
    run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    run_bridge(episode_from='service', task='stack')
    sender = sender_to(address)
    sender.start(episode_id='own')
    send_steps(sender, 2)
    listener.spin_until(
        lambda: 'no episode ran' in listener.message_of('source'), 'steps are left out'
    )
    nothing = listener.call(EndEpisode, 'bridge/end_episode')
    assert not nothing.success
    started = listener.call(
        StartEpisode, 'bridge/start_episode', episode_id='a', instruction='pick'
    )
    assert started.success, started.message
    assert started.episode_id == 'a'
    send_steps(sender, 3)
    sender.end(success=True)
    listener.spin_until(lambda: len(listener.steps) == 3, 'the steps arrive')
    wrong = listener.call(EndEpisode, 'bridge/end_episode', outcome=9)
    assert not wrong.success
    assert 'found 9' in wrong.message
    ended = listener.call(
        EndEpisode, 'bridge/end_episode', outcome=EpisodeEvent.OUTCOME_FAILURE, reason='dropped'
    )
    assert ended.success, ended.message
    labelled = listener.call(
        LabelEpisode, 'bridge/label_episode', outcome=EpisodeEvent.OUTCOME_SUCCESS
    )
    assert labelled.success
    assert "'a', outcome a success" in labelled.message
    listener.spin_until(lambda: len(listener.events) == 3, 'the events arrive')
    assert listener.kinds() == [('start', 'a'), ('end', 'a'), ('label', 'a')]
    assert [e.outcome for e in listener.events] == [0, 2, 1]
    assert listener.events[0].task == 'stack'
    assert (listener.events[0].instruction, listener.events[1].reason) == ('pick', 'dropped')
    assert listener.numbers('a') == [0, 1, 2]
    unknown = listener.call(StartEpisode, 'bridge/start_episode', source='nobody')
    assert not unknown.success
    assert "found 'nobody'" in unknown.message
    sender.close()


def test_services_are_refused_if_episodes_come_from_the_sender(
    run_bridge: Callable[..., Process], listener: BridgeListener
) -> None:
    run_bridge()
    refused = listener.call(StartEpisode, 'bridge/start_episode')
    assert not refused.success
    assert 'episode_from:=service' in refused.message
    nothing = listener.call(LabelEpisode, 'bridge/label_episode', outcome=1)
    assert not nothing.success


@pytest.mark.parametrize(
    ('parameters', 'text'),
    [
        ({'listen': ['unix:relative']}, 'absolute path'),
        ({'listen': ['tcp://127.0.0.1']}, 'tcp://host:port'),
        ({'actions_topic': '/a'}, 'episode_from'),
        ({'features_topic': '/f', 'episode_from': 'gap'}, 'feature_name'),
        ({'episode_from': 'topic'}, 'episode_topic'),
        ({'actions_topic': '/a', 'actions_type': 'x_msgs/X', 'episode_from': 'gap'}, 'x_msgs'),
    ],
)
def test_a_wrong_setting_is_diagnosed_and_the_node_lives(
    parameters: dict[str, object],
    text: str,
    run_bridge: Callable[..., Process],
    listener: BridgeListener,
) -> None:
    process = run_bridge(**parameters)
    listener.spin_until(lambda: listener.level_of('bridge') == ERROR, 'the failure is diagnosed')
    assert text in listener.message_of('bridge')
    assert process.exit_status is None


def test_an_unknown_parameter_and_a_silent_clock_are_said(
    run_bridge: Callable[..., Process], listener: BridgeListener
) -> None:
    run_bridge(robot_name='left', use_sim_time=True)
    listener.spin_until(lambda: 'robot_name' in listener.message_of('bridge'), 'it is said')
    listener.spin_until(lambda: 'no /clock for' in listener.message_of('bridge'), 'both')


def test_the_bridge_goes_through_its_life_cycle_while_a_sender_stays(
    run_bridge: Callable[..., Process], listener: BridgeListener, address: str
) -> None:
    process = run_bridge(autostart=False)

    def change(transition: int) -> bool:
        request = Transition(id=transition)
        return bool(listener.call(ChangeState, 'bridge/change_state', transition=request).success)

    listener.spin_until(lambda: listener.message_of('bridge') == 'not configured', 'it waits')
    assert change(Transition.TRANSITION_CONFIGURE)
    sender = sender_to(address, strict=False, wait_for_monitor=0.0)
    sender.start(episode_id='a')
    send_steps(sender, 3)
    listener.spin_until(
        lambda: listener.fact('bridge', 'messages ignored while inactive') == '4', 'all is ignored'
    )
    assert listener.level_of('bridge') == listener.level_of('source') == STALE
    assert not change(Transition.TRANSITION_CONFIGURE), 'it is refused, and the node lives'
    assert change(Transition.TRANSITION_ACTIVATE)
    send_steps(sender, 2)
    listener.spin_until(lambda: listener.numbers('a') == [3, 4], 'steps flow')
    listener.spin_until(lambda: 'START of the source was lost' in listener.message_of('source'), '')
    for transition in (
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ):
        assert change(transition)
    listener.spin_until(lambda: sender.state == 'connected', 'the sender is back')
    send_steps(sender, 2)
    listener.spin_until(lambda: listener.numbers('a') == [3, 4, 5, 6], 'steps flow again')
    sender.close()
    assert process.exit_status is None


def test_a_second_bridge_at_the_same_address_is_told(
    run_bridge: Callable[..., Process], listener: BridgeListener
) -> None:
    run_bridge()
    listener.spin_until(lambda: listener.level_of('bridge') == STALE, 'the first one is up')
    second = run_bridge()
    listener.spin_until(lambda: listener.level_of('bridge') == ERROR, 'the second one fails')
    assert 'another bridge' in listener.message_of('bridge')
    assert second.exit_status is None
