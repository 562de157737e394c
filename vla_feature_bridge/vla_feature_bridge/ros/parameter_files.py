# SPDX-License-Identifier: Apache-2.0
"""Finds parameter files that are only for other nodes.

rclpy ignores such a file without a warning.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node

_VALUES = 'ros__parameters'


def files_for_others(node: Node, arguments: Sequence[str]) -> str:
    """Return a warning about parameter files that have no value for a node.

    The text is empty if there are no such files. It is also empty if a file cannot be read, because
    rclpy has already refused this file.

    Parameters
    ----------
    node : rclpy.node.Node
    arguments : sequence of str
        The command line of the process.
    """
    name = node.get_fully_qualified_name()
    sentences = []
    for option, path in itertools.pairwise(arguments):
        if option != '--params-file':
            continue
        try:
            content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        patterns = list(_patterns(content))
        if patterns and not any(_matches(pattern, name) for pattern in patterns):
            found = ', '.join(repr(pattern) for pattern in patterns)
            sentences.append(f'{path}: expected parameters of {name}, found those of {found}')
    return '; '.join(sentences)


def _patterns(content: Any, above: str = '') -> Iterator[str]:
    """Yield the names of nodes in a parameter file, as written in the file."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key == _VALUES:
            yield above
        else:
            yield from _patterns(value, f'{above}/{key}' if above else str(key))


def _matches(pattern: str, name: str) -> bool:
    """Return True if a name in a file matches a node; ``*`` is one part, ``**`` any parts."""
    parts = [part for part in pattern.split('/') if part]
    wanted = {'*': '/[^/]+', '**': '(/[^/]+)*'}
    expression = ''.join(wanted.get(part, '/' + re.escape(part)) for part in parts)
    return re.fullmatch(expression, name) is not None
