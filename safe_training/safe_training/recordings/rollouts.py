# SPDX-License-Identifier: Apache-2.0
"""Rollouts of one source, with what their features are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout


class Rollouts(Sequence[Rollout]):
    """A sequence of rollouts that all have the same kind of features.

    Parameters
    ----------
    rollouts : iterable of Rollout
        Arrays of a rollout set stay memory-mapped: a step is read when it is used.
    feature : FeatureSpec
        What the features are and how they were pooled.
    source : str
        Where the rollouts come from; empty if they were made in memory.
    """

    def __init__(self, rollouts: Iterable[Rollout], feature: FeatureSpec, source: str = '') -> None:
        self._rollouts = tuple(rollouts)
        self.feature = feature
        self.source = source

    def __len__(self) -> int:
        return len(self._rollouts)

    @overload
    def __getitem__(self, index: int) -> Rollout: ...

    @overload
    def __getitem__(self, index: slice) -> Rollouts: ...

    def __getitem__(self, index: int | slice) -> Rollout | Rollouts:
        if isinstance(index, slice):
            return self.take(self._rollouts[index])
        return self._rollouts[index]

    def take(self, rollouts: Iterable[Rollout]) -> Rollouts:
        """Return some of the rollouts as what they are: of this source, with these features."""
        return Rollouts(rollouts, self.feature, self.source)

    def __repr__(self) -> str:
        tasks = len({rollout.task for rollout in self})
        where = f' from {self.source}' if self.source else ''
        return f'<{len(self)} rollouts of {tasks} tasks{where}, features {self.feature}>'
