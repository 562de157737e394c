# SPDX-License-Identifier: Apache-2.0
"""Arguments of all launch files. A given argument overrides the parameter file of a node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch.actions import DeclareLaunchArgument
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext
from vla_feature_bridge.errors import SafeError

Kind = type[bool] | type[int] | type[float] | type[str] | type[list[str]]

EXPECTED: dict[object, str] = {bool: 'true or false', int: 'a whole number', float: 'a number'}


class LaunchArgumentError(SafeError):
    """An argument of a launch file cannot be used; the message contains its name."""


def log_level_argument() -> DeclareLaunchArgument:
    """Return the argument that :func:`log_arguments` reads."""
    return DeclareLaunchArgument(
        'log_level',
        default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description=(
            'Lowest severity of the messages that are logged; with debug, only debug messages of '
            'the nodes are logged, not of rcl.'
        ),
    )


def node_arguments() -> list[DeclareLaunchArgument]:
    """Return the arguments that every launch file of a lifecycle node has."""
    return [
        DeclareLaunchArgument(
            'autostart',
            default_value='',
            choices=['', 'true', 'false'],
            description=(
                'Configure and activate at start-up; false: wait for a lifecycle manager; empty: '
                'the value in the parameter file.'
            ),
        ),
        DeclareLaunchArgument(
            'use_sim_time',
            default_value='',
            choices=['', 'true', 'false'],
            description=(
                'Take the time from /clock, which `ros2 bag play --clock` publishes; empty: the '
                'value in the parameter file.'
            ),
        ),
        log_level_argument(),
    ]


def argument(context: LaunchContext, name: str) -> str:
    """Return the value of a declared argument; empty if the argument was not given."""
    return str(context.launch_configurations[name]).strip()


def log_arguments(context: LaunchContext, node: str) -> list[str]:
    """Return the ROS arguments for ``log_level``.

    At the level debug, only the node itself logs its debug messages: rcl and the middleware log
    hundreds of lines a second.
    """
    level = argument(context, 'log_level')
    if level != 'debug':
        return ['--log-level', level]
    namespace = argument(context, 'namespace')
    if not namespace.startswith('/'):
        pushed = str(context.launch_configurations.get('ros_namespace', ''))
        namespace = f'{pushed}/{namespace}'
    logger = '.'.join(part for part in [*namespace.split('/'), node] if part)
    return ['--log-level', 'info', '--log-level', f'{logger}:=debug']


def parameter_file(context: LaunchContext, name: str) -> Path:
    """Return the file that an argument names.

    Raises
    ------
    LaunchArgumentError
        The file does not exist. Without this error, launch_ros prints only a warning, and the node
        uses the default parameters.
    """
    path = Path(argument(context, name)).expanduser()
    if not path.is_file():
        raise LaunchArgumentError(
            where=f'argument {name}', expected='a parameter file', found=f'no file {path}'
        )
    return path


def given_parameters(
    context: LaunchContext, kinds: Mapping[str, Kind]
) -> dict[str, ParameterValue]:
    """Return the parameters for which an argument was given.

    Parameters
    ----------
    kinds : mapping of str to type
        Arguments that are parameters of the node; a list of strings is separated by commas.

    Raises
    ------
    LaunchArgumentError
        A value has a type that differs from the type of the parameter.
    """
    given = {name: argument(context, name) for name in kinds}
    return {name: _typed(name, text, kinds[name]) for name, text in given.items() if text}


def _typed(name: str, text: str, kind: Kind) -> ParameterValue:
    try:
        if kind is bool:
            value: object = {'true': True, 'false': False}[text.lower()]
        elif kind == list[str]:
            value = [part.strip() for part in text.split(',')]
        else:
            value = kind(text)
    except (KeyError, ValueError):
        raise LaunchArgumentError(
            where=f'argument {name}', expected=EXPECTED[kind], found=repr(text)
        ) from None
    # Without the type, launch_ros reads strings as YAML: a task with the name `1` would become a
    # number.
    return ParameterValue(value, value_type=list[str] if kind == list[str] else kind)
