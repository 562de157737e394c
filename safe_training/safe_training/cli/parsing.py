# SPDX-License-Identifier: Apache-2.0
"""The parser of a verb, and the error of wrong usage."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from vla_feature_bridge.errors import SafeError


class UsageError(SafeError):
    """The value of an option is not allowed. The message lists the allowed values."""


class _Exclusion(NamedTuple):
    """Options that cannot be used with another option, or with one value of this option."""

    others: tuple[str, ...]
    by: str
    value: str | None
    why: str

    @property
    def because(self) -> str:
        value = '' if self.value is None else f' {self.value}'
        return f'{self.by}{value}, which {self.why}'


class VerbParser(argparse.ArgumentParser):
    """A parser without abbreviated options, with rules for options that exclude each other."""

    def __init__(self, prog: str, description: str = '', epilog: str = '') -> None:
        text = ' '.join(description.split())
        super().__init__(
            prog=prog,
            description=textwrap.fill(text, width=88, break_on_hyphens=False),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._exclusions: list[_Exclusion] = []

    def exclude(
        self, others: Sequence[str], *, by: str, value: str | None = None, why: str
    ) -> None:
        """Declare options that cannot be used with another option, or with one value of it.

        The options in `others` can still be used together. A mutually exclusive group of argparse
        does not allow this.

        Parameters
        ----------
        others : sequence of str
            Options as on the command line, such as ``--splits``.
        by : str
            The option that excludes them.
        value : str, optional
            The value of this option that excludes them; every value by default.
        why : str
            The rest of a sentence: "--protocol loto, which ...".
        """
        self._exclusions.append(_Exclusion(tuple(others), by, value, why))

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the options of a command line without the verb.

        Raises
        ------
        UsageError
            Options that exclude each other are given together.
        """
        parsed = self.parse_args(words)
        for rule in self._exclusions:
            found = self._given(parsed, rule.by)
            if found is None or rule.value not in (None, found):
                continue
            for other in rule.others:
                if self._given(parsed, other) is not None:
                    raise UsageError(
                        f'{other} cannot be used with {rule.because}; remove one of the two options'
                    )
        return parsed

    def _given(self, parsed: argparse.Namespace, option: str) -> Any:
        """Return the value of an option; None if it was not given."""
        action = self._option_string_actions[option]
        value = getattr(parsed, action.dest)
        return None if value == action.default else value
