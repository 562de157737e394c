# SPDX-License-Identifier: Apache-2.0
"""What every reader offers: a source of rollouts that streams one episode at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from safe_training.recordings.errors import DumpError
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.rollout import Rollout

#: Told how many episodes are done and how many there are.
EpisodeProgress = Callable[[int, int], None]
Pooling = tuple[tuple[str, str], ...]

#: The feature of a source without features: enough for detectors that read signals, actions or
#: token statistics alone.
NO_FEATURE = 'none'

#: How a feature is pooled unless something else is asked for; each as its publication does.
DEFAULT_POOLING: dict[str, Pooling] = {
    'hidden_states': (('token', 'last'),),
    'pre_velocity': (('horizon', 'mean'), ('denoise', 'mean')),
    'pre_logits': (('token', 'mean'),),
    'encoded': (('token', 'mean'),),
    'sampled_action_embeds': (('horizon', 'first'), ('denoise', 'first')),
}


class WholeDumpError(DumpError):
    """A dump cannot be trusted as a whole, so that leaving out one episode does not help."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source.

    Attributes
    ----------
    pooling : tuple of (axis, command), or None
        How to reduce the raw feature tensor; None takes the format's default.
    feature : str or None
        Which feature array to take where a source holds several; None takes the default. ``none``
        reads a dump without its features, for detectors that need none.
    skip_bad : bool
        Leave out episodes that cannot be read, and list them, instead of refusing the source.
    keep : 'pooled' or 'raw'
        Whether rollouts carry one vector a step or the whole tensor.
    all_episodes : bool
        Keep also the episodes that the format's published protocol leaves out.
    """

    pooling: Pooling | None = None
    feature: str | None = None
    skip_bad: bool = False
    keep: Literal['pooled', 'raw'] = 'pooled'
    all_episodes: bool = False


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
    notes : list of str
        What a person should know about this source, such as what its protocol leaves out.
    raw_axes : tuple of str
        Names of the axes of the raw feature, outermost first; empty where it is pooled.
    """

    kind: ClassVar[str]
    looks_for: ClassVar[str]
    policy: str = ''
    raw_axes: tuple[str, ...] = ()

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        self.path = path
        self.why = why
        self.options = options
        self.skipped: list[str] = []
        self.notes: list[str] = []

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
    def rollouts(self, progress: EpisodeProgress | None = None) -> Iterator[Rollout]:
        """Yield one rollout after the other, in a fixed order; ``skipped`` starts anew.

        Raises
        ------
        DumpError
            An episode cannot be read and ``skip_bad`` is off, or none could be read.
        """


class EpisodeSource(Source):
    """A source whose episodes can be read each on its own, in any order and in any process.

    Attributes
    ----------
    unmatched : list of str
        What was found while listing and cannot be an episode, as messages.
    """

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        self.unmatched: list[str] = []

    @property
    @abstractmethod
    def episode_count(self) -> int:
        """Return how many episodes can be asked for."""

    @property
    @abstractmethod
    def task_ids(self) -> list[int]:
        """Return the task number of each episode."""

    @property
    def roots(self) -> list[Path]:
        """Return the place, or the two places, that ``open_source`` was given."""
        return [self.path]

    @abstractmethod
    def read(self, index: int) -> Rollout:
        """Read one episode; its features are what ``feature`` says.

        Raises
        ------
        DumpError
            It cannot be read.
        """

    @abstractmethod
    def find_feature(self, index: int) -> FeatureSpec:
        """Say what the features of one episode are; raises DumpError as :meth:`read`."""

    @abstractmethod
    def files(self, index: int) -> list[Path]:
        """Return the files that hold one episode, those that are there."""

    def check_listing(self) -> None:
        """Raise DumpError where names alone show that an episode is bad; reads no episode."""

    def __len__(self) -> int:
        return self.episode_count + len(self.unmatched)

    @cached_property
    def feature(self) -> FeatureSpec:
        first = self.unmatched[0] if self.unmatched else ''
        for index in range(self.episode_count):
            try:
                return self.find_feature(index)
            except DumpError as error:
                if not self.options.skip_bad or isinstance(error, WholeDumpError):
                    raise
                first = first or str(error)
        raise DumpError(
            f'{self.path}: expected at least one readable episode, found none of {len(self)}; '
            f'the first: {first}'
        )

    def refuse_early(self) -> None:
        """Report what the listing alone shows to be wrong, before anything long begins.

        Raises
        ------
        DumpError
            Something is, and ``skip_bad`` is off.
        """
        if self.options.skip_bad:
            return
        if self.unmatched:
            raise DumpError(self.unmatched[0])
        self.check_listing()

    def rollouts(self, progress: EpisodeProgress | None = None) -> Iterator[Rollout]:
        self.refuse_early()
        self.skipped = list(self.unmatched)
        assert self.feature is not None  # found now, so that every rollout is held to it
        for index in range(self.episode_count):
            if progress:
                progress(index + len(self.unmatched), len(self))
            try:
                rollout = self.read(index)
            except DumpError as error:
                if not self.options.skip_bad or isinstance(error, WholeDumpError):
                    raise
                self.skipped.append(str(error))
                continue
            yield rollout
        if progress:
            progress(len(self), len(self))


def wanted_feature(
    path: Path, name: str, axes: tuple[str, ...], options: ReadOptions
) -> FeatureSpec:
    """Return what is wanted of a raw feature, its width still open (0).

    Raises
    ------
    DumpError
        The options contradict each other, or the pooling does not fit the axes.
    """
    if options.keep == 'raw':
        if options.pooling:
            raise DumpError(
                f'{path}: expected either raw features or a pooling, found both; leave one away'
            )
        return FeatureSpec(name, 0, axes)
    pooling = options.pooling or DEFAULT_POOLING.get(name)
    if pooling is None:
        wanted = ' '.join(f'--pooling {axis}=mean' for axis in axes)
        raise DumpError(
            f'{path}: expected to be told how to pool {name} (axes {", ".join(axes)}), '
            f'found nothing; say so, for example {wanted}'
        )
    try:
        return FeatureSpec(name, 0, axes, pooling)
    except PoolingError as error:
        raise DumpError(f'{path}: {error}') from error
