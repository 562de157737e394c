# SPDX-License-Identifier: Apache-2.0
"""Lists the files of a dump in a fixed order, and excludes files and folders of systems.

All readers use the same rules. Hidden files and folders of operating systems are not part of a
dump. A link to a folder is followed, and each folder is read once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from safe_training.recordings.errors import DumpError

#: Folders that macOS, Windows, Linux and network storages make automatically.
_SYSTEM_FOLDERS = frozenset(
    {
        '__MACOSX',
        '$RECYCLE.BIN',
        'System Volume Information',
        'lost+found',
        '@eaDir',
        '@Recycle',
        '#recycle',
    }
)


def is_companion(name: str) -> bool:
    """Return True if a name is hidden or is the name of a folder that a system makes.

    macOS writes a file ``._NAME`` for each file NAME on a USB stick or network share.
    """
    return name.startswith('.') or name in _SYSTEM_FOLDERS


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which ``step_2`` comes before ``step_10``."""
    parts = re.split(r'(\d+)', name)
    return [(0, int(part), '') if part.isdecimal() else (1, 0, part) for part in parts if part]


def list_names(folder: Path, ending: str) -> list[str]:
    """Return the names in a folder that have this ending, in natural order."""
    names = [entry.name for entry in _entries(folder) if entry.name.endswith(ending)]
    return sorted(names, key=natural_key)


def walk(
    root: Path,
    leave_out: Collection[str] = (),
    notes: list[str] | None = None,
    depth: int | None = None,
) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder with its files, in a fixed order: ``root`` first.

    Parameters
    ----------
    root : Path
    leave_out : collection of str
        Names of folders that are not read.
    notes : list of str, optional
        Gets a message for each link that is not followed.
    depth : int, optional
        The number of levels of folders below ``root`` that are read; None reads all levels.

    Raises
    ------
    DumpError
        A folder cannot be read.
    """
    if root.resolve().name in leave_out:
        return
    links = _Links(root, notes)
    waiting = [(root, 0)]
    while waiting:
        folder, level = waiting.pop()
        files, folders = [], []
        for entry in sorted(_entries(folder), key=lambda entry: entry.name):
            place = folder / entry.name
            if entry.is_file():
                files.append(place)
            elif not entry.is_dir():
                links.refuse_special(place)
            elif entry.name not in leave_out and level != depth and links.may_enter(place):
                folders.append((place, level + 1))
        yield folder, files
        waiting += reversed(folders)


class _Links:
    """Decides which folders are read, so that no folder is read twice or endlessly."""

    def __init__(self, root: Path, notes: list[str] | None) -> None:
        self._root = root.resolve()
        self._entered = {self._root}
        self._notes = [] if notes is None else notes

    def may_enter(self, place: Path) -> bool:
        target = place.resolve()
        linked = place.is_symlink()
        # A folder inside the root is read by its own path, so that links do not change its name.
        inside = target.is_relative_to(self._root) or self._root.is_relative_to(target)
        if target in self._entered or (linked and (inside or self._is_entered(target))):
            self._notes.append(
                f'{place}: this link is not followed, because the folder {target} is read by '
                'another path'
            )
            return False
        self._entered.add(target)
        return True

    def _is_entered(self, target: Path) -> bool:
        return any(target.is_relative_to(done) for done in self._entered if done != self._root)

    def refuse_special(self, place: Path) -> None:
        what = 'a link to a missing file or folder' if place.is_symlink() else 'not a plain file'
        self._notes.append(f'{place}: not read, because it is {what}')


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_companion(entry.name)]
    except OSError as error:
        raise DumpError(
            where=str(folder),
            expected='a readable folder',
            found=str(error.strerror),
            advice='check the path and the permissions of the folder',
        ) from error
