# SPDX-License-Identifier: Apache-2.0
"""Finds values for parameters that a node does not have. rclpy ignores such values."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from rclpy.node import Node

from vla_feature_bridge.ros.parameter_files import files_for_others
from vla_feature_bridge.ros.parameters import ParameterError

_OF_RCLPY = {'use_sim_time', 'start_type_description_service'}
_QOS = 'qos_overrides.'
_MISSPELT = 0.8
_SIMILAR = 0.5


def check_overrides(node: Node, arguments: Sequence[str] | None = None) -> str:
    """Refuse misspelt parameters; call this function when all parameters are declared.

    A name that is similar to a parameter of the node is a misspelt name. Any other unknown name can
    belong to another node: a value below ``/**`` in a parameter file, and ``SetParameter`` in a
    launch file, reach all nodes.

    Parameters
    ----------
    node : rclpy.node.Node
    arguments : sequence of str, optional
        The command line of the node; None: the command line of the process.

    Returns
    -------
    str
        A warning about unknown names that are not refused, and about parameter files of this
        process that are only for other nodes; empty if there is nothing to warn about.

    Raises
    ------
    ParameterError
        A value was given to a name that is similar to a parameter of the node, or to a name below
        a parameter of the node.
    """
    known = [name for name in node.get_parameters_by_prefix('') if name not in _OF_RCLPY]
    others = []
    # rclpy has no public attribute for values of parameters that do not exist.
    for name in sorted(node._parameter_overrides):
        if node.has_parameter(name) or name in _OF_RCLPY or name.startswith(_QOS):
            continue
        parent = name.partition('.')[0]
        if parent in known:
            raise ParameterError(
                where=f'parameters of {node.get_fully_qualified_name()}',
                expected=f'a value of {parent!r}',
                found=f'a value of {name!r}, a name below it',
                advice="put each text with a colon in quotes, such as 'A: B', because YAML reads a "
                'text with a colon as a mapping',
            )
        nearest = _nearest(name, known, _MISSPELT)
        if nearest:
            raise ParameterError(
                where=f'parameters of {node.get_fully_qualified_name()}',
                expected='the name of a parameter of this node',
                found=repr(name),
                advice=f'the nearest name is {nearest!r}; if {name!r} is a parameter of another '
                'node, write its value below the name of the other node in the parameter file, '
                'and not below /**',
            )
        others.append(name)
    sentences = []
    if others:
        described = ', '.join(_described(name, known) for name in others)
        sentences.append(
            f'these values were given, but {node.get_fully_qualified_name()} has no such '
            f'parameters: {described}'
        )
    if files := files_for_others(node, sys.argv if arguments is None else arguments):
        sentences.append(files)
    return '; '.join(sentences)


def _described(name: str, known: Collection[str]) -> str:
    nearest = _nearest(name, known, _SIMILAR)
    return f'{name!r} (the nearest name is {nearest!r})' if nearest else repr(name)


def _nearest(name: str, known: Collection[str], similarity: float) -> str:
    """Return the known name that is nearest to a name; empty if none is similar enough."""
    found = get_close_matches(name, known, n=1, cutoff=similarity)
    return found[0] if found else ''
