# SPDX-License-Identifier: Apache-2.0
"""Opens a rollout set without reading arrays. Arrays are memory-mapped when they are used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout, RolloutError
from vla_feature_bridge.rollout_set.arrays import (
    OPTIONAL_ARRAYS,
    SIGNAL,
    features_of,
    map_arrays,
    misfit,
)
from vla_feature_bridge.rollout_set.index import check_array_files, read_index, read_manifest
from vla_feature_bridge.rollout_set.layout import (
    ARRAYS,
    COPY_AGAIN,
    INDEX,
    MANIFEST,
    RolloutSetError,
)


class RolloutSet(Sequence[Rollout]):
    """The rollouts of one folder, or a selection of them.

    The arrays of a rollout are mapped when it is read.

    A sequence of :class:`~vla_feature_bridge.rollout.Rollout`: ``rollouts[0]``,
    ``rollouts[10:20]``, ``for rollout in rollouts``.

    Attributes
    ----------
    path : Path
        The folder.
    feature : FeatureSpec
        Specification of the features of every rollout.
    policy, source : str
        Name of the recorded policy, and what the set was made from.
    """

    def __init__(
        self,
        path: Path,
        feature: FeatureSpec,
        policy: str,
        source: str,
        columns: dict[str, list[Any]],
    ) -> None:
        self.path = path
        self.feature = feature
        self.policy = policy
        self.source = source
        self._columns = columns

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RolloutSet:
        """Open a set; reads the manifest and the index, but no arrays.

        Raises
        ------
        RolloutSetError
            The folder is not a rollout set, or a file is missing, incomplete or has a different
            version.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        columns = read_index(folder / INDEX)
        count = len(columns['episode_id'])
        if count == 0:
            raise RolloutSetError(
                where=str(folder / INDEX),
                expected='at least one rollout',
                found='none',
                advice=COPY_AGAIN,
            )
        if manifest['rollouts'] != count:
            raise RolloutSetError(
                where=str(folder / INDEX),
                expected=f'{manifest["rollouts"]} rollouts, as {MANIFEST} says',
                found=f'{count} rollouts',
                advice=f'the two files belong to different rollout sets: {COPY_AGAIN}',
            )
        spaces = sorted(set(columns['action_space']))
        if len(spaces) > 1:
            raise RolloutSetError(
                where=str(folder / INDEX),
                expected='one action space for all rollouts',
                found=f'the action spaces {", ".join(map(repr, spaces))}',
                advice='convert the source again, into one rollout set for each action space',
            )
        check_array_files(folder / ARRAYS, columns)
        return cls(folder, manifest['feature'], manifest['policy'], manifest['source'], columns)

    # -- columns of the index

    @property
    def episode_ids(self) -> list[str]:
        """Return the unique name of each rollout."""
        return list(self._columns['episode_id'])

    @property
    def tasks(self) -> list[str]:
        """Return the task of each rollout."""
        return list(self._columns['task'])

    @property
    def task_ids(self) -> list[int]:
        """Return the task number of each rollout."""
        return list(self._columns['task_id'])

    @property
    def success(self) -> list[bool | None]:
        """Return the outcome of each rollout; None while it is unlabelled."""
        return list(self._columns['success'])

    @property
    def unseen(self) -> list[bool]:
        """Return for each rollout True if its source marks the task as unseen."""
        return list(self._columns['unseen'])

    @property
    def action_space(self) -> str:
        """Return the name of the space of the actions, equal for all rollouts; empty if unknown."""
        return next(iter(self._columns['action_space']), '')

    @property
    def array_files(self) -> list[str]:
        """Return the file name of each rollout's arrays."""
        return list(self._columns['arrays'])

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of steps of each rollout, int64, shape (rollouts,)."""
        return np.array(self._columns['length'], dtype=np.int64)

    # -- rollouts

    def __len__(self) -> int:
        return len(self._columns['episode_id'])

    def __iter__(self) -> Iterator[Rollout]:
        for index in range(len(self)):
            yield self._rollout(index)

    @overload
    def __getitem__(self, index: int) -> Rollout: ...
    @overload
    def __getitem__(self, index: slice) -> RolloutSet: ...
    def __getitem__(self, index: int | slice) -> Rollout | RolloutSet:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(
                f'{self.path}: expected the index of one of {len(self)} rollouts, found {index}'
            )
        return self._rollout(position)

    def select(self, indices: Iterable[int]) -> RolloutSet:
        """Return a view of some rollouts, in the order given; copies no array."""
        chosen = [range(len(self))[index] for index in indices]
        columns = {
            name: [values[index] for index in chosen] for name, values in self._columns.items()
        }
        return RolloutSet(self.path, self.feature, self.policy, self.source, columns)

    def _rollout(self, position: int) -> Rollout:
        row = {name: values[position] for name, values in self._columns.items()}
        file = self.path / ARRAYS / row['arrays']
        arrays = map_arrays(file, row['arrays_bytes'], row['arrays_header_crc32'])
        try:
            features, feature_lengths = features_of(file, arrays)
            rollout = Rollout(
                features=features,
                feature_lengths=feature_lengths,
                task=row['task'],
                success=row['success'],
                episode_id=row['episode_id'],
                task_id=row['task_id'],
                episode_index=row['episode_index'],
                instruction=row['instruction'],
                policy=row['policy'] or self.policy,
                feature_name=str(self.feature),
                exec_horizon=row['exec_horizon'],
                failure_step=row['failure_step'],
                video=row['video'],
                unseen=row['unseen'],
                action_space=row['action_space'],
                signals={
                    name.removeprefix(SIGNAL): arrays.pop(name)
                    for name in list(arrays)
                    if name.startswith(SIGNAL)
                },
                **{name: arrays.pop(name) for name in OPTIONAL_ARRAYS if name in arrays},
            )
        except KeyError:
            raise RolloutSetError(
                where=str(file),
                expected="an array 'features'",
                found='no such array',
                advice=COPY_AGAIN,
            ) from None
        except RolloutError as error:
            raise RolloutSetError(f'{file}: {error}') from error
        if arrays:
            raise RolloutSetError(
                where=str(file),
                expected='only arrays that this version of the software knows',
                found=f'the unknown arrays {sorted(arrays)}',
                advice='use the version of the software that wrote the rollout set',
            )
        if len(rollout) != row['length']:
            raise RolloutSetError(
                where=str(file),
                expected=f'{row["length"]} steps, as {INDEX} says',
                found=f'{len(rollout)} steps',
                advice=COPY_AGAIN,
            )
        if problem := misfit(rollout, self.feature):
            raise RolloutSetError(f'{file}: {problem}')
        return rollout
