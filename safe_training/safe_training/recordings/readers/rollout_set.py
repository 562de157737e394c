# SPDX-License-Identifier: Apache-2.0
"""Reads a rollout set as a source, so that it can be used like a dump.

A raw set is pooled while it is read. Therefore the dump is not needed for a different pooling.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import EpisodeSource, ReadOptions, wanted_feature
from safe_training.recordings.readers.step_features import StepFeatures
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.layout import ARRAYS, MANIFEST, RolloutSetError
from vla_feature_bridge.rollout_set.reader import RolloutSet


class RolloutSetSource(EpisodeSource):
    """A folder of :class:`RolloutSetWriter`; arrays stay on disk until they are used."""

    kind = 'rollout_set'
    looks_for = f'{MANIFEST} (rollout set)'
    # A set of version 0.1 may hold an infinite statistic. Detectors that do not use this statistic
    # can still be fitted.
    checks_statistics = False

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        self.set = RolloutSet.open(path)
        self._array_files = self.set.array_files
        self.policy = self.set.policy
        self.stored = stored = self.set.feature
        if options.feature not in (None, stored.name):
            raise DumpError(
                where=str(path),
                expected=f'the feature {stored.name!r}, the only feature of this set',
                found=repr(options.feature),
                advice='remove --feature, or convert the dump again with another --feature',
            )
        if not stored.pooled:
            self.raw_axes = stored.axes
            self._wanted = wanted_feature(path, stored.name, stored.axes, options)
            if self._wanted.pooled:
                self.notes.append(
                    f'contains the raw feature {stored.name} with the axes '
                    f'{", ".join(stored.axes)}; the feature is pooled during reading'
                )
            return
        self._wanted = stored
        if options.keep == 'raw' and stored.axes:
            raise DumpError(
                where=str(path),
                expected='a set with raw features, because of --keep raw',
                found=f'a set with the pooled features {stored}',
                advice='remove --keep raw, or convert the dump again with --keep raw',
            )
        if options.pooling not in (None, stored.pooling):
            raise DumpError(
                where=str(path),
                expected=f'the pooling of this set, {stored}',
                found=f'the pooling {",".join("=".join(pair) for pair in options.pooling)}',
                advice='remove --pooling, or convert the dump again with --keep raw (raw '
                'features can be pooled with any pooling)',
            )

    @staticmethod
    def detect(path: Path) -> str | None:
        return f'contains {MANIFEST}' if (path / MANIFEST).is_file() else None

    @property
    def episode_count(self) -> int:
        return len(self.set)

    @property
    def task_ids(self) -> list[int]:
        return self.set.task_ids

    def find_feature(self, index: int) -> FeatureSpec:
        if self._wanted.pooled and not self.stored.pooled:
            return replace(self._wanted, dim=self._pool(self._load(index)).features.shape[1])
        return self.stored

    def files(self, index: int) -> list[Path]:
        return [self.path / ARRAYS / self._array_files[index]]

    def compared_files(self, index: int) -> list[Path]:
        """Return no files: a set has each episode once, and rollouts may have equal arrays."""
        return []

    def read(self, index: int) -> Rollout:
        rollout = self._load(index)
        if self._wanted.pooled and not self.stored.pooled:
            rollout = self._pool(rollout, self.feature)
        return rollout

    def _load(self, index: int) -> Rollout:
        try:
            return self.set[index]
        except RolloutSetError as error:
            raise DumpError(str(error)) from error

    def _pool(self, rollout: Rollout, spec: FeatureSpec | None = None) -> Rollout:
        """Return a rollout with pooled features; pools step by step, like a reader of a dump."""
        file = self.path / ARRAYS / rollout.episode_id
        steps = StepFeatures(spec or self._wanted, f'raw {self.stored.name}', len(rollout))
        for step in range(len(rollout)):
            steps.add(file, step, rollout.step(step).features)
        features, _ = steps.stack()
        return replace(
            rollout, features=features, feature_lengths=None, feature_name=str(self._wanted)
        )
