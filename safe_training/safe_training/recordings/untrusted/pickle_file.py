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

from pathlib import Path
from typing import Any

from safe_training.recordings.errors import DumpError
from safe_training.recordings.untrusted.budget import (
    GET_AGAIN,
    MAX_FILE_BYTES,
    Budget,
    Global,
    Refused,
    name_entry,
)
from safe_training.recordings.untrusted.pickle_machine import PickleMachine, check_tree
from safe_training.recordings.untrusted.pickle_numpy import (
    build_dtype,
    build_from_buffer,
    build_reconstruct,
    build_scalar,
)
from safe_training.recordings.untrusted.pickle_torch import (
    STORAGE_NAMES,
    build_storage,
    build_tensor,
    read_torch_zip,
)


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
    budget = Budget(len(data))
    try:
        if not len(view):
            raise Refused('a pickle', 'an empty file', GET_AGAIN)
        if bytes(view[:4]) == b'PK\x03\x04':
            tree = read_torch_zip(view, _ARCHIVE_NAMES, budget)
        elif view[0] != 0x80:
            raise Refused(
                'a pickle (or a torch.save archive)',
                f'a file that begins with {bytes(view[:8])!r}; it may have been renamed',
                GET_AGAIN,
            )
        else:
            machine = PickleMachine(view, _NAMES, budget)
            tree = machine.run()
            if machine.position != len(view):
                raise Refused(
                    f'the end of the file at byte {machine.position}',
                    f'{len(view) - machine.position} more bytes',
                    GET_AGAIN,
                )
        check_tree(tree, budget)
    except Refused as error:
        raise DumpError(f'{name}: {error}') from None
    return tree


def _build_ordered_dict(arguments: Any, budget: Budget) -> dict[Any, Any]:
    if len(arguments):
        raise Refused('an empty OrderedDict', 'one with arguments')
    return {}


_NAMES: dict[tuple[str, str], Global] = dict(
    [
        name_entry('numpy', 'ndarray', None),
        name_entry('numpy', 'dtype', build_dtype),
        name_entry('numpy.core.multiarray', '_reconstruct', build_reconstruct),
        name_entry('numpy._core.multiarray', '_reconstruct', build_reconstruct),
        name_entry('numpy.core.multiarray', 'scalar', build_scalar),
        name_entry('numpy._core.multiarray', 'scalar', build_scalar),
        name_entry('numpy.core.numeric', '_frombuffer', build_from_buffer),
        name_entry('numpy._core.numeric', '_frombuffer', build_from_buffer),
        name_entry('ml_dtypes', 'bfloat16', None),
        name_entry('torch._utils', '_rebuild_tensor_v2', build_tensor),
        name_entry('torch.storage', '_load_from_bytes', build_storage),
        name_entry('collections', 'OrderedDict', _build_ordered_dict),
    ]
)
_ARCHIVE_NAMES = {
    key: found for key, found in (_NAMES | STORAGE_NAMES).items() if key[0] != 'torch.storage'
}
