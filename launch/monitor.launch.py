# SPDX-License-Identifier: Apache-2.0
"""Start the monitor: ``ros2 launch safe_bringup monitor.launch.py detector_folder:=FOLDER``.

The parameters come from ``params_file``. A non-empty argument overrides the value in the file. An
empty argument changes nothing.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription
from safe_bringup.launch_arguments import (
    argument,
    given_parameters,
    log_arguments,
    node_arguments,
    parameter_file,
)

PARAMETERS = {'detector_folder': str, 'alpha': float, 'autostart': bool, 'use_sim_time': bool}
"""Arguments that are parameters of the node."""

ARGUMENTS = (
    DeclareLaunchArgument(
        'detector_folder',
        default_value='',
        description=(
            'Folder of the fitted detector, or the name of a shipped one: signal_probe; empty: the '
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
        'namespace',
        default_value='',
        description='Namespace of the node and of its topics.',
    ),
    *node_arguments(),
)


def start_monitor(context: LaunchContext) -> list[Node]:
    """Return the node with its parameter file; the given arguments override values of the file."""
    return [
        Node(
            package='safe_monitor_node',
            executable='monitor',
            name='monitor',
            namespace=argument(context, 'namespace'),
            parameters=[
                parameter_file(context, 'params_file'),
                given_parameters(context, PARAMETERS),
            ],
            ros_arguments=log_arguments(context, 'monitor'),
            output='screen',
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start_monitor)])
