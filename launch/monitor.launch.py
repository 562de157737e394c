# SPDX-License-Identifier: Apache-2.0
"""Start the monitor: ``ros2 launch safe_bringup monitor.launch.py detector_folder:=FOLDER``.

With ``black_box_folder``, a black box is started too. The parameters come from ``params_file`` and
``black_box_params``. A non-empty argument overrides the value in the file. An empty argument has no
effect.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import PathJoinSubstitution
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from safe_bringup.launch_arguments import (
    argument,
    given_parameters,
    node_arguments,
    only_known_arguments,
)
from safe_bringup.launch_nodes import managed_node

PARAMETERS = {'detector_folder': str, 'alpha': float}
"""Arguments that are parameters of the node."""

ARGUMENTS = (
    DeclareLaunchArgument(
        'detector_folder',
        default_value='',
        description=(
            'Folder of the fitted detector, or the name of a shipped detector: signal_probe; '
            'empty: the '
            'value in params_file.'
        ),
    ),
    DeclareLaunchArgument(
        'alpha',
        default_value='',
        description=(
            'Promised false-alarm rate; 0: the rate stored in the detector folder; empty: the '
            'value in params_file.'
        ),
    ),
    DeclareLaunchArgument(
        'params_file',
        default_value=PathJoinSubstitution(
            [FindPackageShare('safe_bringup'), 'params', 'monitor.yaml']
        ),
        description='Parameter file of the monitor.',
    ),
    DeclareLaunchArgument(
        'black_box_folder',
        default_value='',
        description='Folder in which a black box records alarms; empty: no black box is started.',
    ),
    DeclareLaunchArgument(
        'black_box_params',
        default_value=PathJoinSubstitution(
            [FindPackageShare('safe_bringup'), 'params', 'black_box.yaml']
        ),
        description='Parameter file of the black box.',
    ),
    DeclareLaunchArgument(
        'namespace',
        default_value='',
        description='Namespace of the nodes and of their topics.',
    ),
    *node_arguments(),
)


def start_monitor(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the nodes with their parameter files; given arguments override values of the files."""
    started = managed_node(context, 'monitor', 'params_file', given_parameters(context, PARAMETERS))
    if folder := argument(context, 'black_box_folder'):
        given = {'folder': ParameterValue(folder, value_type=str)}
        started += managed_node(context, 'black_box', 'black_box_params', given)
    return started


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    known = only_known_arguments(__file__, ARGUMENTS)
    return LaunchDescription([*ARGUMENTS, known, OpaqueFunction(function=start_monitor)])
