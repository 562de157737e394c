# SPDX-License-Identifier: Apache-2.0
"""The messages of a rosbag2 recording, from mcap or sqlite3 files, whole or refused.

A recording may come from anywhere, so nothing here believes a length before it has been held
against the file: no record reaches past the end, nothing unpacks to more than a bounded multiple of
the file, and no message definition found in a bag becomes code. That is why the storage is read
here, while the rosbags library, which believes lengths, is given single messages (bag_messages) and
what we write ourselves (bags).
"""

from __future__ import annotations

import mmap
import sqlite3
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import lz4.frame
from backports import zstd

from safe_training.unpickle import DumpError

METADATA = 'metadata.yaml'
INFORMATION = 'rosbag2_bagfile_information'
SUFFIXES = ('.mcap', '.db3')

MCAP_MAGIC = b'\x89MCAP0\r\n'
SQLITE_MAGIC = b'SQLite format 3\x00'
_MAGICS = {'.mcap': MCAP_MAGIC, '.db3': SQLITE_MAGIC}
_STORAGES = {'mcap': '.mcap', 'sqlite3': '.db3'}

#: A metadata file names topics and files; ours also holds some 100 bytes for each episode.
_MAX_METADATA_BYTES = 16 << 20
#: A chunk holds about 1 MB, or one message if that is larger.
_MAX_CHUNK_BYTES = 64 << 20
#: All that is unpacked from a file: this much anyway, and this multiple of its size.
_FREE_BYTES = 64 << 20
_MAX_RATIO = 256
_COPY_BYTES = 1 << 20

_AGAIN = 'copy the file again, or mend the recording with: ros2 bag reindex'


class Topic(NamedTuple):
    """A topic; ``encoding`` is that of its embedded definition, empty where there is none."""

    name: str
    type: str
    encoding: str
    definition: str


class Message(NamedTuple):
    """One recorded message; ``time`` is when it was recorded [ns]."""

    topic: Topic
    time: int
    data: bytes | memoryview


@dataclass
class Bag:
    """An opened recording; see :func:`open_bag`.

    Attributes
    ----------
    path : Path
        The folder or file.
    why : str
        What showed that it is a recording.
    files : list of Path
        Its storage files, in order.
    compression : str
        ``file``, ``message`` or empty, of the whole recording; chunks of mcap have their own.
    stated : dict of str to int
        Number of messages of each type, as the metadata says; empty where there is none.
    custom : dict of str to str
        ``custom_data`` of the metadata.
    topics : list of Topic
        All topics, also those without a message; known once the messages have been read.
    """

    path: Path
    why: str
    files: list[Path]
    compression: str = ''
    stated: dict[str, int] = field(default_factory=dict)
    custom: dict[str, str] = field(default_factory=dict)
    topics: list[Topic] = field(default_factory=list)

    def messages(self, types: Collection[str]) -> Iterator[Message]:
        """Yield the messages of some types; time may run back by a little, as it was recorded.

        Raises
        ------
        DumpError
            A file is cut, damaged, or unpacks to more than a recording would.
        """
        counts: Counter[str] = Counter()
        for file in self.files:
            with self._opened(file) as storage:
                for message in storage.messages(types):
                    counts[message.topic.type] += 1
                    if self.compression == 'message':
                        data = storage.budget.unpack_zstd(message.data)
                        message = message._replace(data=data)
                    yield message
                self.topics += [topic for topic in storage.topics() if topic not in self.topics]
        for name in types:
            if counts[name] < self.stated.get(name, 0):
                raise DumpError(
                    f'{self.path}: expected {self.stated[name]} messages of type {name} as '
                    f'{METADATA} says, found {counts[name]}; {_AGAIN}'
                )

    @contextmanager
    def _opened(self, file: Path) -> Iterator[_McapFile | _SqliteFile]:
        with tempfile.TemporaryDirectory() as folder:
            plain = file
            if self.compression == 'file':
                plain = Path(folder, file.stem)
                _unpack_file(file, plain)
            with plain.open('rb') as stream:
                magic = stream.read(16)
            if magic[:8] == MCAP_MAGIC:
                yield _McapFile(plain, file)
            elif magic == SQLITE_MAGIC:
                yield _SqliteFile(plain, file)
            else:
                raise DumpError(
                    f'{file}: expected a recording in mcap or sqlite3, found '
                    f'{"an empty file" if not magic else "other bytes"}; {_AGAIN}'
                )


class _Budget:
    """How much may still be unpacked from one file."""

    def __init__(self, name: Path, size: int) -> None:
        self.name = name
        self.left = _FREE_BYTES + _MAX_RATIO * size

    def spend(self, amount: int) -> None:
        self.left -= amount
        if amount > _MAX_CHUNK_BYTES or self.left < 0:
            raise DumpError(
                f'{self.name}: expected a recording, found a file that unpacks to far more than '
                'recordings do; it was made to fill the memory'
            )

    def unpack_zstd(self, data: bytes | memoryview) -> bytes:
        limit = min(self.left, _MAX_CHUNK_BYTES)
        try:
            unpacker = zstd.ZstdDecompressor()
            out = unpacker.decompress(data, limit + 1)
            self.spend(len(out))
            if not unpacker.eof or unpacker.unused_data:
                raise zstd.ZstdError('the compressed data does not end where it should')
        except zstd.ZstdError as error:
            raise DumpError(f'{self.name}: expected zstd data, found {error}; {_AGAIN}') from None
        return out

    def unpack_lz4(self, data: bytes | memoryview) -> bytes:
        limit = min(self.left, _MAX_CHUNK_BYTES)
        try:
            unpacker = lz4.frame.LZ4FrameDecompressor()
            out: bytes = unpacker.decompress(data, max_length=limit + 1)
            self.spend(len(out))
            if not unpacker.eof or unpacker.unused_data:
                raise RuntimeError('the compressed data does not end where it should')
        except (RuntimeError, EOFError) as error:
            raise DumpError(f'{self.name}: expected lz4 data, found {error}; {_AGAIN}') from None
        return out


def _unpack_file(file: Path, plain: Path) -> None:
    budget = _Budget(file, file.stat().st_size)
    try:
        with zstd.open(file, 'rb') as packed, plain.open('wb') as out:
            while block := packed.read(_COPY_BYTES):
                budget.spend(len(block))
                out.write(block)
    except (zstd.ZstdError, EOFError) as error:
        raise DumpError(f'{file}: expected zstd data, found {error}; {_AGAIN}') from None


# -- which files


def detect_bag(path: Path) -> str | None:
    """Say why ``path`` is a recording; None if it is not. Reads names and first bytes only."""
    if path.is_dir():
        metadata = path / METADATA
        if metadata.is_file():
            with metadata.open('rb') as stream:
                if INFORMATION.encode() in stream.read(1 << 16):
                    return f'holds {METADATA} of rosbag2'
        names = sorted(entry.name for entry in path.iterdir())
        storage = [name for name in names if name.removesuffix('.zstd').endswith(SUFFIXES)]
        return f'holds {storage[0]}' if storage else None
    if not path.is_file():
        return None  # a pipe would be waited for
    if path.name.removesuffix('.zstd').endswith(SUFFIXES):
        return f'is named *{path.suffix}'
    with path.open('rb') as stream:
        magic = stream.read(8)
    if magic == MCAP_MAGIC:
        return 'begins as an mcap file does'
    return 'begins as a sqlite3 file does' if magic == SQLITE_MAGIC[:8] else None


def open_bag(path: Path) -> Bag:
    """Open a recording: a folder with ``metadata.yaml``, or one ``.mcap`` or ``.db3`` file.

    Raises
    ------
    DumpError
        Metadata or a storage file is missing or broken, or uses what is not supported.
    """
    why = detect_bag(path)
    if why is None:
        raise DumpError(f'{path}: expected a rosbag2 recording, found none')
    if not path.is_dir():
        return _open_file(path, why)
    if not (path / METADATA).is_file():
        raise DumpError(
            f'{path / METADATA}: expected the metadata of a recording ({why}), found none; make '
            'it with: ros2 bag reindex, or give the storage file itself'
        )
    if (path / METADATA).stat().st_size > _MAX_METADATA_BYTES:
        raise DumpError(f'{path / METADATA}: expected at most {_MAX_METADATA_BYTES} bytes')
    try:
        text = (path / METADATA).read_text(encoding='utf-8')
    except ValueError as error:
        raise DumpError(f'{path / METADATA}: expected text, found {error}') from None
    bag = Bag(path, why, [])
    _read_metadata(bag, path / METADATA, text)
    return bag


def _open_file(path: Path, why: str) -> Bag:
    compression = 'file' if path.suffix == '.zstd' else ''
    bag = Bag(path, why, [path], compression)
    with bag._opened(path) as storage:
        if isinstance(storage, _McapFile) and (text := storage.metadata()):
            _read_metadata(bag, path, text)
    # The metadata is that of the whole recording, of which this may be one of several files.
    bag.files, bag.stated = [path], {}
    if compression or bag.compression == 'file':
        bag.compression = compression
    return bag


def _read_metadata(bag: Bag, file: Path, text: str) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ='safe').load(text)
    # A parser of forged text may fail in more ways than it documents.
    except (YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise DumpError(f'{file}: expected YAML of rosbag2, found {reason}; {_AGAIN}') from None
    # Inside an mcap file the outermost key is left out.
    information = content.get(INFORMATION, content) if isinstance(content, dict) else None
    try:
        _take_metadata(bag, file, information)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DumpError):
            raise
        raise DumpError(
            f'{file}: expected the metadata of rosbag2, found {type(error).__name__}: '
            f'{str(error)[:160]}; {_AGAIN}'
        ) from None


def _take_metadata(bag: Bag, file: Path, information: Any) -> None:
    storage = information['storage_identifier']
    if storage not in _STORAGES:
        raise DumpError(f'{file}: expected storage mcap or sqlite3, found {str(storage)[:40]!r}')
    mode = str(information.get('compression_mode') or '').lower()
    form = str(information.get('compression_format') or '').lower()
    packed = mode in ('file', 'message')
    if mode not in ('', 'none') and (not packed or form != 'zstd'):
        raise DumpError(
            f'{file}: expected zstd compression of files or messages, found {form[:40]!r} of '
            f'{mode[:40]!r}'
        )
    bag.compression = mode if packed else ''
    for entry in information['topics_with_message_count']:
        name, count = entry['topic_metadata']['type'], entry['message_count']
        if type(name) is not str or type(count) is not int:
            raise TypeError('a topic without type and message_count')
        bag.stated[name] = bag.stated.get(name, 0) + count
    custom = information.get('custom_data') or {}
    bag.custom = {str(key): value for key, value in custom.items() if type(value) is str}
    names = information['relative_file_paths']
    if type(names) is not list or not names:
        raise TypeError('no relative_file_paths')
    for name in names:
        # Only the last part counts, as for ros2 bag: a recording holds its own files.
        place = bag.path / PurePosixPath(str(name)).name
        if bag.path.is_dir() and not place.is_file():
            raise DumpError(f'{place}: expected this file of the recording, found none; {_AGAIN}')
        bag.files.append(place)


# -- mcap


class _McapFile:
    """One mcap file, mapped and read from its first record to its last; the index is not needed."""

    def __init__(self, file: Path, name: Path) -> None:
        self.name = name
        with file.open('rb') as stream:
            self._data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        self.budget = _Budget(name, len(self._data))
        self._schemas: dict[int, tuple[str, str, str]] = {0: ('', '', '')}
        self._channels: dict[int, Topic] = {}
        end = len(self._data) - len(MCAP_MAGIC)
        if end < 8 + 9 + 9 + 20 or bytes(self._data[end:]) != MCAP_MAGIC:
            raise self._cut('the end of an mcap file', 'none: the file is cut or was never closed')

    def _cut(self, expected: str, found: str) -> DumpError:
        return DumpError(f'{self.name}: expected {expected}, found {found}; {_AGAIN}')

    def topics(self) -> list[Topic]:
        """Return the topics that were met so far."""
        return list(self._channels.values())

    def metadata(self) -> str:
        """Return the YAML that rosbag2 keeps inside the file; empty if there is none."""
        for code, record in self._records(self._data[8 : len(self._data) - 8]):
            if code == 0x0C:
                name, at = self._text(record, 0)
                if name != 'rosbag2':
                    continue
                length, at = self._number(record, at, 4)
                key, at = self._text(record, at)
                value, _ = self._text(record, at)
                if key == 'serialized_metadata' and length <= _MAX_METADATA_BYTES:
                    return value
        return ''

    def messages(self, types: Collection[str]) -> Iterator[Message]:
        seen, stated, last = 0, None, 0
        for code, record in self._records(self._data[8 : len(self._data) - 8]):
            last = code
            if code == 0x06:
                for inner, part in self._records(self._chunk(record)):
                    seen += inner == 0x05
                    yield from self._take(inner, part, types)
            elif code == 0x0B:
                stated, _ = self._number(record, 0, 8)
            else:
                seen += code == 0x05
                yield from self._take(code, record, types)
        if last != 0x02:
            raise self._cut('a footer at the end', 'none')
        if stated is not None and stated != seen:
            raise self._cut(f'{stated} messages as its statistics say', str(seen))

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
                raise self._cut('a message of a known channel', f'one of channel {number}')
            if topic.type in types:
                yield Message(topic, time, record[22:])

    def _take_channel(self, record: memoryview) -> None:
        number, at = self._number(record, 0, 2)
        schema, at = self._number(record, at, 2)
        topic, at = self._text(record, at)
        encoding, _ = self._text(record, at)
        if schema not in self._schemas:
            raise self._cut(f'a schema {schema} of topic {topic[:200]!r}', 'none')
        found = Topic(topic, *self._schemas[schema])
        if encoding != 'cdr':
            # Another program's topic in the same file; none of ours.
            found = found._replace(type=f'{found.type} in {encoding[:40]!r}')
        if self._channels.setdefault(number, found) != found:
            raise self._cut(f'one channel {number}', 'two')

    def _chunk(self, record: memoryview) -> memoryview:
        size, _ = self._number(record, 16, 8)
        crc, _ = self._number(record, 24, 4)
        compression, at = self._text(record, 28)
        length, at = self._number(record, at, 8)
        packed = record[at:]
        if len(packed) != length:
            raise self._cut(f'a chunk of {length} bytes', str(len(packed)))
        if compression == '':
            data = packed
        elif compression == 'zstd':
            data = memoryview(self.budget.unpack_zstd(packed))
        elif compression == 'lz4':
            data = memoryview(self.budget.unpack_lz4(packed))
        else:
            raise self._cut('chunks in zstd or lz4', repr(compression[:40]))
        if len(data) != size:
            raise self._cut(f'a chunk that unpacks to {size} bytes', str(len(data)))
        if crc and zlib.crc32(data) != crc:
            raise self._cut(f'a chunk with checksum {crc}', str(zlib.crc32(data)))
        return data

    def _records(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        at = 0
        while at < len(data):
            head = data[at : at + 9]
            length = int.from_bytes(head[1:], 'little') if len(head) == 9 else 0
            at += 9
            # Code 0 stands for nothing: a run of zeros is no run of records.
            if len(head) != 9 or at + length > len(data) or head[0] == 0:
                raise self._cut(f'a record of {length} bytes', f'{max(0, len(data) - at)} bytes')
            yield head[0], data[at : at + length]
            at += length

    def _number(self, record: memoryview, at: int, size: int) -> tuple[int, int]:
        part = record[at : at + size]
        if len(part) != size:
            raise self._cut('a whole record', 'a short one')
        return int.from_bytes(part, 'little'), at + size

    def _text(self, record: memoryview, at: int) -> tuple[str, int]:
        length, at = self._number(record, at, 4)
        part = record[at : at + length]
        if len(part) != length:
            raise self._cut(f'a text of {length} bytes', f'{len(part)} bytes')
        try:
            return str(part, 'utf-8'), at + length
        except UnicodeDecodeError:
            raise self._cut('a text in UTF-8', 'other bytes') from None


# -- sqlite3


class _SqliteFile:
    """One sqlite3 file, of any version of rosbag2's tables; opened read-only."""

    def __init__(self, file: Path, name: Path) -> None:
        self.name = name
        self._file = file
        size = file.stat().st_size
        self.budget = _Budget(name, size)
        with file.open('rb') as stream:
            header = stream.read(100)
        if len(header) < 100:
            raise DumpError(f'{name}: expected a sqlite3 database, found a cut one; {_AGAIN}')
        (page,), (pages,) = struct.unpack('>H', header[16:18]), struct.unpack('>I', header[28:32])
        expected = (65536 if page == 1 else page) * pages
        if size < expected:
            raise DumpError(f'{name}: expected {expected} bytes, found {size}; {_AGAIN}')
        log = file.with_name(f'{file.name}-wal')
        if log.is_file() and log.stat().st_size:
            raise DumpError(
                f'{log}: expected no log beside a finished recording, found one; the recorder was '
                f'stopped hard: open {name.name} with sqlite3 once, to put its messages in place'
            )

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        place = f'file:{quote(str(self._file.resolve()))}?mode=ro&immutable=1'
        try:
            with closing(sqlite3.connect(place, uri=True)) as connection:
                connection.execute('PRAGMA trusted_schema=OFF')
                self._check_tables(connection)
                yield connection
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise DumpError(
                f'{self.name}: expected the tables of rosbag2, found {str(error)[:160]}; {_AGAIN}'
            ) from None

    def _check_tables(self, connection: sqlite3.Connection) -> None:
        # Views and computed columns would be programs of whoever made the file.
        for table in ('topics', 'messages', 'message_definitions'):
            kinds = connection.execute(
                'SELECT type, sql FROM sqlite_master WHERE name = ?', (table,)
            ).fetchall()
            if not kinds and table == 'message_definitions':
                continue
            columns = connection.execute(f'PRAGMA table_xinfo({table})').fetchall()
            plain = [kind for kind, _ in kinds] == ['table'] and not any(c[6] for c in columns)
            if not plain or 'VIRTUAL' in str(kinds[0][1]).upper().split('(')[0]:
                raise DumpError(
                    f'{self.name}: expected a plain table {table!r} of rosbag2, found '
                    f'{"none" if not kinds else "something else"}; this is no recording'
                )

    def topics(self) -> list[Topic]:
        """Return all topics."""
        with self._connected() as connection:
            return list(self._topics(connection).values())

    def _topics(self, connection: sqlite3.Connection) -> dict[int, Topic]:
        definitions = {}
        if connection.execute('PRAGMA table_info(message_definitions)').fetchall():
            definitions = {
                str(name): (str(encoding), str(text))
                for name, encoding, text in connection.execute(
                    'SELECT topic_type, encoding, encoded_message_definition '
                    'FROM message_definitions'
                )
            }
        rows = connection.execute('SELECT id, name, type, serialization_format FROM topics')
        return {
            number: Topic(
                str(topic),
                str(kind) if form == 'cdr' else f'{kind} in {str(form)[:40]!r}',
                *definitions.get(str(kind), ('', '')),
            )
            for number, topic, kind, form in rows
        }

    def messages(self, types: Collection[str]) -> Iterator[Message]:
        with self._connected() as connection:
            topics = self._topics(connection)
            wanted = [number for number, topic in topics.items() if topic.type in types]
            rows = connection.execute(
                'SELECT topic_id, timestamp, data FROM messages '
                f'WHERE topic_id IN ({",".join("?" * len(wanted))}) ORDER BY id',
                wanted,
            )
            for number, time, data in rows:
                if type(time) is not int or type(data) is not bytes:
                    raise DumpError(
                        f'{self.name}: expected messages with time and bytes, found another row; '
                        f'{_AGAIN}'
                    )
                self.budget.spend(len(data))
                yield Message(topics[number], time, data)
