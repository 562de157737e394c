# SPDX-License-Identifier: Apache-2.0
"""Reads one .db3 file (SQLite), read-only."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from safe_training.recordings.errors import COPY_AGAIN, CutError, DumpError
from safe_training.recordings.untrusted.bag_budget import Budget, Message, Topic

#: A journal with other first bytes is finished and empty.
_JOURNAL_MAGIC = bytes.fromhex('d9d505f920a163d7')


class SqliteFile:
    """One sqlite3 file with the tables of any version of rosbag2, opened read-only.

    Parameters
    ----------
    file, name : Path
        The file, and its name in messages.
    whole : bool
        If True, an incomplete file is refused at once. If False, :meth:`messages` yields the
        readable messages and then raises CutError.
    scratch : Path, optional
        An empty folder, needed if ``whole`` is False: sqlite3 would read the missing part of a cut
        page as zeros. Therefore only complete pages are copied to this folder and read.
    """

    def __init__(
        self, file: Path, name: Path, whole: bool = True, scratch: Path | None = None
    ) -> None:
        self.name = name
        self._file = file
        size = file.stat().st_size
        self.budget = Budget(name, size)
        with file.open('rb') as stream:
            header = stream.read(100)
        if len(header) < 100:
            raise CutError(
                where=str(name),
                expected='a complete sqlite3 database',
                found=f'an incomplete file of {size} bytes',
                advice=COPY_AGAIN,
            )
        (page,), (pages,) = struct.unpack('>H', header[16:18]), struct.unpack('>I', header[28:32])
        size_of_page = 65536 if page == 1 else page
        expected = size_of_page * pages
        self._cut = None
        if size < expected:
            self._cut = CutError(
                where=str(name),
                expected=f'{expected} bytes, the size in the header of the file',
                found=f'{size} bytes',
                advice=f'{COPY_AGAIN}, or read the part before the cut with --skip-bad',
            )
            if whole or scratch is None:
                raise self._cut
        self._refuse_logs(file, name)
        if self._cut is not None and scratch is not None and size_of_page and size % size_of_page:
            self._file = scratch / f'pages-{file.name}'
            shutil.copyfile(file, self._file)
            os.truncate(self._file, size - size % size_of_page)

    def _refuse_logs(self, file: Path, name: Path) -> None:
        """Refuse a recording of a killed recorder until sqlite3 has brought it up to date."""
        journal = file.with_name(f'{file.name}-journal')
        if journal.is_file():
            with journal.open('rb') as stream:
                started = stream.read(8) == _JOURNAL_MAGIC
            if started:
                raise DumpError(
                    where=str(journal),
                    expected='no journal beside a complete recording',
                    found=f'a journal of {journal.stat().st_size} bytes, because the recorder was '
                    'killed while it wrote',
                    advice='take the incomplete write back with: '
                    f'sqlite3 {shlex.quote(str(name))} "SELECT count(*) FROM messages"',
                )
        log = file.with_name(f'{file.name}-wal')
        if log.is_file() and log.stat().st_size:
            raise DumpError(
                where=str(log),
                expected='no log file beside a complete recording',
                found=f'a log file of {log.stat().st_size} bytes, because the recorder was killed',
                advice='copy the messages of the log file into the recording with: '
                f'sqlite3 {shlex.quote(str(name))} "PRAGMA wal_checkpoint(TRUNCATE)"',
            )

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        place = f'file:{quote(str(self._file.resolve()))}?mode=ro&immutable=1'
        try:
            with closing(sqlite3.connect(place, uri=True)) as connection:
                connection.execute('PRAGMA trusted_schema=OFF')
                if self._cut is not None:
                    # Without this, sqlite3 does not read a file that is shorter than its header
                    # states. The file cannot be changed, because it is opened read-only.
                    connection.execute('PRAGMA writable_schema=ON')
                self._check_tables(connection)
                yield connection
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            if self._cut is not None:
                raise self._cut from None
            raise CutError(
                where=str(self.name),
                expected='the tables of rosbag2',
                found=f'the error: {str(error)[:160]}',
                advice=f'{COPY_AGAIN}, or read the part before the damage with --skip-bad',
            ) from None

    def _check_tables(self, connection: sqlite3.Connection) -> None:
        # A view or a computed column is code of the author of the file, so it is refused.
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
                    where=str(self.name),
                    expected=f'a plain table {table!r} of rosbag2',
                    found='a view or a table with computed columns'
                    if kinds
                    else 'no table with this name',
                    advice='the file is not a rosbag2 recording: give another file',
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
        """Yield the messages of some types; raises DumpError if the file is damaged."""
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
                        where=str(self.name),
                        expected='messages with a time and bytes',
                        found='a row with different types',
                        advice=COPY_AGAIN,
                    )
                self.budget.spend(len(data))
                yield Message(topics[number], time, data)
        if self._cut is not None:
            raise self._cut
