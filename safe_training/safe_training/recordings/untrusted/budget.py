# SPDX-License-Identifier: Apache-2.0
"""What a file may cost: its size, its values, its copies. Reading costs no more than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MAX_FILE_BYTES = 4 << 30
MAX_OPCODES = 5_000_000
MAX_DEPTH = 64
#: How many times the size of its file the arrays of a tree may take, repeats counted.
MAX_EXPANSION = 4
SLACK_BYTES = 1 << 20

GET_AGAIN = 'copy the file from its source again'
_DISTRUST = 'nothing was executed; do not use this file unless you know why it says that'


class Refused(Exception):
    """A refusal inside the machine; becomes a DumpError once the file's name is known."""

    def __init__(self, expected: str, found: str, advice: str = _DISTRUST) -> None:
        super().__init__(f'expected {expected}, found {found}; {advice}')


class Budget:
    """What a file of a given size may cost, shared by a pickle and the pickles inside it."""

    def __init__(self, file_bytes: int) -> None:
        self.bytes = MAX_EXPANSION * file_bytes + SLACK_BYTES
        self.opcodes = MAX_OPCODES
        self._copied = 0

    def spend_opcode(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise Refused(f'at most {MAX_OPCODES} pickle opcodes', 'more')

    def spend_copy(self, count: int) -> None:
        """Ask before bytes are copied rather than viewed."""
        self._copied += count
        if self._copied > self.bytes:
            raise Refused(f'arrays of at most {self.bytes} bytes for a file of this size', 'more')


class Global:
    """A name found in the table: what the file may apply to arguments, never a Python object."""

    def __init__(self, name: str, build: Callable[[Any, Budget], Any] | None) -> None:
        self.name = name
        self.build = build


class Pending:
    """An array or dtype between its REDUCE and its BUILD, and where the memo already has it."""

    def __init__(self, finish: Callable[[Any, Budget], Any]) -> None:
        self.finish = finish
        self.memo_slots: list[int] = []


class Storage:
    """The flat bytes of a torch storage and the dtype of their elements."""

    def __init__(self, dtype: np.dtype[Any], data: memoryview) -> None:
        self.dtype = dtype
        self.data = data


def decode(text: bytes) -> str:
    try:
        return text.decode('utf-8')
    except UnicodeDecodeError:
        raise Refused('text in UTF-8', 'other bytes', GET_AGAIN) from None


def kind_of(value: Any) -> str:
    names = {Pending: 'an unfinished array', Storage: 'a torch storage'}
    return value.name if type(value) is Global else names.get(type(value), type(value).__name__)


def shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + '...')


def lengths(value: Any, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 32:
        raise Refused(f'{what} as a tuple of at most 32 lengths', kind_of(value))
    for length in value:
        if type(length) is not int or not 0 <= length < 1 << 40:
            raise Refused(f'{what} of lengths from 0', 'another value')
    return value


def name_entry(
    module: str, name: str, build: Callable[[Any, Budget], Any] | None
) -> tuple[tuple[str, str], Global]:
    return (module, name), Global(f'{module}.{name}', build)
