# SPDX-License-Identifier: Apache-2.0
"""Messages about single episodes on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

#: Number of printed messages; --json has all messages.
_SHOWN = 10


def print_messages(what: str, messages: Sequence[str]) -> None:
    """Print the first messages, and the number of further messages."""
    for message in messages[:_SHOWN]:
        print(f'{what}: {message}', file=sys.stderr)
    if len(messages) > _SHOWN:
        print(f'{what}: {len(messages) - _SHOWN} more (--json lists all)', file=sys.stderr)


def print_bad(messages: Sequence[str]) -> None:
    """For a verb without --skip-bad: print unreadable episodes, and the verbs with this option."""
    print_messages('bad', messages)
    if messages:
        print('The verbs convert, fit and evaluate have the option --skip-bad.', file=sys.stderr)
