# SPDX-License-Identifier: Apache-2.0
"""Writes a rollout set; an interrupted one can be resumed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.arrays import write_rollout
from vla_feature_bridge.rollout_set.index import COLUMNS, software, write_index
from vla_feature_bridge.rollout_set.layout import (
    ARRAYS,
    FORMAT,
    INDEX,
    JOURNAL,
    MANIFEST,
    VERSION,
    RolloutSetError,
    hidden,
)


class RolloutSetWriter:
    """Writes a rollout set, rollout by rollout; nothing is left behind when it does not finish.

    Use as a context manager::

        with RolloutSetWriter('sets/libero10', feature=spec, policy='openvla') as writer:
            for rollout in rollouts:
                writer.add(rollout)

    Parameters
    ----------
    path : path
        The folder to make.
    feature : FeatureSpec
        What the features of every rollout are.
    policy, source : str
        Which policy was recorded, and what the set was made from.
    overwrite : bool
        Replace an existing rollout set of this name (never any other folder).
    work : str
        Names the work exactly, source and options. When it is not empty, what is written when the
        process is interrupted (KeyboardInterrupt, a signal, a power cut) stays in the hidden
        folder ``.NAME.partial``, and the next writer of the same work begins with it.

    Attributes
    ----------
    folder : Path
        Where the set grows, for :func:`write_rollout` in another process.
    continued : int
        How many entries an interrupted writer of the same work had finished.
    left_out : list of str
        What :meth:`leave_out` was told, earlier writers of the same work included.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        feature: FeatureSpec,
        policy: str = '',
        source: str = '',
        overwrite: bool = False,
        work: str = '',
    ) -> None:
        self.path = Path(path)
        self.feature = feature
        self.policy = policy
        self.source = source
        self.overwrite = overwrite
        self.work = work

    def __enter__(self) -> RolloutSetWriter:
        self._check_destination()
        self._rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._known: set[str] = set()
        self._unseen: dict[str, bool] = {}
        self.left_out: list[str] = []
        self._journal: IO[str] | None = None
        self._made_parents = _make_parents(self.path.parent)
        self.folder = partial_folder(self.path) if self.work else hidden(self.path, 'partial')
        (self.folder / ARRAYS).mkdir(parents=True, exist_ok=bool(self.work))
        if self.work:
            self._open_journal()
        self.continued = self.entries
        return self

    @property
    def entries(self) -> int:
        """Return how many rollouts were added or left out; the number of the next one."""
        return len(self._known) + len(self.left_out)

    @property
    def steps(self) -> list[int]:
        """Return the lengths of the rollouts so far."""
        return list(self._rows['length'])

    def add(self, rollout: Rollout) -> None:
        """Write one rollout.

        Raises
        ------
        RolloutSetError
            Its features are not what the set holds (width, axes, dtype), are NaN or infinite, or
            its ``episode_id`` is already in the set.
        """
        self._check_new(rollout.episode_id)
        try:
            row = write_rollout(self.folder, self.entries, rollout, self.feature)
        except RolloutSetError as error:
            raise RolloutSetError(f'{self.path}: {error}') from error
        self.add_row(row)

    def add_row(self, row: dict[str, Any]) -> None:
        """Take over a rollout that :func:`write_rollout` wrote into ``folder``.

        Raises
        ------
        RolloutSetError
            Its ``episode_id`` is already in the set.
        """
        self._check_new(row['episode_id'])
        if self._unseen.setdefault(row['task'], row['unseen']) != row['unseen']:
            raise RolloutSetError(
                f'{self.path}: rollout {row["episode_id"]!r}: expected the task {row["task"]!r} '
                'to be either seen or unseen, found rollouts of both kinds; check the unseen root'
            )
        self._note({'row': row})
        self._take(row)

    def leave_out(self, message: str) -> None:
        """Count an entry of the source that is not in the set, and remember why."""
        self._note({'left_out': message})
        self.left_out.append(message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        kept = bool(self.work) and interrupted
        try:
            if kind is None:
                self._finish()
        finally:
            if not kept:
                # After success there is nothing of that name any more.
                shutil.rmtree(self.folder, ignore_errors=True)
            if self._journal:
                self._journal.close()
            if not kept and not self.path.exists():
                _remove_empty(self._made_parents)

    # -- the journal of named work: one line of JSON for each entry, after its arrays are written

    def _open_journal(self) -> None:
        self._journal = journal = (self.folder / JOURNAL).open('a+', encoding='utf-8')
        if not _lock(journal):
            journal.close()
            raise RolloutSetError(
                f'{self.folder}: expected nobody else to write this set, found another process '
                'at work; wait for it or choose another name'
            )
        journal.seek(0)
        good = 0
        for number, line in enumerate(iter(journal.readline, '')):
            if not self._replay(number, line):
                break
            good = journal.tell()
        journal.seek(good)
        journal.truncate()
        if not good:
            shutil.rmtree(self.folder / ARRAYS)
            (self.folder / ARRAYS).mkdir()
            self._note({'work': self.work})

    def _replay(self, number: int, line: str) -> bool:
        """Take over one line of an interrupted writer; False where it cannot be trusted."""
        try:
            entry = json.loads(line)
            if not line.endswith('\n') or type(entry) is not dict:
                return False
            if number == 0:
                return bool(entry == {'work': self.work})
            if 'left_out' in entry:
                self.left_out.append(str(entry['left_out']))
                return True
            row = entry['row']
            size = (self.folder / ARRAYS / row['arrays']).stat().st_size
            if set(row) != set(COLUMNS) or size != row['arrays_bytes']:
                return False
            self._take(row)
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            return False
        return True

    def _note(self, entry: dict[str, Any]) -> None:
        if self._journal:
            self._journal.write(json.dumps(entry) + '\n')
            self._journal.flush()

    def _take(self, row: dict[str, Any]) -> None:
        self._known.add(row['episode_id'])
        self._unseen[row['task']] = row['unseen']
        for column in COLUMNS:
            self._rows[column].append(row[column])

    def _check_new(self, name: str) -> None:
        if name in self._known:
            raise RolloutSetError(
                f'{self.path}: rollout {name!r} is in the set already; give each its own episode_id'
            )

    def _check_destination(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.overwrite:
            raise RolloutSetError(
                f'{self.path}: expected a name that is free, found a file or folder; '
                'choose another name, or overwrite it (--overwrite)'
            )
        if not (self.path / MANIFEST).is_file() or self.path.is_symlink():
            raise RolloutSetError(
                f'{self.path}: expected a rollout set to overwrite, found something else; '
                'remove it yourself or choose another name'
            )

    def _finish(self) -> None:
        if not self._known:
            raise RolloutSetError(
                f'{self.path}: expected at least one rollout to write, found none'
            )
        write_index(self.folder / INDEX, self._rows)
        manifest = {
            'format': FORMAT,
            'version': VERSION,
            'feature': self.feature.to_dict(),
            'policy': self.policy,
            'source': self.source,
            'rollouts': len(self._known),
            'steps': sum(self._rows['length']),
            'software': software(),
        }
        (self.folder / JOURNAL).unlink(missing_ok=True)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
        (self.folder / MANIFEST).write_text(text, encoding='utf-8')
        self._check_destination()
        if not self.path.exists():
            os.rename(self.folder, self.path)
            return
        old = hidden(self.path, 'old')
        os.rename(self.path, old)
        try:
            os.rename(self.folder, self.path)
        except OSError:
            os.rename(old, self.path)
            raise
        shutil.rmtree(old)


def partial_folder(path: str | os.PathLike[str]) -> Path:
    """Return where a writer of named work keeps what an interruption leaves unfinished."""
    whole = Path(os.path.abspath(path))
    return whole.with_name(f'.{whole.name}.partial')


# -- folders


def _lock(file: IO[str]) -> bool:
    """Take an open file for this process, until it is closed or the process ends."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _make_parents(folder: Path) -> list[Path]:
    """Make missing folders; returns those that were made, innermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # someone else uses it by now
            return
