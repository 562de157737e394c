# SPDX-License-Identifier: Apache-2.0
"""Reads the pickles of published rollout dumps without executing anything that they contain.

A pickle is a program. This module does not hand it to ``pickle``: it interprets the small part
of the language that the dumps use, on a machine of its own. A name in the file (``os.system``)
is only looked up in a short table, and what stands in the table are our own builder
functions that make numpy arrays from bytes: nothing in the file ever becomes a Python callable,
class or attribute access. Every other name and every other opcode is refused.

What comes out is a tree of dict, list, tuple, str, int, float, bool, None, ``memoryview`` (byte
strings, not copied), numpy scalars and read-only numpy arrays; torch tensors come out as numpy
arrays, bfloat16 as ``ml_dtypes.bfloat16``.

Memory is bounded by the size of the file: lengths are checked before anything is taken, arrays
are views of the file's own bytes and must use exactly the bytes they bring, and values that
repeat each other (the "billion laughs") are counted as often as they would be visited.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

MAX_FILE_BYTES = 4 << 30
MAX_OPCODES = 5_000_000
MAX_DEPTH = 64
#: How many times the size of its file the arrays of a tree may take, repeats counted.
MAX_EXPANSION = 4
SLACK_BYTES = 1 << 20

TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_LEGACY_PROTOCOL = 1001

_GET_AGAIN = 'copy the file from its source again'
_DISTRUST = 'nothing was executed; do not use this file unless you know why it says that'


class DumpError(ValueError):
    """A dump cannot be read; says which file, what was expected, what was found, what to do."""


class _Refused(Exception):
    """A refusal inside the machine; becomes a DumpError once the file's name is known."""

    def __init__(self, expected: str, found: str, advice: str = _DISTRUST) -> None:
        super().__init__(f'expected {expected}, found {found}; {advice}')


def load_pickle(path: str | Path) -> Any:
    """Read one pickle (or one ``torch.save`` zip archive) as a tree of plain values and arrays.

    Returns
    -------
    dict, list, tuple, str, int, float, bool, None, memoryview, numpy scalar or ndarray
        Arrays are read-only views of the bytes of the file.

    Raises
    ------
    DumpError
        The file is missing, too large, truncated, or holds anything else.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DumpError(
                f'{file}: expected a file of at most {MAX_FILE_BYTES} bytes, found {size}; '
                'one episode does not need that much: check what this file is'
            )
        data = file.read_bytes()
    except OSError as error:
        raise DumpError(
            f'{file}: expected a readable file, found {error.strerror}; '
            'check the path and its permissions'
        ) from error
    return load_bytes(data, str(file))


def load_bytes(data: bytes, name: str) -> Any:
    """Read one pickle from memory, as :func:`load_pickle` does from a file.

    Parameters
    ----------
    data : bytes
        The whole pickle.
    name : str
        What to call it in error messages.

    Raises
    ------
    DumpError
        The bytes are truncated or hold anything that is not allowed.
    """
    view = memoryview(data).toreadonly()
    budget = _Budget(len(data))
    try:
        if not len(view):
            raise _Refused('a pickle', 'an empty file', _GET_AGAIN)
        if bytes(view[:4]) == b'PK\x03\x04':
            tree = _read_torch_zip(view, _ARCHIVE_NAMES, budget)
        elif view[0] != 0x80:
            raise _Refused(
                'a pickle (or a torch.save archive)',
                f'a file that begins with {bytes(view[:8])!r}; it may have been renamed',
                _GET_AGAIN,
            )
        else:
            machine = _Machine(view, _NAMES, budget)
            tree = machine.run()
            if machine.position != len(view):
                raise _Refused(
                    f'the end of the file at byte {machine.position}',
                    f'{len(view) - machine.position} more bytes',
                    _GET_AGAIN,
                )
        _check_tree(tree, budget)
    except _Refused as error:
        raise DumpError(f'{name}: {error}') from None
    return tree


class _Budget:
    """What a file of a given size may cost, shared by a pickle and the pickles inside it."""

    def __init__(self, file_bytes: int) -> None:
        self.bytes = MAX_EXPANSION * file_bytes + SLACK_BYTES
        self.opcodes = MAX_OPCODES
        self._copied = 0

    def spend_opcode(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise _Refused(f'at most {MAX_OPCODES} pickle opcodes', 'more')

    def spend_copy(self, count: int) -> None:
        """Ask before bytes are copied rather than viewed."""
        self._copied += count
        if self._copied > self.bytes:
            raise _Refused(f'arrays of at most {self.bytes} bytes for a file of this size', 'more')


class _Global:
    """A name found in the table: what the file may apply to arguments, never a Python object."""

    def __init__(self, name: str, build: Callable[[Any, _Budget], Any] | None) -> None:
        self.name = name
        self.build = build


class _Pending:
    """An array or dtype between its REDUCE and its BUILD, and where the memo already has it."""

    def __init__(self, finish: Callable[[Any, _Budget], Any]) -> None:
        self.finish = finish
        self.memo_slots: list[int] = []


class _Storage:
    """The flat bytes of a torch storage and the dtype of their elements."""

    def __init__(self, dtype: np.dtype[Any], data: memoryview) -> None:
        self.dtype = dtype
        self.data = data


_MARK = object()

_TORCH_STORAGES: dict[str, np.dtype[Any]] = {
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'HalfStorage': np.dtype('<f2'),
    'FloatStorage': np.dtype('<f4'),
    'DoubleStorage': np.dtype('<f8'),
    'BoolStorage': np.dtype('?'),
    'ByteStorage': np.dtype('u1'),
    'CharStorage': np.dtype('i1'),
    'ShortStorage': np.dtype('<i2'),
    'IntStorage': np.dtype('<i4'),
    'LongStorage': np.dtype('<i8'),
}
_NUMPY_DTYPES = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')


class _Machine:
    """Runs one pickle program; knows only the opcodes that the dumps use."""

    def __init__(
        self,
        data: memoryview,
        names: Mapping[tuple[str, str], _Global],
        budget: _Budget,
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
        """Run to STOP and return the one value that is left."""
        data, end, stack = self._data, len(self._data), self._stack
        while self.position < end:
            opcode = data[self.position]
            self.position += 1
            self._budget.spend_opcode()
            if opcode == 0x2E:  # STOP
                if len(stack) != 1 or stack[0] is _MARK:
                    raise _Refused('one value at the end of the pickle', 'a broken stack')
                return stack[0]
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise _Refused(
                    'only the pickle opcodes that dumps use',
                    f'opcode 0x{opcode:02x} at byte {self.position - 1} (protocols 2 to 5 of '
                    'plain values, numpy arrays and torch tensors are read)',
                )
            operation(self)
        raise _Refused('the end mark of a pickle', f'the end of the file at byte {end}', _GET_AGAIN)

    # -- reading

    def _take(self, count: int) -> memoryview:
        start, stop = self.position, self.position + count
        if stop > len(self._data):
            raise _Refused(
                f'{count} bytes at byte {start}',
                f'only {len(self._data) - start} until the end of the file',
                _GET_AGAIN,
            )
        self.position = stop
        return self._data[start:stop]

    def _integer(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(count), 'little', signed=signed)

    def _line(self) -> str:
        start = self.position
        # A name is short; looking further would make many long searches of one long file.
        text = bytes(self._data[start : start + 256])
        length = text.find(b'\n')
        if length < 0:
            raise _Refused(f'a name at byte {start}', 'none that ends within 256 bytes')
        self.position = start + length + 1
        return _decode(text[:length])

    # -- stack and memo

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Refused(f'a value before byte {self.position}', 'an empty stack')
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise _Refused(f'a mark before byte {self.position}', 'none')

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            expected = 'unfinished array' if kind is _Pending else kind.__name__
            raise _Refused(f'a {expected} before byte {self.position}', 'something else')
        return self._stack[-1]

    def _remember(self, slot: int) -> None:
        value = self._pop()
        self._stack.append(value)
        self._memo[slot] = value
        if type(value) is _Pending:
            value.memo_slots.append(slot)

    def _recall(self, slot: int) -> None:
        if slot not in self._memo:
            raise _Refused(f'a value in memo slot {slot}', 'an empty slot')
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
            raise _Refused('pickle protocol 2 to 5', f'{version}')

    def _frame(self) -> None:
        length = self._integer(8)
        left = len(self._data) - self.position
        if length > left:
            raise _Refused(
                f'a frame of {length} bytes at byte {self.position}',
                f'only {left} until the end of the file',
                _GET_AGAIN,
            )

    def _long(self) -> None:
        self._stack.append(self._integer(self._integer(1), signed=True))

    def _float(self) -> None:
        self._stack.append(struct.unpack('>d', self._take(8))[0])

    def _text(self, width: int) -> None:
        self._stack.append(_decode(bytes(self._take(self._integer(width)))))

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
            raise _Refused('pairs of key and value', f'{len(items)} values')
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, bool, type(None)):
                raise _Refused('keys that are text or integers', f'a {type(key).__name__}')
            target[key] = value

    def _find(self, module: str, name: str) -> None:
        found = self._names.get((module, name))
        if found is None:
            raise _Refused(
                'only numpy arrays, torch tensors and plain values',
                f'a reference to {_shown(f"{module}.{name}")} at byte {self.position}',
            )
        self._stack.append(found)

    def _global(self) -> None:
        module = self._line()
        self._find(module, self._line())

    def _stack_global(self) -> None:
        name = self._pop()
        module = self._pop()
        if type(module) is not str or type(name) is not str:
            raise _Refused('a module and a name as text', 'something else')
        self._find(module, name)

    def _reduce(self) -> None:
        arguments = self._pop()
        function = self._pop()
        if type(function) is not _Global or function.build is None:
            raise _Refused(
                f'a known builder before byte {self.position}',
                f'{_shown(_kind(function))} applied to arguments',
            )
        if type(arguments) is not tuple:
            raise _Refused(f'a tuple of arguments of {function.name}', _kind(arguments))
        self._stack.append(function.build(arguments, self._budget))

    def _build(self) -> None:
        state = self._pop()
        pending = self._top(_Pending)
        value = pending.finish(state, self._budget)
        self._stack[-1] = value
        for slot in pending.memo_slots:
            self._memo[slot] = value

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise _Refused('a plain pickle', f'a persistent id at byte {self.position}')
        self._stack.append(self._persistent(self._pop()))


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    ord('('): _Machine._mark,
    ord('0'): _Machine._drop,
    ord('1'): _Machine._drop_to_mark,
    0x80: _Machine._protocol,
    0x95: _Machine._frame,
    ord('N'): lambda m: m._stack.append(None),
    0x88: lambda m: m._stack.append(True),
    0x89: lambda m: m._stack.append(False),
    ord('J'): lambda m: m._stack.append(m._integer(4, signed=True)),
    ord('K'): lambda m: m._stack.append(m._integer(1)),
    ord('M'): lambda m: m._stack.append(m._integer(2)),
    0x8A: _Machine._long,
    ord('G'): _Machine._float,
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
    ord('t'): _Machine._tuple_to_mark,
    ord('a'): _Machine._append,
    ord('e'): _Machine._appends,
    ord('s'): _Machine._set_item,
    ord('u'): _Machine._set_items,
    ord('q'): lambda m: m._remember(m._integer(1)),
    ord('r'): lambda m: m._remember(m._integer(4)),
    0x94: lambda m: m._remember(len(m._memo)),
    ord('h'): lambda m: m._recall(m._integer(1)),
    ord('j'): lambda m: m._recall(m._integer(4)),
    ord('c'): _Machine._global,
    0x93: _Machine._stack_global,
    ord('R'): _Machine._reduce,
    ord('b'): _Machine._build,
    ord('Q'): _Machine._persistent_id,
}


def _decode(text: bytes) -> str:
    try:
        return text.decode('utf-8')
    except UnicodeDecodeError:
        raise _Refused('text in UTF-8', 'other bytes', _GET_AGAIN) from None


def _kind(value: Any) -> str:
    names = {_Pending: 'an unfinished array', _Storage: 'a torch storage'}
    return value.name if type(value) is _Global else names.get(type(value), type(value).__name__)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + '...')


# -- numpy


def _build_dtype(arguments: Any, budget: _Budget) -> _Pending:
    code = arguments[0] if arguments else None
    if type(code) is _Global and code.name == 'ml_dtypes.bfloat16':
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif type(code) is str and code in _NUMPY_DTYPES:
        dtype = np.dtype(code)
    else:
        found = _shown(code) if type(code) is str else _kind(code)
        raise _Refused(f'an array of one of {", ".join(_NUMPY_DTYPES)}, bfloat16', found)

    def finish(state: Any, budget: _Budget) -> np.dtype[Any]:
        if type(state) is not tuple or len(state) != 8 or type(state[1]) is not str:
            raise _Refused('the state of a plain dtype', 'another state')
        if any(part is not None for part in state[2:5]):
            raise _Refused('a plain dtype', 'a structured dtype')
        order = state[1]
        if order not in ('<', '>', '|', '='):
            raise _Refused('a byte order', _shown(order))
        return dtype.newbyteorder('>') if order == '>' and dtype.itemsize > 1 else dtype

    return _Pending(finish)


def _build_reconstruct(arguments: Any, budget: _Budget) -> _Pending:
    if not arguments or _kind(arguments[0]) != 'numpy.ndarray':
        raise _Refused('a numpy.ndarray', 'another array class')

    def finish(state: Any, budget: _Budget) -> np.ndarray[Any, Any]:
        if type(state) is not tuple or len(state) != 5:
            raise _Refused('the state of an array (version, shape, dtype, order, bytes)', 'another')
        _, shape, dtype, fortran, data = state
        return _array(data, dtype, shape, 'F' if fortran is True else 'C', budget)

    return _Pending(finish)


def _build_from_buffer(arguments: Any, budget: _Budget) -> np.ndarray[Any, Any]:
    if len(arguments) != 4 or type(arguments[3]) is not str or arguments[3] not in ('C', 'F'):
        raise _Refused('bytes, dtype, shape and order of an array', 'something else')
    data, dtype, shape, order = arguments
    return _array(data, dtype, shape, order, budget)


def _build_scalar(arguments: Any, budget: _Budget) -> Any:
    if len(arguments) != 2:
        raise _Refused('dtype and bytes of a numpy scalar', 'something else')
    dtype, data = arguments
    return _array(data, dtype, (), 'C', budget)[()]


def _array(data: Any, dtype: Any, shape: Any, order: str, budget: _Budget) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, np.dtype):
        raise _Refused('a finished dtype', _kind(dtype))
    if type(data) is not memoryview:
        raise _Refused('the bytes of an array', _kind(data))
    count = math.prod(_lengths(shape, 'a shape'))
    if count * dtype.itemsize != len(data):
        raise _Refused(
            f'{count * dtype.itemsize} bytes for an array of shape {shape} and dtype {dtype}',
            f'{len(data)}',
            _GET_AGAIN,
        )
    try:
        return _flat(data, dtype, budget).reshape(shape, order='F' if order == 'F' else 'C')
    except ValueError as error:  # an empty array may still claim more axes than numpy can count
        raise _Refused('a shape that numpy can hold', str(error)) from None


def _flat(data: memoryview, dtype: np.dtype[Any], budget: _Budget) -> np.ndarray[Any, Any]:
    """View bytes as numbers; copies only where a view could not be trusted or is not native."""
    if dtype == np.dtype(bool):
        budget.spend_copy(len(data))
        values = np.frombuffer(data, np.uint8) != 0
    else:
        values = np.frombuffer(data, dtype)
        if dtype.byteorder == '>':
            budget.spend_copy(len(data))
            values = values.astype(dtype.newbyteorder('='))
    values.flags.writeable = False
    return values


def _lengths(value: Any, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 32:
        raise _Refused(f'{what} as a tuple of at most 32 lengths', _kind(value))
    for length in value:
        if type(length) is not int or not 0 <= length < 1 << 40:
            raise _Refused(f'{what} of lengths from 0', 'another value')
    return value


# -- torch


def _build_storage(arguments: Any, budget: _Budget) -> _Storage:
    if len(arguments) != 1 or type(arguments[0]) is not memoryview:
        raise _Refused('the bytes of a torch storage', 'something else')
    data = arguments[0]
    if bytes(data[:4]) == b'PK\x03\x04':
        # Only storage classes are known in there, so that archives cannot nest.
        found = _read_torch_zip(data, _STORAGE_NAMES, budget)
    else:
        found = _read_torch_legacy(data, budget)
    if type(found) is not _Storage:
        raise _Refused('a torch storage', _kind(found))
    return found


def _build_tensor(arguments: Any, budget: _Budget) -> np.ndarray[Any, Any]:
    if len(arguments) not in (6, 7) or type(arguments[0]) is not _Storage:
        raise _Refused('storage, offset, size and stride of a torch tensor', 'something else')
    storage, offset = arguments[0], arguments[1]
    size = _lengths(arguments[2], 'the size of a tensor')
    stride = _lengths(arguments[3], 'the stride of a tensor')
    if type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise _Refused('an offset and one stride per axis of a tensor', 'something else')
    values = _flat(storage.data, storage.dtype, budget)
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 could repeat one element without end: a tensor is no larger than its storage.
    if count and (last >= len(values) or count > len(values)):
        raise _Refused(
            f'a tensor inside its storage of {len(values)} elements',
            f'size {size}, stride {stride}, offset {offset}',
        )
    width = values.itemsize
    try:
        return np.ndarray(
            size,
            values.dtype,
            buffer=values.view(np.uint8),
            offset=offset * width if count else 0,
            strides=[step * width for step in stride] if count else None,
        )
    except (ValueError, TypeError) as error:
        raise _Refused('a tensor that numpy can hold', str(error)) from None


def _build_ordered_dict(arguments: Any, budget: _Budget) -> dict[Any, Any]:
    if len(arguments):
        raise _Refused('an empty OrderedDict', 'one with arguments')
    return {}


def _read_torch_legacy(data: memoryview, budget: _Budget) -> Any:
    """
    Read what ``torch.save`` wrote before its zip format, as storages still pickle themselves.

    Five small pickles (magic number, version, machine, the storage's description, its keys),
    then for each key the number of elements as int64 and the raw elements.
    """
    waiting: dict[str, tuple[np.dtype[Any], int]] = {}
    storage_of: dict[str, _Storage] = {}

    def persistent(identity: Any) -> Any:
        key, dtype, count = _storage_identity(identity)
        waiting[key] = (dtype, count)
        return storage_of.setdefault(key, _Storage(dtype, memoryview(b'')))

    position = 0
    parts: list[Any] = []
    for index in range(5):
        machine = _Machine(
            data, _STORAGE_NAMES, budget, position, persistent if index == 3 else None
        )
        parts.append(machine.run())
        position = machine.position
    magic, version, sysinfo, found, keys = parts
    if magic != TORCH_LEGACY_MAGIC or version != TORCH_LEGACY_PROTOCOL:
        raise _Refused('a torch storage', 'another magic number or version')
    if type(sysinfo) is not dict or sysinfo.get('little_endian') is not True:
        raise _Refused('a torch storage in little-endian order', 'another order')
    if (
        type(keys) is not list
        or any(type(key) is not str for key in keys)
        or sorted(keys) != sorted(waiting)
    ):
        raise _Refused(f'the data of {len(waiting)} torch storages', 'other keys')
    for key in keys:
        dtype, count = waiting[key]
        header = data[position : position + 8]
        length = count * dtype.itemsize
        stop = position + 8 + length
        if len(header) != 8 or stop > len(data):
            raise _Refused(
                f'{count} elements of a torch storage',
                f'only {max(0, len(data) - position - 8)} bytes',
                _GET_AGAIN,
            )
        if int.from_bytes(header, 'little') != count:
            raise _Refused(f'{count} elements of a torch storage', 'another number in its header')
        storage_of[key].data = data[position + 8 : stop]
        position = stop
    if position != len(data):
        raise _Refused('the end of a torch storage', f'{len(data) - position} more bytes')
    return found


def _storage_identity(identity: Any) -> tuple[str, np.dtype[Any], int]:
    if type(identity) is not tuple or len(identity) not in (5, 6):
        raise _Refused('the description of a torch storage', 'something else')
    word, kind, key, _, count = identity[:5]
    if type(kind) is not _Global or kind.name not in _TORCH_STORAGES:
        raise _Refused('a torch storage class', _kind(kind))
    if len(identity) == 6 and identity[5] is not None:
        raise _Refused('a whole torch storage', 'a view of one')
    if [type(part) for part in (word, key, count)] != [str, str, int] or not 0 <= count < 1 << 40:
        raise _Refused('key and length of a torch storage', 'something else')
    return key, _TORCH_STORAGES[kind.name], count


def _read_torch_zip(
    data: memoryview, names: Mapping[tuple[str, str], _Global], budget: _Budget
) -> Any:
    """Read a ``torch.save`` zip archive (stored, never compressed) without copying its members."""
    budget.spend_copy(len(data))
    members = _zip_members(data)
    programs = [name for name in members if name.endswith('/data.pkl') and name.count('/') == 1]
    if len(programs) != 1:
        raise _Refused('a torch archive with one NAME/data.pkl', f'{len(programs)} of them')
    root = programs[0].removesuffix('/data.pkl')
    order = members.get(f'{root}/byteorder')
    if order is not None and bytes(order[:8]) != b'little':
        raise _Refused('a torch archive in little-endian order', 'another order')

    def persistent(identity: Any) -> _Storage:
        key, dtype, count = _storage_identity(identity)
        content = members.get(f'{root}/data/{key}')
        if content is None or len(content) != count * dtype.itemsize:
            raise _Refused(
                f'{count * dtype.itemsize} bytes in {_shown(f"{root}/data/{key}")}',
                'no such member' if content is None else f'{len(content)}',
                _GET_AGAIN,
            )
        return _Storage(dtype, content)

    program = members[programs[0]]
    return _Machine(program, names, budget, 0, persistent).run()


def _zip_members(data: memoryview) -> dict[str, memoryview]:
    try:
        # The archive's directory is parsed by zipfile; its members are sliced here, not read.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError) as error:
        raise _Refused('a zip archive of torch.save', _shown(str(error)), _GET_AGAIN) from None
    members = {}
    for entry in entries:
        header = data[entry.header_offset : entry.header_offset + 30]
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.header_offset < 0
            or len(header) != 30
        ):
            raise _Refused('stored members in a torch archive', _shown(entry.filename))
        names = int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:30], 'little')
        start = entry.header_offset + 30 + names
        if entry.file_size != entry.compress_size or start + entry.file_size > len(data):
            raise _Refused('members inside a torch archive', _shown(entry.filename), _GET_AGAIN)
        members[entry.filename] = data[start : start + entry.file_size]
    return members


def _entry(
    module: str, name: str, build: Callable[[Any, _Budget], Any] | None
) -> tuple[tuple[str, str], _Global]:
    return (module, name), _Global(f'{module}.{name}', build)


_NAMES: dict[tuple[str, str], _Global] = dict(
    [
        _entry('numpy', 'ndarray', None),
        _entry('numpy', 'dtype', _build_dtype),
        _entry('numpy.core.multiarray', '_reconstruct', _build_reconstruct),
        _entry('numpy._core.multiarray', '_reconstruct', _build_reconstruct),
        _entry('numpy.core.multiarray', 'scalar', _build_scalar),
        _entry('numpy._core.multiarray', 'scalar', _build_scalar),
        _entry('numpy.core.numeric', '_frombuffer', _build_from_buffer),
        _entry('numpy._core.numeric', '_frombuffer', _build_from_buffer),
        _entry('ml_dtypes', 'bfloat16', None),
        _entry('torch._utils', '_rebuild_tensor_v2', _build_tensor),
        _entry('torch.storage', '_load_from_bytes', _build_storage),
        _entry('collections', 'OrderedDict', _build_ordered_dict),
    ]
)
_STORAGE_NAMES: dict[tuple[str, str], _Global] = {
    ('torch', name): _Global(name, None) for name in _TORCH_STORAGES
}
_ARCHIVE_NAMES = {
    key: found for key, found in (_NAMES | _STORAGE_NAMES).items() if key[0] != 'torch.storage'
}


# -- the finished tree


def _check_tree(root: Any, budget: _Budget) -> None:
    """
    Refuse what is not a finite tree of plain values, and what repeats itself too often.

    Walks every shared part once and still counts it as often as a reader would meet it.
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
                raise _Refused('a tree of values', 'a value that contains itself')
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
            raise _Refused(f'values nested at most {MAX_DEPTH} deep', 'deeper ones')
        if count > MAX_OPCODES or size > budget.bytes:
            raise _Refused(
                f'at most {MAX_OPCODES} values and {budget.bytes} bytes for a file of this size',
                'a file whose values repeat each other into more than that',
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
    raise _Refused('only finished values', f'{_shown(_kind(node))} on its own')
