# SPDX-License-Identifier: Apache-2.0
"""The parser of a verb, and the error of wrong usage."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class UsageError(ValueError):
    """An option has a value that it does not take; the message says what it takes."""


class VerbParser(argparse.ArgumentParser):
    """A parser whose options are written in full, and of which some exclude others."""

    def __init__(self, prog: str, description: str = '', epilog: str = '') -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._exclusions: list[tuple[str, str | None, tuple[str, ...]]] = []

    def exclude(self, others: Sequence[str], *, with_option: str, value: str | None = None) -> None:
        """Declare options that have no meaning beside another one, or beside one of its values.

        A mutually exclusive group of argparse excludes each of its options from each other one;
        these here may be given together.
        """
        self._exclusions.append((with_option, value, tuple(others)))

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the options of a command line without the verb.

        Raises
        ------
        UsageError
            Options that exclude each other are given together.
        """
        parsed = self.parse_args(words)
        for option, value, others in self._exclusions:
            found = self._given(parsed, option)
            if found is None or value not in (None, found):
                continue
            for other in others:
                if self._given(parsed, other) is not None:
                    because = option if value is None else f'{option} {value}'
                    raise UsageError(
                        f'{other} has no meaning with {because}; leave one of them out'
                    )
        return parsed

    def _given(self, parsed: argparse.Namespace, option: str) -> Any:
        """Return the value of an option; None if it was not given."""
        action = self._option_string_actions[option]
        value = getattr(parsed, action.dest)
        return None if value == action.default else value
