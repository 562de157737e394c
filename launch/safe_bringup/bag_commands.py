# SPDX-License-Identifier: Apache-2.0
"""Command lines of ``ros2 bag`` that record our topics and play recordings. No ROS is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vla_feature_bridge.errors import SafeError

RECORDED_TOPICS = (
    'vla/policy_step',
    'vla/episode',
    'safe/score',
    'safe/alarm',
    'safe/stop',
    '/diagnostics',
)
"""Topics that are recorded; names that do not begin with a slash are in the namespace."""

ASIDE = 'recorded'
"""Namespace, below the namespace of the robot, for recorded outputs of the monitor."""

CLOCK_FREQUENCY = 100
"""Messages on ``/clock`` per second while a recording is played [Hz]."""

#: Topics of the whole system that nodes also publish while a recording is played.
_OF_SYSTEM = ('/diagnostics', '/clock', '/rosout', '/parameter_events')
_OUTPUTS = ('safe/score', 'safe/alarm', 'safe/stop', 'safe/markers', 'safe/overlay')
_OUTPUT_END = re.compile(f'/(?:{"|".join(_OUTPUTS)}|safe/[^/]+/score)$')
_NAME = re.compile(r'[\w/~.-]+', re.ASCII)
_STEP, _STEP_TOPIC = 'safe_msgs/msg/PolicyStep', '/vla/policy_step'


class RecordingError(SafeError):
    """A recording cannot be played with these arguments."""


def full_name(namespace: str, topic: str) -> str:
    """Return the full name of a topic in a namespace."""
    if topic.startswith('/'):
        return topic
    return '/' + '/'.join(part for part in (*namespace.split('/'), *topic.split('/')) if part)


def layout_in_namespace(text: str, namespace: str) -> str:
    """Return the content of a layout file with the topics of a robot in a namespace.

    Names that begin with a slash get the namespace. Viewers put other names into it themselves.
    """
    return re.sub(r'(?<![\w/])/safe/', full_name(namespace, 'safe') + '/', text)


def scores_of_detectors(namespace: str) -> str:
    """Return a regular expression of the topics ``safe/NAME/score`` in a namespace.

    A monitor that combines several detectors publishes the scores of each of them. Their names are
    not known before the monitor is configured.
    """
    return f'^{full_name(namespace, "safe")}/[^/]+/score$'


def record_command(
    output: str,
    topics: Iterable[str],
    qos_file: str,
    *,
    also: str = '',
    sim_time: bool = False,
) -> list[str]:
    """Return the command that records topics in one recording.

    Parameters
    ----------
    output : str
        Folder of the recording; it must not exist.
    topics : iterable of str
        Full names.
    qos_file : str
        QoS of the subscriptions, for topics that nobody publishes yet.
    also : str
        Regular expression: topics that match it are recorded too, as soon as somebody publishes
        them, with the QoS of their publisher.
    sim_time : bool
        Whether the times of the recording come from ``/clock``.
    """
    return [
        *('ros2', 'bag', 'record', '--storage', 'mcap', '--output', output),
        *('--qos-profile-overrides-path', qos_file),
        # A recorder that waits for publishers subscribes too late for the first step.
        '--include-unpublished-topics',
        '--disable-keyboard-controls',
        *(['--use-sim-time'] if sim_time else []),
        *(['--regex', also] if also else []),
        '--topics',
        *dict.fromkeys(topics),
    ]


def play_command(
    bag: str, *, delay: float, speed: float, loop: bool, moved: Mapping[str, str]
) -> list[str]:
    """Return the command that plays a recording.

    Parameters
    ----------
    bag : str
        Folder or file.
    delay : float
        Time before the first message [s].
    speed : float
        Speed factor.
    loop : bool
        Whether the recording begins again after its end, until it is interrupted.
    moved : mapping of str to str
        Topics that are played with another name.
    """
    command = ['ros2', 'bag', 'play', bag, '--clock', str(CLOCK_FREQUENCY)]
    if delay > 0:
        command += ['--delay', f'{delay:g}']
    command += ['--rate', f'{speed:g}', '--disable-keyboard-controls']
    if loop:
        command.append('--loop')
    if moved:
        command += ['--remap', *(f'{old}:={new}' for old, new in moved.items())]
    return command


def qos_in_namespace(file: Path, namespace: str) -> dict[str, Any]:
    """Return the content of a file of QoS overrides, for topics in a namespace.

    Raises
    ------
    RecordingError
        The file is not a file of QoS overrides.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _not_overrides(file, str(error)) from None
    if not isinstance(content, dict) or not all(
        isinstance(topic, str) and topic.startswith('/') and isinstance(qos, dict)
        for topic, qos in content.items()
    ):
        raise _not_overrides(file, 'other content')
    ours = {f'/{topic}' for topic in RECORDED_TOPICS if not topic.startswith('/')}
    return {
        full_name(namespace, topic[1:]) if topic in ours else topic: qos
        for topic, qos in content.items()
    }


def _not_overrides(file: Path, found: str) -> RecordingError:
    return RecordingError(
        where=str(file),
        expected='full names of topics, each with the policies of its QoS',
        found=found,
        advice='copy recording/qos.yaml of safe_bringup and change the copy',
    )


def topics_of(bag: Path) -> dict[str, str]:
    """Return the topics of a recording with their types; none if the recording has no metadata.

    Raises
    ------
    RecordingError
        There is no recording, or its metadata cannot be read.
    """
    if bag.is_file():
        return {}
    file = bag / 'metadata.yaml'
    if not file.is_file():
        raise RecordingError(
            where='argument bag',
            expected='a folder with the file metadata.yaml, or a file .mcap or .db3',
            found=f'no such file in {bag}' if bag.is_dir() else f'no {bag}',
            advice='if the recorder was killed, make the file with: ros2 bag reindex FOLDER',
        )
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
        entries = content['rosbag2_bagfile_information']['topics_with_message_count']
        described = [entry['topic_metadata'] for entry in entries]
        topics = {str(topic['name']): str(topic['type']) for topic in described}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise RecordingError(
            where=str(file),
            expected='the metadata of a recording of rosbag2',
            found=f'a file that cannot be read ({type(error).__name__}: {error})',
            advice='make the file again with: ros2 bag reindex FOLDER',
        ) from None
    for name in topics:
        # The name becomes part of a command line, and is printed.
        if not _NAME.fullmatch(name):
            raise RecordingError(
                where=str(file),
                expected='names of ROS topics',
                found=f'{name!r:.80}',
                advice='convert the recording without this topic',
            )
    return topics


def recorded_namespace(topics: Mapping[str, str], given: str, namespace: str) -> str:
    """Return the namespace of the robot in a recording.

    Parameters
    ----------
    topics : mapping of str to str
        Topics and types; empty if they are not known.
    given : str
        Namespace that the user gave; empty: the namespace of the recorded steps.
    namespace : str
        Returned if the topics are not known.

    Raises
    ------
    RecordingError
        The recording has no steps, or it has steps of several robots and the user gave no
        namespace.
    """
    found = sorted(
        name.removesuffix(_STEP_TOPIC)
        for name, kind in topics.items()
        if kind == _STEP and name.endswith(_STEP_TOPIC)
    )
    if given:
        wanted = full_name(given, '').rstrip('/')
        if topics and wanted not in found:
            raise _no_robot(found, f'steps in the namespace {wanted or "/"}')
        return wanted
    if not topics:
        return full_name(namespace, '').rstrip('/')
    if len(found) != 1:
        raise _no_robot(found, f'one topic ...{_STEP_TOPIC} in the recording')
    return found[0]


def _no_robot(found: Sequence[str], expected: str) -> RecordingError:
    names = ', '.join(name or '/' for name in found)
    return RecordingError(
        where='argument bag',
        expected=expected,
        found=f'steps in {names}' if found else 'no steps',
        advice='choose a robot with recorded_namespace:=/NAME'
        if found
        else 'record vla/policy_step, for example with record.launch.py',
    )


def moved_topics(topics: Iterable[str], recorded: str, namespace: str) -> dict[str, str]:
    """Return new names for topics, so that a recording can be played to a running monitor.

    Steps and episodes are played in the namespace of the monitor. The recorded outputs of its
    monitor are played in ``recorded`` below this namespace, so that each topic has one publisher.
    The recorded outputs of monitors of other robots are played below ``/recorded``.

    Parameters
    ----------
    topics : iterable of str
        Full names of the topics of the recording; empty if they are not known.
    recorded, namespace : str
        Namespace of the robot in the recording, and of the monitor.
    """
    known = list(topics) or [
        *(full_name(recorded, topic) for topic in (*_OUTPUTS, 'vla/policy_step', 'vla/episode')),
        *_OF_SYSTEM,
    ]
    moved = {}
    for topic in sorted(known):
        inside = topic.removeprefix(f'{recorded}/')
        if topic in _OF_SYSTEM:
            new = f'/{ASIDE}{topic}'
        elif inside == topic:
            continue
        elif inside.startswith('safe/'):
            new = full_name(namespace, f'{ASIDE}/{inside}')
        elif inside.startswith('vla/'):
            new = full_name(namespace, inside)
        else:
            continue
        if new != topic:
            moved[topic] = new
    # Recorded outputs of other robots must not reach these robots. If a topic already has the new
    # name of another topic, as in a recording of a replay, it is moved too.
    for topic in known:
        if topic not in moved and _OUTPUT_END.search(topic):
            moved[topic] = _aside(topic, moved)
    while clash := next((t for t in known if t not in moved and t in moved.values()), ''):
        moved[clash] = _aside(clash, moved)
    return dict(sorted(moved.items()))


def _aside(topic: str, moved: Mapping[str, str]) -> str:
    new = f'/{ASIDE}{topic}'
    while new in moved.values():
        new = f'/{ASIDE}{new}'
    return new
