# SPDX-License-Identifier: Apache-2.0
"""Makes ``docs/reference/parameters.md`` from the tables in which nodes declare parameters.

``python -m safe_bringup.parameter_docs docs/reference/parameters.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

from safe_bringup.generated_page import write_page
from safe_monitor_node.nodes import (
    black_box_parameters,
    dashboard_node,
    fleet_parameters,
    markers_node,
    monitor_parameters,
    overlay_node,
)
from vla_feature_bridge.nodes import bridge_parameters, replay_node
from vla_feature_bridge.ros.parameters import Parameter

NODES = (
    ('monitor', monitor_parameters, 'scores policy steps and raises alarms.'),
    (
        'fleet',
        fleet_parameters,
        'runs the monitors of many robots in one process; the robots have the parameters of '
        '`monitor`.',
    ),
    ('black_box', black_box_parameters, 'records the last seconds before and after an alarm.'),
    (
        'bridge',
        bridge_parameters,
        'takes the steps of policies from sockets or topics and publishes them.',
    ),
    ('replay', replay_node, 'plays a recorded rollout set as if its policy were running.'),
    ('dashboard', dashboard_node, 'serves a web page that shows all robots live.'),
    ('markers', markers_node, 'publishes the state and the score of a robot for RViz.'),
    ('overlay', overlay_node, 'draws the state and the curve of a robot into its camera image.'),
)

INTRODUCTION = """\
<!-- Made by: python -m safe_bringup.parameter_docs docs/reference/parameters.md -->

# Parameters

Give parameters on the command line (`--ros-args -p alpha:=0.05`) or in a YAML file (`--ros-args
--params-file FILE`; `launch/params` has a file for each node). If a value has a wrong type or is
not allowed, the node does not start, and the error contains the reason. A `double` needs a decimal
point: `10.0`, not `10`. If a name is similar to a parameter of the node, it is a misspelt name: the
node does not start, and the error contains the nearest name. Any other unknown name can belong to
another node, for example if it is below `/**` in the YAML file: the node warns in the log and in
`/diagnostics`. It also warns if a YAML file contains no parameters of this node.

The column *changes* shows when a new value takes effect if it is set at run time (`ros2 param set
/monitor max_age 2.0`). A parameter without an entry is read when the node starts, and cannot be
changed afterwards. If a request changes several parameters and one value is refused, no parameter
is changed. `/diagnostics` shows the current values."""


def page() -> str:
    """Return the whole page as Markdown."""
    sections = [section(*node) for node in NODES]
    return '\n\n'.join([INTRODUCTION, *sections]) + '\n'


def section(name: str, module: ModuleType, purpose: str) -> str:
    """Return the section of one node: its purpose, and a table of its parameters."""
    package = module.__name__.split('.')[0]
    heading = f'## `{name}`\n\n`ros2 run {package} {name}` {purpose}'
    return f'{heading}\n\n{table(module.PARAMETERS)}'


def table(parameters: Iterable[Parameter]) -> str:
    """Return a Markdown table of parameters, in the order in which they are declared."""
    rows = [('parameter', 'type', 'default', 'allowed', 'changes', 'meaning'), ('---',) * 6]
    for parameter in parameters:
        rows.append(
            (
                f'`{parameter.name}`',
                parameter.type_name,
                f'`{yaml_value(parameter.default)}`',
                parameter.allowed.replace("'", '`'),
                parameter.changes,
                parameter.description,
            )
        )
    escaped = [[cell.replace('|', '\\|') for cell in row] for row in rows]
    return '\n'.join(f'| {" | ".join(row)} |' for row in escaped)


def yaml_value(value: object) -> str:
    """Return a default value in the syntax of a parameter file."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to the file that is given, or print it."""
    return write_page(page(), __doc__, arguments)


if __name__ == '__main__':
    sys.exit(main())
