# SPDX-License-Identifier: Apache-2.0
"""Limits on the cost of reading a pickle: its size, its values, its copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from safe_training.recordings.errors import COPY_AGAIN

MAX_FILE_BYTES = 4 << 30
MAX_OPCODES = 5_000_000
MAX_DEPTH = 64
#: The arrays of a tree, including repeated arrays, have at most this multiple of the file size.
MAX_EXPANSION = 4
SLACK_BYTES = 1 << 20

_DISTRUST = (
    'nothing was executed; the file is damaged or unsafe: get the file again from a source that '
    'you trust'
)


class Refused(Exception):
    """The pickle machine refuses a file; ``load_bytes`` raises a DumpError with the file name."""

    def __init__(self, expected: str, found: str, advice: str = _DISTRUST) -> None:
        super().__init__(f'expected {expected}, found {found}; {advice}')


class Budget:
    """Remaining limits for reading a file of a given size.

    A pickle and the pickles inside it share these limits.
    """

    def __init__(self, file_bytes: int) -> None:
        self.bytes = MAX_EXPANSION * file_bytes + SLACK_BYTES
        self.opcodes = MAX_OPCODES
        self._copied = 0

    def spend_opcode(self) -> None:
        """Count one opcode; raises Refused if there are too many."""
        self.opcodes -= 1
        if self.opcodes < 0:
            raise Refused(f'at most {MAX_OPCODES} pickle opcodes', 'more opcodes')

    def spend_copy(self, count: int) -> None:
        """Count bytes before they are copied; raises Refused if there are too many."""
        self._copied += count
        if self._copied > self.bytes:
            raise Refused(
                f'arrays of at most {self.bytes} bytes for a file of this size',
                'arrays with more bytes',
            )


class Global:
    """An allowed name with its builder function. It is never an imported Python object."""

    def __init__(self, name: str, build: Callable[[Any, Budget], Any] | None) -> None:
        self.name = name
        self.build = build


class Pending:
    """An array or dtype between its REDUCE and its BUILD, with its memo slots."""

    def __init__(self, finish: Callable[[Any, Budget], Any]) -> None:
        self.finish = finish
        self.memo_slots: list[int] = []


class Storage:
    """The flat bytes of a torch storage and the dtype of their elements."""

    def __init__(self, dtype: np.dtype[Any], data: memoryview) -> None:
        self.dtype = dtype
        self.data = data


def decode(text: bytes) -> str:
    """Return text from UTF-8; raises Refused if it is not UTF-8."""
    try:
        return text.decode('utf-8')
    except UnicodeDecodeError:
        raise Refused('text in UTF-8', 'bytes that are not UTF-8', COPY_AGAIN) from None


def kind_of(value: Any) -> str:
    """Return the kind of a value of the pickle machine, for a message."""
    names = {Pending: 'an incomplete array', Storage: 'a torch storage'}
    if type(value) is Global:
        return f'a reference to {value.name}'
    return names.get(type(value), f'a value of type {type(value).__name__}')


def shown(text: str) -> str:
    """Return text in quotes, shortened, for a message."""
    return repr(text if len(text) <= 80 else text[:77] + '...')


def lengths(value: Any, what: str) -> tuple[int, ...]:
    """Return a tuple of lengths from 0, at most 32; raises Refused, which names ``what``."""
    if type(value) is not tuple or len(value) > 32:
        raise Refused(
            f'{what} as a tuple of at most 32 lengths',
            f'a tuple of {len(value)} values' if type(value) is tuple else kind_of(value),
        )
    for length in value:
        if type(length) is not int or not 0 <= length < 1 << 40:
            raise Refused(
                f'{what} with lengths from 0',
                str(length)[:40] if type(length) is int else kind_of(length),
            )
    return value


def name_entry(
    module: str, name: str, build: Callable[[Any, Budget], Any] | None
) -> tuple[tuple[str, str], Global]:
    """Return an entry of the table of names: (module, name) and its Global."""
    return (module, name), Global(f'{module}.{name}', build)
