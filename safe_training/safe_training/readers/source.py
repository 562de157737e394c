# SPDX-License-Identifier: Apache-2.0
"""What every reader offers: a source of rollouts that streams one episode at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout

#: Told how many episodes are done and how many there are.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source.

    Attributes
    ----------
    pooling : tuple of (axis, command), or None
        How to reduce the raw feature tensor; None takes the format's default.
    feature : str or None
        Which feature array to take where a source holds several; None takes the default.
    skip_bad : bool
        Leave out episodes that cannot be read, and list them, instead of refusing the source.
    """

    pooling: tuple[tuple[str, str], ...] | None = None
    feature: str | None = None
    skip_bad: bool = False


class Source(ABC):
    """Rollouts in one place and one format.

    Subclasses are registered in ``readers.READERS``, tried in that order.

    Attributes
    ----------
    kind : str
        Name of the format.
    policy : str
        Name of the recorded policy, empty if the source does not say.
    path : Path
    why : str
        What in ``path`` showed that it has this format.
    skipped : list of str
        Messages of the episodes left out so far, with ``skip_bad``.
    """

    kind: ClassVar[str]
    looks_for: ClassVar[str]
    policy: str = ''

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        self.path = path
        self.why = why
        self.options = options
        self.skipped: list[str] = []

    @staticmethod
    @abstractmethod
    def detect(path: Path) -> str | None:
        """Say why ``path`` has this format, None if it has not; reads names and headers only."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many episodes there are, unreadable ones included."""

    @property
    @abstractmethod
    def feature(self) -> FeatureSpec:
        """What the features are; may read the first episode to learn their width."""

    @abstractmethod
    def rollouts(self, progress: Progress | None = None) -> Iterator[Rollout]:
        """Yield one rollout after the other, in a fixed order; ``skipped`` starts anew.

        Raises
        ------
        DumpError
            An episode cannot be read and ``skip_bad`` is off, or none could be read.
        """
