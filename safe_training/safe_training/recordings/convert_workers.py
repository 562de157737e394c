# SPDX-License-Identifier: Apache-2.0
"""Writes the episodes of a source to a rollout set in their order, with several processes.

Every process holds one episode at a time: it reads the episode, writes its arrays and sends its row
of the index back. This module imports neither PyTorch nor a detector, so a process starts quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import resource
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.base import EpisodeProgress, EpisodeSource, WholeDumpError
from safe_training.recordings.sources import open_source
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import RolloutError
from vla_feature_bridge.rollout_set.arrays import write_rollout
from vla_feature_bridge.rollout_set.layout import RolloutSetError
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

#: A row of the index, or None and the reason.
Result = tuple[dict[str, Any] | None, str]

#: Number of bytes whose conversion takes as long as starting a process.
_WORTH_A_PROCESS = 1 << 30
#: Number of open files that are reserved for other code of this process.
_OTHER_FILES = 48


def add_episodes(
    source: EpisodeSource,
    writer: RolloutSetWriter,
    jobs: int,
    progress: EpisodeProgress | None = None,
) -> None:
    """Write every episode that ``writer`` does not have yet.

    Parameters
    ----------
    jobs : int
        Number of processes that may work at the same time. With 1, only this process works.

    Raises
    ------
    DumpError
        An episode cannot be read and the source does not skip bad episodes, or a process died.
    RolloutSetError
        A rollout does not fit the set.
    """
    before = len(source.unmatched)
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
    source.skipped = [*source.unmatched, *writer.left_out]


def useful_jobs(source: EpisodeSource) -> int:
    """Return the number of processes for the size of the source and the number of cores."""
    size = 0
    wanted = 1
    cores = usable_cores()
    for index in range(source.episode_count):
        size += sum(file.stat().st_size for file in source.files(index))
        wanted = max(1, size // _WORTH_A_PROCESS)
        if wanted >= cores:
            break
    return min(cores, wanted, max(1, source.episode_count))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return cores or 1


def work_of(source: EpisodeSource) -> str:
    """Return the name of a conversion; equal only for equal files, options and software."""
    listing = hashlib.sha256()
    for index in range(source.episode_count):
        for file in source.files(index):
            status = file.stat()
            entry = f'{file}\0{status.st_size}\0{status.st_mtime_ns}\0'
            listing.update(os.fsencode(entry))
        listing.update(b'\n')
    described = {
        'kind': source.kind,
        'paths': [os.path.abspath(root) for root in source.roots],
        'options': asdict(source.options),
        'feature': source.feature.to_dict(),
        'unmatched': source.unmatched,
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
        yield from _in_processes(source, writer, numbers, min(jobs, len(numbers), most_workers()))
        return
    for number in numbers:
        copy = source.copies.get(number)
        yield (None, copy) if copy else _convert(source, writer.folder, source.feature, number)


def _convert(source: EpisodeSource, folder: Path, feature: FeatureSpec, number: int) -> Result:
    try:
        rollout = source.read_checked(number)
    except WholeDumpError:
        raise
    except DumpError as error:
        return None, str(error)
    return write_rollout(folder, number, rollout, feature), ''


# -- processes


def most_workers() -> int:
    """Return how many processes the limit of open files allows: each one needs two pipes."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (files - _OTHER_FILES) // 2)


def _in_processes(
    source: EpisodeSource, writer: RolloutSetWriter, numbers: range, jobs: int
) -> Iterator[Result]:
    idle: SimpleQueue[_Worker] = SimpleQueue()
    workers: list[_Worker] = []

    def work(number: int) -> Result:
        if number in source.copies:
            return None, source.copies[number]
        worker = idle.get()
        try:
            return worker.convert(number)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(jobs)
    try:
        for _ in range(jobs):
            workers.append(_Worker(source, writer.folder, source.feature))
            idle.put(workers[-1])
        waiting: deque[Future[Result]] = deque()
        left = iter(numbers)
        # More episodes than processes, so that no process waits while the rows keep their order.
        waiting.extend(pool.submit(work, number) for number in itertools.islice(left, 2 * jobs))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, number) for number in itertools.islice(left, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker:
    """Another process that converts one episode after the other.

    The process runs this module. ``multiprocessing`` would run the script of the caller, which may
    take long to import and may have no guard against a second run. Ctrl-C does not reach the
    process; it ends together with this process, because its standard input ends.
    """

    def __init__(self, source: EpisodeSource, folder: Path, feature: FeatureSpec) -> None:
        self._path = source.path
        paths = [os.path.abspath(place) for place in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'safe_training.recordings.convert_workers'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(dict.fromkeys(paths))},
            start_new_session=True,
        )
        options = asdict(source.options)
        self._send(
            {
                'roots': [os.path.abspath(root) for root in source.roots],
                'options': options,
                'episodes': source.episode_count,
                'feature': feature.to_dict(),
                'folder': os.path.abspath(folder),
            }
        )

    def convert(self, number: int) -> Result:
        """Convert one episode in the process, and raise the error of the process if it fails."""
        assert self._process.stdout is not None
        self._send({'number': number})
        line = self._process.stdout.readline()
        if not line.endswith(b'\n'):
            raise self._died()
        answer = json.loads(line)
        if 'error' in answer:
            raise _RAISED[answer['kind']](answer['error'])
        return answer['row'], answer['message']

    def close(self) -> None:
        """End the process and wait for it."""
        with contextlib.suppress(OSError):
            self._process.communicate()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b'\n')
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None

    def _died(self) -> DumpError:
        return DumpError(
            where=str(self._path),
            expected='a process that reads the episodes',
            found=f'a process that ended with exit status {self._process.wait()}',
            advice='the memory was perhaps full: try again with --jobs 1',
        )


#: The errors that a worker may send, by name.
_RAISED: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (WholeDumpError, DumpError, RolloutSetError, RolloutError)
}


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Work in the other process: open the source again and convert the requested episodes."""
    source: EpisodeSource | None = None
    task = json.loads(requests.readline())
    feature = FeatureSpec.from_dict(task['feature'])
    for line in requests:
        answer: dict[str, Any]
        try:
            source = source or _open_again(task, feature)
            number = json.loads(line)['number']
            row, message = _convert(source, Path(task['folder']), feature, number)
            answer = {'row': row, 'message': message}
        except tuple(_RAISED.values()) as error:
            answer = {'kind': type(error).__name__, 'error': str(error)}
        except OSError as error:
            problem = DumpError(
                where=task['roots'][0],
                expected='files that can be read and written',
                found=str(error),
                advice='correct this problem, then start the conversion again',
            )
            answer = {'kind': 'DumpError', 'error': str(problem)}
        answers.write(json.dumps(answer).encode() + b'\n')
        answers.flush()


def _open_again(task: dict[str, Any], feature: FeatureSpec) -> EpisodeSource:
    options = task['options']
    pooling = options.pop('pooling')
    options['pooling'] = None if pooling is None else tuple(map(tuple, pooling))
    source = open_source(
        task['roots'][0], unseen_root=task['roots'][1] if task['roots'][1:] else None, **options
    )
    if not isinstance(source, EpisodeSource) or source.episode_count != task['episodes']:
        raise WholeDumpError(
            where=str(source.path),
            expected=f'{task["episodes"]} episodes, the number at the start of the conversion',
            found='a different number of episodes',
            advice='the source changed during the conversion: wait until the source is complete, '
            'then start the conversion again',
        )
    source.__dict__['feature'] = feature  # so that it is not read again
    return source


def _main() -> None:
    # Printed text must not be mixed with the answers.
    answers = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)
    # When this file runs as a script, it is a different module object than the imported module.
    from safe_training.recordings import convert_workers

    convert_workers._serve(sys.stdin.buffer, answers)


if __name__ == '__main__':
    _main()
