# SPDX-License-Identifier: Apache-2.0
"""Reads arrays of an .npz archive; checks headers before it allocates memory.

``numpy.load`` would allocate the size stated in a header without checking it.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from safe_training.recordings.errors import COPY_AGAIN, DumpError
from safe_training.recordings.untrusted.foreign_file import ForeignKind, foreign_kind_of
from vla_feature_bridge.tensors import BFLOAT16

_MAX_ARRAY_BYTES = 16 << 30
_NO_OBJECTS = (
    'Python objects can execute code during reading: write the archive with arrays of numbers or '
    'texts only'
)


class _ArrayError(ValueError):
    """An array of the archive is refused. The text of the error describes what was found."""

    def __init__(self, found: str, advice: str = COPY_AGAIN) -> None:
        self.advice = advice
        super().__init__(found)


def shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of every array in an archive; reads only headers.

    Raises
    ------
    DumpError
        The file is not an archive, is damaged, or contains Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix('.npy'): _read_header(archive, name)[:2]
                for name in archive.namelist()
                if name.endswith('.npy')
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise _refusal(path, 'a NumPy archive (.npz)', error) from error


def read_array(path: Path, name: str) -> np.ndarray:
    """Return one array. Its size in the header is first compared with the size in the archive.

    Raises
    ------
    DumpError
        The archive has no such array, is damaged, or the sizes differ.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shape, dtype, fortran, start = _read_header(archive, f'{name}.npy')
            size = archive.getinfo(f'{name}.npy').file_size
            expected = math.prod(shape) * dtype.itemsize
            if size - start != expected or expected > _MAX_ARRAY_BYTES:
                raise _ArrayError(
                    f'{size - start} bytes for the array {name} of shape {shape} and dtype {dtype}'
                )
            with archive.open(f'{name}.npy') as member:
                data = member.read()
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
    ) as error:
        raise _refusal(path, f'an undamaged array {name}', error) from error
    array = np.frombuffer(data, dtype, offset=start) if expected else np.empty(0, dtype)
    array = array.reshape(shape, order='F' if fortran else 'C')
    # A rollout set stores little-endian numbers only.
    return array if dtype.isnative else array.astype(dtype.newbyteorder('='))


def _refusal(path: Path, expected: str, error: Exception) -> DumpError:
    if isinstance(error, _ArrayError):
        return DumpError(where=str(path), expected=expected, found=str(error), advice=error.advice)
    kind = foreign_kind_of(path)
    if kind is None or isinstance(error, KeyError) or kind.found == 'a zip archive':
        kind = ForeignKind(f'the error: {error}', COPY_AGAIN)
    return DumpError(where=str(path), expected=expected, found=kind.found, advice=kind.advice)


def _read_header(
    archive: zipfile.ZipFile, name: str
) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Return shape, dtype, Fortran order and the number of bytes before the data."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise _ArrayError(f'the array {name} in version {version} of the .npy format')
        shape, fortran, dtype = read(member)
        start = member.tell()
    if dtype.str[1:] == 'V2' and dtype.names is None:
        # NumPy has no bfloat16. It writes the dtype as two bytes without a kind.
        dtype = BFLOAT16
    if dtype.hasobject:
        raise _ArrayError(f'the array {name} of Python objects', _NO_OBJECTS)
    return shape, dtype, fortran, start
