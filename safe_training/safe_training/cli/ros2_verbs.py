# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``safe_training`` as verbs of ``ros2 safe``; ROS 2 is not needed.

Each name in ``VERBS`` is an entry point of the group ``ros2safe.verb`` (see ``setup.py``), with the
attribute of this module that ``attribute_of`` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from safe_monitor_node.verbs.passing import take_all_words
from safe_training.cli.main import VERBS, main


class OfflineVerb:
    """A verb of ``python -m safe_training``, which gets all arguments.

    Parameters
    ----------
    name : str
        A name in ``VERBS``.
    """

    def __init__(self, name: str) -> None:
        self._verb = name
        summary = VERBS[name].summary
        self.__doc__ = summary[0].upper() + summary[1:]  # ros2cli shows it

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Pass all arguments; the verb itself explains and checks them."""
        take_all_words(parser)

    def main(self, *, args: argparse.Namespace) -> int:
        """Run the verb and return the exit status."""
        return main([self._verb, *args.words])


def attribute_of(name: str) -> str:
    """Return the attribute of this module for a verb."""
    return name.replace('-', '_')


def __getattr__(name: str) -> Callable[[], OfflineVerb]:
    for verb in VERBS:
        if attribute_of(verb) == name:
            return partial(OfflineVerb, verb)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
