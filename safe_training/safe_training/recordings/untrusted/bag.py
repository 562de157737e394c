# SPDX-License-Identifier: Apache-2.0
"""Reads the messages of a rosbag2 recording from mcap or sqlite3 files, completely or up to a cut.

A recording can come from an untrusted source. Therefore every length is compared with the file
before the length is used. A record must not end after the end of the file. The unpacked size is
limited to a multiple of the file size. No message definition in a recording becomes code. The
rosbags library does not check lengths. Therefore this module reads the storage, and the library
gets only single messages (``cdr``) and our own recordings (``write_bag``).
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from backports import zstd

from safe_training.recordings.errors import COPY_AGAIN, CutError, DumpError
from safe_training.recordings.untrusted.bag_budget import (
    COPY_BYTES,
    MAX_METADATA_BYTES,
    MCAP_MAGIC,
    SQLITE_MAGIC,
    ZSTD_MAGIC,
    Budget,
    Message,
    Topic,
)
from safe_training.recordings.untrusted.foreign_file import begins_with, foreign_kind_of
from safe_training.recordings.untrusted.mcap_file import McapFile
from safe_training.recordings.untrusted.sqlite_file import SqliteFile
from safe_training.recordings.untrusted.text_file import read_text

METADATA = 'metadata.yaml'
INFORMATION = 'rosbag2_bagfile_information'
SUFFIXES = ('.mcap', '.db3')
_MAGICS = {'.mcap': MCAP_MAGIC, '.db3': SQLITE_MAGIC}
_STORAGES = {'mcap': '.mcap', 'sqlite3': '.db3'}
_METADATA_AGAIN = f'{COPY_AGAIN}, or make the metadata again with: ros2 bag reindex FOLDER'


@dataclass
class Bag:
    """An opened recording; see :func:`open_bag`.

    Attributes
    ----------
    path : Path
        The folder or file.
    why : str
        Reason why the path was recognised as a recording.
    files : list of Path
        The storage files, in order.
    stated : dict of str to int
        Number of messages of each type according to the metadata; empty if there is none.
    custom : dict of str to str
        ``custom_data`` of the metadata.
    topics : list of Topic
        All topics, including topics without a message; known after the messages have been read.
    whole : bool
        If True, a recording that is cut, damaged or incomplete is refused. If False, it is read up
        to the damage.
    losses : list of str
        One message for each part that could not be read, in the order of the files; complete after
        the messages have been read.
    """

    path: Path
    why: str
    files: list[Path]
    stated: dict[str, int] = field(default_factory=dict)
    custom: dict[str, str] = field(default_factory=dict)
    topics: list[Topic] = field(default_factory=list)
    whole: bool = True
    losses: list[str] = field(default_factory=list)
    #: Errors of cut compressed files by name: they explain the cut of the storage inside.
    _cuts: dict[str, CutError] = field(default_factory=dict)

    def messages(self, types: Collection[str]) -> Iterator[Message]:
        """Yield the messages of some types in recorded order.

        Their time stamps can decrease slightly.

        Raises
        ------
        DumpError
            A file is incomplete or damaged, or its unpacked size is too large.
        """
        counts: Counter[str] = Counter()
        for file in self.files:
            try:
                for message in self._messages_of(file, types):
                    counts[message.topic.type] += 1
                    yield message
            except CutError as error:
                self.lose(error)
        for name in types:
            if counts[name] < self.stated.get(name, 0) and not self.losses:
                missing = CutError(
                    where=str(self.path),
                    expected=f'{self.stated[name]} messages of type {name}, the number in '
                    f'{METADATA}',
                    found=f'{counts[name]} messages',
                    advice=_METADATA_AGAIN,
                )
                self.lose(missing)

    def _messages_of(self, file: Path, types: Collection[str]) -> Iterator[Message]:
        with self._opened(file) as storage:
            for message in storage.messages(types):
                # The metadata may be lost or old. A message without compression begins with 0.
                if bytes(message.data[:4]) == ZSTD_MAGIC:
                    data = storage.budget.unpack_zstd(message.data)
                    message = message._replace(data=data)
                yield message
            self.topics += [topic for topic in storage.topics() if topic not in self.topics]

    def lose(self, error: DumpError) -> None:
        """Store the error as a loss; raise it if the recording must be complete."""
        error = self._cuts.get(error.where, error)
        if self.whole:
            raise error
        if str(error) not in self.losses:
            self.losses.append(str(error))

    @contextmanager
    def _opened(self, file: Path) -> Iterator[McapFile | SqliteFile]:
        with tempfile.TemporaryDirectory() as folder:
            plain, magic = file, _magic_of(file)
            # The compression is found by content: the metadata may be old, and a person may have
            # unpacked the file.
            if magic[:4] == ZSTD_MAGIC:
                plain = Path(folder, file.stem)
                try:
                    _unpack_file(file, plain)
                except CutError as error:
                    if self.whole:
                        raise
                    # The storage that was unpacked so far is read.
                    self._cuts[str(file)] = error
                magic = _magic_of(plain)
            if magic[:8] == MCAP_MAGIC:
                yield McapFile(plain, file, self.whole)
            elif magic == SQLITE_MAGIC:
                yield SqliteFile(plain, file, self.whole, Path(folder))
            else:
                found, advice = foreign_kind_of(plain) or (begins_with(magic), COPY_AGAIN)
                raise CutError(
                    where=str(file),
                    expected='a recording in the format mcap or sqlite3',
                    found=found,
                    advice=advice,
                )


def _magic_of(file: Path) -> bytes:
    with file.open('rb') as stream:
        return stream.read(16)


def _unpack_file(file: Path, plain: Path) -> None:
    budget = Budget(file, file.stat().st_size)
    try:
        with file.open('rb') as packed, plain.open('wb') as out:
            for block in _unpacked(packed):
                budget.spend(len(block))
                out.write(block)
    except (zstd.ZstdError, EOFError) as error:
        raise CutError(
            where=str(file),
            expected='complete zstd data',
            found=f'the error: {error}',
            advice=f'{COPY_AGAIN}, or read the part before the cut with --skip-bad',
        ) from None


def _unpacked(packed: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of zstd frames up to the first error, then raise the error."""
    unpacker = zstd.ZstdDecompressor()
    while data := packed.read(COPY_BYTES):
        while data or not (unpacker.needs_input or unpacker.eof):
            if unpacker.eof:
                unpacker = zstd.ZstdDecompressor()
            yield unpacker.decompress(data, COPY_BYTES)
            data = unpacker.unused_data if unpacker.eof else b''
    if not unpacker.eof:
        raise EOFError('the compressed data ends before its end marker')


# -- which files


def detect_bag(path: Path) -> str | None:
    """Return the reason why ``path`` is recognised as a recording; None if it is not a recording.

    Only names and first bytes are read.
    """
    if path.is_dir():
        metadata = path / METADATA
        if metadata.is_file():
            with metadata.open('rb') as stream:
                if INFORMATION.encode() in stream.read(1 << 16):
                    return f'contains {METADATA} of rosbag2'
        # Hidden files belong to the system: macOS writes ._NAME for NAME.
        names = sorted(e.name for e in path.iterdir() if not e.name.startswith('.'))
        storage = [name for name in names if _without_zstd(name).endswith(SUFFIXES)]
        return f'contains {storage[0]}' if storage else None
    if not path.is_file():
        return None  # opening a pipe would block
    if _without_zstd(path.name).endswith(SUFFIXES):
        return f'the name ends in {path.suffix}'
    with path.open('rb') as stream:
        magic = stream.read(8)
    if magic == MCAP_MAGIC:
        return 'begins like an mcap file'
    return 'begins like a sqlite3 file' if magic == SQLITE_MAGIC[:8] else None


def _without_zstd(name: str) -> str:
    return name.removesuffix('.zstd').removesuffix('.zst')


def open_bag(path: Path, whole: bool = True) -> Bag:
    """Open a recording: a folder with ``metadata.yaml``, or one ``.mcap`` or ``.db3`` file.

    Parameters
    ----------
    path : Path
    whole : bool
        Refuse a recording that is cut or incomplete. If False, see :attr:`Bag.losses`.

    Raises
    ------
    DumpError
        Metadata or a storage file is missing, damaged, or of a kind that is not supported.
    """
    why = detect_bag(path)
    if why is None:
        raise DumpError(
            where=str(path),
            expected='a rosbag2 recording',
            found='a different format',
            advice='check the path',
        )
    if not path.is_dir():
        return _open_file(path, why, whole)
    bag = Bag(path, why, [], whole=whole)
    try:
        _read_metadata(bag, path / METADATA, _metadata_text(path, why))
    except DumpError as error:
        bag.lose(error)
        bag.stated, bag.custom = {}, {}
        bag.files = _storage_files(path)
    return bag


def _storage_files(folder: Path) -> list[Path]:
    """Return the storage files of a folder, ``run_2`` before ``run_10``."""
    names = [e.name for e in folder.iterdir() if not e.name.startswith('.') and e.is_file()]
    found = [name for name in names if _without_zstd(name).endswith(SUFFIXES)]
    return [folder / name for name in sorted(found, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r'(\d+)', name)
    return [(int(part), '') if part.isdecimal() else (-1, part) for part in parts if part]


def _metadata_text(path: Path, why: str) -> str:
    if not (path / METADATA).is_file():
        raise CutError(
            where=f'{path / METADATA}',
            expected=f'the metadata of a recording, because the folder {why}',
            found='no file',
            advice=f'make this file with: ros2 bag reindex {shlex.quote(str(path))}, or give the '
            'path of the mcap or db3 file instead of the folder, or read all files of the folder '
            'in the order of their names with --skip-bad',
        )
    return read_text(path / METADATA, MAX_METADATA_BYTES, 'the metadata of rosbag2')


def _open_file(path: Path, why: str, whole: bool) -> Bag:
    bag = Bag(path, why, [path], whole=whole)
    try:
        with bag._opened(path) as storage:
            if isinstance(storage, McapFile) and (text := storage.metadata()):
                _read_metadata(bag, path, text)
    except DumpError as error:
        bag.lose(error)
    # The metadata describes the whole recording; this file may be one of several.
    bag.files, bag.stated = [path], {}
    return bag


def _read_metadata(bag: Bag, file: Path, text: str) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ='safe').load(text)
    # For manipulated text, the YAML parser can raise undocumented exceptions.
    except (YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise DumpError(
            where=str(file),
            expected='the metadata of rosbag2 in YAML',
            found=f'text that is not YAML ({reason})',
            advice=_METADATA_AGAIN,
        ) from None
    # Inside an mcap file, the outermost key is missing.
    information = content.get(INFORMATION, content) if isinstance(content, dict) else None
    try:
        _take_metadata(bag, file, information)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DumpError):
            raise
        found = 'fields with other types'
        if isinstance(error, KeyError):
            found = f'no field {str(error)[:80]}'
        raise DumpError(
            where=str(file),
            expected='the metadata of rosbag2',
            found=found,
            advice=_METADATA_AGAIN,
        ) from None


def _take_metadata(bag: Bag, file: Path, information: Any) -> None:
    storage = information['storage_identifier']
    if storage not in _STORAGES:
        raise DumpError(
            where=str(file),
            expected='the storage mcap or sqlite3',
            found=f'the storage {str(storage)[:40]!r}',
            advice='convert the recording to mcap with: ros2 bag convert',
        )
    mode = str(information.get('compression_mode') or '').lower()
    form = str(information.get('compression_format') or '').lower()
    packed = mode in ('file', 'message')
    if mode not in ('', 'none') and (not packed or form != 'zstd'):
        raise DumpError(
            where=str(file),
            expected='no compression, or zstd compression of files or messages',
            found=f'the compression format {form[:40]!r} with the mode {mode[:40]!r}',
            advice='convert the recording to mcap with: ros2 bag convert',
        )
    for entry in information['topics_with_message_count']:
        name, count = entry['topic_metadata']['type'], entry['message_count']
        if type(name) is not str or type(count) is not int:
            raise DumpError(
                where=str(file),
                expected='a type and a message_count of each topic',
                found='other values',
                advice=_METADATA_AGAIN,
            )
        bag.stated[name] = bag.stated.get(name, 0) + count
    custom = information.get('custom_data') or {}
    bag.custom = {str(key): value for key, value in custom.items() if type(value) is str}
    names = information['relative_file_paths']
    if type(names) is not list or not names:
        raise DumpError(
            where=str(file),
            expected='a list of file names in relative_file_paths',
            found='no file name',
            advice=_METADATA_AGAIN,
        )
    for name in names:
        # Use only the file name, like ros2 bag: the files of a recording are in its folder.
        place = bag.path / PurePosixPath(str(name)).name
        place = _packed_or_unpacked(place)
        if bag.path.is_dir() and not place.is_file():
            lost = CutError(
                where=str(place),
                expected='this file, because the metadata of the recording contains this file name',
                found='no file',
                advice='copy the file from its source, or make the metadata again with: ros2 bag '
                f'reindex {shlex.quote(str(bag.path))}',
            )
            bag.lose(lost)
            continue
        bag.files.append(place)


def _packed_or_unpacked(place: Path) -> Path:
    """Return the file with or without the ending of zstd, because a person may have unpacked it."""
    if place.is_file():
        return place
    name = _without_zstd(place.name)
    others = [place.with_name(name + ending) for ending in ('', '.zstd', '.zst')]
    return next((other for other in others if other.is_file()), place)
