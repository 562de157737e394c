# SPDX-License-Identifier: Apache-2.0
"""Makes ``docs/reference/parameters.md`` from the tables in which nodes declare parameters.

``python -m safe_bringup.parameter_docs docs/reference/parameters.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

from safe_bringup.generated_page import write_page
from safe_monitor_node.nodes import monitor
from vla_feature_bridge.nodes import bridge, replay
from vla_feature_bridge.ros.parameters import Parameter

NODES = (
    ('monitor', monitor, 'scores policy steps and raises alarms.'),
    (
        'bridge',
        bridge,
        'takes the steps of policies from sockets or topics and publishes them.',
    ),
    ('replay', replay, 'plays a recorded rollout set as if its policy were running.'),
)

INTRODUCTION = """\
<!-- Made by: python -m safe_bringup.parameter_docs docs/reference/parameters.md -->

# Parameters

Give them on the command line (`--ros-args -p alpha:=0.05`) or in a YAML file
(`--ros-args --params-file FILE`; `launch/params` holds one for each node). A node reads its
parameters when it starts. They cannot be changed afterwards. A node refuses a value of another type
and a value that is not allowed: it ends with the reason. A `double` needs its decimal point:
`10.0`, not `10`."""


def page() -> str:
    """Return the whole page as Markdown."""
    sections = [section(*node) for node in NODES]
    return '\n\n'.join([INTRODUCTION, *sections]) + '\n'


def section(name: str, module: ModuleType, purpose: str) -> str:
    """Return the section of one node: what it does, and a table of its parameters."""
    package = module.__name__.split('.')[0]
    heading = f'## `{name}`\n\n`ros2 run {package} {name}` {purpose}'
    return f'{heading}\n\n{table(module.PARAMETERS)}'


def table(parameters: Iterable[Parameter]) -> str:
    """Return a Markdown table of parameters, in the order in which they are declared."""
    rows = [('parameter', 'type', 'default', 'allowed', 'meaning'), ('---',) * 5]
    for parameter in parameters:
        rows.append(
            (
                f'`{parameter.name}`',
                parameter.type_name,
                f'`{yaml_value(parameter.default)}`',
                parameter.allowed.replace("'", '`'),
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
