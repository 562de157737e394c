# SPDX-License-Identifier: Apache-2.0
"""Turns any source into a rollout set or a recording."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from safe_training.recordings.convert_workers import add_episodes, useful_jobs, work_of
from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import EpisodeSource, Progress, Source
from safe_training.recordings.sources import no_rollouts, open_source
from safe_training.recordings.write_bag import convert_to_bag, is_bag_destination
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

Pooling = tuple[tuple[str, str], ...]


def convert(
    source_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    pooling: Pooling | None = None,
    feature: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    keep: Literal['pooled', 'raw'] = 'pooled',
    all_episodes: bool = False,
    unseen_root: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    to: Literal['set', 'bag'] | None = None,
    rate: float = 10.0,
    compression: Literal['none', 'zstd'] = 'none',
) -> dict[str, Any]:
    """Turn any source of rollouts into a rollout set, one episode in memory at a time.

    An interruption (Ctrl-C, a signal) leaves what is done in ``partial_folder(destination)``; the
    same call continues there. An error leaves nothing.

    Parameters
    ----------
    pooling, feature, skip_bad, keep, all_episodes, unseen_root
        As in :func:`safe_training.recordings.sources.open_source`.
    overwrite : bool
        Replace a rollout set that is there already.
    jobs : int, optional
        How many processes read episodes at the same time; None uses as many as are worth it.
    to : 'set' or 'bag', optional
        What to make; without it a recording where the destination is named ``*.mcap`` or
        ``*.bag``, otherwise a set.
    rate, compression
        Of a recording, as in :func:`safe_training.recordings.write_bag.write_bag`.

    Returns
    -------
    dict
        Source, destination, kind, why, notes, feature, numbers of rollouts and steps, how many
        episodes an interrupted conversion had done, and what was skipped.

    Raises
    ------
    DumpError, RolloutSetError
        The source cannot be read or the set cannot be written; nothing is left behind.
    """
    source = open_source(source_path, pooling, feature, skip_bad, keep, all_episodes, unseen_root)
    if to == 'bag' or (to is None and is_bag_destination(destination)):
        rollouts, total = convert_to_bag(
            source, destination, rate, compression, overwrite, progress
        )
        return _report(source, source_path, destination, rollouts, total)
    work = ''
    if isinstance(source, EpisodeSource):
        source.refuse_early()
        work = work_of(source)
    with RolloutSetWriter(
        destination,
        feature=source.feature,
        policy=source.policy,
        source=f'{source.kind}: {Path(source_path).resolve().name}',
        overwrite=overwrite,
        work=work,
    ) as writer:
        if isinstance(source, EpisodeSource):
            add_episodes(source, writer, jobs or useful_jobs(source), progress)
        else:
            for rollout in source.rollouts(progress):
                writer.add(rollout)
        if not writer.steps:
            raise DumpError(no_rollouts(source))
    done = _report(source, source_path, destination, len(writer.steps), sum(writer.steps))
    return done | {'continued': writer.continued}


def _report(
    source: Source,
    source_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    rollouts: int,
    steps: int,
) -> dict[str, Any]:
    return {
        'source': str(source_path),
        'destination': str(destination),
        'kind': source.kind,
        'why': source.why,
        'notes': list(source.notes),
        'feature': str(source.feature),
        'rollouts': rollouts,
        'steps': steps,
        'continued': 0,
        'skipped': list(source.skipped),
    }
