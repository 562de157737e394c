# SPDX-License-Identifier: Apache-2.0
"""Recognises the kind of a file that no reader can read by its first bytes, and gives an advice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safe_training.recordings.errors import COPY_AGAIN

#: Number of first bytes that are enough to recognise every kind.
HEAD_BYTES = 512

_UNPACK = 'unpack the file first with: {} FILE'
_DOWNLOAD = 'the download or the copy failed: get the file from its source again'
_LFS = b'version https://git-lfs.github.com/spec/'


class ForeignKind(NamedTuple):
    """The kind of a file and an advice, for a message."""

    found: str
    advice: str


_ROS1 = ForeignKind(
    'a ROS 1 recording',
    'convert the recording to ROS 2 with: rosbags-convert --src FILE.bag --dst FOLDER '
    '(pip install rosbags), or record with ROS 2',
)
_POINTER = ForeignKind(
    'a Git LFS pointer instead of the content of the file',
    'get the content with: git lfs pull',
)
_PAGE = ForeignKind('a web page or an XML text', _DOWNLOAD)
_HDF5 = ForeignKind(
    'an HDF5 file (recorders such as robomimic write this format)',
    'this format is not read: write the rollouts as a .npz archive, or record with ROS 2',
)
_PICKLE = ForeignKind('a pickle', 'give the folder of the dump that contains the file')
_MCAP = ForeignKind('an mcap recording', 'give the file the ending .mcap')
_SQLITE = ForeignKind('an sqlite3 database', 'give the file the ending .db3')
_ZIP = ForeignKind('a zip archive', _UNPACK.format('unzip'))
#: Kinds that the readers know. Such a file does not explain why no reader recognises a folder.
READ_KINDS = (_PICKLE, _MCAP, _SQLITE)

_MAGICS: tuple[tuple[bytes, ForeignKind], ...] = (
    (_LFS, _POINTER),
    (b'#ROSBAG V', _ROS1),
    (b'\x89HDF\r\n\x1a\n', _HDF5),
    (b'\x1f\x8b', ForeignKind('a file compressed with gzip', _UNPACK.format('gzip -d'))),
    (b'BZh', ForeignKind('a file compressed with bzip2', _UNPACK.format('bzip2 -d'))),
    (b'\xfd7zXZ\x00', ForeignKind('a file compressed with xz', _UNPACK.format('xz -d'))),
    (b'\x28\xb5\x2f\xfd', ForeignKind('a file compressed with zstd', _UNPACK.format('zstd -d'))),
    (b'\x04\x22\x4d\x18', ForeignKind('a file compressed with lz4', _UNPACK.format('lz4 -d'))),
    (b'7z\xbc\xaf\x27\x1c', ForeignKind('a 7z archive', _UNPACK.format('7z x'))),
    (b'Rar!\x1a\x07', ForeignKind('a RAR archive', _UNPACK.format('unrar x'))),
    (
        b'\x93NUMPY',
        ForeignKind(
            'a NumPy array (.npy)',
            'this format contains only one array: write the rollouts as a .npz archive',
        ),
    ),
    (
        b'PAR1',
        ForeignKind(
            'a Parquet table (LeRobot datasets have this format)',
            'this format contains no features: record the policy with ROS 2 or with the bridge',
        ),
    ),
    (b'\x89MCAP0\r\n', _MCAP),
    (b'SQLite format 3\x00', _SQLITE),
    (b'PK\x03\x04', _ZIP),
    (b'<!DOCTYPE', _PAGE),
    (b'<!doctype', _PAGE),
    (b'<html', _PAGE),
    (b'<?xml', _PAGE),
    (b'<Error>', _PAGE),
)
#: First bytes of pickles of the protocols 0 and 1, which have no header.
_OLD_PICKLES = b'(]}cNIFSVKMJGUTl)d'


def foreign_kind(head: bytes, size: int, tail: bytes = b'') -> ForeignKind | None:
    """Return the kind of a file by its content; None if the kind is not known.

    Parameters
    ----------
    head : bytes
        The first bytes, :data:`HEAD_BYTES` or all.
    size : int
        Size of the file [bytes].
    tail : bytes
        The last byte, if known; a pickle of protocol 0 or 1 is recognised by it.
    """
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head[257:262] == b'ustar':
        return ForeignKind('a tar archive', _UNPACK.format('tar -xf'))
    if head and not head.strip(b'\x00'):
        return ForeignKind(
            f'only zeros at the beginning of {size} bytes, because the content was never written '
            'to the disk',
            f'power was perhaps lost during writing: {COPY_AGAIN}',
        )
    if head[8:10] == b'{"' and int.from_bytes(head[:8], 'little') < size:
        return ForeignKind(
            'a safetensors file', 'this format is not read: write the rollouts as a .npz archive'
        )
    if tail == b'.' and head[:1] in (_OLD_PICKLES[i : i + 1] for i in range(len(_OLD_PICKLES))):
        return ForeignKind(
            'a pickle of protocol 0 or 1',
            'load the file where it was written, and save the value again with: '
            'pickle.dump(value, file, protocol=5)',
        )
    if head[:1] == b'\x80' and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return _PICKLE
    return None


def foreign_kind_of(file: Path) -> ForeignKind | None:
    """Return the kind of a file by its first bytes; None if it is not known or not readable."""
    try:
        size = file.stat().st_size
        with file.open('rb') as stream:
            return foreign_kind(stream.read(HEAD_BYTES), size)
    except OSError:
        return None


def begins_with(head: bytes) -> str:
    """Return the first bytes of a file for a message."""
    return f'a file that begins with {head[:8]!r}' if head else 'an empty file'
