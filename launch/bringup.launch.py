# SPDX-License-Identifier: Apache-2.0
"""Start all for one robot: ``ros2 launch safe_bringup bringup.launch.py detector_folder:=FOLDER``.

It starts a bridge and the monitor. The overlay, the markers, a black box and a recorder are
optional. The parameters come from the parameter files. A non-empty argument overrides the value in
the file. An empty argument has no effect.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import PathJoinSubstitution
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from safe_bringup.launch_arguments import (
    LaunchArgumentError,
    argument,
    flag,
    flag_argument,
    given_parameters,
    node_arguments,
    only_known_arguments,
)
from safe_bringup.launch_nodes import managed_node, plain_node
from safe_bringup.launch_recording import recorder, recording_arguments
from vla_feature_bridge.nodes.bridge_parameters import EPISODE_FROM

MONITOR_PARAMETERS = {'detector_folder': str, 'alpha': float}
"""Arguments that are parameters of the monitor."""

BRIDGE_PARAMETERS = {
    'listen': list[str],
    'features_topic': str,
    'actions_topic': str,
    'feature_name': str,
    'exec_horizon': int,
    'episode_from': str,
}
"""Arguments that are parameters of the bridge."""

OVERLAY_PARAMETERS = {'image_topic': str, 'use_sim_time': bool}
"""Arguments that are parameters of the overlay."""

MARKERS_PARAMETERS = {'frame_id': str, 'use_sim_time': bool}
"""Arguments that are parameters of the markers."""


def _text(name: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value='', description=description)


def _file(name: str, node: str) -> DeclareLaunchArgument:
    path = PathJoinSubstitution([FindPackageShare('safe_bringup'), 'params', f'{node}.yaml'])
    return DeclareLaunchArgument(
        name, default_value=path, description=f'Parameter file of the node {node}.'
    )


ARGUMENTS = (
    _text(
        'detector_folder',
        'Folder of the fitted detector, or the name of a shipped detector: signal_probe; empty: '
        'the value in monitor_params.',
    ),
    _text(
        'alpha',
        'Promised false-alarm rate; 0: the rate stored in the detector folder; empty: the value '
        'in monitor_params.',
    ),
    DeclareLaunchArgument(
        'bridge',
        default_value='sender',
        choices=['sender', 'topics', 'none'],
        description=(
            'Where the steps come from. sender: from a StepSender, over a socket; topics: from '
            'features_topic and actions_topic; none: the policy publishes them itself, and no '
            'bridge is started.'
        ),
    ),
    _text(
        'listen',
        'Addresses at which senders connect, separated by commas; empty: the value in '
        'bridge_params, with bridge:=topics none.',
    ),
    _text('features_topic', 'Topic of the features, with bridge:=topics.'),
    _text('actions_topic', 'Topic of the actions, with bridge:=topics.'),
    _text('feature_name', 'Name and pooling of the features on features_topic.'),
    _text(
        'exec_horizon',
        'Number of actions of a chunk on actions_topic that are executed before the next chunk; '
        'empty: the value in bridge_params.',
    ),
    DeclareLaunchArgument(
        'episode_from',
        default_value='',
        choices=['', *EPISODE_FROM],
        description='Where episodes come from; empty: the value in bridge_params.',
    ),
    _text(
        'image_topic',
        'Topic of the camera whose images show the state on safe/overlay; empty: no overlay is '
        'started.',
    ),
    flag_argument('markers', 'Start the markers for RViz.'),
    _text('frame_id', 'Frame of the markers; empty: the value in markers_params.'),
    _text(
        'black_box_folder',
        'Folder in which a black box records alarms; empty: no black box is started.',
    ),
    flag_argument('record', 'Record the session, as record.launch.py does.'),
    *recording_arguments(),
    _file('monitor_params', 'monitor'),
    _file('bridge_params', 'bridge'),
    _file('overlay_params', 'overlay'),
    _file('markers_params', 'markers'),
    _file('black_box_params', 'black_box'),
    _text('namespace', 'Namespace of the nodes and of their topics.'),
    *node_arguments(respawn='true'),
)


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the nodes, each with its parameter file."""
    started = [
        *managed_node(
            context, 'monitor', 'monitor_params', given_parameters(context, MONITOR_PARAMETERS)
        ),
        *bridge(context),
    ]
    if folder := argument(context, 'black_box_folder'):
        given = {'folder': ParameterValue(folder, value_type=str)}
        started += managed_node(context, 'black_box', 'black_box_params', given)
    if argument(context, 'image_topic'):
        given = given_parameters(context, OVERLAY_PARAMETERS)
        started.append(plain_node(context, 'overlay', 'overlay_params', given))
    if flag(context, 'markers'):
        given = given_parameters(context, MARKERS_PARAMETERS)
        started.append(plain_node(context, 'markers', 'markers_params', given))
    if flag(context, 'record'):
        started += recorder(context)
    return started


def bridge(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the bridge that ``bridge`` names.

    Raises
    ------
    LaunchArgumentError
        An argument has no effect with this bridge.
    """
    kind = argument(context, 'bridge')
    used = {
        'sender': ('listen', 'episode_from'),
        'topics': tuple(BRIDGE_PARAMETERS),
        'none': (),
    }[kind]
    for name in BRIDGE_PARAMETERS:
        if argument(context, name) and name not in used:
            raise LaunchArgumentError(
                where=f'argument {name}',
                expected=f'no value with bridge:={kind}',
                found=argument(context, name),
                advice='remove the argument, or give bridge:=topics',
            )
    if kind == 'none':
        return []
    given = given_parameters(context, BRIDGE_PARAMETERS)
    if kind == 'topics':
        given.setdefault('listen', ParameterValue(['none'], value_type=list[str]))
    return managed_node(context, 'bridge', 'bridge_params', given, package='vla_feature_bridge')


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    known = only_known_arguments(__file__, ARGUMENTS)
    return LaunchDescription([*ARGUMENTS, known, OpaqueFunction(function=bring_up)])
