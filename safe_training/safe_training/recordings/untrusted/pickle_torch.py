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
    'UntypedStorage': np.dtype('u1'),
    '_UntypedStorage': np.dtype('u1'),
    'ComplexFloatStorage': np.dtype('<c8'),
    'ComplexDoubleStorage': np.dtype('<c16'),
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

TORCH_DTYPES: dict[str, np.dtype[Any]] = {
    'torch.bfloat16': np.dtype(ml_dtypes.bfloat16),
    'torch.float16': np.dtype('<f2'),
    'torch.float32': np.dtype('<f4'),
    'torch.float64': np.dtype('<f8'),
    'torch.complex64': np.dtype('<c8'),
    'torch.complex128': np.dtype('<c16'),
    'torch.bool': np.dtype('?'),
    **{
        f'torch.{sign}int{8 * size}': np.dtype(f'<{sign or "i"}{size}')
        for sign in ('', 'u')
        for size in (1, 2, 4, 8)
    },
}
SAVE_PLAIN = (
    'nothing was executed; save the tensor as a plain tensor, for example with '
    'tensor.detach().cpu().float()'
)


def build_storage(arguments: Any, budget: Budget) -> Storage:
    """Return a storage that is stored in a pickle as the bytes of a ``torch.save`` file."""
    if len(arguments) != 1 or type(arguments[0]) is not memoryview:
        raise Refused('the bytes of a torch storage', 'different arguments')
    data = arguments[0]
    if bytes(data[:4]) == b'PK\x03\x04':
        # Inside the archive only storage classes are known. Therefore archives cannot be nested.
        found = read_torch_zip(data, STORAGE_NAMES, budget)
    else:
        found = read_torch_legacy(data, budget, STORAGE_NAMES)
    if type(found) is not Storage:
        raise Refused('a torch storage', kind_of(found))
    return found


def build_tensor(arguments: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return a tensor as an array: a view of its storage."""
    if len(arguments) not in (4, 6, 7) or type(arguments[0]) is not Storage:
        raise _not_a_tensor()
    return _with_metadata(_viewed(arguments[0], arguments[1:4], budget), arguments[6:], budget)


def build_tensor_v3(arguments: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return a tensor whose storage has no own dtype, such as uint16."""
    if len(arguments) not in (7, 8) or type(arguments[0]) is not Storage:
        raise _not_a_tensor()
    storage = Storage(_dtype_of(arguments[6]), arguments[0].data)
    if len(storage.data) % storage.dtype.itemsize:
        raise Refused(f'a storage of {storage.dtype}', f'{len(storage.data)} bytes')
    return _with_metadata(_viewed(storage, arguments[1:4], budget), arguments[7:], budget)


def build_parameter(arguments: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return a ``torch.nn.Parameter`` as its array."""
    if not 3 <= len(arguments) <= 4 or not isinstance(arguments[0], np.ndarray):
        raise Refused('the arguments of a torch parameter', 'different arguments')
    found: np.ndarray[Any, Any] = arguments[0]
    return found


def build_from_type(arguments: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return a tensor that has Python attributes; the attributes are left out."""
    if len(arguments) != 4 or type(arguments[0]) is not Global or type(arguments[1]) is not Global:
        raise Refused('the arguments of a torch tensor with attributes', 'different arguments')
    builder, kind, inner, _ = arguments
    if builder.build not in (build_tensor, build_tensor_v3, build_parameter):
        raise Refused('a builder of a torch tensor', kind_of(builder))
    if (
        kind.name not in ('torch.Tensor', 'torch.nn.parameter.Parameter')
        or type(inner) is not tuple
    ):
        raise Refused('a plain torch tensor', kind_of(kind), SAVE_PLAIN)
    array: np.ndarray[Any, Any] = builder.build(inner, budget)
    return array


def build_from_device(arguments: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return a tensor of a device such as XLA, which torch pickles as a NumPy array."""
    if len(arguments) != 4 or not isinstance(arguments[0], np.ndarray):
        raise Refused('the arguments of a torch tensor of a device', 'different arguments')
    array, dtype = arguments[0], _dtype_of(arguments[1])
    budget.spend_copy(array.size * dtype.itemsize)
    converted = array.astype(dtype)
    converted.flags.writeable = False
    return converted


def build_size(arguments: Any, budget: Budget) -> tuple[int, ...]:
    """Return a ``torch.Size`` as a tuple."""
    if len(arguments) != 1:
        raise Refused('the lengths of a torch.Size', 'different arguments')
    return lengths(arguments[0], 'a torch.Size')


def _not_a_tensor() -> Refused:
    return Refused(
        'the arguments of a torch tensor: storage, offset, size and stride', 'different arguments'
    )


def _dtype_of(value: Any) -> np.dtype[Any]:
    dtype = TORCH_DTYPES.get(value.name) if type(value) is Global else None
    if dtype is None:
        raise Refused(f'one of the dtypes {", ".join(TORCH_DTYPES)}', kind_of(value), SAVE_PLAIN)
    return dtype


def _with_metadata(
    array: np.ndarray[Any, Any], metadata: Any, budget: Budget
) -> np.ndarray[Any, Any]:
    """Return the values of a tensor: torch stores some tensors without their sign."""
    marks = metadata[0] if metadata else None
    if not marks:
        return array
    if type(marks) is not dict or not set(marks) <= {'conj', 'neg'}:
        raise Refused('a tensor without other metadata than conj and neg', kind_of(marks))
    for mark, change in (('conj', np.conjugate), ('neg', np.negative)):
        if marks.get(mark) is True:
            budget.spend_copy(array.nbytes)
            array = change(array)
            array.flags.writeable = False
    return array


def _viewed(storage: Storage, place: Any, budget: Budget) -> np.ndarray[Any, Any]:
    offset, shape, strides = place
    size = lengths(shape, 'the size of a tensor')
    stride = lengths(strides, 'the stride of a tensor')
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


def read_torch_legacy(
    data: memoryview, budget: Budget, names: Mapping[tuple[str, str], Global]
) -> Any:
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
    starts: list[int] = []
    # The elements come after the values. Therefore the values are read twice: the first time
    # without tensors, to find the elements.
    without = {
        key: found if found.build is None or not key[0].startswith('torch') else _no_tensor(found)
        for key, found in names.items()
    }
    for index in range(5):
        machine = PickleMachine(data, without, budget, position, persistent if index == 3 else None)
        starts.append(position)
        parts.append(machine.run())
        position = machine.position
    magic, version, sysinfo, _, keys = parts
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
    return PickleMachine(data, names, budget, starts[3], persistent).run()


def _no_tensor(found: Global) -> Global:
    return Global(found.name, lambda arguments, budget: None)


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
    _check_kind([entry.filename for entry in entries])
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


def _check_kind(names: list[str]) -> None:
    """Refuse zip archives that torch.save did not write, by their name."""
    if any(name.endswith('/constants.pkl') for name in names):
        raise Refused(
            'a torch archive of values',
            'a TorchScript program',
            'nothing was executed; save values with torch.save, not a program with torch.jit.save',
        )
    if names and all(name.endswith('.npy') for name in names):
        raise Refused(
            'a pickle or a torch.save archive',
            'a NumPy archive (.npz)',
            'give the file the ending .npz and give its path',
        )
    if names and not any(name.endswith('data.pkl') for name in names):
        raise Refused(
            'a pickle or a torch.save archive',
            f'a zip archive that contains {shown(names[0])}',
            'unpack the file first with: unzip FILE',
        )


STORAGE_NAMES: dict[tuple[str, str], Global] = {
    (module, name): Global(name, None)
    for module in ('torch', 'torch.cuda', 'torch.storage')
    for name in _TORCH_STORAGES
}
