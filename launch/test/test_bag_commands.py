# SPDX-License-Identifier: Apache-2.0
"""Command lines of ``ros2 bag``: options that rosbag2 documents, and names in a namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from safe_bringup.bag_commands import (
    RECORDED_TOPICS,
    RecordingError,
    full_name,
    layout_in_namespace,
    moved_topics,
    play_command,
    qos_in_namespace,
    record_command,
    recorded_namespace,
    scores_of_detectors,
    topics_of,
)
from safe_monitor_node.nodes.monitor_outputs import topic_of

#: Options of rosbag2 0.26 (Jazzy), as its `ros2 bag record --help` and `play --help` list them.
RECORD_OPTIONS = {
    '--storage',
    '--output',
    '--topics',
    '--qos-profile-overrides-path',
    '--include-unpublished-topics',
    '--disable-keyboard-controls',
    '--use-sim-time',
    '--regex',
}
PLAY_OPTIONS = {
    '--clock',
    '--delay',
    '--rate',
    '--loop',
    '--remap',
    '--disable-keyboard-controls',
}
STEP = 'safe_msgs/msg/PolicyStep'


def options_of(command: list[str]) -> set[str]:
    return {word for word in command if word.startswith('--')}


@pytest.mark.parametrize(
    ('namespace', 'topic', 'full'),
    [
        ('', 'safe/score', '/safe/score'),
        ('robot1', 'safe/score', '/robot1/safe/score'),
        ('/cell/robot1/', 'safe/score', '/cell/robot1/safe/score'),
        ('robot1', '/diagnostics', '/diagnostics'),
        ('/', 'vla/episode', '/vla/episode'),
    ],
)
def test_full_names(namespace: str, topic: str, full: str) -> None:
    assert full_name(namespace, topic) == full


def test_the_recorder_gets_documented_options_and_each_topic_once() -> None:
    command = record_command('out', ['/a', '/b', '/a'], 'qos.yaml', also='^/c$', sim_time=True)
    assert command[:3] == ['ros2', 'bag', 'record']
    assert options_of(command) == RECORD_OPTIONS
    # The topics are last, because the option takes all words that follow.
    assert command[-3:] == ['--topics', '/a', '/b']
    least = record_command('out', ['/a'], 'qos.yaml')
    assert options_of(least) == RECORD_OPTIONS - {'--use-sim-time', '--regex'}


@pytest.mark.parametrize('name', ['rqt.perspective', 'plotjuggler.xml', 'robot.rviz'])
def test_a_layout_is_moved_into_the_namespace_of_a_robot(name: str) -> None:
    text = (Path(__file__).parents[1] / 'layouts' / name).read_text(encoding='utf-8')
    assert layout_in_namespace(text, '') == layout_in_namespace(text, '/') == text
    moved = layout_in_namespace(text, 'cell/robot1')
    assert moved.replace('/cell/robot1/safe/', '/safe/') == text
    # RViz puts relative names into its own namespace.
    assert (moved == text) == (name == 'robot.rviz')


@pytest.mark.parametrize('namespace', ['', '/', 'robot1', '/cell/robot1/'])
def test_the_scores_of_each_detector_of_a_rule_are_recorded(namespace: str) -> None:
    # rosbag2 records a topic that is in the list or that the expression finds.
    found = re.compile(scores_of_detectors(namespace)).search
    assert found(full_name(namespace, topic_of('uncertain')))
    for other in ('safe/score', 'safe/alarm', 'recorded/safe/uncertain/score', 'vla/x/score'):
        assert not found(full_name(namespace, other)), other
    assert not found('/robot2/safe/uncertain/score')
    assert not found('/cell/robot10/safe/uncertain/score')


def test_the_player_gets_documented_options_and_the_names_last() -> None:
    moved = {'/safe/score': '/recorded/safe/score', '/diagnostics': '/recorded/diagnostics'}
    command = play_command('monday', delay=3.0, speed=0.5, loop=True, moved=moved)
    assert command[:4] == ['ros2', 'bag', 'play', 'monday']
    assert options_of(command) == PLAY_OPTIONS
    assert command[-3:] == ['--remap', *(f'{old}:={new}' for old, new in moved.items())]
    # rosbag2 refuses a delay of 0.
    least = play_command('monday', delay=0.0, speed=1.0, loop=False, moved={})
    assert options_of(least) == {'--clock', '--rate', '--disable-keyboard-controls'}


def test_the_qos_of_our_topics_moves_into_the_namespace_and_that_of_others_does_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / 'qos.yaml'
    file.write_text(yaml.safe_dump({'/safe/score': {'depth': 1}, '/camera': {'depth': 2}}))
    assert qos_in_namespace(file, 'robot1') == {
        '/robot1/safe/score': {'depth': 1},
        '/camera': {'depth': 2},
    }


@pytest.mark.parametrize('text', ['', '[1, 2]', 'safe/score: {depth: 1}', '/a: 1', '{', '\x00'])
def test_another_file_is_not_taken_for_qos(text: str, tmp_path: Path) -> None:
    (tmp_path / 'qos.yaml').write_text(text)
    with pytest.raises(RecordingError, match=r'qos\.yaml: expected full names of topics'):
        qos_in_namespace(tmp_path / 'qos.yaml', '')


def test_the_topics_of_a_recording_are_read_from_its_metadata(tmp_path: Path) -> None:
    folder = tmp_path / 'bag'
    folder.mkdir()
    entry = {'topic_metadata': {'name': '/vla/policy_step', 'type': STEP}, 'message_count': 1}
    content = {'rosbag2_bagfile_information': {'topics_with_message_count': [entry]}}
    (folder / 'metadata.yaml').write_text(yaml.safe_dump(content))
    assert topics_of(folder) == {'/vla/policy_step': STEP}
    (tmp_path / 'one.mcap').touch()
    assert topics_of(tmp_path / 'one.mcap') == {}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, r'expected a folder with the file metadata.yaml, .* found no such file'),
        ('{', 'expected the metadata of a recording'),
        ('a: 1', 'expected the metadata of a recording'),
        ('rosbag2_bagfile_information: 3', 'expected the metadata of a recording'),
        ('[' * 5000, 'expected the metadata of a recording'),
        (
            'rosbag2_bagfile_information: {topics_with_message_count: '
            '[{topic_metadata: {name: "/x:=/safe/stop\\e[2J", type: t}}]}',
            r"expected names of ROS topics, found '/x:=/safe/stop\\x1b",
        ),
    ],
    ids=['missing', 'broken', 'other', 'number', 'deep', 'name'],
)
def test_a_folder_that_is_no_recording_is_refused(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / 'metadata.yaml').write_text(text)
    with pytest.raises(RecordingError, match=message):
        topics_of(tmp_path)
    with pytest.raises(RecordingError, match='found no '):
        topics_of(tmp_path / 'absent')


def test_the_robot_of_a_recording_is_found_by_its_steps() -> None:
    one = {'/lab/vla/policy_step': STEP, '/camera': 'sensor_msgs/msg/Image'}
    two = {'/a/vla/policy_step': STEP, '/vla/policy_step': STEP}
    assert recorded_namespace(one, '', 'robot1') == '/lab'
    assert recorded_namespace({}, '', 'robot1') == '/robot1'
    assert recorded_namespace(two, 'a', '') == '/a'
    assert recorded_namespace(two, '/', '') == ''
    with pytest.raises(RecordingError, match=r'found steps in /, /a; choose a robot'):
        recorded_namespace(two, '', '')
    with pytest.raises(RecordingError, match='expected steps in the namespace /b, found steps in'):
        recorded_namespace(two, 'b', '')
    with pytest.raises(RecordingError, match='found no steps'):
        recorded_namespace({'/camera': 'sensor_msgs/msg/Image'}, '', '')


def test_what_a_monitor_had_published_is_played_aside() -> None:
    topics = [full_name('lab', topic) for topic in RECORDED_TOPICS]
    topics += ['/lab/safe/linear_probe/score', '/lab/camera', '/clock']
    assert moved_topics(topics, '/lab', 'lab') == {
        '/clock': '/recorded/clock',
        '/diagnostics': '/recorded/diagnostics',
        '/lab/safe/alarm': '/lab/recorded/safe/alarm',
        '/lab/safe/linear_probe/score': '/lab/recorded/safe/linear_probe/score',
        '/lab/safe/score': '/lab/recorded/safe/score',
        '/lab/safe/stop': '/lab/recorded/safe/stop',
    }


def test_a_recording_is_played_to_a_monitor_in_another_namespace() -> None:
    topics = ['/vla/policy_step', '/vla/episode', '/safe/score', '/camera']
    assert moved_topics(topics, '', 'robot1') == {
        '/safe/score': '/robot1/recorded/safe/score',
        '/vla/episode': '/robot1/vla/episode',
        '/vla/policy_step': '/robot1/vla/policy_step',
    }


def test_no_two_topics_are_played_as_one() -> None:
    # A recording of a replay holds what the replay had moved aside.
    again = ['/vla/policy_step', '/safe/score', '/recorded/safe/score', '/recorded/diagnostics']
    moved = moved_topics([*again, '/diagnostics'], '', '')
    assert moved['/safe/score'] == '/recorded/safe/score'
    played = [moved.get(topic, topic) for topic in [*again, '/diagnostics']]
    assert len(set(played)) == len(played)
    # The steps of another robot must not mix with those of the robot that is played.
    two = [f'/{robot}/{topic}' for robot in 'ab' for topic in ('vla/policy_step', 'safe/score')]
    moved = moved_topics(two, '/a', 'b')
    assert moved['/a/vla/policy_step'] == '/b/vla/policy_step'
    assert len({moved.get(topic, topic) for topic in two}) == len(two)


def test_a_recording_of_two_robots_stops_neither() -> None:
    two = [f'/{robot}/{topic}' for robot in 'ab' for topic in ('vla/policy_step', 'safe/stop')]
    assert moved_topics(two, '/a', 'a') == {
        '/a/safe/stop': '/a/recorded/safe/stop',
        '/b/safe/stop': '/recorded/b/safe/stop',
    }
    scores = [*two, '/b/safe/linear_probe/score', '/b/camera']
    moved = moved_topics(scores, '/a', 'a')
    assert moved['/b/safe/linear_probe/score'] == '/recorded/b/safe/linear_probe/score'
    assert '/b/camera' not in moved


def test_a_file_without_metadata_gets_the_names_of_our_topics() -> None:
    moved = moved_topics([], '/robot1', 'robot1')
    assert moved['/robot1/safe/score'] == '/robot1/recorded/safe/score'
    assert moved['/diagnostics'] == '/recorded/diagnostics'
    assert '/robot1/vla/policy_step' not in moved
