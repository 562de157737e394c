# SPDX-License-Identifier: Apache-2.0
"""Opens any source of recorded rollouts; the format is detected from the folder or file.

A reader is a module in ``readers/`` with a subclass of :class:`Source`, and one line in
:data:`READERS`. CONTRIBUTING.md has the recipe for a new reader.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from safe_training.recordings.errors import LEAVE_OUT, DumpError
from safe_training.recordings.foreign_folders import foreign_place
from safe_training.recordings.readers.base import (
    EpisodeProgress,
    EpisodeSource,
    ReadOptions,
    Source,
    no_readable_episode,
)
from safe_training.recordings.readers.copies import SeenRollouts
from safe_training.recordings.readers.open_pi_zero import OpenPiZeroSource
from safe_training.recordings.readers.openvla import OpenVlaSource
from safe_training.recordings.readers.pi0 import Pi0Source
from safe_training.recordings.readers.pi0_fast import Pi0FastSource
from safe_training.recordings.readers.pi0_fast_droid import Pi0FastDroidSource
from safe_training.recordings.readers.pooled_npz import PooledNpzSource
from safe_training.recordings.readers.rollout_set import RolloutSetSource
from safe_training.recordings.readers.rosbag2 import RosbagSource
from safe_training.recordings.readers.unseen_root import WithUnseenRoot
from safe_training.recordings.rollouts import Rollouts
from safe_training.recordings.untrusted.npz_file import shapes
from vla_feature_bridge.rollout import Rollout

__all__ = [
    'READERS',
    'DumpError',
    'EpisodeProgress',
    'EpisodeSource',
    'ReadOptions',
    'Source',
    'load_rollouts',
    'open_source',
    'read_rollouts',
]

_APPLE_DOUBLE = b'\0\5\x16\7'
_log = logging.getLogger(__name__)

#: Readers are tried in this order. The first reader that recognises a path is used.
READERS: tuple[type[Source], ...] = (
    RolloutSetSource,
    RosbagSource,
    PooledNpzSource,
    Pi0Source,
    Pi0FastSource,
    Pi0FastDroidSource,
    OpenPiZeroSource,
    OpenVlaSource,
)


def open_source(
    path: str | os.PathLike[str],
    pooling: tuple[tuple[str, str], ...] | None = None,
    feature: str | None = None,
    skip_bad: bool = False,
    keep: Literal['pooled', 'raw'] = 'pooled',
    all_episodes: bool = False,
    unseen_root: str | os.PathLike[str] | None = None,
) -> Source:
    """Return the source at a path, read by the first reader that recognises its format.

    Parameters
    ----------
    path : path
        Folder or file: a dump, an archive, a recording or a rollout set.
    pooling : tuple of (axis, command), optional
        How to reduce raw features; None takes the default of the format.
    feature : str, optional
        Name of the feature array if the source has several; ``none`` reads a dump without features,
        for detectors that use actions, tokens or signals.
    skip_bad : bool
        Leave out unreadable episodes and list them in ``Source.skipped``.
    keep : 'pooled' or 'raw'
        'pooled': one vector per step. 'raw': the complete tensor.
    all_episodes : bool
        Also keep the episodes that the published protocol of the format leaves out.
    unseen_root : path, optional
        A second root of the same format, with tasks that no detector may train on.

    Raises
    ------
    DumpError
        The path does not exist, no reader recognises the format, or an option does not fit the
        format.
    RolloutSetError
        The path is a damaged rollout set.
    """
    options = ReadOptions(pooling, feature, skip_bad, keep, all_episodes)
    source = _open(Path(path), options)
    if unseen_root is None:
        return source
    unseen = _open(Path(unseen_root), options)
    for one in (source, unseen):
        if not isinstance(one, EpisodeSource):
            raise DumpError(
                where=str(one.path),
                expected='a dump or a rollout set, because --unseen-root joins two sources',
                found=f'the format {one.kind}',
                advice='convert both sources to rollout sets first',
            )
    assert isinstance(source, EpisodeSource)
    assert isinstance(unseen, EpisodeSource)
    return WithUnseenRoot(source, unseen)


def _open(place: Path, options: ReadOptions) -> Source:
    if not place.exists():
        raise DumpError(
            where=str(place),
            expected='a file or folder',
            found='no file or folder',
            advice='check the path',
        )
    _refuse_companion(place)
    for number, reader in enumerate(READERS):
        why = reader.detect(place)
        if why is not None:
            source = reader(place, why, options)
            if place.is_dir() and not isinstance(source, RolloutSetSource):
                source.notes += _other_formats(place, reader, READERS[number + 1 :])
            return source
    formats = dict.fromkeys(reader.looks_for for reader in READERS)
    looked_for = ', '.join(f'({number}) {text}' for number, text in enumerate(formats, start=1))
    if (place / 'detector.json').is_file():
        raise DumpError(
            where=str(place),
            expected='a dump, an archive, a recording or a rollout set',
            found='a detector folder (it holds detector.json)',
            advice='give the rollouts here; --help shows the order of the arguments',
        )
    foreign = foreign_place(place)
    if foreign is not None:
        raise DumpError(
            where=str(place),
            expected='a dump, an archive, a recording or a rollout set',
            found=foreign.found,
            advice=foreign.advice,
        )
    raise DumpError(
        where=str(place),
        expected=f'one of these formats: {looked_for}',
        found=_content(place),
        advice='check the path, or give the folder that contains the episodes',
    )


def load_rollouts(
    path: str | os.PathLike[str], *, progress: EpisodeProgress | None = None, **reading: Any
) -> Rollouts:
    """Return all rollouts of any source that :func:`open_source` opens.

    Parameters
    ----------
    path : path
        Folder or file: a dump, an archive, a recording or a rollout set.
    progress : callable, optional
        Called with ``(done, total)`` episodes before every episode and at the end.
    **reading
        How to read the source: ``pooling``, ``feature``, ``skip_bad``, ``keep``, ``all_episodes``
        and ``unseen_root``, as in :func:`open_source`. With ``skip_bad``, each episode left out is
        logged as a warning.

    Returns
    -------
    Rollouts
        At least one rollout, with the feature of all; arrays of a rollout set are memory-mapped.

    Raises
    ------
    DumpError, RolloutSetError
        See :func:`open_source`. Also raised if an episode is unreadable and ``skip_bad`` is off, or
        if no episode is readable.
    """
    known = [name for name in inspect.signature(open_source).parameters if name != 'path']
    unknown = sorted(set(reading) - set(known))
    if unknown:
        raise TypeError(
            f'load_rollouts: expected options among {", ".join(known)}, found {unknown[0]!r}; '
            'correct the name'
        )
    source = open_source(path, **reading)
    rollouts = list(read_rollouts(source, progress))
    if not rollouts:
        raise no_rollouts(source)
    for message in source.skipped:
        _log.warning('episode left out: %s', message)
    return Rollouts(rollouts, source.feature, os.fspath(path))


def read_rollouts(source: Source, progress: EpisodeProgress | None = None) -> Iterator[Rollout]:
    """Yield the rollouts of a source; a copy of an earlier rollout is refused or left out.

    An :class:`EpisodeSource` finds copies by its files, before it reads them.

    Raises
    ------
    DumpError
        See :meth:`Source.rollouts`. Also raised for a copy if ``skip_bad`` is off.
    """
    if isinstance(source, EpisodeSource):
        yield from source.rollouts(progress)
        return
    seen = SeenRollouts()
    for rollout in source.rollouts(progress):
        first = seen.first_equal(rollout)
        if first is None:
            yield rollout
            continue
        error = DumpError(
            where=f'{source.path}: episode {rollout.episode_id!r}',
            expected='each episode once',
            found=f'the features and actions of episode {first!r} again',
            advice=LEAVE_OUT,
        )
        if not source.options.skip_bad:
            raise error
        source.skipped.append(str(error))


def no_rollouts(source: Source) -> DumpError:
    """Return the error of a source that gave no rollout, with the first reason."""
    return no_readable_episode(source, source.skipped)


def _refuse_companion(place: Path) -> None:
    """Raise DumpError for a file that macOS writes in addition to another file."""
    if not place.name.startswith('._') or not place.is_file():
        return
    with place.open('rb') as stream:
        if stream.read(4) != _APPLE_DOUBLE:
            return
    raise DumpError(
        where=str(place),
        expected='a file of recorded rollouts',
        found=f'a file of macOS with data about {place.name[2:]}',
        advice=f'give the path {place.with_name(place.name[2:])}',
    )


def _other_formats(place: Path, used: type[Source], others: Sequence[type[Source]]) -> list[str]:
    """Return a note for each other format in a folder, because only one format is read."""
    notes = []
    for reader in others:
        try:
            why = reader.detect(place)
        except DumpError:
            continue  # The part of the other format is damaged.
        if why is not None:
            notes.append(f'{place} also {why} ({reader.kind}); only the format {used.kind} is read')
    return notes


def _content(place: Path) -> str:
    if place.suffix == '.npz':
        return f'an archive with the arrays {", ".join(list(shapes(place))[:16])}'
    if place.is_file():
        return f'a file of {place.stat().st_size} bytes with the name {place.name}'
    names = sorted(entry.name for entry in place.iterdir())
    if not names:
        return 'an empty folder'
    more = f' and {len(names) - 6} more' if len(names) > 6 else ''
    return f'a folder that contains {", ".join(names[:6])}{more}'
