# SPDX-License-Identifier: Apache-2.0
"""Reads a rollout set as a source, so that it can stand wherever a dump can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safe_training.readers.source import Progress, ReadOptions, Source
from safe_training.unpickle import DumpError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set import MANIFEST, RolloutSet, RolloutSetError


class RolloutSetSource(Source):
    """A folder written by :class:`RolloutSetWriter`; arrays stay on disk until they are read."""

    kind = 'rollout_set'
    looks_for = f'{MANIFEST} (rollout set)'

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        self.set = RolloutSet.open(path)
        self.policy = self.set.policy
        feature = self.set.feature
        if options.feature not in (None, feature.name):
            raise DumpError(
                f'{path}: expected feature {feature.name!r}, the one of this set, '
                f'found {options.feature!r}; convert the dump again'
            )
        if options.pooling not in (None, feature.pooling):
            raise DumpError(
                f'{path}: expected no other pooling, this set holds {feature}; '
                'convert the dump again'
            )

    @staticmethod
    def detect(path: Path) -> str | None:
        return f'holds {MANIFEST}' if (path / MANIFEST).is_file() else None

    def __len__(self) -> int:
        return len(self.set)

    @property
    def feature(self) -> FeatureSpec:
        return self.set.feature

    def rollouts(self, progress: Progress | None = None) -> Iterator[Rollout]:
        self.skipped = []
        for index in range(len(self)):
            if progress:
                progress(index, len(self))
            try:
                rollout = self.set[index]
            except RolloutSetError as error:
                if not self.options.skip_bad:
                    raise
                self.skipped.append(str(error))
                continue
            yield rollout
        if progress:
            progress(len(self), len(self))
