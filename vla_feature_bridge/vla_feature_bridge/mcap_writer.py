# SPDX-License-Identifier: Apache-2.0
"""Writes messages to an mcap file, without ROS and without a library.

The format is that of https://mcap.dev/spec: a data section of chunks, each followed by its index,
then a summary with schemas, channels, index and statistics. Every section has its checksum. Chunks
are not compressed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b'\x89MCAP0\r\n'

_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 1, 2, 3, 4, 5, 6
_MESSAGE_INDEX, _CHUNK_INDEX, _STATISTICS, _METADATA, _METADATA_INDEX = 7, 8, 11, 12, 13
_SUMMARY_OFFSET, _DATA_END = 14, 15
#: A chunk is written as soon as it is longer than this [bytes].
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Channel:
    """One topic of a file.

    Attributes
    ----------
    topic : str
        Full name.
    type_name : str
        Name of the message type, such as ``std_msgs/msg/Bool``.
    definition : str
        Its definition with all definitions that it uses (``ros2msg``).
    metadata : mapping of str to str
        Further facts for players, such as the offered QoS.
    """

    topic: str
    type_name: str
    definition: str
    metadata: Mapping[str, str]


class McapWriter:
    """Writes one file of ROS 2 messages; :meth:`close` completes it.

    Parameters
    ----------
    stream : binary file
        Open for writing, at its start. The writer does not close it.
    library : str
        Name of the program that writes the file.

    Raises
    ------
    OSError
        From every method: the stream cannot be written.
    """

    def __init__(self, stream: BinaryIO, library: str) -> None:
        self._stream, self._at, self._crc = stream, 0, 0
        self._schemas: dict[str, int] = {}
        self._described: list[bytes] = []
        self._channels: list[bytes] = []
        self._counts: list[int] = []
        self._chunk = bytearray()
        self._in_chunk: dict[int, list[tuple[int, int]]] = {}
        self._chunk_indexes: list[bytes] = []
        self._metadata_indexes: list[bytes] = []
        self._first, self._last = 0, 0
        self._emit(MAGIC)
        self._emit(_record(_HEADER, _text('ros2') + _text(library)))

    def add_channel(self, channel: Channel) -> int:
        """Add a topic; returns its number, for :meth:`write`."""
        schema = self._schemas.get(channel.type_name)
        if schema is None:
            schema = self._schemas[channel.type_name] = len(self._schemas) + 1
            described = (
                struct.pack('<H', schema)
                + _text(channel.type_name)
                + _text('ros2msg')
                + _text(channel.definition)
            )
            self._described.append(_record(_SCHEMA, described))
            self._chunk += self._described[-1]
        number = len(self._channels)
        described = (
            struct.pack('<HH', number, schema)
            + _text(channel.topic)
            + _text('cdr')
            + _mapping(channel.metadata)
        )
        self._channels.append(_record(_CHANNEL, described))
        self._counts.append(0)
        self._chunk += self._channels[-1]
        return number

    def write(self, channel: int, log_time: int, publish_time: int, data: bytes) -> None:
        """Write one serialized message.

        Parameters
        ----------
        channel : int
            As :meth:`add_channel` returned it.
        log_time, publish_time : int
            When the message was received and published [ns].
        data : bytes
            CDR.
        """
        any_before = any(self._counts)
        self._first = min(self._first, log_time) if any_before else log_time
        self._last = max(self._last, log_time) if any_before else log_time
        self._in_chunk.setdefault(channel, []).append((log_time, len(self._chunk)))
        sequence = self._counts[channel] & 0xFFFFFFFF
        self._counts[channel] += 1
        head = struct.pack('<HIQQ', channel, sequence, log_time, publish_time)
        self._chunk += struct.pack('<BQ', _MESSAGE, len(head) + len(data)) + head
        self._chunk += data
        if len(self._chunk) > _CHUNK_BYTES:
            self._end_chunk()

    def add_metadata(self, name: str, values: Mapping[str, str]) -> None:
        """Add facts about the file."""
        if self._chunk:
            self._end_chunk()
        start = self._at
        self._emit(_record(_METADATA, _text(name) + _mapping(values)))
        index = struct.pack('<QQ', start, self._at - start) + _text(name)
        self._metadata_indexes.append(_record(_METADATA_INDEX, index))

    def close(self) -> None:
        """Write the summary and the end of the file; call it once, at the end."""
        if self._chunk:
            self._end_chunk()
        self._emit(_record(_DATA_END, struct.pack('<I', self._crc)))
        start, self._crc = self._at, 0
        offsets = b''
        for code, records in (
            (_SCHEMA, self._described),
            (_CHANNEL, self._channels),
            (_STATISTICS, [self._statistics()]),
            (_METADATA_INDEX, self._metadata_indexes),
            (_CHUNK_INDEX, self._chunk_indexes),
        ):
            group = self._at
            for record in records:
                self._emit(record)
            if records:
                place = struct.pack('<BQQ', code, group, self._at - group)
                offsets += _record(_SUMMARY_OFFSET, place)
        offsets_start = self._at
        self._emit(offsets)
        self._emit(struct.pack('<BQQQ', _FOOTER, 20, start, offsets_start))
        self._emit(struct.pack('<I', self._crc) + MAGIC)

    def _statistics(self) -> bytes:
        counts = b''.join(struct.pack('<HQ', *pair) for pair in enumerate(self._counts))
        return _record(
            _STATISTICS,
            struct.pack(
                '<QHIIIIQQI',
                sum(self._counts),
                len(self._described),
                len(self._channels),
                0,
                len(self._metadata_indexes),
                len(self._chunk_indexes),
                self._first,
                self._last,
                len(counts),
            )
            + counts,
        )

    def _end_chunk(self) -> None:
        times = [time for entries in self._in_chunk.values() for time, _ in entries] or [0]
        span = struct.pack('<QQ', min(times), max(times))
        size, start = len(self._chunk), self._at
        head = span + struct.pack('<QI', size, zlib.crc32(self._chunk)) + _text('')
        head += struct.pack('<Q', size)
        self._emit(struct.pack('<BQ', _CHUNK, len(head) + size) + head)
        self._emit(self._chunk)
        end, places = self._at, b''
        for channel, entries in self._in_chunk.items():
            places += struct.pack('<HQ', channel, self._at)
            body = b''.join(struct.pack('<QQ', *entry) for entry in entries)
            index = struct.pack('<HI', channel, len(body)) + body
            self._emit(_record(_MESSAGE_INDEX, index))
        body = span + struct.pack('<QQI', start, end - start, len(places)) + places
        body += struct.pack('<Q', self._at - end) + _text('') + struct.pack('<QQ', size, size)
        self._chunk_indexes.append(_record(_CHUNK_INDEX, body))
        self._chunk, self._in_chunk = bytearray(), {}

    def _emit(self, data: bytes | bytearray) -> None:
        self._stream.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._at += len(data)


def _record(code: int, body: bytes) -> bytes:
    return struct.pack('<BQ', code, len(body)) + body


def _text(text: str) -> bytes:
    # A message can hold surrogates, which are not valid UTF-8.
    data = text.encode('utf-8', 'replace')
    return struct.pack('<I', len(data)) + data


def _mapping(values: Mapping[str, str]) -> bytes:
    body = b''.join(_text(key) + _text(value) for key, value in values.items())
    return struct.pack('<I', len(body)) + body
