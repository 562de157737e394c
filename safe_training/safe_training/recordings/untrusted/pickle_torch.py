# SPDX-License-Identifier: Apache-2.0
"""Reads tensors and storages of PyTorch: in a pickle, in the legacy format, in a zip archive."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from safe_training.recordings.errors import COPY_AGAIN
from safe_training.recordings.untrusted.budget import (
    Budget,
    Global,
    Refused,
    Storage,
    kind_of,
    lengths,
    shown,
)
from safe_training.recordings.untrusted.pickle_machine import PickleMachine
from safe_training.recordings.untrusted.pickle_numpy import flat

TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_LEGACY_PROTOCOL = 1001

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


def build_storage(arguments: Any, budget: Budget) -> Storage:
    """Return a storage that a pickle holds as the bytes of a file of ``torch.save``."""
    if len(arguments) != 1 or type(arguments[0]) is not memoryview:
        raise Refused('the bytes of a torch storage', 'different arguments')
    data = arguments[0]
    if bytes(data[:4]) == b'PK\x03\x04':
        # Inside the archive only storage classes are known. Therefore archives cannot be nested.
        found = read_torch_zip(data, STORAGE_NAMES, budget)
    else:
        found = _read_torch_legacy(data, budget)
    if type(found) is not Storage:
        raise Refused('a torch storage', kind_of(found))
    return found


def build_tensor(arguments: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return a tensor as an array: a view of its storage."""
    if len(arguments) not in (6, 7) or type(arguments[0]) is not Storage:
        raise Refused(
            'the arguments of a torch tensor: storage, offset, size and stride',
            'different arguments',
        )
    storage, offset = arguments[0], arguments[1]
    size = lengths(arguments[2], 'the size of a tensor')
    stride = lengths(arguments[3], 'the stride of a tensor')
    if type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise Refused(
            'a tensor with an offset from 0 and one stride for each axis',
            'a different offset or a different number of strides',
        )
    values = flat(storage.data, storage.dtype, budget)
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 would repeat one element: a tensor must not be larger than its storage.
    if count and (last >= len(values) or count > len(values)):
        raise Refused(
            f'a tensor inside a storage of {len(values)} elements',
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
        raise Refused('a tensor that numpy supports', f'the error: {error}') from None


def _read_torch_legacy(data: memoryview, budget: Budget) -> Any:
    """Read the legacy format of ``torch.save``, which pickled storages still use.

    The format is five small pickles (magic number, version, machine, description of the storage,
    its keys), then for each key the number of elements as int64 and the raw elements.
    """
    waiting: dict[str, tuple[np.dtype[Any], int]] = {}
    storage_of: dict[str, Storage] = {}

    def persistent(identity: Any) -> Any:
        key, dtype, count = _storage_identity(identity)
        waiting[key] = (dtype, count)
        return storage_of.setdefault(key, Storage(dtype, memoryview(b'')))

    position = 0
    parts: list[Any] = []
    for index in range(5):
        machine = PickleMachine(
            data, STORAGE_NAMES, budget, position, persistent if index == 3 else None
        )
        parts.append(machine.run())
        position = machine.position
    magic, version, sysinfo, found, keys = parts
    if magic != TORCH_LEGACY_MAGIC or version != TORCH_LEGACY_PROTOCOL:
        raise Refused('a torch storage', 'a different magic number or version')
    if type(sysinfo) is not dict or sysinfo.get('little_endian') is not True:
        raise Refused('a torch storage in little-endian order', 'a different order')
    if (
        type(keys) is not list
        or any(type(key) is not str for key in keys)
        or sorted(keys) != sorted(waiting)
    ):
        raise Refused(f'the keys of {len(waiting)} torch storages', 'different keys')
    for key in keys:
        dtype, count = waiting[key]
        header = data[position : position + 8]
        length = count * dtype.itemsize
        stop = position + 8 + length
        if len(header) != 8 or stop > len(data):
            raise Refused(
                f'{count} elements ({length} bytes) of a torch storage',
                f'only {max(0, len(data) - position - 8)} bytes',
                COPY_AGAIN,
            )
        if int.from_bytes(header, 'little') != count:
            raise Refused(
                f'{count} elements of a torch storage',
                'a header with a different number of elements',
            )
        storage_of[key].data = data[position + 8 : stop]
        position = stop
    if position != len(data):
        raise Refused('the end of a torch storage', f'{len(data) - position} more bytes')
    return found


def _storage_identity(identity: Any) -> tuple[str, np.dtype[Any], int]:
    if type(identity) is not tuple or len(identity) not in (5, 6):
        raise Refused('the description of a torch storage', kind_of(identity))
    word, kind, key, _, count = identity[:5]
    if type(kind) is not Global or kind.name not in _TORCH_STORAGES:
        raise Refused('a torch storage class', kind_of(kind))
    if len(identity) == 6 and identity[5] is not None:
        raise Refused('a complete torch storage', 'a view of a torch storage')
    if [type(part) for part in (word, key, count)] != [str, str, int] or not 0 <= count < 1 << 40:
        raise Refused('the key and the length of a torch storage', 'values of other types')
    return key, _TORCH_STORAGES[kind.name], count


def read_torch_zip(
    data: memoryview, names: Mapping[tuple[str, str], Global], budget: Budget
) -> Any:
    """Read a ``torch.save`` zip archive. Its members are uncompressed and are not copied."""
    budget.spend_copy(len(data))
    members = _zip_members(data)
    programs = [name for name in members if name.endswith('/data.pkl') and name.count('/') == 1]
    if len(programs) != 1:
        raise Refused(
            'a torch archive with one file NAME/data.pkl', f'{len(programs)} files with this name'
        )
    root = programs[0].removesuffix('/data.pkl')
    order = members.get(f'{root}/byteorder')
    if order is not None and bytes(order[:8]) != b'little':
        raise Refused('a torch archive in little-endian order', 'a different order')

    def persistent(identity: Any) -> Storage:
        key, dtype, count = _storage_identity(identity)
        content = members.get(f'{root}/data/{key}')
        if content is None or len(content) != count * dtype.itemsize:
            raise Refused(
                f'{count * dtype.itemsize} bytes in {shown(f"{root}/data/{key}")}',
                'no file with this name' if content is None else f'{len(content)} bytes',
                COPY_AGAIN,
            )
        return Storage(dtype, content)

    program = members[programs[0]]
    return PickleMachine(program, names, budget, 0, persistent).run()


def _zip_members(data: memoryview) -> dict[str, memoryview]:
    try:
        # zipfile parses the directory of the archive; the members are views of its bytes.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError) as error:
        raise Refused(
            'a zip archive of torch.save', f'the error: {shown(str(error))}', COPY_AGAIN
        ) from None
    members = {}
    for entry in entries:
        header = data[entry.header_offset : entry.header_offset + 30]
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.header_offset < 0
            or len(header) != 30
        ):
            raise Refused(
                'a torch archive without compressed files',
                f'the compressed file {shown(entry.filename)}',
            )
        names = int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:30], 'little')
        start = entry.header_offset + 30 + names
        if entry.file_size != entry.compress_size or start + entry.file_size > len(data):
            raise Refused(
                'files inside the torch archive',
                f'{shown(entry.filename)} outside the archive',
                COPY_AGAIN,
            )
        members[entry.filename] = data[start : start + entry.file_size]
    return members


STORAGE_NAMES: dict[tuple[str, str], Global] = {
    ('torch', name): Global(name, None) for name in _TORCH_STORAGES
}
