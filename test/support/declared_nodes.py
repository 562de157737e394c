# SPDX-License-Identifier: Apache-2.0
"""Nodes that declare a table of parameters, with values as from a command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from vla_feature_bridge.ros.parameters import Parameter, declare_parameters


@contextmanager
def declaring_nodes() -> Iterator[Callable[..., tuple[Node, Any]]]:
    """Yield ``declare(table, **values)``: it makes a node and returns it with the values taken."""
    context = rclpy.Context()
    rclpy.init(context=context)
    nodes = []

    def declare(table: Iterable[Parameter], **values: object) -> tuple[Node, Any]:
        node = Node(
            'somebody',
            context=context,
            start_parameter_services=False,
            enable_rosout=False,
            parameter_overrides=[RosParameter(name, value=v) for name, v in values.items()],
        )
        nodes.append(node)
        return node, declare_parameters(node, table)

    try:
        yield declare
    finally:
        for node in nodes:
            node.destroy_node()
        rclpy.shutdown(context=context)
