# SPDX-License-Identifier: Apache-2.0
"""Finds episodes that occur twice in a dump, by the content of their files and not by their names.

If an episode is in the training part and in the test part, all numbers are wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_feature_bridge.rollout import Rollout

_SAMPLE_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20


def find_copies(episodes: Mapping[int, Sequence[Path]]) -> dict[int, int]:
    """Return the number of the first equal episode for each episode that is a copy.

    Most episodes differ in the sizes of their files, or at one of three places in a file. Only the
    other episodes are read completely.

    Parameters
    ----------
    episodes : mapping of int to sequence of Path
        For each episode, the files that are compared. An episode without files, with a missing file
        or with only empty files is not compared.
    """
    groups: list[list[int]] = [sorted(episodes)]
    for key in (_sizes, _samples, _contents):
        groups = [part for group in groups for part in _parts(group, episodes, key)]
    return {copy: group[0] for group in groups for copy in group[1:]}


def _parts(
    group: Sequence[int],
    episodes: Mapping[int, Sequence[Path]],
    key: Callable[[Sequence[Path]], Hashable],
) -> Iterable[list[int]]:
    """Return the episodes of a group with the same key, if there are at least two."""
    parts: dict[Hashable, list[int]] = {}
    for number in group:
        try:
            found = key(episodes[number])
        except OSError:
            continue  # Reading the episode gives the error.
        if found is not None:
            parts.setdefault(found, []).append(number)
    return [part for part in parts.values() if len(part) > 1]


def _sizes(files: Sequence[Path]) -> Hashable:
    sizes = tuple(file.stat().st_size for file in files)
    return sizes if any(sizes) else None


def _samples(files: Sequence[Path]) -> Hashable:
    digest = hashlib.blake2b()
    for file in dict.fromkeys((files[0], files[len(files) // 2], files[-1])):
        size = file.stat().st_size
        with file.open('rb') as stream:
            for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.digest()


def _contents(files: Sequence[Path]) -> Hashable:
    digest = hashlib.blake2b()
    for file in files:
        with file.open('rb') as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.digest()


class SeenRollouts:
    """The content of the rollouts so far, for sources whose episodes have no separate files."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}

    def first_equal(self, rollout: Rollout) -> str | None:
        """Return the id of an earlier rollout with equal features and actions, or None.

        Rollouts whose features are all equal or empty are not compared.
        """
        features = rollout.features
        if not features.size or not (features != features.flat[0]).any():
            return None
        digest = hashlib.blake2b(f'{features.dtype} {features.shape}'.encode())
        for array in (features, rollout.actions):
            if array is not None:
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        first = self._names.setdefault(digest.digest(), rollout.episode_id)
        return None if first == rollout.episode_id else first
