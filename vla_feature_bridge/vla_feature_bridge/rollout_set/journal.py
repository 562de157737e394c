# SPDX-License-Identifier: Apache-2.0
"""The journal of an incomplete rollout set.

The journal lists the finished entries, so that the work can continue.

The first line identifies the work: source and options. Every other line is one entry. The line of
an entry is written after the arrays of the entry. An entry is ``{'row': ...}`` with a row of the
index, or ``{'left_out': ...}`` with a message.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from vla_feature_bridge.atomic import names_file
from vla_feature_bridge.rollout_set.index import COLUMNS, LATER_COLUMNS
from vla_feature_bridge.rollout_set.layout import ARRAY_FILE, ARRAYS, JOURNAL, RolloutSetError


class Journal:
    """The open journal of one folder.

    The journal is locked: no other process can open the journal until it is closed.

    Parameters
    ----------
    folder : Path
        Folder of the incomplete set. Its arrays are deleted if the journal belongs to different
        work.
    work : str
        Identifier of the work: source and options.

    Attributes
    ----------
    entries : list of dict
        Finished entries of an interrupted writer of the same work, in order.

    Raises
    ------
    RolloutSetError
        Another process has the journal open.
    """

    def __init__(self, folder: Path, work: str) -> None:
        self._folder = folder
        self._file = (folder / JOURNAL).open('a+', encoding='utf-8')
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise RolloutSetError(
                where=str(folder),
                expected='only one process that writes this rollout set',
                found='another process that writes the same rollout set',
                advice='wait until the other process has finished, or choose another name',
            ) from None
        self.entries: list[dict[str, Any]] = []
        try:
            if not self._read(work):
                shutil.rmtree(folder / ARRAYS)
                (folder / ARRAYS).mkdir()
                self.note({'work': work})
        except BaseException:
            self.close()
            raise

    def note(self, entry: dict[str, Any]) -> None:
        """Add one entry."""
        with names_file(self._folder / JOURNAL):
            self._file.write(json.dumps(entry) + '\n')
            self._file.flush()

    def close(self) -> None:
        """Close the file; other processes can open it."""
        # If the disk is full, the last entry is still in a buffer and cannot be written either.
        with suppress(OSError):
            self._file.close()

    def _read(self, work: str) -> bool:
        """Read the valid lines and remove the rest.

        Return False if the journal belongs to different work.
        """
        self._file.seek(0)
        good = 0
        for line in iter(self._file.readline, ''):
            entry = _parsed(line)
            if entry is None:
                break
            if not good:
                if entry != {'work': work}:
                    break
            elif 'left_out' in entry:
                self.entries.append(entry)
            elif (row := self._complete_row(entry.get('row'))) is not None:
                self.entries.append({'row': row})
            else:
                break
            good = self._file.tell()
        self._file.seek(good)
        self._file.truncate()
        return good > 0

    def _complete_row(self, row: Any) -> dict[str, Any] | None:
        """Return the row with all columns; None if it is invalid or its array file is incomplete.

        A row of an older version lacks the later columns.
        """
        if type(row) is not dict:
            return None
        row = LATER_COLUMNS | row
        if set(row) != set(COLUMNS):
            return None
        if not all(type(row[name]) in kinds for name, kinds in COLUMNS.items()):
            return None
        if not ARRAY_FILE.fullmatch(row['arrays']):
            return None
        try:
            size = (self._folder / ARRAYS / row['arrays']).stat().st_size
        except OSError:
            return None
        return row if size == row['arrays_bytes'] else None


def _parsed(line: str) -> dict[str, Any] | None:
    """Return the entry of a line; None if the line was cut off or is something else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if line.endswith('\n') and type(entry) is dict else None
