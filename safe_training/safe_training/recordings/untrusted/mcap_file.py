# SPDX-License-Identifier: Apache-2.0
"""Reads one .mcap file, chunk by chunk."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from safe_training.recordings.errors import COPY_AGAIN, CutError
from safe_training.recordings.untrusted.bag_budget import (
    MAX_METADATA_BYTES,
    MCAP_MAGIC,
    Budget,
    Message,
    Topic,
)

_RECOVER = (
    f'{COPY_AGAIN}, or write the readable part of the file to a new file with: '
    'mcap recover FILE -o NEW.mcap, or read this part with --skip-bad'
)
#: Used instead of the opcode for a chunk that is cut.
_CUT_CHUNK = -1


class McapFile:
    """One mcap file, mapped and read from its first to its last record, without its index.

    Parameters
    ----------
    file, name : Path
        The file, and its name in messages.
    whole : bool
        If True, a file without an end is refused at once. If False, :meth:`messages` yields the
        messages before the cut and then raises CutError.
    """

    def __init__(self, file: Path, name: Path, whole: bool = True) -> None:
        self.name = name
        with file.open('rb') as stream:
            self._data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        self.budget = Budget(name, len(self._data))
        self._schemas: dict[int, tuple[str, str, str]] = {0: ('', '', '')}
        self._channels: dict[int, Topic] = {}
        end = len(self._data) - len(MCAP_MAGIC)
        complete = end >= 8 + 9 + 9 + 20 and bytes(self._data[end:]) == MCAP_MAGIC
        self._body = self._data[8 : end if complete else len(self._data)]
        self._incomplete: CutError | None = None
        if not complete:
            self._incomplete = self._cut(
                'the end of an mcap file',
                'no end, because the file is incomplete or was never closed',
            )
            if whole:
                raise self._incomplete

    def _cut(self, expected: str, found: str, advice: str = _RECOVER) -> CutError:
        return CutError(where=str(self.name), expected=expected, found=found, advice=advice)

    def topics(self) -> list[Topic]:
        """Return the topics found so far."""
        return list(self._channels.values())

    def metadata(self) -> str:
        """Return the YAML that rosbag2 stores in the file; empty if there is none."""
        for code, record in self._records(self._body):
            if code == 0x0C:
                name, at = self._text(record, 0)
                if name != 'rosbag2':
                    continue
                length, at = self._number(record, at, 4)
                key, at = self._text(record, at)
                value, _ = self._text(record, at)
                if key == 'serialized_metadata' and length <= MAX_METADATA_BYTES:
                    return value
        return ''

    def messages(self, types: Collection[str]) -> Iterator[Message]:
        """Yield the messages of some types.

        Raises
        ------
        CutError
            The file is cut or damaged; raised after the messages before the cut.
        DumpError
            The file unpacks to too many bytes.
        """
        try:
            yield from self._messages(types)
        except CutError as error:
            raise (self._incomplete or error) from None

    def _messages(self, types: Collection[str]) -> Iterator[Message]:
        seen, stated, last = 0, None, 0
        for code, record in self._records(self._body):
            last = code
            if code == 0x06:
                for inner, part in self._records(self._chunk(record)):
                    seen += inner == 0x05
                    yield from self._take(inner, part, types)
            elif code == _CUT_CHUNK:
                for inner, part in self._records(self._part_of_chunk(record)):
                    yield from self._take(inner, part, types)
            elif code == 0x0B:
                stated, _ = self._number(record, 0, 8)
            else:
                seen += code == 0x05
                yield from self._take(code, record, types)
        if last != 0x02:
            raise self._cut('a footer at the end', 'no footer')
        if stated is not None and stated != seen:
            raise self._cut(
                f'{stated} messages (this number is in the statistics of the file)',
                f'{seen} messages',
            )

    def _take(self, code: int, record: memoryview, types: Collection[str]) -> Iterator[Message]:
        if code == 0x03:
            number, at = self._number(record, 0, 2)
            name, at = self._text(record, at)
            encoding, at = self._text(record, at)
            text, _ = self._text(record, at)
            self._schemas[number] = (name, encoding, text)
        elif code == 0x04:
            self._take_channel(record)
        elif code == 0x05:
            number, at = self._number(record, 0, 2)
            time, _ = self._number(record, 6, 8)
            topic = self._channels.get(number)
            if topic is None or len(record) < 22:
                raise self._cut('a message of a known channel', f'a message of channel {number}')
            if topic.type in types:
                yield Message(topic, time, record[22:])

    def _take_channel(self, record: memoryview) -> None:
        number, at = self._number(record, 0, 2)
        schema, at = self._number(record, at, 2)
        topic, at = self._text(record, at)
        encoding, _ = self._text(record, at)
        if schema not in self._schemas:
            raise self._cut(
                f'a schema {schema} of topic {topic[:200]!r}', 'no schema with this number'
            )
        found = Topic(topic, *self._schemas[schema])
        if encoding != 'cdr':
            # A topic of another program in the same file.
            found = found._replace(type=f'{found.type} in {encoding[:40]!r}')
        if self._channels.setdefault(number, found) != found:
            raise self._cut(f'one description of channel {number}', 'two different descriptions')

    def _part_of_chunk(self, record: memoryview) -> memoryview:
        """Return the readable part of the last chunk of a file that is cut."""
        compression, at = self._text(record, 28)
        _, at = self._number(record, at, 8)
        if compression == '':
            return record[at:]
        return memoryview(self.budget.unpack_part(compression, record[at:]))

    def _chunk(self, record: memoryview) -> memoryview:
        size, _ = self._number(record, 16, 8)
        crc, _ = self._number(record, 24, 4)
        compression, at = self._text(record, 28)
        length, at = self._number(record, at, 8)
        packed = record[at:]
        if len(packed) != length:
            raise self._cut(f'a chunk of {length} bytes', f'{len(packed)} bytes')
        if compression == '':
            data = packed
        elif compression == 'zstd':
            data = memoryview(self.budget.unpack_zstd(packed))
        elif compression == 'lz4':
            data = memoryview(self.budget.unpack_lz4(packed))
        else:
            raise self._cut(
                'chunks without compression, or compressed with zstd or lz4',
                f'the compression {compression[:40]!r}',
            )
        if len(data) != size:
            raise self._cut(f'a chunk with {size} bytes after unpacking', f'{len(data)} bytes')
        if crc and zlib.crc32(data) != crc:
            raise self._cut(f'a chunk with checksum {crc}', f'checksum {zlib.crc32(data)}')
        return data

    def _records(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        at = 0
        while at < len(data):
            head = data[at : at + 9]
            length = int.from_bytes(head[1:], 'little') if len(head) == 9 else 0
            at += 9
            # Opcode 0 is not a record: zeros at the end of an incomplete file must not count as
            # records.
            if len(head) != 9 or at + length > len(data) or head[0] == 0:
                if head[:1] == b'\x06' and self._incomplete is not None and at < len(data):
                    yield _CUT_CHUNK, data[at:]
                raise self._cut(
                    f'a record of {length} bytes', f'only {max(0, len(data) - at)} bytes'
                )
            yield head[0], data[at : at + length]
            at += length

    def _number(self, record: memoryview, at: int, size: int) -> tuple[int, int]:
        part = record[at : at + size]
        if len(part) != size:
            raise self._cut('a complete record', 'a shorter record')
        return int.from_bytes(part, 'little'), at + size

    def _text(self, record: memoryview, at: int) -> tuple[str, int]:
        length, at = self._number(record, at, 4)
        part = record[at : at + length]
        if len(part) != length:
            raise self._cut(f'a text of {length} bytes', f'{len(part)} bytes')
        try:
            return str(part, 'utf-8'), at + length
        except UnicodeDecodeError:
            raise self._cut('text in UTF-8', 'bytes that are not UTF-8') from None
