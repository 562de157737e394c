# SPDX-License-Identifier: Apache-2.0
"""Reads the file that lists the robots of a fleet, and refuses invalid entries.

::

    parameters:                  # of every robot: parameters of the node monitor
      detector_folder: /home/lab/detectors/lstm
    robots:
      - namespace: arm_left
      - namespace: arm_right
        parameters:              # of this robot; they override the common ones
          alpha: 0.05
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from safe_monitor_node.nodes.monitor_parameters import PARAMETERS
from vla_feature_bridge.ros.parameters import Parameter, ParameterError, Value

_LARGEST_FILE = 1_000_000
# Full names of topics and services have at most 247 characters.
_LONGEST_NAMESPACE = 150
_NAMESPACE = re.compile(r'/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*')
_TABLE = {parameter.name: parameter for parameter in PARAMETERS}
_OLD_NAMES = {p.old_name: p.name for p in PARAMETERS if p.old_name}
_SIM_TIME = Parameter('use_sim_time', False, 'Take the time from /clock.')
_QOS = 'qos_overrides.'
# Ten lines of YAML with aliases can have a `repr` of gigabytes.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


class FleetFileError(ParameterError):
    """The file of a fleet cannot be used. The message contains the file and the robot."""


@dataclass(frozen=True)
class Robot:
    """A robot of a fleet.

    Attributes
    ----------
    namespace : str
        The absolute namespace of its monitor and of its topics.
    parameters : mapping of str to value
        Parameters of its monitor that differ from the defaults.
    """

    namespace: str
    parameters: Mapping[str, Value] = field(default_factory=dict)


def read_robots(path: str, within: str = '/') -> tuple[Robot, ...]:
    """Return the robots that a file lists.

    Parameters
    ----------
    path : str
    within : str
        Absolute namespace for robots whose namespace does not begin with ``/``.

    Raises
    ------
    FleetFileError
        The file cannot be read, or one of its entries is wrong.
    """
    content = _mapping(_content(path), path, {'parameters', 'robots'})
    common = _parameters(content.get('parameters'), f'{path}: parameters')
    listed = content.get('robots')
    if not isinstance(listed, list) or not listed:
        raise FleetFileError(
            where=f'{path}: robots',
            expected='a list of one or more robots',
            found=_shown(listed),
            advice='write for each robot a line `- namespace: NAME`',
        )
    robots = [
        _robot(entry, f'{path}: robots[{index}]', common, within)
        for index, entry in enumerate(listed)
    ]
    _check_unique(path, robots)
    return tuple(robots)


# --- the file


def _content(path: str) -> Any:
    if not path:
        raise FleetFileError(
            where='parameter robots_file',
            expected='a file that lists the robots',
            found='an empty text',
            advice='copy the example fleet/robots.yaml of safe_bringup, and give its path',
        )
    try:
        with Path(path).open('rb') as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise FleetFileError(
                where=path,
                expected=f'at most {_LARGEST_FILE} bytes',
                found='a larger file',
                advice='give the file that lists the robots',
            )
        text = data.decode('utf-8')
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        for key, line in _repeated(tree):
            raise FleetFileError(
                where=f'{path}: line {line}',
                expected='each key once',
                found=f'{key!r} a second time',
                advice='remove one of the two',
            )
        return yaml.safe_load(text)
    except OSError as error:
        raise FleetFileError(
            where=path,
            expected='a file that lists the robots',
            found=error.strerror or str(error),
            advice='check the path and its permissions',
        ) from error
    except UnicodeDecodeError as error:
        raise FleetFileError(
            where=path, expected='UTF-8 text', found='other bytes', advice='save it as UTF-8'
        ) from error
    # A date that does not exist and a number of a thousand digits are ValueErrors.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FleetFileError(
            where=path,
            expected='YAML',
            found=' '.join(str(error).split()),
            advice='compare it with the example fleet/robots.yaml of safe_bringup',
        ) from error


def _repeated(node: Any, visited: set[int] | None = None) -> Iterator[tuple[str, int]]:
    """Yield the repeated keys of a mapping with their lines; YAML keeps only the last value."""
    visited = set() if visited is None else visited
    if id(node) in visited:  # another alias of the same node
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add(key.value)
            yield from _repeated(value, visited)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value, visited)


def _mapping(value: Any, where: str, keys: set[str]) -> dict[str, Any]:
    expected = f'the keys {" and ".join(sorted(keys))}'
    if not isinstance(value, dict):
        raise FleetFileError(
            where=where,
            expected=expected,
            found=_shown(value),
            advice='compare it with the example fleet/robots.yaml of safe_bringup',
        )
    unknown = [key for key in value if key not in keys]
    if unknown:
        raise FleetFileError(
            where=where,
            expected=expected,
            found=f'the key {unknown[0]!r}',
            advice='write parameters of the monitor below `parameters`',
        )
    return value


def _shown(value: Any) -> str:
    return 'nothing' if value is None else f'{_SHORT.repr(value):.80}'


# --- robots


def _robot(entry: Any, where: str, common: Mapping[str, Value], within: str) -> Robot:
    values = _mapping(entry, where, {'namespace', 'parameters'})
    name = values.get('namespace')
    if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
        raise FleetFileError(
            where=f'{where}: namespace',
            expected='a namespace, such as arm_left or /lab/arm_left: letters, digits and _, and '
            'no digit at the beginning',
            found=_shown(name),
            advice='give each robot a namespace of its own',
        )
    own = _parameters(values.get('parameters'), f'{where} ({name}): parameters')
    absolute = name if name.startswith('/') else f'{within.rstrip("/")}/{name}'
    if len(absolute) > _LONGEST_NAMESPACE:
        raise FleetFileError(
            where=f'{where}: namespace',
            expected=f'at most {_LONGEST_NAMESPACE} characters, because the names of topics and '
            'services are limited',
            found=f'{len(absolute)} characters',
            advice='give a shorter namespace',
        )
    return Robot(absolute, {**common, **own})


def _check_unique(path: str, robots: list[Robot]) -> None:
    """Refuse two robots with the same namespace or the same adaptation file."""
    for what, values, advice in (
        (
            'a namespace',
            [robot.namespace for robot in robots],
            'two monitors of one name contradict each other on safe/stop',
        ),
        (
            'an adaptation_file',
            [_file_of(robot) for robot in robots],
            'each robot learns its own thresholds and would overwrite those of the other',
        ),
    ):
        first: dict[Any, int] = {}
        for index, value in enumerate(values):
            if not value:
                continue
            if value in first:
                raise FleetFileError(
                    where=f'{path}: robots[{index}]',
                    expected=f'{what} of its own',
                    found=f'{value!r}, which robots[{first[value]}] has',
                    advice=f'change one of them: {advice}',
                )
            first[value] = index


def _file_of(robot: Robot) -> str:
    path = robot.parameters.get('adaptation_file')
    return os.path.realpath(path) if isinstance(path, str) and path else ''


# --- parameters of a monitor


def _parameters(values: Any, where: str) -> dict[str, Value]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FleetFileError(
            where=where,
            expected='names and values of parameters of the monitor',
            found=_shown(values),
            advice='write `NAME: VALUE`, one in a line',
        )
    return {str(name): _value(name, value, where) for name, value in values.items()}


def _value(name: Any, value: Any, where: str) -> Value:
    if isinstance(name, str) and name.startswith(_QOS) and isinstance(value, bool | int | str):
        return value
    parameter = _SIM_TIME if name == _SIM_TIME.name else _TABLE.get(name)
    if parameter is None or name == 'threads':
        raise _unknown(name, where)
    if isinstance(parameter.default, float) and type(value) is int:
        with suppress(OverflowError):  # then it is not allowed either
            value = float(value)
    if not _allowed(parameter, value):
        allowed = f' ({parameter.allowed})' if parameter.allowed else ''
        raise FleetFileError(
            where=f'{where}: {name}',
            expected=f'a value of type {parameter.type_name}{allowed}',
            found=_shown(value),
            advice=f'the parameter means: {parameter.description}',
        )
    result: Value = value
    return result


def _allowed(parameter: Parameter, value: Any) -> bool:
    if type(value) is not type(parameter.default):
        return False
    if isinstance(value, list):
        return bool(value) and all(isinstance(text, str) for text in value)
    if parameter.choices:
        return value in parameter.choices
    if not isinstance(value, int | float):
        return True
    low, high = parameter.low, parameter.high
    return (low is None or value >= low) and (high is None or value <= high)


def _unknown(name: Any, where: str) -> FleetFileError:
    if name == 'threads':
        advice = 'set the parameter threads of the fleet: all robots share the process'
    elif name in _OLD_NAMES:
        advice = f'write {_OLD_NAMES[name]!r}: {name!r} is its name in an earlier version'
    else:
        near = get_close_matches(str(name), _TABLE, n=1, cutoff=0.5)
        advice = f'the nearest name is {near[0]!r}' if near else 'see docs/reference/parameters.md'
    return FleetFileError(
        where=where,
        expected='names of parameters of the node monitor',
        found=_shown(name),
        advice=advice,
    )
