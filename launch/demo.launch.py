# SPDX-License-Identifier: Apache-2.0
"""Play recorded rollouts to a monitor: ``ros2 launch safe_bringup demo.launch.py``.

Without the arguments ``detector_folder`` and ``rollout_set``, the launch file uses the detector
folder and the rollout set in the demo folder ``out``. If they do not exist, it makes them first: it
converts the recordings that the package installs, then fits and calibrates a detector. It ends
after the last episode.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from safe_bringup.launch_arguments import (
    LaunchArgumentError,
    argument,
    given_folder,
    given_parameters,
    log_arguments,
    log_level_argument,
    only_known_arguments,
    parameter_file,
)

PARAMETERS = {
    'frequency': float,
    'speed': float,
    'tasks': list[str],
    'episodes': list[str],
    'limit': int,
}
"""Arguments that are parameters of the replay node."""

DETECTOR_FILE, ROLLOUT_SET_FILE = 'detector.json', 'rollout_set.json'

Entities = list[LaunchDescriptionEntity]


def _params(name: str) -> PathJoinSubstitution:
    return PathJoinSubstitution([FindPackageShare('safe_bringup'), 'params', name])


ARGUMENTS = (
    DeclareLaunchArgument(
        'detector_folder',
        default_value='',
        description='Folder of the fitted detector; empty: the detector folder in `out`.',
    ),
    DeclareLaunchArgument(
        'rollout_set',
        default_value='',
        description='Folder of the rollout set to play; empty: the rollout set in `out`.',
    ),
    DeclareLaunchArgument(
        'out',
        default_value='demo_out',
        description='Folder of the demo; it is created if it is needed and does not exist.',
    ),
    DeclareLaunchArgument(
        'alpha',
        default_value='',
        description=(
            'Promised false-alarm rate; 0: the rate stored in the detector folder; empty: the '
            'value in monitor_params.'
        ),
    ),
    DeclareLaunchArgument(
        'tasks',
        default_value='',
        description=(
            'Names of the tasks to play, separated by commas; empty: the value in '
            'replay_params. If replay_params has no value and the rollout set is the one in '
            '`out`: the tasks that the detector was not trained on.'
        ),
    ),
    DeclareLaunchArgument(
        'episodes',
        default_value='',
        description=(
            'Ids of the episodes to play, separated by commas, in this order; '
            'empty: the value in replay_params.'
        ),
    ),
    DeclareLaunchArgument(
        'limit',
        default_value='',
        description=(
            'Largest number of episodes to play; 0: all; empty: the value in replay_params.'
        ),
    ),
    DeclareLaunchArgument(
        'frequency',
        default_value='',
        description=(
            'Policy inferences per second if the recording has no time stamps [Hz]; empty: the '
            'value in replay_params.'
        ),
    ),
    DeclareLaunchArgument(
        'speed',
        default_value='',
        description='Speed factor of the replay; empty: the value in replay_params.',
    ),
    DeclareLaunchArgument(
        'monitor_params',
        default_value=_params('monitor.yaml'),
        description='Parameter file of the monitor.',
    ),
    DeclareLaunchArgument(
        'replay_params',
        default_value=_params('replay.yaml'),
        description='Parameter file of the replay.',
    ),
    DeclareLaunchArgument(
        'namespace',
        default_value='',
        description='Namespace of the nodes and of their topics.',
    ),
    log_level_argument(),
)


class ProcessError(RuntimeError):
    """A process of the demo failed: ``ros2 launch`` shuts the graph down and ends with status 1."""


class Demo(NamedTuple):
    """Values of the launch arguments, read once at the start.

    Another launch file can change the arguments before an event handler runs.
    """

    out: Path
    detector: Path
    rollouts: Path
    unseen_only: bool
    monitor_arguments: dict[str, str]
    replay_params: Path
    replay_given: dict[str, ParameterValue]
    namespace: str
    log_arguments: list[str]


def read_arguments(context: LaunchContext) -> Demo:
    """Return the values of the launch arguments.

    Raises
    ------
    LaunchArgumentError
        A file or folder that an argument names does not exist, or the value of an argument has the
        wrong type.
    """
    out = Path(argument(context, 'out')).expanduser().resolve()
    detector = given_folder(context, 'detector_folder', DETECTOR_FILE) or out / 'detector'
    rollouts = given_folder(context, 'rollout_set', ROLLOUT_SET_FILE)
    return Demo(
        out=out,
        detector=detector,
        rollouts=rollouts or out / 'rollouts',
        unseen_only=rollouts is None and not argument(context, 'episodes'),
        monitor_arguments={
            'detector_folder': str(detector),
            'params_file': str(parameter_file(context, 'monitor_params')),
            'autostart': 'true',
            **{name: argument(context, name) for name in ('alpha', 'namespace', 'log_level')},
        },
        replay_params=parameter_file(context, 'replay_params'),
        replay_given=given_parameters(context, PARAMETERS),
        namespace=argument(context, 'namespace'),
        log_arguments=log_arguments(context, 'replay'),
    )


def bring_up(context: LaunchContext) -> Entities:
    """Return the actions that start the nodes.

    If a file is missing, return the actions that make the file first and then start the nodes.
    """
    demo = read_arguments(context)
    needed = (demo.detector / DETECTOR_FILE, demo.rollouts / ROLLOUT_SET_FILE)
    if all(file.is_file() for file in needed):
        return graph(demo)
    prepare = ExecuteProcess(
        name='prepare',
        # Run the installed script: its Python has all packages. The Python of `ros2` may lack some.
        cmd=[ExecutableInPackage('demo', 'safe_bringup'), '--prepare', '--out', str(demo.out)],
        additional_env={'PYTHONUNBUFFERED': '1'},
        output='screen',
    )
    return [
        LogInfo(msg=f'making the missing files in {demo.out}'),
        RegisterEventHandler(
            OnProcessExit(target_action=prepare, on_exit=partial(when_prepared, demo))
        ),
        prepare,
    ]


def when_prepared(demo: Demo, event: ProcessExited, context: LaunchContext) -> Entities:
    """Start the nodes after all files are made."""
    if context.is_shutdown:
        return []
    if event.returncode != 0:
        raise ProcessError(
            f'{demo.out}: expected that `demo --prepare` makes a detector folder, found exit '
            f'status {event.returncode}; read the output of prepare above'
        )
    return graph(demo)


def graph(demo: Demo) -> Entities:
    """Return the monitor node, the replay node and the handlers that stop them."""
    replay = Node(
        package='vla_feature_bridge',
        executable='replay',
        name='replay',
        namespace=demo.namespace,
        parameters=[
            demo.replay_params,
            {
                'rollout_set': ParameterValue(str(demo.rollouts), value_type=str),
                **demo.replay_given,
            },
        ],
        # On the command line, parameter files come later and override earlier values.
        ros_arguments=[
            *demo.log_arguments,
            '-p',
            f'tasks:={json.dumps(default_tasks(demo))}',
        ],
        output='screen',
    )
    monitor = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).with_name('monitor.launch.py'))),
        launch_arguments=demo.monitor_arguments.items(),
    )
    scores = f'/{demo.namespace}/safe/score'.replace('//', '/')
    return [
        RegisterEventHandler(OnProcessExit(on_exit=partial(when_ended, replay))),
        LogInfo(msg=f'playing {demo.rollouts}; to watch it: ros2 topic echo {scores}'),
        monitor,
        replay,
    ]


def default_tasks(demo: Demo) -> list[str]:
    """Return the tasks that the detector was not trained on; [''] stands for all tasks."""
    if not demo.unseen_only:
        return ['']
    path = demo.detector / DETECTOR_FILE
    try:
        provenance = json.loads(path.read_text(encoding='utf-8'))['provenance']
        return list(provenance.get('unseen_tasks') or [''])
    except (ValueError, KeyError) as error:
        raise LaunchArgumentError(
            where=str(path),
            expected='the description of a detector folder',
            found=f'a file that cannot be read ({error!r})',
            advice='fit the detector again',
        ) from error


def when_ended(replay: Node, event: ProcessExited, context: LaunchContext) -> Entities:
    """Stop all nodes when the replay ends normally.

    If another node ends first, report a failure.
    """
    if context.is_shutdown:
        return []
    if event.action is replay and event.returncode == 0:
        return [Shutdown(reason='the replay has ended')]
    raise ProcessError(
        f'process {event.process_name} ended with status {event.returncode} before the end of the '
        'replay; read the output of this process above'
    )


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    known = only_known_arguments(__file__, ARGUMENTS)
    return LaunchDescription([*ARGUMENTS, known, OpaqueFunction(function=bring_up)])
