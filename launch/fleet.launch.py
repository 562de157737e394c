# SPDX-License-Identifier: Apache-2.0
"""Monitor many robots in one process: ``ros2 launch safe_bringup fleet.launch.py robots_file:=F``.

``robots_file`` lists the robots and the parameters of their monitors. The parameters of the process
come from ``params_file``. A non-empty argument overrides the value in the file. An empty argument
has no effect.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription
from safe_bringup.launch_arguments import (
    argument,
    given_parameters,
    log_arguments,
    log_level_argument,
    only_known_arguments,
    parameter_file,
)

ARGUMENTS = (
    DeclareLaunchArgument(
        'robots_file',
        default_value='',
        description=(
            'YAML file that lists the robots, such as fleet/robots.yaml of safe_bringup; empty: '
            'the value in params_file.'
        ),
    ),
    DeclareLaunchArgument(
        'threads',
        default_value='',
        description=(
            'CPU threads of the matrix products of all detectors together; empty: the value in '
            'params_file.'
        ),
    ),
    DeclareLaunchArgument(
        'params_file',
        default_value=PathJoinSubstitution(
            [FindPackageShare('safe_bringup'), 'params', 'fleet.yaml']
        ),
        description='Parameter file of the process; the parameters of robots are in robots_file.',
    ),
    DeclareLaunchArgument(
        'namespace',
        default_value='',
        description='Namespace around the namespaces of the robots.',
    ),
    log_level_argument(),
)


def start_fleet(context: LaunchContext) -> list[Node]:
    """Return the node with its parameter file; given arguments override values of the file."""
    given = given_parameters(context, {'robots_file': str, 'threads': int})
    if 'robots_file' in given:
        robots = parameter_file(context, 'robots_file', 'a file that lists the robots')
        given['robots_file'] = ParameterValue(str(robots), value_type=str)
    return [
        Node(
            package='safe_monitor_node',
            executable='fleet',
            name='fleet',
            namespace=argument(context, 'namespace'),
            parameters=[
                parameter_file(context, 'params_file'),
                given,
            ],
            ros_arguments=log_arguments(context, 'fleet'),
            output='screen',
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    known = only_known_arguments(__file__, ARGUMENTS)
    return LaunchDescription([*ARGUMENTS, known, OpaqueFunction(function=start_fleet)])
