# SPDX-License-Identifier: Apache-2.0
"""Record a robot: ``ros2 launch safe_bringup record.launch.py namespace:=robot1``.

It writes one recording (mcap) of our topics until Ctrl-C, with the QoS in ``recording/qos.yaml``.
``convert`` divides a recording into episodes.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction

from launch import LaunchDescription
from safe_bringup.launch_arguments import (
    flag_argument,
    only_known_arguments,
)
from safe_bringup.launch_recording import recorder, recording_arguments

ARGUMENTS = (
    *recording_arguments(),
    DeclareLaunchArgument(
        'namespace', default_value='', description='Namespace of the robot to record.'
    ),
    flag_argument('use_sim_time', 'Take the times of the recording from /clock.'),
)


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    known = only_known_arguments(__file__, ARGUMENTS)
    return LaunchDescription([*ARGUMENTS, known, OpaqueFunction(function=recorder)])
