# SPDX-License-Identifier: Apache-2.0
"""Play a recording: ``ros2 launch safe_bringup replay.launch.py bag:=monday``.

It plays a recording (``bag``) or a rollout set (``rollout_set``) to a running monitor. With
``detector_folder``, it starts a new monitor. The recorded outputs of a monitor are played below
``recorded``, so that no topic has two publishers.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.logging import launch_config
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from safe_bringup.bag_commands import (
    layout_in_namespace,
    moved_topics,
    play_command,
    recorded_namespace,
    topics_of,
)
from safe_bringup.launch_arguments import (
    LaunchArgumentError,
    argument,
    flag,
    flag_argument,
    given_folder,
    given_parameters,
    log_level_argument,
    number,
    only_known_arguments,
)
from safe_bringup.launch_nodes import managing, node_managed_here, plain_node
from safe_bringup.launch_recording import ProcessError, bag_error

PARAMETERS = {'tasks': list[str], 'episodes': list[str], 'limit': int, 'speed': float, 'loop': bool}
"""Arguments that are parameters of the replay node."""

MONITOR_PARAMETERS = {'detector_folder': str, 'alpha': float}
"""Arguments that are parameters of the monitor."""

LAYOUTS = {
    'rviz': ('rviz2', 'rviz2', '-d', 'robot.rviz'),
    'rqt': ('rqt_gui', 'rqt_gui', '--perspective-file', 'rqt.perspective'),
    'plotjuggler': ('plotjuggler', 'plotjuggler', '--layout', 'plotjuggler.xml'),
}
"""Package, executable and option of the viewers, and our file for them."""

Entities = list[LaunchDescriptionEntity]


def _text(name: str, description: str, default: str = '') -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value=default, description=description)


ARGUMENTS = (
    _text('bag', 'Recording to play with `ros2 bag play`: a folder or a file.'),
    _text('rollout_set', 'Rollout set to play with the node replay, instead of a recording.'),
    _text('speed', 'Speed factor.', '1.0'),
    flag_argument('loop', 'Begin again after the end, until Ctrl-C.'),
    _text('delay', 'Time before the first message of a recording [s].', '3.0'),
    _text(
        'recorded_namespace',
        'Namespace of the robot in the recording; empty: the namespace of the recorded steps.',
    ),
    _text('tasks', 'Names of the tasks to play, separated by commas; only of a rollout set.'),
    _text('episodes', 'Ids of the episodes to play, separated by commas; only of a rollout set.'),
    _text('limit', 'Largest number of episodes to play; only of a rollout set.'),
    _text('replay_params', 'Parameter file of the node replay; empty: none.'),
    _text(
        'detector_folder',
        'Detector folder of a new monitor, or the name of a shipped detector: signal_probe; '
        'empty: use a running monitor.',
    ),
    _text('alpha', 'Promised false-alarm rate of this monitor; empty: the value in the file.'),
    DeclareLaunchArgument(
        'monitor_params',
        default_value=PathJoinSubstitution(
            [FindPackageShare('safe_bringup'), 'params', 'monitor.yaml']
        ),
        description='Parameter file of this monitor.',
    ),
    DeclareLaunchArgument(
        'layout',
        default_value='',
        choices=['', *LAYOUTS],
        description='Viewer that is started with the file of this package; empty: none.',
    ),
    flag_argument('keep_open', 'Keep monitor and viewer running after the end of the replay.'),
    _text('namespace', 'Namespace of the monitor and of its topics.'),
    log_level_argument(),
)


def bring_up(context: LaunchContext) -> Entities:
    """Return the player, and optionally a monitor and a viewer.

    Raises
    ------
    LaunchArgumentError, RecordingError
        An argument cannot be used, or the recording cannot be played with these arguments.
    """
    bag, rollouts = argument(context, 'bag'), argument(context, 'rollout_set')
    if bool(bag) == bool(rollouts):
        raise LaunchArgumentError(
            where='arguments bag and rollout_set',
            expected='one of the two',
            found='both' if bag else 'none',
        )
    keep_open = flag(context, 'keep_open')
    player = play_bag(context, bag) if bag else play_rollouts(context)
    on_end = partial(when_played, bool(bag), keep_open)
    entities: Entities = [
        RegisterEventHandler(OnProcessExit(target_action=player[-1], on_exit=on_end))
    ]
    # rqt_plot leaves out a topic that has no publisher when it loads the file.
    at_last = [*viewer(context, sim_time=bool(bag)), *player]
    if not argument(context, 'detector_folder'):
        if bag:
            text = 'the running monitor must have use_sim_time:=true, or max_age 0'
            entities.append(LogInfo(msg=text))
        return [*entities, *at_last]
    return [*entities, *monitor_and_then(context, at_last, sim_time=bool(bag))]


def play_bag(context: LaunchContext, bag: str) -> Entities:
    """Return ``ros2 bag play``, with new names for the recorded outputs of monitors."""
    for name in ('tasks', 'episodes', 'limit', 'replay_params'):
        if argument(context, name):
            raise LaunchArgumentError(
                where=f'argument {name}',
                expected='no value with bag',
                found=argument(context, name),
                advice='convert the recording to a rollout set, and give rollout_set',
            )
    path = Path(os.path.abspath(Path(bag).expanduser()))
    topics, namespace = topics_of(path), argument(context, 'namespace')
    recorded = recorded_namespace(topics, argument(context, 'recorded_namespace'), namespace)
    moved = moved_topics(topics, recorded, namespace)
    speed = positive(context, 'speed')
    delay = 0.0 if argument(context, 'delay') in ('0', '0.0') else positive(context, 'delay')
    command = play_command(
        str(path), delay=delay, speed=speed, loop=flag(context, 'loop'), moved=moved
    )
    told = ''.join(f'; {old} is played as {new}' for old, new in moved.items())
    return [
        LogInfo(msg=f'playing {path}{told}'),
        ExecuteProcess(name='play', cmd=command, output='screen'),
    ]


def positive(context: LaunchContext, name: str) -> float:
    """Return the value of an argument that is a positive number."""
    value = float(number(context, name, float))
    if not 0 < value < 1e6:
        raise LaunchArgumentError(
            where=f'argument {name}',
            expected='a number above 0',
            found=argument(context, name),
        )
    return value


def play_rollouts(context: LaunchContext) -> Entities:
    """Return the node replay, which waits for a monitor."""
    if argument(context, 'recorded_namespace'):
        raise LaunchArgumentError(
            where='argument recorded_namespace',
            expected='no value with rollout_set',
            found=argument(context, 'recorded_namespace'),
        )
    folder = given_folder(context, 'rollout_set', 'rollout_set.json')
    given = {
        'rollout_set': ParameterValue(str(folder), value_type=str),
        **given_parameters(context, PARAMETERS),
    }
    node = plain_node(
        context, 'replay', 'replay_params', given, package='vla_feature_bridge', respawned=False
    )
    return [LogInfo(msg=f'playing {folder}'), node]


def monitor_and_then(context: LaunchContext, then: Entities, *, sim_time: bool) -> Entities:
    """Return a monitor, and the player and viewer, which start as soon as the monitor is active.

    A recording gives the monitor its time.
    """
    given = {
        **given_parameters(context, MONITOR_PARAMETERS),
        'use_sim_time': ParameterValue(sim_time, value_type=bool),
    }
    monitor = node_managed_here(context, 'monitor', 'monitor_params', given)
    active = OnStateTransition(
        target_lifecycle_node=monitor, goal_state='active', entities=then, handle_once=True
    )
    failed = OnStateTransition(
        target_lifecycle_node=monitor,
        start_state='configuring',
        goal_state='unconfigured',
        entities=[OpaqueFunction(function=when_not_configured)],
    )
    ended = OnProcessExit(target_action=monitor, on_exit=when_monitor_ended)
    handlers = [RegisterEventHandler(handler) for handler in (active, failed, ended)]
    return [*handlers, *managing(monitor), monitor]


def viewer(context: LaunchContext, *, sim_time: bool) -> list[Node]:
    """Return the viewer that ``layout`` names, if any.

    Raises
    ------
    LaunchArgumentError
        Its package is not installed.
    """
    name = argument(context, 'layout')
    if not name:
        return []
    package, executable, option, file = LAYOUTS[name]
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        raise LaunchArgumentError(
            where='argument layout',
            expected=f'the package {package}',
            found='no such package',
            advice=f'install ros-$ROS_DISTRO-{package.replace("_", "-")}',
        ) from None
    namespace = argument(context, 'namespace')
    return [
        Node(
            package=package,
            executable=executable,
            # rqt would look for the diagnostics in its namespace.
            namespace=namespace if name == 'rviz' else '',
            arguments=[option, str(layout_file(file, namespace))],
            parameters=[{'use_sim_time': sim_time}],
            output='screen',
        )
    ]


def layout_file(name: str, namespace: str) -> Path:
    """Return a layout for a namespace; it is written beside the log of the launch if it differs."""
    file = Path(get_package_share_directory('safe_bringup'), 'layouts', name)
    text = file.read_text(encoding='utf-8')
    moved = layout_in_namespace(text, namespace)
    if moved == text:
        return file
    made = Path(launch_config.log_dir, name)
    made.write_text(moved, encoding='utf-8')
    return made


def when_played(
    is_bag: bool, keep_open: bool, event: ProcessExited, context: LaunchContext
) -> Entities:
    """End everything after the replay, unless monitor and viewer are kept open."""
    if context.is_shutdown:
        return []
    if event.returncode == 0:
        reason = 'the replay has ended'
        return [LogInfo(msg=reason)] if keep_open else [Shutdown(reason=reason)]
    if is_bag:
        raise bag_error('play', event.returncode)
    raise ProcessError(
        where='replay',
        expected='exit status 0',
        found=f'exit status {event.returncode}; its output is above',
    )


def when_not_configured(context: LaunchContext) -> Entities:
    """End everything: the log of the monitor has the reason why it cannot be configured."""
    raise ProcessError(
        where='monitor',
        expected='a monitor that can be configured',
        found='a failure; its reason is above',
    )


def when_monitor_ended(event: ProcessExited, context: LaunchContext) -> Entities:
    """End everything: the rest of the replay would not be scored."""
    if context.is_shutdown:
        return []
    raise ProcessError(
        where='monitor',
        expected='a monitor that runs until the end of the replay',
        found=f'exit status {event.returncode}; its output is above',
    )


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    known = only_known_arguments(__file__, ARGUMENTS)
    return LaunchDescription([*ARGUMENTS, known, OpaqueFunction(function=bring_up)])
