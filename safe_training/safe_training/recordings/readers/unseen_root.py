# SPDX-License-Identifier: Apache-2.0
"""Joins two roots; the tasks of the second root are unseen: no detector is trained on them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import EpisodeSource
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout


class WithUnseenRoot(EpisodeSource):
    """The episodes of ``seen``, then the episodes of ``unseen``.

    The episodes of ``unseen`` have ``Rollout.unseen`` set. Their task numbers follow the task
    numbers of ``seen``, and their names begin with ``unseen/``.
    """

    kind = ''
    looks_for = ''

    def __init__(self, seen: EpisodeSource, unseen: EpisodeSource) -> None:
        super().__init__(seen.path, f'{seen.why}; unseen: {unseen.why}', seen.options)
        if seen.kind != unseen.kind:
            raise DumpError(
                where=str(unseen.path),
                expected=f'unseen tasks in the format {seen.kind}, the format of {seen.path}',
                found=f'the format {unseen.kind}',
                advice='give two sources of the same format, or convert both sources to rollout '
                'sets first',
            )
        if os.path.realpath(seen.path) == os.path.realpath(unseen.path):
            raise DumpError(
                where=str(unseen.path),
                expected='unseen tasks that are not in the first source',
                found='the first source again',
                advice='give another source as --unseen-root',
            )
        self.seen, self.unseen = seen, unseen
        self.kind = seen.kind  # type: ignore[misc]
        self.policy = seen.policy
        self.checks_statistics = seen.checks_statistics
        self.unmatched = [*seen.unmatched, *unseen.unmatched]
        self.notes = [*seen.notes, *unseen.notes]
        self._shift = max(seen.task_ids, default=-1) + 1

    @staticmethod
    def detect(path: Path) -> str | None:
        return None

    @property
    def episode_count(self) -> int:
        return self.seen.episode_count + self.unseen.episode_count

    @property
    def task_ids(self) -> list[int]:
        return [*self.seen.task_ids, *(self._shift + number for number in self.unseen.task_ids)]

    @property
    def roots(self) -> list[Path]:
        return [self.seen.path, self.unseen.path]

    def check_listing(self) -> None:
        self.seen.check_listing()
        self.unseen.check_listing()

    def files(self, index: int) -> list[Path]:
        source, inner = self._of(index)
        return source.files(inner)

    def compared_files(self, index: int) -> list[Path]:
        source, inner = self._of(index)
        return source.compared_files(inner)

    def find_feature(self, index: int) -> FeatureSpec:
        feature, other = self.seen.feature, self.unseen.feature
        if feature != other:
            raise DumpError(
                where=str(self.unseen.path),
                expected=f'the feature {feature} of width {feature.dim}, as in {self.seen.path}',
                found=f'the feature {other} of width {other.dim}',
                advice='give two sources of the same policy',
            )
        self.raw_axes = self.seen.raw_axes
        later = [*self.seen.notes, *self.unseen.notes]
        self.notes += [note for note in later if note not in self.notes]
        return feature

    def read(self, index: int) -> Rollout:
        source, inner = self._of(index)
        rollout = source.read(inner)
        if source is self.seen:
            return rollout
        return replace(
            rollout,
            task_id=rollout.task_id + self._shift,
            episode_id=f'unseen/{rollout.episode_id}',
            unseen=True,
        )

    def _of(self, index: int) -> tuple[EpisodeSource, int]:
        if index < self.seen.episode_count:
            return self.seen, index
        return self.unseen, index - self.seen.episode_count
