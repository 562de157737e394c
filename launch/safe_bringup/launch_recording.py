# SPDX-License-Identifier: Apache-2.0
"""The recorder of launch files: ``ros2 bag record`` with our topics and their QoS."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import yaml
from launch.actions import DeclareLaunchArgument, ExecuteProcess, LogInfo, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.logging import launch_config
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescriptionEntity
from safe_bringup.bag_commands import (
    RECORDED_TOPICS,
    full_name,
    qos_in_namespace,
    record_command,
    scores_of_detectors,
)
from safe_bringup.launch_arguments import LaunchArgumentError, argument, parameter_file
from vla_feature_bridge.errors import SafeError

Entities = list[LaunchDescriptionEntity]


CLOSING = '30.0'
"""Time for the recorder to write its memory to disk, before it is terminated [s]."""


class ProcessError(SafeError):
    """A process ended with an error: ``ros2 launch`` ends everything, with status 1."""


def recording_arguments() -> list[DeclareLaunchArgument]:
    """Return the arguments that :func:`recorder` reads, except ``use_sim_time``."""
    return [
        DeclareLaunchArgument(
            'record_output',
            default_value='',
            description=(
                'Folder of the recording; it must not exist; empty: a new folder with date and '
                'time in its name.'
            ),
        ),
        DeclareLaunchArgument(
            'record_topics',
            default_value='',
            description=(
                'More topics to record, for example of a camera, separated by commas; names that '
                'do not begin with a slash are in the namespace.'
            ),
        ),
        DeclareLaunchArgument(
            'record_qos',
            default_value=PathJoinSubstitution(
                [FindPackageShare('safe_bringup'), 'recording', 'qos.yaml']
            ),
            description='File with the QoS of the subscriptions of the recorder.',
        ),
    ]


def recorder(context: LaunchContext) -> Entities:
    """Return the process that records; the launch ends with an error if the process fails.

    Raises
    ------
    LaunchArgumentError
        The folder of the recording exists, or the file of the QoS does not.
    """
    namespace = argument(context, 'namespace')
    more = [topic.strip() for topic in argument(context, 'record_topics').split(',')]
    topics = [full_name(namespace, topic) for topic in (*RECORDED_TOPICS, *filter(None, more))]
    output = _output(argument(context, 'record_output'))
    qos = _qos_file(parameter_file(context, 'record_qos'), namespace)
    process = ExecuteProcess(
        name='record',
        cmd=record_command(
            str(output),
            topics,
            str(qos),
            also=scores_of_detectors(namespace),
            sim_time=argument(context, 'use_sim_time') == 'true',
        ),
        output='screen',
        sigterm_timeout=CLOSING,
    )
    return [
        LogInfo(msg=f'recording to {output}: {", ".join(topics)}'),
        RegisterEventHandler(OnProcessExit(target_action=process, on_exit=_when_recorder_ended)),
        process,
    ]


def _output(text: str) -> Path:
    name = text or f'recording_{datetime.now():%Y_%m_%d-%H_%M_%S}'
    path = Path(os.path.abspath(Path(name).expanduser()))
    if path.exists():
        raise LaunchArgumentError(
            where='argument record_output',
            expected='a folder that does not exist',
            found=f'{path}, which exists',
            advice='give another name; a recording is never overwritten',
        )
    return path


def _qos_file(file: Path, namespace: str) -> Path:
    """Return the file of the QoS for a namespace; it is written beside the log of the launch."""
    overrides = qos_in_namespace(file, namespace)
    if not namespace.strip('/'):
        return file
    name = '_'.join(part for part in namespace.split('/') if part)
    made = Path(launch_config.log_dir, f'qos_{name}.yaml')
    made.write_text(yaml.safe_dump(overrides, sort_keys=False), encoding='utf-8')
    return made


def _when_recorder_ended(event: ProcessExited, context: LaunchContext) -> Entities:
    """End everything if the recorder fails: a session must not continue without a recording."""
    if context.is_shutdown or event.returncode == 0:
        return []
    raise bag_error('record', event.returncode)


def bag_error(verb: str, status: int) -> ProcessError:
    """Return the error of ``ros2 bag``, with what to install if it is missing."""
    return ProcessError(
        where=f'ros2 bag {verb}',
        expected='exit status 0',
        found=f'exit status {status}; its output is above',
        advice='if the command bag or the storage mcap is unknown, install the packages '
        'ros-$ROS_DISTRO-ros2bag, ros-$ROS_DISTRO-rosbag2-transport and '
        'ros-$ROS_DISTRO-rosbag2-storage-mcap',
    )
