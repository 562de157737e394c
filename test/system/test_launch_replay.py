# SPDX-License-Identifier: Apache-2.0
"""Record, label, replay and judge, with ``ros2 launch``.

``ros2 bag`` is not on PyPI. Where it is missing, ``ros2_bag.py`` takes its place: it has the
options of rosbag2 that the launch files give, and it records and plays the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from ament_index_python.packages import get_packages_with_prefixes
from probe import RELIABLE, Probe
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from test_launch import (
    LAUNCH,
    TIMEOUT,
    Launched,
    assert_ended_cleanly,
    needs_launch,
    ros2_launch,  # noqa: F401  a fixture
)

from safe_bringup.bag_commands import (
    RECORDED_TOPICS,
    full_name,
    qos_in_namespace,
    record_command,
    scores_of_detectors,
)
from safe_bringup.live import Process
from safe_msgs.msg import EpisodeEvent, FailureScore
from safe_training.cli.main import main as safe_training
from safe_training.recordings.untrusted.cdr import STEP, full_definition, step_to_cdr, type_hash
from safe_training.recordings.write_bag import LEAD, write_bag
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.ros.qos import SCORE_QOS

Start = Callable[..., Launched]
STAND_IN = Path(__file__).with_name('ros2_bag.py')
FREQUENCY = 50.0


@pytest.fixture
def ros2_bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command ``ros2`` on the path that has ``bag``."""
    if find_spec('ros2bag') is not None:
        return
    folder = tmp_path / 'bin'
    folder.mkdir()
    command = folder / 'ros2'
    command.write_text(
        f'#!/bin/sh\n[ "$1" = bag ] || exit 2\nshift\nexec {sys.executable} {STAND_IN} "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')


def played_episodes(rollouts: RolloutSet) -> list[str]:
    """Return the ids of a few short rollouts of both outcomes."""
    order = sorted(range(len(rollouts)), key=lambda i: rollouts.lengths[i])
    chosen = [
        *[i for i in order if rollouts.success[i]][:3],
        *[i for i in order if not rollouts.success[i]][:3],
    ]
    return [rollouts.episode_ids[i] for i in chosen]


# --- record, label, replay, judge


@needs_launch
@pytest.mark.slow
def test_a_recorded_session_is_labelled_judged_and_replayed_with_the_same_table(
    ros2_launch: Start,  # noqa: F811
    ros2_bag: None,
    probe: Probe,
    rollouts: RolloutSet,
    rollout_folder: Path,
    mlp_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    episodes = played_episodes(rollouts)
    (tmp_path / 'replay.yaml').write_text(
        f'/**/replay: {{ros__parameters: {{frequency: {FREQUENCY}, subscribers: 2}}}}'
    )
    live: list[FailureScore] = []
    probe.node.create_subscription(FailureScore, '/robot1/safe/score', live.append, RELIABLE)

    # Record.
    session = ros2_launch(
        str(LAUNCH / 'bringup.launch.py'),
        *(f'detector_folder:={mlp_folder}', 'bridge:=none', 'namespace:=robot1'),
        *('record:=true', 'record_output:=monday'),
    )
    replay = ros2_launch(
        str(LAUNCH / 'replay.launch.py'),
        *(f'rollout_set:={rollout_folder}', f'episodes:={",".join(episodes)}'),
        *('namespace:=robot1', 'replay_params:=replay.yaml'),
    )
    probe.spin_until(lambda: replay.ended, 'everything is played', 3 * TIMEOUT)
    assert replay.wait() == 0
    session.press_ctrl_c()
    assert session.wait() == 0
    assert_ended_cleanly(session, 'monitor-1', 'record-2')

    # Label: the robot's outcomes are in the events; a person corrects one.
    monday = tmp_path / 'monday'
    first = rollouts.success[rollouts.episode_ids.index(episodes[0])]
    corrected = 'failure' if first else 'success'
    arguments = ['label', monday, '--episode', episodes[0], '--outcome', corrected]
    assert safe_training([str(word) for word in arguments]) == 0
    capsys.readouterr()

    # Judge offline: the table of the monitor is the same.
    judge = ['judge', str(monday), str(mlp_folder), '--alpha', '0.2', '--json', '--live-parity']
    assert safe_training([*judge, str(monday)]) == 0
    offline = json.loads(capsys.readouterr().out)
    assert offline['live']['differences'] == []
    assert offline['live']['episodes'] == len(episodes)
    assert offline['live']['steps'] == len(live)
    tables = [
        {row['part']: (row['successes'], row['failures'], row['detection_rate']) for row in rows}
        for rows in (offline['parts'], offline['live']['parts'])
    ]
    assert tables[0] == tables[1]

    # Replay beside the recorded scores, and judge this session too.
    before = list(live)
    live.clear()
    aside: list[FailureScore] = []
    probe.node.create_subscription(
        FailureScore, '/robot1/recorded/safe/score', aside.append, RELIABLE
    )
    again = ros2_launch(
        str(LAUNCH / 'replay.launch.py'),
        *('bag:=monday', f'detector_folder:={mlp_folder}', 'namespace:=robot1', 'alpha:=0.2'),
        'delay:=6.0',
    )
    recorder = ros2_launch(
        str(LAUNCH / 'record.launch.py'), 'namespace:=robot1', 'record_output:=tuesday'
    )
    probe.spin_until(lambda: aside, 'the recording is played', TIMEOUT)
    assert probe.node.count_publishers('/robot1/safe/score') == 1
    assert probe.node.count_publishers('/robot1/safe/stop') == 1
    probe.spin_until(lambda: again.ended, 'everything is played', 3 * TIMEOUT)
    assert again.wait() == 0
    recorder.press_ctrl_c()
    assert recorder.wait() == 0
    found = {(s.episode_id, s.step): (s.score, s.alarm, s.state) for s in live}
    assert found == {(s.episode_id, s.step): (s.score, s.alarm, s.state) for s in before}
    assert len(aside) == len(before)
    assert safe_training([*judge, str(tmp_path / 'tuesday')]) == 0
    replayed = json.loads(capsys.readouterr().out)
    assert replayed['live'] == offline['live']


@needs_launch
def test_a_recorder_alone_ends_with_a_whole_recording(
    ros2_launch: Start,  # noqa: F811
    ros2_bag: None,
    probe: Probe,
    tmp_path: Path,
) -> None:
    recorder = ros2_launch(
        '--noninteractive', str(LAUNCH / 'record.launch.py'), 'record_output:=one'
    )
    probe.spin_until(
        lambda: (
            probe.node.count_subscribers('/vla/policy_step') == 1
            and probe.node.count_subscribers('/vla/episode') == 1
        ),
        'the recorder listens',
        TIMEOUT,
    )
    infos = probe.node.get_subscriptions_info_by_topic('/vla/episode')
    assert [info.qos_profile.durability.name for info in infos] == ['VOLATILE']
    probe.start('e')
    probe.spin_for(1.0)  # an interrupted recorder takes no message any more
    # Not SIGTERM: ros2 launch ends at once then, and the terminal hangs up on the recorder.
    recorder.interrupt_group()
    assert recorder.wait() == 0
    assert_ended_cleanly(recorder, 'record-1')
    with Reader(tmp_path / 'one') as reader:
        assert [c.topic for c, _, _ in reader.messages()] == ['/vla/episode']


def test_the_scores_of_each_detector_are_recorded_with_the_command_of_the_launch_file(
    ros2_bag: None, probe: Probe, tmp_path: Path
) -> None:
    file = tmp_path / 'qos.yaml'
    file.write_text(yaml.safe_dump(qos_in_namespace(LAUNCH / 'recording' / 'qos.yaml', 'arm')))
    names = [full_name('arm', topic) for topic in RECORDED_TOPICS]
    folder = tmp_path / 'one'
    command = record_command(str(folder), names, str(file), also=scores_of_detectors('arm'))
    recorder = subprocess.Popen(command)
    try:
        ours, other = (
            probe.node.create_publisher(FailureScore, f'/{robot}/safe/slow/score', SCORE_QOS)
            for robot in ('arm', 'leg')
        )
        probe.spin_until(ours.get_subscription_count, 'the recorder listens', TIMEOUT)
        assert other.get_subscription_count() == 0
        ours.publish(FailureScore(score=0.5))
        probe.spin_for(1.0)  # an interrupted recorder takes no message any more
    finally:
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(TIMEOUT) == 0
    with Reader(folder) as reader:
        assert [c.topic for c, _, _ in reader.messages()] == ['/arm/safe/slow/score']


@needs_launch
def test_a_viewer_starts_when_the_monitor_is_active_with_the_topics_of_its_namespace(
    ros2_launch: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    mlp_folder: Path,
    rollout_folder: Path,
    tmp_path: Path,
) -> None:
    """A program in the place of rqt keeps its file, and what the launch had printed before."""
    prefix = tmp_path / 'rqt'
    for folder in ('lib/rqt_gui', 'share/ament_index/resource_index/packages'):
        (prefix / folder).mkdir(parents=True)
    (prefix / 'share/ament_index/resource_index/packages/rqt_gui').touch()
    viewer = prefix / 'lib' / 'rqt_gui' / 'rqt_gui'
    viewer.write_text(f'#!/bin/sh\necho "viewer $*"\ncp "$2" {tmp_path}/shown\n')
    viewer.chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{os.environ["AMENT_PREFIX_PATH"]}:{prefix}')
    launched = ros2_launch(
        str(LAUNCH / 'replay.launch.py'),
        *(f'rollout_set:={rollout_folder}', f'detector_folder:={mlp_folder}', 'limit:=1'),
        *('namespace:=/cell/arm', 'layout:=rqt', 'speed:=20.0'),
    )
    assert launched.wait() == 0
    before, _, after = launched.output.partition('viewer --perspective-file ')
    assert 'detector safe_mlp' in before, 'the monitor is configured first'
    assert after.splitlines()[0].split()[2:4] == ['-r', '__ns:=/']
    shown = (tmp_path / 'shown').read_text()
    assert "'/cell/arm/safe/score/score', '/cell/arm/safe/score/threshold'" in shown
    assert "'/safe/" not in shown


# --- what is refused


@needs_launch
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'arguments bag and rollout_set: expected one of the two, found none'),
        (['bag:=a', 'rollout_set:=b'], 'expected one of the two, found both'),
        (['bag:=absent'], 'argument bag: expected a folder with the file metadata.yaml'),
        (['rollout_set:=absent'], 'argument rollout_set: expected a folder with the file rollout_'),
        (['bag:=x.mcap', 'limit:=3'], 'argument limit: expected no value with bag, found 3'),
        (['rollout_set:=a', 'recorded_namespace:=/b'], 'expected no value with rollout_set'),
        (['bag:=x.mcap', 'speed:=0'], 'argument speed: expected a number above 0, found 0'),
        (['bag:=x.mcap', 'layout:=rviz'], 'argument layout: expected the package rviz2'),
        (['bag:=x.mcap', 'layout:=paper'], 'provided value "paper" is not valid'),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name_and_starts_nothing(
    arguments: list[str],
    message: str,
    ros2_launch: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    if 'layout:=rviz' in arguments and 'rviz2' in get_packages_with_prefixes():
        pytest.skip('rviz2 is installed')
    (tmp_path / 'x.mcap').touch()
    launched = ros2_launch(str(LAUNCH / 'replay.launch.py'), *arguments)
    assert launched.wait() == 1
    assert message in launched.output
    assert 'process started' not in launched.output


@needs_launch
def test_a_player_that_fails_ends_the_launch_and_says_what_to_install(
    ros2_launch: Start,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'ros2').symlink_to(shutil.which('false') or '/bin/false')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}')
    (tmp_path / 'x.mcap').touch()
    launched = ros2_launch(str(LAUNCH / 'replay.launch.py'), 'bag:=x.mcap')
    assert launched.wait() == 1
    assert 'ros2 bag play: expected exit status 0, found exit status 1' in launched.output
    assert 'ros-$ROS_DISTRO-rosbag2-storage-mcap' in launched.output


@needs_launch
def test_a_monitor_that_cannot_be_configured_ends_the_launch_before_the_replay(
    ros2_launch: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / 'x.mcap').touch()
    launched = ros2_launch(
        str(LAUNCH / 'replay.launch.py'), 'bag:=x.mcap', 'detector_folder:=absent'
    )
    assert launched.wait() == 1
    assert 'monitor: expected a monitor that can be configured' in launched.output
    assert '[play-' not in launched.output


# --- recordings that are played without a launch file


@pytest.fixture
def play() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a player process."""
    started: list[subprocess.Popen[bytes]] = []

    def start(bag: Path, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(STAND_IN), 'play', str(bag), *options]
        started.append(subprocess.Popen(command, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_our_recording_loses_no_step_although_nobody_waits_for_its_subscribers(
    rollouts: RolloutSet,
    mlp_folder: Path,
    probe: Probe,
    run_monitor: Callable[..., Process],
    play: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    shortest = rollouts[int(np.argmin(rollouts.lengths))]
    write_bag(tmp_path / 'run.bag', [shortest], rollouts.feature, frequency=FREQUENCY)
    run_monitor(detector_folder=mlp_folder, use_sim_time=True)
    probe.spin_until(lambda: probe.stops, 'the monitor is active')
    probe.leave()
    player = play(tmp_path / 'run.bag', '--clock', '100')
    probe.spin_until(lambda: player.poll() is not None, 'everything is played', TIMEOUT)
    probe.spin_until(lambda: len(probe.scores) == len(shortest), 'every step is scored')
    assert [s.step for s in probe.scores] == list(range(len(shortest)))
    blind = (FailureScore.STATE_STALE, FailureScore.STATE_INVALID)
    assert not [s for s in probe.scores if s.state in blind]
    with Reader(tmp_path / 'run.bag') as reader:
        assert min(stamp for _, stamp, _ in reader.messages()) - reader.start_time == LEAD


@pytest.mark.parametrize('times', [2])
def test_a_recording_without_events_is_scored_each_time_it_is_played(
    times: int,
    mlp_folder: Path,
    probe: Probe,
    run_monitor: Callable[..., Process],
    play: Callable[..., subprocess.Popen[bytes]],
    quiet: Callable[..., object],
    tmp_path: Path,
) -> None:
    """One episode with a constant id and old stamps, and no time of the recording."""
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(
            '/vla/policy_step', STEP, msgdef=full_definition(STEP), rihs01=type_hash(STEP)
        )
        for t in range(10):
            step = quiet(t)
            step.stamp = 10**9 + t * 20_000_000
            writer.write(connection, step.stamp, step_to_cdr(step))
    run_monitor(detector_folder=mlp_folder, max_age=0.0)
    probe.spin_until(lambda: probe.stops, 'the monitor is active')
    probe.leave()
    for count in range(1, times + 1):
        player = play(tmp_path / 'bag', '--delay', '3')
        probe.spin_until(lambda p=player: p.poll() is not None, 'it is played', TIMEOUT)
        probe.spin_until(lambda c=count: len(probe.scores) == 10 * c, 'every step is scored')
    assert [s.step for s in probe.scores] == [*range(10)] * times
    assert {s.state for s in probe.scores} == {FailureScore.STATE_NOMINAL}
    probe.spin_until(lambda: probe.facts().get('episodes') == str(times), 'it is counted')


def test_a_rollout_set_is_played_in_a_loop_until_it_is_stopped(
    rollouts: RolloutSet, rollout_folder: Path, probe: Probe, tmp_path: Path
) -> None:
    shortest = rollouts.episode_ids[int(np.argmin(rollouts.lengths))]
    events = probe.listen_to_events()
    parameters = {
        'rollout_set': rollout_folder,
        'episodes': json.dumps([shortest]),
        'loop': True,
        'subscribers': 0,
        'frequency': 200.0,
    }
    with Process('vla_feature_bridge.nodes.replay', parameters, tmp_path / 'replay.log') as process:
        probe.spin_until(
            lambda: sum(e.kind == EpisodeEvent.KIND_START for e in events) >= 3,
            'the episode began three times',
            TIMEOUT,
        )
        assert process.stop() == 0, process.log()
    assert {e.episode_id for e in events} == {shortest}
