# SPDX-License-Identifier: Apache-2.0
"""The rollouts of one source, with their feature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

from safe_training.recordings.errors import DumpError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout


class Rollouts(Sequence[Rollout]):
    """A sequence of rollouts that all have the same feature and the same action space.

    Parameters
    ----------
    rollouts : iterable of Rollout
        Arrays of a rollout set are memory-mapped: data is read from disk when it is used.
    feature : FeatureSpec
        Name, axes, width and pooling of the features.
    source : str
        Path of the rollouts; empty if they were made in memory.

    Attributes
    ----------
    action_space : str
        Name of the space of the actions; empty if unknown.

    Raises
    ------
    DumpError
        The rollouts have different action spaces.
    """

    def __init__(self, rollouts: Iterable[Rollout], feature: FeatureSpec, source: str = '') -> None:
        self._rollouts = tuple(rollouts)
        self.feature = feature
        self.source = source
        spaces = sorted({rollout.action_space for rollout in self._rollouts})
        if len(spaces) > 1:
            raise DumpError(
                where=source or 'rollouts',
                expected='rollouts with the same action space',
                found=', '.join(map(repr, spaces)),
                advice='use one sequence of rollouts for each action space',
            )
        self.action_space = spaces[0] if spaces else ''

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
        """Return some of the rollouts as rollouts of the same source with the same feature."""
        return Rollouts(rollouts, self.feature, self.source)

    def __repr__(self) -> str:
        tasks = len({rollout.task for rollout in self})
        where = f' from {self.source}' if self.source else ''
        return f'<{len(self)} rollouts of {tasks} tasks{where}, features {self.feature}>'
