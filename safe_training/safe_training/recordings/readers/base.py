# SPDX-License-Identifier: Apache-2.0
"""The interface of every reader: a source that yields rollouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.copies import find_copies
from safe_training.recordings.readers.statistics import checked_statistics
from vla_feature_bridge.pooling import FeatureSpec, PoolingError
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import NO_FEATURE

#: Called with the number of episodes that are done and the number of all episodes.
EpisodeProgress = Callable[[int, int], None]
Pooling = tuple[tuple[str, str], ...]


class WholeDumpError(DumpError):
    """The whole dump is unreliable. It is not enough to leave out single episodes."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source.

    Attributes
    ----------
    pooling : tuple of (axis, command), or None
        How to reduce the raw feature tensor; None takes the default of the format.
    feature : str or None
        Name of the feature array if the source has several; None uses the default. ``none`` reads a
        dump without its features, for detectors that need no features.
    skip_bad : bool
        Leave out the episodes that cannot be read, and list them. Otherwise the first such episode
        is an error.
    keep : 'pooled' or 'raw'
        'pooled': one vector per step. 'raw': the complete tensor.
    all_episodes : bool
        Also keep the episodes that the published protocol of the format removes.
    """

    pooling: Pooling | None = None
    feature: str | None = None
    skip_bad: bool = False
    keep: Literal['pooled', 'raw'] = 'pooled'
    all_episodes: bool = False


class Source(ABC):
    """Rollouts in one place and one format.

    A subclass is a reader. It has one line in ``sources.READERS``.

    Attributes
    ----------
    kind : str
        Name of the format.
    looks_for : str
        The files by which the format is recognised, for messages.
    default_pooling : mapping of str to pooling
        Default pooling of each raw feature of the format, as in its publication.
    policy : str
        Name of the recorded policy; empty if the source does not contain it.
    path : Path
    why : str
        Reason why ``path`` was recognised as this format.
    options : ReadOptions
    skipped : list of str
        One message for each episode left out so far, with ``skip_bad``.
    notes : list of str
        Facts about this source for a person, for example the episodes that its protocol leaves out.
    raw_axes : tuple of str
        Names of the axes of the raw feature, outermost first; empty if the feature is pooled.
    """

    kind: ClassVar[str]
    looks_for: ClassVar[str]
    default_pooling: ClassVar[Mapping[str, Pooling]] = {}
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
        """Return the reason why ``path`` has this format, or None if it has a different format.

        Only names and headers are read.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of episodes, including unreadable episodes."""

    @property
    @abstractmethod
    def feature(self) -> FeatureSpec:
        """The feature of all rollouts; may read the first episode to find its width."""

    @abstractmethod
    def rollouts(self, progress: EpisodeProgress | None = None) -> Iterator[Rollout]:
        """Yield one rollout after the other, in a fixed order; empties ``skipped`` first.

        All rollouts of a source have the same ``action_space``.

        Raises
        ------
        DumpError
            An episode cannot be read and ``skip_bad`` is off, or no episode can be read.
        """


class EpisodeSource(Source):
    """A source whose episodes can be read separately, in any order and in any process.

    Attributes
    ----------
    unmatched : list of str
        One message for each file that does not belong to a readable episode.
    checks_statistics : bool
        True if :meth:`read_checked` refuses episodes with an infinite statistic.
    """

    checks_statistics: bool = True

    def __init__(self, path: Path, why: str, options: ReadOptions) -> None:
        super().__init__(path, why, options)
        self.unmatched: list[str] = []

    @property
    @abstractmethod
    def episode_count(self) -> int:
        """The number of episodes that :meth:`read` knows."""

    @property
    @abstractmethod
    def task_ids(self) -> list[int]:
        """The task number of each episode."""

    @property
    def roots(self) -> list[Path]:
        """The path, or the two paths, given to ``open_source``."""
        return [self.path]

    @abstractmethod
    def read(self, index: int) -> Rollout:
        """Return one episode as a rollout with the features that ``feature`` describes.

        Raises
        ------
        DumpError
            The episode cannot be read.
        """

    def read_checked(self, index: int) -> Rollout:
        """Return one episode as :meth:`read` does, after a check of its statistics.

        Raises
        ------
        DumpError
            As :meth:`read`. Also if a statistic is infinite, or is NaN although it must have a
            value.
        """
        if not self.checks_statistics:
            return self.read(index)
        files = self.files(index)
        return checked_statistics(self.read(index), files[0] if files else self.path)

    def note_not_read(self, where: Path, names: Iterable[object]) -> None:
        """Add a note that lists the unused values of the first file."""
        listed = [str(name)[:80] for name in names]
        if listed:
            more = f' and {len(listed) - 16} more' if len(listed) > 16 else ''
            self.notes.append(f'not read from {where.name}: {", ".join(listed[:16])}{more}')

    @abstractmethod
    def find_feature(self, index: int) -> FeatureSpec:
        """Return the feature of one episode; raises DumpError as :meth:`read` does."""

    @abstractmethod
    def files(self, index: int) -> list[Path]:
        """Return the existing files of one episode."""

    def compared_files(self, index: int) -> list[Path]:
        """Return the files that are compared to find copies: the pickles, if there are any.

        A person may have saved the csv or json file of a copy again.
        """
        files = self.files(index)
        return [file for file in files if file.suffix == '.pkl'] or files

    @cached_property
    def copies(self) -> dict[int, str]:
        """A message for each episode that is a copy of an earlier episode."""
        files = {index: self.compared_files(index) for index in range(self.episode_count)}
        return {
            copy: f'{files[copy][0]}: expected each episode once, found the same content twice, '
            f'also in {files[first][0]}; move the copy to another folder, or leave it out with '
            '--skip-bad'
            for copy, first in find_copies(files).items()
        }

    def check_listing(self) -> None:
        """Raise DumpError if names alone show that an episode is bad; reads no episode."""

    def __len__(self) -> int:
        """Return the number of episodes, including the episodes that cannot be read."""
        return self.episode_count + len(self.unmatched)

    @cached_property
    def feature(self) -> FeatureSpec:
        """The feature of the first readable episode; every other episode must have the same."""
        reasons = list(self.unmatched)
        for index in range(self.episode_count):
            try:
                return self.find_feature(index)
            except DumpError as error:
                if not self.options.skip_bad or isinstance(error, WholeDumpError):
                    raise
                reasons.append(str(error))
        raise no_readable_episode(self, reasons)

    def refuse_early(self) -> None:
        """Raise an error before the long work begins if the list of files shows a bad episode.

        Raises
        ------
        DumpError
            The list of files shows a bad episode, and ``skip_bad`` is off.
        """
        if self.options.skip_bad:
            return
        if self.unmatched:
            raise DumpError(self.unmatched[0])
        self.check_listing()
        if self.copies:
            raise DumpError(next(iter(self.copies.values())))

    def rollouts(self, progress: EpisodeProgress | None = None) -> Iterator[Rollout]:
        """Yield one rollout after the other, in the order of the episodes."""
        self.refuse_early()
        self.skipped = list(self.unmatched)
        # Determine the feature first, because every rollout must have the same feature.
        assert self.feature is not None
        for index in range(self.episode_count):
            if progress:
                progress(index + len(self.unmatched), len(self))
            if index in self.copies:
                self.skipped.append(self.copies[index])
                continue
            try:
                rollout = self.read_checked(index)
            except DumpError as error:
                if not self.options.skip_bad or isinstance(error, WholeDumpError):
                    raise
                self.skipped.append(str(error))
                continue
            yield rollout
        if progress:
            progress(len(self), len(self))


def no_readable_episode(source: Source, reasons: Sequence[str]) -> DumpError:
    """Return the error of a source without a readable episode, with the first of the reasons."""
    reason = f'the first error is: {reasons[0]}' if reasons else '; '.join(source.notes)
    return DumpError(
        where=str(source.path),
        expected='at least one readable episode',
        found=f'no readable episode among {len(source)}',
        advice=reason,
    )


def wanted_feature(
    path: Path,
    name: str,
    axes: tuple[str, ...],
    options: ReadOptions,
    default: Pooling | None = None,
) -> FeatureSpec:
    """Return the requested feature specification; its width is still unknown (0).

    Parameters
    ----------
    path : Path
        The source, for messages.
    name : str
        Name of the raw feature.
    axes : tuple of str
        Names of its axes, outermost first, without the width.
    options : ReadOptions
    default : pooling, optional
        The pooling if the options contain no pooling. None takes the default of the reader whose
        format has this feature, because a rollout set or a recording can contain the feature of any
        dump.

    Raises
    ------
    DumpError
        The options contradict each other, or the pooling does not fit the axes.
    """
    if options.keep == 'raw':
        if options.pooling:
            raise DumpError(
                where=str(path),
                expected='either raw features (--keep raw) or a pooling (--pooling)',
                found='both options',
                advice='remove one of the two options',
            )
        return FeatureSpec(name, 0, axes)
    pooling = options.pooling or default or _default_of_its_reader(name)
    if pooling is None:
        advice = ' '.join(f'--pooling {axis}=mean' for axis in axes)
        raise DumpError(
            where=str(path),
            expected=f'a pooling of the feature {name} with the axes {", ".join(axes)}',
            found='no pooling',
            advice=f'give a pooling of each axis, for example {advice}',
        )
    try:
        return FeatureSpec(name, 0, axes, pooling)
    except PoolingError as error:
        raise DumpError(f'{path}: {error}') from error


def pooled_feature(
    path: Path, options: ReadOptions, widths: Mapping[str, int], default: str = NO_FEATURE
) -> FeatureSpec:
    """Return the requested feature of a source whose features are already pooled.

    Parameters
    ----------
    path : Path
        The source, for messages.
    options : ReadOptions
    widths : mapping of str to int
        The features of the source by name, with their widths. The feature ``none`` is added.
    default : str
        The feature if the options name none.

    Raises
    ------
    DumpError
        The options ask for another feature, for a pooling or for raw features.
    """
    refuse_raw_options(path, options)
    choices = {**widths, NO_FEATURE: 0}
    name = default if options.feature is None else options.feature
    if name not in choices:
        raise DumpError(
            where=str(path),
            expected=f'one of the features {", ".join(choices)}',
            found=repr(name),
            advice='give one of these names as --feature',
        )
    return FeatureSpec(name, choices[name])


def refuse_raw_options(path: Path, options: ReadOptions) -> None:
    """Raise DumpError if the options ask for a pooling or raw features; see `pooled_feature`."""
    if options.pooling:
        raise DumpError(
            where=str(path),
            expected='no pooling, because the features of this source are already pooled',
            found=f'--pooling {", ".join("=".join(pair) for pair in options.pooling)}',
            advice='remove --pooling, or choose another feature of this source with --feature NAME',
        )
    if options.keep == 'raw':
        raise DumpError(
            where=str(path),
            expected='--keep pooled, because this source contains only pooled features',
            found='--keep raw',
            advice='remove --keep raw',
        )


def _default_of_its_reader(feature: str) -> Pooling | None:
    # Imported here, because that module imports this one.
    from safe_training.recordings.sources import READERS

    defaults = (reader.default_pooling.get(feature) for reader in READERS)
    return next((pooling for pooling in defaults if pooling), None)
