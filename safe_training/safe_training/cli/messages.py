# SPDX-License-Identifier: Apache-2.0
"""Messages about single episodes on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

#: How many messages are printed; --json has all.
_SHOWN = 10


def print_messages(what: str, messages: Sequence[str]) -> None:
    """Print the first messages, and how many more there are."""
    for message in messages[:_SHOWN]:
        print(f'{what}: {message}', file=sys.stderr)
    if len(messages) > _SHOWN:
        print(f'{what}: {len(messages) - _SHOWN} more (--json lists all)', file=sys.stderr)


def print_bad(messages: Sequence[str]) -> None:
    """Print what cannot be read, for a verb without --skip-bad, and the verbs that have it."""
    print_messages('bad', messages)
    if messages:
        print('The verbs convert, fit and evaluate have the option --skip-bad.', file=sys.stderr)
