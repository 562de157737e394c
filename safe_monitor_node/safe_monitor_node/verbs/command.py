# SPDX-License-Identifier: Apache-2.0
"""Finds all verbs: for ``ros2 safe`` of ros2cli, and for ``python -m safe_monitor_node``.

Exit status: 0 on success; 1 on failure, with the reason on standard error; 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from safe_monitor_node.verbs.live import VERBS
from vla_feature_bridge.errors import SafeError

GROUP = 'ros2safe.verb'
"""The group of entry points of all verbs."""


class Verb(Protocol):
    """Interface of a verb; the first line of its docstring is shown in the list of verbs."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        """Add the options of the verb, without slow imports."""

    def main(self, *, args: argparse.Namespace) -> int:
        """Run the verb and return the exit status."""


class SafeCommand:
    """Watch, label and examine failure monitors; fit and judge their detectors."""

    NAME = 'safe'  # ros2cli also sets it

    def add_arguments(
        self, parser: argparse.ArgumentParser, cli_name: str, *, argv: Any = None
    ) -> None:
        """Add the verbs; ros2cli calls this method with its parser."""
        from ros2cli.command import add_subparsers_on_demand

        self._parser = parser
        add_subparsers_on_demand(parser, cli_name, '_verb', GROUP, required=False, argv=argv)

    def main(self, *, parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
        """Run the verb that was chosen and return the exit status."""
        verb = getattr(args, '_verb', None)
        if verb is None:
            self._parser.print_help()
            return 0
        return _run(verb, args, f'ros2 safe {verb.NAME}')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb without ros2cli and return the exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        The verb and its options; default: the command line of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbs = find_verbs()
    if not words or words[0] in ('-h', '--help'):
        print(_help(verbs))
        return 0
    name, *options = words
    if name not in verbs:
        print(f'safe: {_unknown(name, verbs)}', file=sys.stderr)
        return 2
    verb = verbs[name]()
    parser = argparse.ArgumentParser(prog=f'safe {name}', description=_summary(verb))
    try:
        verb.add_arguments(parser, f'safe {name}')
        return _run(verb, parser.parse_args(options), f'safe {name}')
    except SystemExit as leaving:  # argparse has already printed the help or the error
        return int(leaving.code or 0)


def find_verbs() -> dict[str, Callable[[], Verb]]:
    """Return the function that makes each verb, by name, also of other installed packages.

    The verbs of this package are also found if the package runs from a checkout.
    """
    found: dict[str, Callable[[], Verb]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, _loading(entry))
    own: dict[str, Callable[[], Any]] = {**VERBS}
    found.update(own)
    return dict(sorted(found.items()))


def _loading(entry: Any) -> Callable[[], Verb]:
    def make() -> Verb:
        verb: Verb = entry.load()()
        return verb

    return make


def _run(verb: Verb, args: argparse.Namespace, program: str) -> int:
    try:
        return verb.main(args=args)
    except SafeError as error:
        print(f'{program}: {error}', file=sys.stderr)
        return 1


def _help(verbs: dict[str, Callable[[], Verb]]) -> str:
    width = max(map(len, verbs)) + 2
    lines = [f'  {name:<{width}}{_summary(make())}' for name, make in verbs.items()]
    return '\n'.join(
        [
            'usage: safe VERB ...',
            '',
            'Watch, label and examine failure monitors; fit and judge their detectors.',
            '',
            'verbs:',
            *lines,
            '',
            '`safe VERB --help` explains a verb. `safe` stands for `ros2 safe`, '
            '`ros2 run safe_monitor_node safe`',
            'or `python -m safe_monitor_node`.',
        ]
    )


def _summary(verb: Verb) -> str:
    return (verb.__doc__ or '').partition('\n')[0].rstrip('.')


def _unknown(name: str, verbs: dict[str, Callable[[], Verb]]) -> str:
    near = difflib.get_close_matches(name, verbs, n=1)
    advice = f'; the nearest name is {near[0]}' if near else ''
    if 'fit' not in verbs:
        advice += '; verbs for recordings, such as fit and judge, need the package safe_training'
    return f'expected one of {", ".join(verbs)}, found {name!r}{advice}'
