# SPDX-License-Identifier: Apache-2.0
"""Moves the episodes of a source into a growing rollout set, on several cores, in their order.

Every process holds one episode at a time: it reads it, writes its arrays and sends back its row.
This module imports neither torch nor a detector, so that a process starts quickly.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safe_training.readers.source import EpisodeSource, Progress, WholeDumpError
from safe_training.unpickle import DumpError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set import RolloutSetWriter, write_rollout

#: A row of the index, or why there is none.
Result = tuple[dict[str, Any] | None, str]

#: Starting a process costs about as much as reading this much.
_WORTH_A_PROCESS = 64 << 20


def add_episodes(
    source: EpisodeSource, writer: RolloutSetWriter, jobs: int, progress: Progress | None = None
) -> None:
    """Write every episode that ``writer`` does not have yet.

    Parameters
    ----------
    jobs : int
        How many processes may work at the same time; with 1 all happens in this one.

    Raises
    ------
    DumpError
        An episode cannot be read and the source does not skip bad ones, or a process died.
    RolloutSetError
        A rollout does not fit the set.
    """
    before = len(source.strays)
    total = len(source)
    for row, message in _results(source, writer, jobs):
        if row is not None:
            writer.add_row(row)
        elif source.options.skip_bad:
            writer.leave_out(message)
        else:
            raise DumpError(message)
        if progress:
            progress(before + writer.entries, total)
    source.skipped = [*source.strays, *writer.left_out]


def useful_jobs(source: EpisodeSource) -> int:
    """Return how many processes are worth starting for a source: by its size and the cores."""
    size = 0
    wanted = 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    for index in range(source.episode_count):
        size += sum(file.stat().st_size for file in source.files(index))
        wanted = max(1, size // _WORTH_A_PROCESS)
        if wanted >= (cores or 1):
            break
    return min(cores or 1, wanted, max(1, source.episode_count))


def work_of(source: EpisodeSource, other_roots: list[str]) -> str:
    """Name the work exactly: the same only for the same files, options and software."""
    listing = hashlib.sha256()
    for index in range(source.episode_count):
        for file in source.files(index):
            status = file.stat()
            entry = f'{file}\0{status.st_size}\0{status.st_mtime_ns}\0'
            listing.update(os.fsencode(entry))
        listing.update(b'\n')
    described = {
        'kind': source.kind,
        'paths': [os.path.abspath(path) for path in [str(source.path), *other_roots]],
        'options': asdict(source.options),
        'feature': source.feature.to_dict(),
        'strays': source.strays,
        'files': listing.hexdigest(),
        'software': _version(),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version('safe_training')
    except importlib.metadata.PackageNotFoundError:
        return 'source tree'


def _results(source: EpisodeSource, writer: RolloutSetWriter, jobs: int) -> Iterator[Result]:
    numbers = range(writer.entries, source.episode_count)
    if jobs > 1 and len(numbers) > 1:
        yield from _in_processes(source, writer, numbers, min(jobs, len(numbers)))
        return
    for number in numbers:
        yield _convert(source, writer.folder, source.feature, number)


def _convert(source: EpisodeSource, folder: Path, feature: FeatureSpec, number: int) -> Result:
    try:
        rollout = source.read(number)
    except WholeDumpError:
        raise
    except DumpError as error:
        return None, str(error)
    return write_rollout(folder, number, rollout, feature), ''


# -- processes


_task: tuple[EpisodeSource, Path, FeatureSpec] | None = None


def _in_processes(
    source: EpisodeSource, writer: RolloutSetWriter, numbers: range, jobs: int
) -> Iterator[Result]:
    # Started afresh rather than forked: a fork inherits locks of threads that do not exist there.
    pool = ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context('spawn'),
        _begin,
        (source, writer.folder, source.feature),
    )
    waiting: deque[Future[Result]] = deque()
    left = iter(numbers)
    try:
        # A few ahead, so that no process waits while the rows come out in order.
        waiting.extend(pool.submit(_work, number) for number in itertools.islice(left, 2 * jobs))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_work, number) for number in itertools.islice(left, 1))
    except BrokenProcessPool as error:
        raise DumpError(
            f'{source.path}: expected {jobs} processes to read its episodes, found that one died, '
            'perhaps for want of memory; try fewer (--jobs 1)'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(source: EpisodeSource, folder: Path, feature: FeatureSpec) -> None:
    global _task
    # Ctrl-C reaches every process; the first one decides, the others finish their episode.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _task = (source, folder, feature)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(number: int) -> Result:
    assert _task is not None
    source, folder, feature = _task
    return _convert(source, folder, feature, number)
