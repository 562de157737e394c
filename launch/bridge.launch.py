# SPDX-License-Identifier: Apache-2.0
"""Start the bridge and its monitors: ``ros2 launch safe_bringup bridge.launch.py``.

Without ``detector_folder``, only the bridge starts. The parameters come from ``params_file`` and
``monitor_params``. A non-empty argument overrides the value in the file. An empty argument has no
effect.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from safe_bringup.launch_arguments import (
    argument,
    given_parameters,
    node_arguments,
    only_known_arguments,
    parameter_file,
)
from safe_bringup.launch_nodes import managed_node

PARAMETERS = {
    'listen': list[str],
    'episode_from': str,
    'features_topic': str,
    'actions_topic': str,
    'exec_horizon': int,
}
"""Arguments that are parameters of the bridge."""


def _params(name: str) -> PathJoinSubstitution:
    return PathJoinSubstitution([FindPackageShare('safe_bringup'), 'params', name])


def _text(name: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value='', description=description)


ARGUMENTS = (
    _text(
        'listen',
        'Addresses at which sources connect, separated by commas; empty: as in params_file.',
    ),
    _text('episode_from', 'Where episodes come from; empty: as in params_file.'),
    _text('features_topic', 'Topic of the features; empty: as in params_file.'),
    _text('actions_topic', 'Topic of the actions; empty: as in params_file.'),
    _text(
        'exec_horizon',
        'Number of actions of a chunk on actions_topic that are executed before the next chunk; '
        'empty: as in params_file.',
    ),
    _text(
        'detector_folder',
        'Folder of the fitted detector of the monitors, or the name of a shipped detector: '
        'signal_probe; empty: no monitor is started.',
    ),
    _text(
        'sources',
        'Names of the sources, separated by commas; each source gets a monitor; empty: one '
        'monitor for '
        'the source without a name.',
    ),
    DeclareLaunchArgument(
        'params_file',
        default_value=_params('bridge.yaml'),
        description='Parameter file of the bridge.',
    ),
    DeclareLaunchArgument(
        'monitor_params',
        default_value=_params('monitor.yaml'),
        description='Parameter file of the monitors.',
    ),
    _text(
        'black_box_folder',
        'Folder in which black boxes record alarms, each in a folder with the name of its source; '
        'empty: no black box is started.',
    ),
    DeclareLaunchArgument(
        'black_box_params',
        default_value=_params('black_box.yaml'),
        description='Parameter file of the black boxes.',
    ),
    _text('namespace', 'Namespace of the nodes and of their topics.'),
    *node_arguments(),
)


def start_bridge(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the bridge, and the monitors if there is a detector for them."""
    bridge = managed_node(
        context,
        'bridge',
        'params_file',
        given_parameters(context, PARAMETERS),
        package='vla_feature_bridge',
    )
    if not argument(context, 'detector_folder'):
        return bridge
    sources = [name.strip() for name in argument(context, 'sources').split(',')]
    return [*bridge, *(monitor_of(context, source) for source in sources)]


def monitor_of(context: LaunchContext, source: str) -> IncludeLaunchDescription:
    """Return the monitor of a source, in the namespace of its topics."""
    namespace = '/'.join(part for part in (argument(context, 'namespace'), source) if part)
    passed = ('detector_folder', 'black_box_params', *(a.name for a in node_arguments()))
    black_box = argument(context, 'black_box_folder')
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).with_name('monitor.launch.py'))),
        launch_arguments={
            'params_file': str(parameter_file(context, 'monitor_params')),
            'namespace': namespace,
            'black_box_folder': str(Path(black_box, source)) if black_box else '',
            **{name: argument(context, name) for name in passed},
        }.items(),
    )


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    known = only_known_arguments(__file__, ARGUMENTS)
    return LaunchDescription([*ARGUMENTS, known, OpaqueFunction(function=start_bridge)])
