# SPDX-License-Identifier: Apache-2.0
"""Converts any source to a rollout set or a recording."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safe_training.recordings.convert_workers import add_episodes, useful_jobs, work_of
from safe_training.recordings.readers.base import EpisodeProgress, EpisodeSource, Source
from safe_training.recordings.sources import no_rollouts, open_source, read_rollouts
from safe_training.recordings.write_bag import convert_to_bag, is_bag_destination
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter


@dataclass(frozen=True)
class BagOptions:
    """How to write a recording.

    Attributes
    ----------
    frequency : float
        Inferences per second if the rollouts have no time stamps [Hz].
    compression : 'none' or 'zstd'
    """

    frequency: float = 10.0
    compression: Literal['none', 'zstd'] = 'none'


def convert(
    source_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: Literal['set', 'bag'] | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    bag: BagOptions | None = None,
    progress: EpisodeProgress | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Convert any source of rollouts to a rollout set or a recording.

    One episode is in memory at a time. After an interruption (Ctrl-C, a signal) the finished
    episodes stay in ``partial_folder(destination)``, and the same call continues with them. After
    an error, all written files are removed.

    Parameters
    ----------
    to : 'set' or 'bag', optional
        Type of the output. None writes a recording if the name of the destination ends in ``.mcap``
        or ``.bag``, otherwise a rollout set.
    overwrite : bool
        Replace a rollout set or a recording that exists already.
    jobs : int, optional
        Number of processes that read episodes at the same time; None chooses it by the size of
        the source and the number of cores.
    bag : BagOptions, optional
        How to write a recording.
    progress : callable, optional
        Called with ``(done, total)`` episodes.
    **reading
        How to read the source: the options of
        :func:`safe_training.recordings.sources.open_source`.

    Returns
    -------
    dict
        Source, destination, kind, why, notes, feature, number of rollouts and of steps, number of
        episodes that an interrupted conversion had finished, and the episodes left out.

    Raises
    ------
    DumpError, RolloutSetError
        The source cannot be read or the destination cannot be written. No files remain.
    """
    source = open_source(source_path, **reading)
    if to == 'bag' or (to is None and is_bag_destination(destination)):
        options = bag or BagOptions()
        rollouts, total = convert_to_bag(
            source, destination, options.frequency, options.compression, overwrite, progress
        )
        return _report(source, source_path, destination, rollouts, total)
    return _convert_to_set(source, source_path, destination, overwrite, jobs, progress)


def _convert_to_set(
    source: Source,
    source_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    overwrite: bool,
    jobs: int | None,
    progress: EpisodeProgress | None,
) -> dict[str, Any]:
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
            for rollout in read_rollouts(source, progress):
                writer.add(rollout)
        if not writer.steps:
            raise no_rollouts(source)
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
