# SPDX-License-Identifier: Apache-2.0
"""The folder of recordings: names, limits, and unfinished files of killed processes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vla_feature_bridge.atomic import replaced_file
from vla_feature_bridge.errors import SafeError

DELETE_OLDEST, REFUSE = 'delete_oldest', 'refuse'

_LOCK = '.black_box.lock'
_NOT_PLAIN = re.compile(r'[^A-Za-z0-9_-]+')
_LONGEST_ID = 40
_NAME = re.compile(r'\d{8}T\d{6}\.\d{3}Z_[A-Za-z0-9_-]+_[0-9a-f]{8}\.mcap')
_PARTIAL = re.compile(r'\.\d{8}T\d{6}\.\d{3}Z_[A-Za-z0-9_-]*\.[0-9a-f]{8}\.partial\.mcap')


class RecordingFolderError(SafeError):
    """A recording cannot be stored. The text contains the reason and an advice."""


@dataclass(frozen=True)
class Bounds:
    """Limits of the folder.

    Attributes
    ----------
    files : int
        Largest number of recordings.
    size : int
        Largest size of all recordings together [bytes].
    when_full : str
        :data:`DELETE_OLDEST` or :data:`REFUSE`.
    """

    files: int
    size: int
    when_full: str = DELETE_OLDEST


def recording_name(episode: str, when: float) -> str:
    """Return the file name of a new recording: time, episode, and a random part.

    Parameters
    ----------
    episode : str
        Any text. Characters other than ASCII letters, digits, ``_`` and ``-`` become ``_``, and a
        long id is cut.
    when : float
        Time of the alarm [s since 1970].
    """
    milliseconds = int(when * 1000)
    moment = time.strftime('%Y%m%dT%H%M%S', time.gmtime(milliseconds // 1000))
    plain = _NOT_PLAIN.sub('_', episode)[:_LONGEST_ID].strip('_') or 'episode'
    return f'{moment}.{milliseconds % 1000:03}Z_{plain}_{secrets.token_hex(4)}.mcap'


class RecordingFolder:
    """Stores recordings. It counts and deletes only files with names of recordings.

    A recording with a label file (``NAME.mcap.labels.csv``) is never deleted, because a person has
    labelled it.

    Parameters
    ----------
    path : Path
    bounds : Bounds

    Attributes
    ----------
    recordings : list of Path
        The recordings at the last look, the oldest first.
    size : int
        Size of these recordings [bytes].
    unfinished : list of Path
        Unfinished files of killed processes at the last look.
    deleted : int
        Number of recordings that were deleted for new ones.
    problem : str
        Why the last look failed; empty if it succeeded. After a failure, the lists are not updated.
    """

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.path, self._bounds = path, bounds
        self.recordings: list[Path] = []
        self.unfinished: list[Path] = []
        self.size = self.deleted = 0
        self.problem = ''
        self._lock: int | None = None

    def open(self) -> None:
        """Make the folder, and lock it against a second black box.

        Raises
        ------
        RecordingFolderError
            The folder cannot be written or listed, or another process uses it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems do not support locks.
            if self._lock is None or error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                self.close()
                raise self._refusal(error) from None
        try:
            self._must_look()
        except RecordingFolderError:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _refusal(self, error: OSError) -> RecordingFolderError:
        if error.errno == errno.EWOULDBLOCK:
            return RecordingFolderError(
                where=str(self.path),
                expected='a folder that no other black box uses',
                found='a black box that is running',
                advice='give each black box a folder of its own',
            )
        return RecordingFolderError(
            where=str(self.path),
            expected='a folder that can be written',
            found=_reason(error),
            advice='give another folder, or change its permissions',
        )

    def look(self) -> None:
        """List the files again. If this is not possible, `problem` says why."""
        recordings: list[Path] = []
        unfinished: list[Path] = []
        size = 0
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if _NAME.fullmatch(entry.name):
                        recordings.append(self.path / entry.name)
                    elif _PARTIAL.fullmatch(entry.name):
                        unfinished.append(self.path / entry.name)
                    else:
                        continue
                    size += _size(entry)
        except FileNotFoundError:
            pass  # A deleted folder has no files; the next recording makes it again.
        except OSError as error:
            self.problem = (
                f'{self.path}: expected a folder whose files can be listed, because '
                f'their number and size are limited, found {_reason(error)}; check the disk and '
                'the permissions of the folder'
            )
            return
        self.recordings, self.unfinished = sorted(recordings), sorted(unfinished)
        self.size, self.problem = size, ''

    def _must_look(self) -> None:
        self.look()
        if self.problem:
            raise RecordingFolderError(self.problem)

    def store(self, name: str, size: int, write: Callable[[BinaryIO], None]) -> Path:
        """Write a recording completely or not at all.

        Parameters
        ----------
        name : str
            As :func:`recording_name` returns it.
        size : int
            Minimum size of the file [bytes].
        write : callable
            Writes the file.

        Raises
        ------
        RecordingFolderError
            The folder is full or cannot be listed, or the file cannot be written.
        """
        self._must_look()
        self._make_room(size)
        path = self.path / name
        try:
            with replaced_file(path) as aside, aside.open('xb') as stream:
                write(stream)
        except OSError as error:
            raise RecordingFolderError(
                where=str(path),
                expected=f'{size / 1e6:.1f} MB that can be written',
                found=_reason(error),
                advice='the recording is lost; make room on the disk, or check the folder',
            ) from None
        finally:
            self.look()
        return path

    def _make_room(self, size: int) -> None:
        if size > self._bounds.size:
            raise self._full(
                f'a recording of {size / 1e6:.1f} MB',
                'increase max_folder_mb, or decrease seconds_before and memory_mb',
            )
        # Delete unfinished files first.
        candidates = [*self.unfinished, *self.recordings]
        while len(self.recordings) >= self._bounds.files or self.size + size > self._bounds.size:
            if self._bounds.when_full == REFUSE:
                raise self._full(self._found(), 'move recordings to another folder')
            victim = next((path for path in candidates if not _is_kept(path)), None)
            if victim is None:
                raise self._full(
                    f'{self._found()}, all with label files',
                    'move labelled recordings and their label files to another folder',
                )
            candidates.remove(victim)
            try:
                victim.unlink(missing_ok=True)
            except OSError as error:
                raise RecordingFolderError(
                    where=str(victim),
                    expected='to delete the oldest recording, because the folder is full',
                    found=_reason(error),
                    advice='the new recording is lost; check the permissions of the folder',
                ) from None
            self.deleted += victim in self.recordings
            self._must_look()

    def _found(self) -> str:
        return f'{len(self.recordings)} recordings with {self.size / 1e6:.1f} MB'

    def _full(self, found: str, advice: str) -> RecordingFolderError:
        limit = f'at most {self._bounds.files} recordings and {self._bounds.size / 1e6:g} MB'
        return RecordingFolderError(
            where=str(self.path),
            expected=f'{limit} together with the new recording',
            found=found,
            advice=f'the new recording is lost; {advice}',
        )


def _is_kept(path: Path) -> bool:
    """Return True if a recording has another file with its name, for example a label file."""
    return any(path.parent.glob(f'{path.name}.*'))


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # deleted a moment ago
        return 0


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
