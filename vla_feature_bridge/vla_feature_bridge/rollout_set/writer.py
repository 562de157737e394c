# SPDX-License-Identifier: Apache-2.0
"""Writes a rollout set; work that was interrupted can continue.

A set is written in a hidden folder beside its destination. It is renamed when it is complete.
Therefore a folder with the name of the destination is always a complete set.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vla_feature_bridge.atomic import (
    make_folders,
    move_folder,
    names_file,
    path_aside,
    remove_empty,
)
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.arrays import write_rollout
from vla_feature_bridge.rollout_set.index import COLUMNS, software, write_index
from vla_feature_bridge.rollout_set.journal import Journal
from vla_feature_bridge.rollout_set.layout import (
    ARRAYS,
    FORMAT,
    INDEX,
    JOURNAL,
    MANIFEST,
    VERSION,
    RolloutSetError,
)


class RolloutSetWriter:
    """Writes a rollout set, rollout by rollout; if it does not finish, no files remain.

    Use it as a context manager::

        with RolloutSetWriter('sets/libero10', feature=spec, policy='openvla') as writer:
            for rollout in rollouts:
                writer.add(rollout)

    Parameters
    ----------
    path : path
        The folder to make.
    feature : FeatureSpec
        Specification of the features of every rollout.
    policy, source : str
        Name of the recorded policy, and what the set was made from.
    overwrite : bool
        Replace an existing rollout set of this name (never any other folder).
    work : str
        Identifier of the work: source and options. With an identifier, finished rollouts are kept
        in the hidden folder ``.NAME.partial`` if the process is interrupted (KeyboardInterrupt, a
        signal, a power cut), or if the complete set cannot be flushed to disk or renamed (OSError).
        The next writer of the same work continues from these rollouts.

    Attributes
    ----------
    folder : Path
        The hidden folder in which the set grows; :func:`write_rollout` may write into it from
        other processes.
    continued : int
        Number of entries that an interrupted writer of the same work had finished.
    left_out : list of str
        All messages of :meth:`leave_out`, also those of an interrupted writer of the same work.
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
        self._journal: Journal | None = None
        self._made_parents = make_folders(self.path.parent)
        self.folder = partial_folder(self.path) if self.work else path_aside(_absolute(self.path))
        is_new = not self.folder.exists()
        try:
            (self.folder / ARRAYS).mkdir(parents=True, exist_ok=bool(self.work))
            if self.work:
                self._continue()
        except OSError:
            if is_new:
                shutil.rmtree(self.folder, ignore_errors=True)
                remove_empty(self._made_parents)
            raise
        self.continued = self.entries
        return self

    def _continue(self) -> None:
        self._journal = Journal(self.folder, self.work)
        for entry in self._journal.entries:
            if 'left_out' in entry:
                self.left_out.append(str(entry['left_out']))
            else:
                self._take(entry['row'])

    @property
    def entries(self) -> int:
        """Return the number of rollouts added or left out. It is the number of the next entry."""
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
            The features do not fit the set (width, axes, dtype) or are NaN or infinite, the
            ``action_space`` differs from the set, or the ``episode_id`` is already in the set.
        """
        self._check_new(rollout.episode_id)
        try:
            row = write_rollout(self.folder, self.entries, rollout, self.feature)
        except RolloutSetError as error:
            raise RolloutSetError(f'{self.path}: {error}') from error
        self.add_row(row)

    def add_row(self, row: dict[str, Any]) -> None:
        """Add a rollout whose arrays :func:`write_rollout` already wrote into ``folder``.

        Raises
        ------
        RolloutSetError
            The ``episode_id`` is already in the set, the task has seen and unseen rollouts, or the
            ``action_space`` differs from the set.
        """
        self._check_new(row['episode_id'])
        before = self._rows['action_space'][:1]
        if before not in ([], [row['action_space']]):
            raise RolloutSetError(
                where=f'{self.path}: rollout {row["episode_id"]!r}',
                expected=f'the action space {before[0]!r} as in the rollouts before',
                found=repr(row['action_space']),
                advice='write one rollout set for each action space',
            )
        if self._unseen.setdefault(row['task'], row['unseen']) != row['unseen']:
            raise RolloutSetError(
                where=f'{self.path}: rollout {row["episode_id"]!r}',
                expected=f'only seen or only unseen rollouts of the task {row["task"]!r}',
                found='rollouts of both kinds',
                advice='move all episodes of the task into SOURCE, or into the --unseen-root',
            )
        self._note({'row': row})
        self._take(row)

    def leave_out(self, message: str) -> None:
        """Record an entry of the source that is not included in the set.

        The message contains the reason.
        """
        self._note({'left_out': message})
        self.left_out.append(message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        kept = bool(self.work) and kind is not None and not issubclass(kind, Exception)
        try:
            if kind is None:
                self._finish()
        except BaseException as failure:
            # The finished rollouts are valid: the next writer of the same work continues.
            is_system = isinstance(failure, OSError) or not isinstance(failure, Exception)
            kept = bool(self.work) and is_system
            raise
        finally:
            if not kept:
                # After success, this folder no longer exists.
                shutil.rmtree(self.folder, ignore_errors=True)
            if self._journal:
                self._journal.close()
            if not kept and not self.path.exists():
                remove_empty(self._made_parents)

    def _note(self, entry: dict[str, Any]) -> None:
        if self._journal:
            self._journal.note(entry)

    def _take(self, row: dict[str, Any]) -> None:
        self._known.add(row['episode_id'])
        self._unseen[row['task']] = row['unseen']
        for column in COLUMNS:
            self._rows[column].append(row[column])

    def _check_new(self, name: str) -> None:
        if name in self._known:
            raise RolloutSetError(
                where=str(self.path),
                expected='a different episode_id for each rollout',
                found=f'the episode_id {name!r} twice',
                advice='give each rollout a different episode_id',
            )

    def _check_destination(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.overwrite:
            raise RolloutSetError(
                where=str(self.path),
                expected='a path that does not exist',
                found='a file or folder',
                advice='choose another path, or overwrite the existing rollout set (--overwrite)',
            )
        if not (self.path / MANIFEST).is_file() or self.path.is_symlink():
            raise RolloutSetError(
                where=str(self.path),
                expected='a rollout set to overwrite',
                found='a file or folder that is not a rollout set',
                advice='choose another path, or remove the file or folder yourself',
            )

    def _finish(self) -> None:
        if not self._known:
            raise RolloutSetError(
                where=str(self.path), expected='at least one rollout to write', found='none'
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
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
        with names_file(self.path):
            (self.folder / MANIFEST).write_text(text, encoding='utf-8')
        self._check_destination()
        move_folder(self.folder, self.path, overwrite=self.overwrite)
        # Remove the journal last: before the rename, an interrupted work needs it to continue.
        with suppress(OSError):
            (self.path / JOURNAL).unlink(missing_ok=True)


def partial_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder with the finished rollouts of an interrupted writer."""
    whole = _absolute(path)
    return whole.with_name(f'.{whole.name}.partial')


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))
