# SPDX-License-Identifier: Apache-2.0
"""Interprets one pickle program without executing code."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from safe_training.recordings.errors import COPY_AGAIN
from safe_training.recordings.untrusted.budget import (
    MAX_DEPTH,
    MAX_OPCODES,
    Budget,
    Global,
    Pending,
    Refused,
    decode,
    kind_of,
    shown,
)

_MARK = object()
_NOT_ALLOWED = (
    'nothing was executed; if you wrote the file, save only these kinds of values in the file; if '
    'you did not write the file, do not use the file'
)


class PickleMachine:
    """Interprets one pickle program. Knows only the opcodes that the dumps use.

    Parameters
    ----------
    data : memoryview
        The bytes that hold the program.
    names : mapping of (module, name) to Global
        The names that the program may use.
    budget : Budget
    position : int
        The byte at which the program begins; after ``run``, the byte after its end.
    persistent : callable, optional
        Returns the value of a persistent id. If None, persistent ids are refused.
    """

    def __init__(
        self,
        data: memoryview,
        names: Mapping[tuple[str, str], Global],
        budget: Budget,
        position: int = 0,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.position = position
        self._data = data
        self._names = names
        self._budget = budget
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Run until STOP and return the one value on the stack."""
        data, end, stack = self._data, len(self._data), self._stack
        while self.position < end:
            opcode = data[self.position]
            self.position += 1
            self._budget.spend_opcode()
            if opcode == 0x2E:  # STOP
                if len(stack) != 1 or stack[0] is _MARK:
                    raise Refused(
                        'one value at the end of the pickle', 'a different number of values'
                    )
                return stack[0]
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise Refused(
                    'pickle opcodes for plain values, numpy arrays and torch tensors (protocols '
                    '2 to 5)',
                    f'opcode 0x{opcode:02x} at byte {self.position - 1}',
                )
            operation(self)
        raise Refused('the end mark of a pickle', f'the end of the file at byte {end}', COPY_AGAIN)

    # -- reading

    def _take(self, count: int) -> memoryview:
        start, stop = self.position, self.position + count
        if stop > len(self._data):
            raise Refused(
                f'{count} bytes at byte {start}',
                f'only {len(self._data) - start} bytes before the end of the file',
                COPY_AGAIN,
            )
        self.position = stop
        return self._data[start:stop]

    def _integer(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(count), 'little', signed=signed)

    def _line(self) -> str:
        start = self.position
        # Limit the search: names are short, and repeated long searches would be slow in a large
        # file.
        text = bytes(self._data[start : start + 256])
        length = text.find(b'\n')
        if length < 0:
            raise Refused(f'a name of at most 255 bytes at byte {start}', 'a longer name')
        self.position = start + length + 1
        return decode(text[:length])

    # -- stack and memo

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Refused(f'a value on the stack at byte {self.position}', 'an empty stack')
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise Refused(f'a mark on the stack at byte {self.position}', 'no mark')

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            expected = 'an incomplete array' if kind is Pending else f'a {kind.__name__}'
            raise Refused(
                f'{expected} on the stack at byte {self.position}',
                'a different value',
            )
        return self._stack[-1]

    def _remember(self, slot: int) -> None:
        value = self._pop()
        self._stack.append(value)
        self._memo[slot] = value
        if type(value) is Pending:
            value.memo_slots.append(slot)

    def _recall(self, slot: int) -> None:
        if slot not in self._memo:
            raise Refused(f'a value in memo slot {slot}', 'an empty slot')
        self._stack.append(self._memo[slot])

    # -- operations

    def _drop(self) -> None:
        self._pop()

    def _drop_to_mark(self) -> None:
        self._pop_to_mark()

    def _mark(self) -> None:
        self._stack.append(_MARK)

    def _protocol(self) -> None:
        version = self._integer(1)
        if not 2 <= version <= 5:
            raise Refused('pickle protocol 2 to 5', f'protocol {version}')

    def _frame(self) -> None:
        length = self._integer(8)
        left = len(self._data) - self.position
        if length > left:
            raise Refused(
                f'a frame of {length} bytes at byte {self.position}',
                f'only {left} bytes before the end of the file',
                COPY_AGAIN,
            )

    def _long(self) -> None:
        self._stack.append(self._integer(self._integer(1), signed=True))

    def _long_text(self) -> None:
        # Python 2 writes integers of more than 32 bits as text.
        text = self._line()
        if not text.lstrip('-').isdecimal():
            raise Refused('an integer as text', shown(text))
        self._stack.append(int(text))

    def _byte_text(self, width: int) -> None:
        # Text or bytes of Python 2. An array converts the text back to bytes with Latin-1 without
        # loss.
        self._stack.append(str(self._take(self._integer(width)), 'latin-1'))

    def _float(self) -> None:
        self._stack.append(struct.unpack('>d', self._take(8))[0])

    def _text(self, width: int) -> None:
        self._stack.append(decode(bytes(self._take(self._integer(width)))))

    def _bytes(self, width: int) -> None:
        self._stack.append(self._take(self._integer(width)))

    def _push(self, make: Callable[[], Any]) -> None:
        self._stack.append(make())

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _tuple_to_mark(self) -> None:
        items = self._pop_to_mark()
        self._stack.append(tuple(items))

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _set_item(self) -> None:
        value = self._pop()
        key = self._pop()
        self._set(self._top(dict), [key, value])

    def _set_items(self) -> None:
        items = self._pop_to_mark()
        self._set(self._top(dict), items)

    def _set(self, target: dict[Any, Any], items: list[Any]) -> None:
        if len(items) % 2:
            raise Refused('an even number of keys and values', f'{len(items)} keys and values')
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, bool, type(None)):
                raise Refused(
                    'keys that are text or integers', f'a key of type {type(key).__name__}'
                )
            target[key] = value

    def _find(self, module: str, name: str) -> None:
        found = self._names.get((module, name))
        if found is None:
            raise Refused(
                'only plain values, numpy arrays and torch tensors',
                f'a reference to {shown(f"{module}.{name}")} at byte {self.position}',
                _NOT_ALLOWED,
            )
        self._stack.append(found)

    def _global(self) -> None:
        module = self._line()
        self._find(module, self._line())

    def _stack_global(self) -> None:
        name = self._pop()
        module = self._pop()
        if type(module) is not str or type(name) is not str:
            raise Refused(
                'a module name and a name as text', f'{kind_of(module)} and {kind_of(name)}'
            )
        self._find(module, name)

    def _reduce(self) -> None:
        arguments = self._pop()
        function = self._pop()
        if type(function) is not Global or function.build is None:
            name = function.name if type(function) is Global else kind_of(function)
            raise Refused(f'a known builder at byte {self.position}', f'a call of {name}')
        if type(arguments) is not tuple:
            raise Refused(f'a tuple of arguments for {function.name}', kind_of(arguments))
        self._stack.append(function.build(arguments, self._budget))

    def _build(self) -> None:
        state = self._pop()
        pending = self._top(Pending)
        value = pending.finish(state, self._budget)
        self._stack[-1] = value
        for slot in pending.memo_slots:
            self._memo[slot] = value

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise Refused(
                'a pickle without persistent ids', f'a persistent id at byte {self.position}'
            )
        self._stack.append(self._persistent(self._pop()))


_OPERATIONS: dict[int, Callable[[PickleMachine], None]] = {
    ord('('): PickleMachine._mark,
    ord('0'): PickleMachine._drop,
    ord('1'): PickleMachine._drop_to_mark,
    0x80: PickleMachine._protocol,
    0x95: PickleMachine._frame,
    ord('N'): lambda m: m._stack.append(None),
    0x88: lambda m: m._stack.append(True),
    0x89: lambda m: m._stack.append(False),
    ord('J'): lambda m: m._stack.append(m._integer(4, signed=True)),
    ord('K'): lambda m: m._stack.append(m._integer(1)),
    ord('M'): lambda m: m._stack.append(m._integer(2)),
    0x8A: PickleMachine._long,
    ord('I'): PickleMachine._long_text,
    ord('U'): lambda m: m._byte_text(1),
    ord('T'): lambda m: m._byte_text(4),
    ord('G'): PickleMachine._float,
    0x8C: lambda m: m._text(1),
    ord('X'): lambda m: m._text(4),
    0x8D: lambda m: m._text(8),
    ord('C'): lambda m: m._bytes(1),
    ord('B'): lambda m: m._bytes(4),
    0x8E: lambda m: m._bytes(8),
    0x96: lambda m: m._bytes(8),
    ord(']'): lambda m: m._push(list),
    ord('}'): lambda m: m._push(dict),
    ord(')'): lambda m: m._push(tuple),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord('t'): PickleMachine._tuple_to_mark,
    ord('a'): PickleMachine._append,
    ord('e'): PickleMachine._appends,
    ord('s'): PickleMachine._set_item,
    ord('u'): PickleMachine._set_items,
    ord('q'): lambda m: m._remember(m._integer(1)),
    ord('r'): lambda m: m._remember(m._integer(4)),
    0x94: lambda m: m._remember(len(m._memo)),
    ord('h'): lambda m: m._recall(m._integer(1)),
    ord('j'): lambda m: m._recall(m._integer(4)),
    ord('c'): PickleMachine._global,
    0x93: PickleMachine._stack_global,
    ord('R'): PickleMachine._reduce,
    ord('b'): PickleMachine._build,
    ord('Q'): PickleMachine._persistent_id,
}


# -- the finished tree


def check_tree(root: Any, budget: Budget) -> None:
    """Refuse a value that is not a finite tree of plain values, or has too many repeated parts.

    A shared part is visited once, but it is counted at each place that refers to it.
    """
    done: dict[int, tuple[int, int, int]] = {}
    open_nodes: set[int] = set()
    work: list[tuple[Any, bool]] = [(root, False)]
    while work:
        node, leaving = work.pop()
        if id(node) in done:
            continue
        children = _children(node)
        if not leaving and children:
            if id(node) in open_nodes:
                raise Refused(
                    'values that do not contain themselves', 'a value that contains itself'
                )
            open_nodes.add(id(node))
            work.append((node, True))
            work.extend((child, False) for child in children if id(child) not in done)
            continue
        open_nodes.discard(id(node))
        parts = [done[id(child)] for child in children]
        height = 1 + max((part[0] for part in parts), default=0)
        count = 1 + sum(part[1] for part in parts)
        size = _leaf_bytes(node) + sum(part[2] for part in parts)
        if height > MAX_DEPTH:
            raise Refused(f'at most {MAX_DEPTH} levels of nested values', 'more levels')
        if count > MAX_OPCODES or size > budget.bytes:
            raise Refused(
                f'at most {MAX_OPCODES} values and {budget.bytes} bytes for a file of this size',
                f'{count} values and {size} bytes, because references are repeated',
            )
        done[id(node)] = (height, count, size)


def _children(node: Any) -> list[Any] | tuple[Any, ...]:
    if type(node) is dict:
        return list(node.values())
    if type(node) in (list, tuple):
        return node
    return ()


def _leaf_bytes(node: Any) -> int:
    if isinstance(node, (np.ndarray, memoryview)):
        return node.nbytes
    if node is None or type(node) in (dict, list, tuple, str, int, float, bool):
        return 0
    if isinstance(node, np.generic):
        return 0
    raise Refused('only complete values', kind_of(node))
