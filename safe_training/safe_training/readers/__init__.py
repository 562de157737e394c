# SPDX-License-Identifier: Apache-2.0
"""Opens any source of recorded rollouts; the format is found from the folder or file itself.

A new format is a module with a subclass of :class:`Source` and its line in :data:`READERS`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from safe_training.readers.openvla import OpenVlaSource
from safe_training.readers.pooled_npz import PooledNpzSource
from safe_training.readers.rollout_set import RolloutSetSource
from safe_training.readers.source import Progress, ReadOptions, Source
from safe_training.unpickle import DumpError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout

__all__ = [
    'READERS',
    'DumpError',
    'Progress',
    'ReadOptions',
    'Source',
    'load_rollouts',
    'open_source',
]

_log = logging.getLogger(__name__)

#: Asked in this order; the first that recognises a path reads it.
READERS: tuple[type[Source], ...] = (RolloutSetSource, PooledNpzSource, OpenVlaSource)


def open_source(
    path: str | os.PathLike[str],
    pooling: tuple[tuple[str, str], ...] | None = None,
    feature: str | None = None,
    skip_bad: bool = False,
) -> Source:
    """Find the format of a dump, archive or rollout set and open it.

    Parameters
    ----------
    path : path
        Folder or file.
    pooling : tuple of (axis, command), optional
        How to reduce raw features; the format's default when not given.
    feature : str, optional
        Which feature array to take where the source holds several.
    skip_bad : bool
        Leave out unreadable episodes and list them in ``Source.skipped``.

    Raises
    ------
    DumpError
        Nothing is there, no reader recognises it, or an option does not fit the format.
    RolloutSetError
        It is a rollout set, and a broken one.
    """
    place = Path(path)
    if not place.exists():
        raise DumpError(f'{place}: expected a file or folder, found none; check the path')
    options = ReadOptions(pooling, feature, skip_bad)
    for reader in READERS:
        why = reader.detect(place)
        if why is not None:
            return reader(place, why, options)
    looked_for = '; '.join(reader.looks_for for reader in READERS)
    raise DumpError(
        f'{place}: expected one of: {looked_for}. Found {_content(place)}; '
        'check the path, or point to the folder that holds the episodes'
    )


def load_rollouts(
    path: str | os.PathLike[str],
    pooling: tuple[tuple[str, str], ...] | None = None,
    feature: str | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Rollout], FeatureSpec]:
    """Read all rollouts of any source that :func:`open_source` opens.

    Parameters
    ----------
    pooling, feature, skip_bad
        As in :func:`open_source`; what is left out is logged as warnings.
    progress : callable, optional
        Told ``(done, total)`` before every episode and at the end.

    Returns
    -------
    rollouts : list of Rollout
        At least one; from a rollout set their arrays are memory-mapped.
    feature : FeatureSpec

    Raises
    ------
    DumpError, RolloutSetError
        As :func:`open_source`; also when an episode is unreadable and ``skip_bad`` is off, or
        when none is readable.
    """
    source = open_source(path, pooling, feature, skip_bad)
    rollouts = list(source.rollouts(progress))
    if not rollouts:
        raise DumpError(no_rollouts(source))
    for message in source.skipped:
        _log.warning('left out: %s', message)
    return rollouts, source.feature


def no_rollouts(source: Source) -> str:
    """Say that a source gave no rollout at all, and the first reason."""
    reason = f'; the first: {source.skipped[0]}' if source.skipped else ''
    return (
        f'{source.path}: expected at least one readable episode, '
        f'found none of {len(source)}{reason}'
    )


def _content(place: Path) -> str:
    if place.is_file():
        return f'a file of {place.stat().st_size} bytes named {place.name}'
    names = sorted(entry.name for entry in place.iterdir())
    if not names:
        return 'an empty folder'
    return ', '.join(names[:6]) + (f' and {len(names) - 6} more' if len(names) > 6 else '')
