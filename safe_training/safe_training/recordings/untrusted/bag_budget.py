# SPDX-License-Identifier: Apache-2.0
"""Limits on the cost of unpacking a compressed recording."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lz4.frame
from backports import zstd

from safe_training.recordings.errors import COPY_AGAIN, CutError, DumpError

MCAP_MAGIC = b'\x89MCAP0\r\n'
ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
SQLITE_MAGIC = b'SQLite format 3\x00'

#: Largest metadata file: it lists topics and files; our files also have about 100 bytes for each
#: episode.
MAX_METADATA_BYTES = 16 << 20
#: Largest chunk: a chunk has about 1 MB, or one larger message.
_MAX_CHUNK_BYTES = 64 << 20
#: A file may unpack to this many bytes plus this multiple of its size.
_FREE_BYTES = 64 << 20
_MAX_RATIO = 256
COPY_BYTES = 1 << 20


class Topic(NamedTuple):
    """A topic of a recording.

    ``encoding`` is the encoding of its embedded definition; empty if there is no definition.
    """

    name: str
    type: str
    encoding: str
    definition: str


class Message(NamedTuple):
    """One recorded message; ``time`` is the time of recording [ns]."""

    topic: Topic
    time: int
    data: bytes | memoryview


class Budget:
    """The remaining number of unpacked bytes of one file."""

    def __init__(self, name: Path, size: int) -> None:
        self.name = name
        self.limit = self.left = _FREE_BYTES + _MAX_RATIO * size

    def spend(self, amount: int) -> None:
        """Count unpacked bytes; raises DumpError if the file unpacks to too many."""
        self.left -= amount
        if amount > _MAX_CHUNK_BYTES or self.left < 0:
            expected = f'at most {self.limit} bytes after unpacking'
            if amount > _MAX_CHUNK_BYTES:
                expected = f'messages and chunks of at most {_MAX_CHUNK_BYTES} bytes'
            raise DumpError(
                where=str(self.name),
                expected=expected,
                found='more bytes' if self.left < 0 else 'a larger message or chunk',
                advice='the file was probably made to fill the memory: do not use this file',
            )

    def unpack_zstd(self, data: bytes | memoryview) -> bytes:
        """Return the content of one zstd frame; raises DumpError if it is damaged or too large."""
        limit = min(self.left, _MAX_CHUNK_BYTES)
        try:
            unpacker = zstd.ZstdDecompressor()
            out = unpacker.decompress(data, limit + 1)
            self.spend(len(out))
            if not unpacker.eof or unpacker.unused_data:
                raise zstd.ZstdError('compressed data with a wrong end')
        except zstd.ZstdError as error:
            raise CutError(
                where=str(self.name),
                expected='complete zstd data',
                found=f'the error: {error}',
                advice=COPY_AGAIN,
            ) from None
        return out

    def unpack_part(self, compression: str, data: bytes | memoryview) -> bytes:
        """Return the readable part of a zstd or lz4 frame that is cut; empty if there is none."""
        limit = min(self.left, _MAX_CHUNK_BYTES)
        try:
            if compression == 'zstd':
                out = zstd.ZstdDecompressor().decompress(data, limit + 1)
            elif compression == 'lz4':
                unpacker = lz4.frame.LZ4FrameDecompressor()
                out = unpacker.decompress(data, max_length=limit + 1)
            else:
                return b''
        except (zstd.ZstdError, RuntimeError, EOFError):
            return b''
        self.spend(len(out))
        return out

    def unpack_lz4(self, data: bytes | memoryview) -> bytes:
        """Return the content of one lz4 frame; raises DumpError if it is damaged or too large."""
        limit = min(self.left, _MAX_CHUNK_BYTES)
        try:
            unpacker = lz4.frame.LZ4FrameDecompressor()
            out: bytes = unpacker.decompress(data, max_length=limit + 1)
            self.spend(len(out))
            if not unpacker.eof or unpacker.unused_data:
                raise RuntimeError('compressed data with a wrong end')
        except (RuntimeError, EOFError) as error:
            raise CutError(
                where=str(self.name),
                expected='complete lz4 data',
                found=f'the error: {error}',
                advice=COPY_AGAIN,
            ) from None
        return out
