# SPDX-License-Identifier: Apache-2.0
"""Arguments of all launch files. A given argument overrides the parameter file of a node."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext
from vla_feature_bridge.errors import SafeError

Kind = type[bool] | type[int] | type[float] | type[str] | type[list[str]]

OF_ROS2_LAUNCH = ('launch-prefix', 'launch-prefix-filter')
"""Arguments that ``ros2 launch`` adds for its options ``--launch-prefix`` and so on."""

EXPECTED: dict[object, str] = {bool: 'true or false', int: 'a whole number', float: 'a number'}


class LaunchArgumentError(SafeError):
    """An argument of a launch file cannot be used; the message contains its name."""


def only_known_arguments(file: str, declared: Iterable[DeclareLaunchArgument]) -> OpaqueFunction:
    """Return an action that refuses arguments on the command line that a launch file does not have.

    ``ros2 launch`` ignores a name that no launch file declares, so that a misspelt argument has no
    effect. The action does nothing if another launch file includes this one, because the command
    line then has the arguments of that file.

    Parameters
    ----------
    file : str
        Path of the launch file: its ``__file__``.
    declared : iterable of DeclareLaunchArgument
        All arguments of the launch file.
    """
    names = sorted(argument.name for argument in declared)

    def check(context: LaunchContext) -> None:
        if is_launched(file, sys.argv):
            given = (word.partition(':=')[0] for word in context.argv)
            refuse_unknown([name for name in given if name not in OF_ROS2_LAUNCH], names)

    return OpaqueFunction(function=check)


def is_launched(file: str, words: Sequence[str]) -> bool:
    """Tell whether a command line of ``ros2 launch`` names a launch file, or its XML twin."""
    path = Path(file)
    for package, word in zip(['', *words], words, strict=False):
        if Path(word).stem != path.stem:
            continue
        if package == 'safe_bringup' and word == Path(word).name:
            return True
        if os.path.exists(word) and Path(word).resolve().parent == path.resolve().parent:
            return True
    return False


def refuse_unknown(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise an error if a given name is not a known name.

    Raises
    ------
    LaunchArgumentError
        A name is unknown; the message contains the nearest known names.
    """
    for name in given:
        if name in known:
            continue
        nearest = difflib.get_close_matches(name, known, n=1)
        raise LaunchArgumentError(
            where=f'argument {name}',
            expected=f'one of {", ".join(known)}',
            found=f'the name {name!r}',
            advice=f'the nearest name is {nearest[0]!r}'
            if nearest
            else 'the parameters of a node are set in a parameter file: copy the file in '
            'share/safe_bringup/params, and give the copy',
        )


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


def flag_argument(name: str, description: str, default: str = 'false') -> DeclareLaunchArgument:
    """Return an argument that is true or false."""
    return DeclareLaunchArgument(
        name, default_value=default, choices=['true', 'false'], description=description
    )


def respawn_arguments(default: str = 'false') -> list[DeclareLaunchArgument]:
    """Return the arguments that :func:`respawn_settings` reads."""
    return [
        flag_argument('respawn', 'Start a node again if its process ends.', default),
        DeclareLaunchArgument(
            'respawn_delay',
            default_value='2.0',
            description='Time between the end of a process and its next start [s].',
        ),
        DeclareLaunchArgument(
            'respawn_max_retries',
            default_value='-1',
            description='Largest number of starts after the first one; -1: no limit.',
        ),
    ]


def respawn_settings(context: LaunchContext) -> dict[str, Any]:
    """Return the arguments of ``Node`` for a respawn.

    Raises
    ------
    LaunchArgumentError
        A value is not a number, or the delay is negative.
    """
    delay = number(context, 'respawn_delay', float)
    if not 0 <= delay < math.inf:
        raise LaunchArgumentError(
            where='argument respawn_delay',
            expected='a time of 0 s or more',
            found=argument(context, 'respawn_delay'),
        )
    return {
        'respawn': flag(context, 'respawn'),
        'respawn_delay': delay,
        'respawn_max_retries': number(context, 'respawn_max_retries', int),
    }


def node_arguments(respawn: str = 'false') -> list[DeclareLaunchArgument]:
    """Return the arguments that every launch file of a lifecycle node has."""
    return [
        DeclareLaunchArgument(
            'managed_by',
            default_value='node',
            choices=['node', 'launch', 'manager'],
            description=(
                'Who configures and activates the lifecycle nodes. node: each node itself, as '
                'autostart says; launch: the launch file, also after a respawn; manager: a '
                'lifecycle manager, for example the manager of Nav2.'
            ),
        ),
        *respawn_arguments(respawn),
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


def flag(context: LaunchContext, name: str) -> bool:
    """Return the value of an argument that is true or false."""
    return argument(context, name) == 'true'


def number(context: LaunchContext, name: str, kind: type[int] | type[float]) -> Any:
    """Return the value of an argument that is a number.

    Raises
    ------
    LaunchArgumentError
        The value is not a number of this kind.
    """
    text = argument(context, name)
    try:
        return kind(text)
    except ValueError:
        raise LaunchArgumentError(
            where=f'argument {name}', expected=EXPECTED[kind], found=repr(text)
        ) from None


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


def parameter_file(context: LaunchContext, name: str, kind: str = 'a parameter file') -> Path:
    """Return the file that an argument names.

    Raises
    ------
    LaunchArgumentError
        The file does not exist. Without this error, launch_ros prints only a warning about a
        missing parameter file, and the node uses the default parameters.
    """
    path = Path(argument(context, name)).expanduser()
    if not path.is_file():
        raise LaunchArgumentError(where=f'argument {name}', expected=kind, found=f'no file {path}')
    return path


def given_folder(context: LaunchContext, name: str, file: str) -> Path | None:
    """Return the folder that an argument names; None if the argument was not given.

    Raises
    ------
    LaunchArgumentError
        The folder does not contain the file.
    """
    if not (text := argument(context, name)):
        return None
    folder = Path(text).expanduser().resolve()
    if not (folder / file).is_file():
        raise LaunchArgumentError(
            where=f'argument {name}',
            expected=f'a folder with the file {file}',
            found=f'no such file in {folder}',
        )
    return folder


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
