# SPDX-License-Identifier: Apache-2.0
"""Changes parameters at run time. If one change of a request is not valid, no change is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.ros.parameters import Parameter, refusal


class ParameterChanges:
    """Updates the values of a node's parameters after ``ros2 param set``.

    Parameters
    ----------
    node : rclpy.node.Node
    table : iterable of Parameter
        All parameters of the node.
    values : SimpleNamespace
        The values that ``declare_parameters`` returned. They are changed in place.
    check : callable
        Called with the values after a change, before the change is made; raises :class:`SafeError`
        to refuse the change.
    apply : callable
        Called after a change.
    """

    def __init__(
        self,
        node: Node,
        table: Iterable[Parameter],
        values: SimpleNamespace,
        check: Callable[[SimpleNamespace], None],
        apply: Callable[[], None],
    ) -> None:
        self._node, self._values = node, values
        self._table = {parameter.name: parameter for parameter in table}
        self._check_values, self._apply_values = check, apply
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._apply)

    def _known(self, parameters: Iterable[Any]) -> dict[str, Any]:
        """Return the new values of parameters of the table."""
        return {p.name: p.value for p in parameters if p.name in self._table}

    def _check(self, parameters: list[Any]) -> SetParametersResult:
        # rclpy has checked types and ranges.
        changed = self._known(parameters)
        try:
            for name, value in changed.items():
                parameter = self._table[name]
                if value is None or (parameter.choices and value not in parameter.choices):
                    raise refusal(self._node, parameter, value)
            if changed:
                self._check_values(SimpleNamespace(**{**vars(self._values), **changed}))
        except SafeError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Any]) -> None:
        changed = self._known(parameters)
        if changed:
            vars(self._values).update(changed)
            self._apply_values()
