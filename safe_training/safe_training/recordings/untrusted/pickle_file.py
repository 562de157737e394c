# SPDX-License-Identifier: Apache-2.0
"""Reads the pickles of published rollout dumps without executing anything in them.

A pickle is a program. This module never uses the module ``pickle``: a small machine interprets the
part of the language that the dumps use. A name in the file (such as ``os.system``) is only searched
in a short table of our own functions, which build numpy arrays from bytes. All other names and all
other opcodes are refused. No content of the file becomes a Python callable, class or attribute
access.

The result is a tree of dict, list, tuple, str, int, float, bool, None, ``memoryview`` (byte
strings, not copied), numpy scalars and read-only numpy arrays. A torch tensor becomes a numpy
array. The dtype bfloat16 becomes ``ml_dtypes.bfloat16``.

The size of the file limits the memory. Lengths are checked before anything is read. Arrays are
views of the bytes of the file and must use all bytes that belong to them. Values that refer to each
other many times (the "billion laughs" attack) are counted each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safe_training.recordings.errors import COPY_AGAIN, DumpError
from safe_training.recordings.untrusted.budget import (
    MAX_FILE_BYTES,
    Budget,
    Global,
    Refused,
    name_entry,
)
from safe_training.recordings.untrusted.foreign_file import (
    HEAD_BYTES,
    begins_with,
    foreign_kind,
)
from safe_training.recordings.untrusted.pickle_machine import PickleMachine, check_tree
from safe_training.recordings.untrusted.pickle_numpy import (
    ARRAY_CLASSES,
    build_bytes,
    build_dtype,
    build_encoded,
    build_from_buffer,
    build_reconstruct,
    build_scalar,
)
from safe_training.recordings.untrusted.pickle_torch import (
    STORAGE_NAMES,
    TORCH_DTYPES,
    TORCH_LEGACY_MAGIC,
    build_from_device,
    build_from_type,
    build_parameter,
    build_size,
    build_storage,
    build_tensor,
    build_tensor_v3,
    read_torch_legacy,
    read_torch_zip,
)


def load_pickle(path: str | Path) -> Any:
    """Return one pickle, or one ``torch.save`` zip archive, as a tree of plain values and arrays.

    Returns
    -------
    dict, list, tuple, str, int, float, bool, None, memoryview, numpy scalar or ndarray
        Arrays are read-only views of the bytes of the file.

    Raises
    ------
    DumpError
        The file is missing, too large or incomplete, or contains a value that is not allowed.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DumpError(
                where=str(file),
                expected=f'a file of at most {MAX_FILE_BYTES} bytes, the largest size of one '
                'episode',
                found=f'{size} bytes',
                advice='check that the file belongs to this dump',
            )
        data = file.read_bytes()
    except OSError as error:
        raise DumpError(
            where=str(file),
            expected='a readable file',
            found=str(error.strerror),
            advice='check the path and the permissions of the file',
        ) from error
    return load_bytes(data, str(file))


def load_bytes(data: bytes, name: str) -> Any:
    """Read one pickle in memory; see :func:`load_pickle`.

    Parameters
    ----------
    data : bytes
        The whole pickle.
    name : str
        Its name in error messages.

    Raises
    ------
    DumpError
        The bytes are truncated, or contain a value that is not allowed.
    """
    view = memoryview(data).toreadonly()
    budget = Budget(len(data))
    try:
        if not len(view):
            raise Refused('a pickle', 'an empty file', COPY_AGAIN)
        if bytes(view[:4]) == b'PK\x03\x04':
            tree = read_torch_zip(view, _ARCHIVE_NAMES, budget)
        elif view[0] != 0x80:
            head = bytes(view[:HEAD_BYTES])
            found, advice = foreign_kind(head, len(view), bytes(view[-1:])) or (
                begins_with(head),
                f'the file was perhaps renamed: {COPY_AGAIN}',
            )
            raise Refused('a pickle or a torch.save archive', found, advice)
        else:
            tree = _read_program(view, budget)
        check_tree(tree, budget)
    except Refused as error:
        raise DumpError(f'{name}: {error}') from None
    return tree


def _read_program(view: memoryview, budget: Budget) -> Any:
    machine = PickleMachine(view, _NAMES, budget)
    tree = machine.run()
    left = len(view) - machine.position
    if not left:
        return tree
    if type(tree) is int and tree == TORCH_LEGACY_MAGIC:
        return read_torch_legacy(view, budget, _ARCHIVE_NAMES)
    if view[machine.position] == 0x80:
        raise Refused(
            f'one pickle that ends at byte {machine.position}',
            'a second pickle behind the first pickle',
            'write each value to its own file',
        )
    raise Refused(
        f'the end of the file at byte {machine.position}', f'{left} more bytes', COPY_AGAIN
    )


def _build_ordered_dict(arguments: Any, budget: Budget) -> dict[Any, Any]:
    if len(arguments):
        raise Refused('an OrderedDict without arguments', f'{len(arguments)} arguments')
    return {}


_NAMES: dict[tuple[str, str], Global] = dict(
    [
        *(name_entry(module, name, None) for module, name in ARRAY_CLASSES),
        name_entry('numpy', 'dtype', build_dtype),
        name_entry('numpy.core.multiarray', '_reconstruct', build_reconstruct),
        name_entry('numpy._core.multiarray', '_reconstruct', build_reconstruct),
        name_entry('numpy.core.multiarray', 'scalar', build_scalar),
        name_entry('numpy._core.multiarray', 'scalar', build_scalar),
        name_entry('numpy.core.numeric', '_frombuffer', build_from_buffer),
        name_entry('numpy._core.numeric', '_frombuffer', build_from_buffer),
        name_entry('ml_dtypes', 'bfloat16', None),
        name_entry('_codecs', 'encode', build_encoded),
        *(
            name_entry(module, name, build_bytes)
            for module in ('__builtin__', 'builtins')
            for name in ('bytes', 'bytearray')
        ),
        name_entry('torch._utils', '_rebuild_tensor', build_tensor),
        name_entry('torch._utils', '_rebuild_tensor_v2', build_tensor),
        name_entry('torch._utils', '_rebuild_tensor_v3', build_tensor_v3),
        name_entry('torch._utils', '_rebuild_parameter', build_parameter),
        name_entry('torch._utils', '_rebuild_parameter_with_state', build_parameter),
        name_entry('torch._utils', '_rebuild_device_tensor_from_numpy', build_from_device),
        name_entry('torch._utils', '_rebuild_device_tensor_from_cpu_tensor', build_from_device),
        name_entry('torch._tensor', '_rebuild_from_type_v2', build_from_type),
        name_entry('torch', 'Tensor', None),
        name_entry('torch.nn.parameter', 'Parameter', None),
        name_entry('torch', 'Size', build_size),
        *(name_entry('torch', name.split('.')[1], None) for name in TORCH_DTYPES),
        name_entry('torch.storage', '_load_from_bytes', build_storage),
        name_entry('collections', 'OrderedDict', _build_ordered_dict),
    ]
)
_ARCHIVE_NAMES = {
    key: found for key, found in _NAMES.items() if key != ('torch.storage', '_load_from_bytes')
} | STORAGE_NAMES
