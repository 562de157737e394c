# SPDX-License-Identifier: Apache-2.0
"""Declares the parameters of nodes in one place: type, default, range and description.

One table has three uses: it declares the parameters in the node, it refuses wrong values when the
node starts, and ``docs/reference/parameters.md`` is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from vla_feature_bridge.errors import SafeError

Value = bool | int | float | str | list[str]

AT_ONCE = 'at once'
NEXT_EPISODE = 'at the next episode'

_LARGEST_INTEGER = 2**31 - 1
_TYPE_NAMES: dict[type, str] = {bool: 'bool', int: 'int', float: 'double', str: 'string'}


class ParameterError(SafeError):
    """The value of a parameter is not allowed. The message contains the allowed values."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a node.

    Attributes
    ----------
    name : str
    default : bool, int, float, str or list of str
        Its type is the parameter's type.
    description : str
        One sentence, with the unit in brackets.
    low, high : float, optional
        Inclusive range of a number.
    choices : tuple of str
        Allowed values of a string; empty for any.
    changes : str
        When a change at run time takes effect: :data:`AT_ONCE` or :data:`NEXT_EPISODE`; empty if
        the value is read only when the node starts.
    old_name : str
        Name in an earlier version. A value for the old name is refused, and the error contains the
        new name.
    """

    name: str
    default: Value
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    changes: str = ''
    old_name: str = ''

    @property
    def type_name(self) -> str:
        """Return the ROS name of the type."""
        if isinstance(self.default, list):
            return 'string[]'
        return _TYPE_NAMES[type(self.default)]

    @property
    def allowed(self) -> str:
        """Return the allowed values in words; empty if all values are allowed."""
        if self.choices:
            return ', '.join(f"'{choice}'" for choice in self.choices)
        if self.low is None and self.high is None:
            return ''
        if self.low is None:
            return f'{self.high:.10g} or less'
        if self.high is None or (isinstance(self.default, int) and self.high >= _LARGEST_INTEGER):
            return f'{self.low:.10g} or more'
        return f'{self.low:.10g} to {self.high:.10g}'

    def descriptor(self) -> ParameterDescriptor:
        """Return the ROS descriptor; a parameter without ``changes`` is read-only."""
        descriptor = ParameterDescriptor(description=self.description, read_only=not self.changes)
        if self.choices:
            descriptor.additional_constraints = f'one of {self.allowed}'
        if self.low is not None or self.high is not None:
            if isinstance(self.default, int):
                lowest = -_LARGEST_INTEGER if self.low is None else int(self.low)
                highest = _LARGEST_INTEGER if self.high is None else int(self.high)
                descriptor.integer_range = [IntegerRange(from_value=lowest, to_value=highest)]
            else:
                low = -math.inf if self.low is None else self.low
                high = math.inf if self.high is None else self.high
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(low), to_value=float(high))
                ]
        return descriptor


def declare_parameters(node: Node, parameters: Sequence[Parameter]) -> SimpleNamespace:
    """Declare all parameters and return their values as attributes.

    Raises
    ------
    ParameterError
        A value has the wrong type, is out of range or is not one of the choices, or a value was
        given to the old name of a parameter.
    """
    values: dict[str, Any] = {}
    for parameter in parameters:
        _refuse_old_name(node, parameter)
        try:
            value = node.declare_parameter(
                parameter.name, parameter.default, parameter.descriptor()
            ).value
        except Exception as error:  # rclpy raises several unrelated classes for a refused value
            raise refusal(node, parameter, _given(node, parameter.name)) from error
        if value is None or (parameter.choices and value not in parameter.choices):
            raise refusal(node, parameter, value)
        values[parameter.name] = list(value) if isinstance(parameter.default, list) else value
    return SimpleNamespace(**values)


def refusal(node: Node, parameter: Parameter, value: Any) -> ParameterError:
    """Return the error for a value that the parameter does not allow."""
    allowed = f' ({parameter.allowed})' if parameter.allowed else ''
    expected = f'a value of type {parameter.type_name}{allowed}'
    spelling = ''
    if type(value) is int and isinstance(parameter.default, float):
        spelling = f'write {value}.0; '
    elif value is None and isinstance(parameter.default, list):
        # ROS cannot tell the type of an empty list.
        spelling = "write [''] for an empty list; "
    elif type(value) is str and isinstance(parameter.default, list):
        spelling = f'write {[value]}; '
    elif type(value) is not str and isinstance(parameter.default, str):
        spelling = 'write the text in quotes; '
    return ParameterError(
        where=f'parameter {parameter.name!r} of {node.get_fully_qualified_name()}',
        expected=f'one of {parameter.allowed}' if parameter.choices else expected,
        found=_described(value),
        advice=f'{spelling}the parameter means: {parameter.description}',
    )


def _described(value: Any) -> str:
    if value is None:
        return 'no value'
    return f'{_shown(value)} of type {_TYPE_NAMES.get(type(value), "list")}'


def _shown(value: Any) -> str:
    """Return a value in the syntax of a parameter file."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float | str) else repr(list(value))


def _given(node: Node, name: str) -> Any:
    """Return the value that was given to a parameter that is not declared; None if none was given.

    rclpy shows the value of a parameter only if the parameter is declared.
    """
    value = node.declare_parameter(name, None, ParameterDescriptor(dynamic_typing=True)).value
    node.undeclare_parameter(name)
    return value


def _refuse_old_name(node: Node, parameter: Parameter) -> None:
    """Raise :class:`ParameterError` if a value was given to the old name of a parameter."""
    old = parameter.old_name
    value = _given(node, old) if old else None
    if value is not None:
        raise ParameterError(
            where=f'parameters of {node.get_fully_qualified_name()}',
            expected=f'the parameter {parameter.name!r}',
            found=f'{old!r}, which is the name of this parameter in an earlier version',
            # A value below /** or from -p cannot be distinguished from a value for this node only.
            advice=f'write {parameter.name}:={value}. If {old!r} is a parameter of another node, '
            'change the parameter file: move the value from the section /** to the section of that '
            'node',
        )
