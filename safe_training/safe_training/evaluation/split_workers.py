# SPDX-License-Identifier: Apache-2.0
"""Does the work of each split in several processes; the results come in the order of the splits.

The processes are forks of this process, so they share its rollouts, and import nothing again. Each
process computes with one thread. Therefore the results are bit for bit those of a single process.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from safe_monitor_node.detectors.registry import NoFitterError, fitter_of
from safe_training.evaluation.protocol import EvaluationError
from safe_training.recordings.convert_workers import most_workers, usable_cores
from vla_feature_bridge.progress import Progress
from vla_feature_bridge.rollout import Rollout

T = TypeVar('T')
Work = Callable[[int, Progress], T]
"""Called with the position of a split, and with the progress inside it."""

#: What a process needs besides copies of the features [bytes], and the number of these copies.
_ONE_PROCESS, _COPIES = 256 << 20, 6
#: Limits of a container (cgroup v2).
_LIMITS = Path('/sys/fs/cgroup')
#: Shortest time between two messages about the progress inside a split [s].
_BETWEEN_NOTES = 0.1


class _Answer(NamedTuple):
    """A finished split: its result, or the error and its traceback."""

    result: Any = None
    error: Exception | None = None
    trace: str = ''


class _Note(NamedTuple):
    """Progress inside a split."""

    part: int
    parts: int
    detail: str


class _InWorker(Exception):
    """Carries the traceback of a worker as the cause of its error."""


def useful_jobs(rollouts: Sequence[Rollout], splits: int) -> int:
    """Return the number of processes that the cores, the free memory and the splits allow."""
    copy = sum(4 * rollout.features.size for rollout in rollouts)
    fit_in = _free_memory() // (_ONE_PROCESS + _COPIES * copy)
    return max(1, min(usable_cores(), splits, fit_in))


def load_fitters(names: Iterable[str]) -> None:
    """Import what fits these detectors, so that no process imports it again."""
    for name in names:
        with contextlib.suppress(NoFitterError):  # the fit says it, if the detector needs one
            fitter_of(name)


def run_each(
    work: Work[T],
    names: Sequence[str],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Generator[T]:
    """Yield the result of each split, in order. If splits fail, the first of them is raised.

    Parameters
    ----------
    work : callable
        Returns the result of a split, which other processes send to this one.
    names : sequence of str
        Name of each split for people, such as 'linear_probe, split 3'.
    jobs : int, optional
        Number of processes; each computes with one thread. With 1, and in a daemonic process, only
        this process works. None: this process with all its threads, whose number may change the
        last bits of a result.
    progress : callable, optional
        Called with (splits done, splits, note).

    Raises
    ------
    EvaluationError
        A process died.
    """
    finished: dict[int, _Answer] = {}
    with closing(_answers(work, names, jobs, progress)) as answers:
        for number in range(len(names)):
            while number not in finished:
                finished.update([next(answers)])
            yield _result(finished.pop(number))


def run_as_finished(
    work: Work[T],
    names: Sequence[str],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Generator[tuple[int, T]]:
    """Yield the position and the result of each split as soon as it is finished.

    Parameters and errors are those of `run_each`.
    """
    with closing(_answers(work, names, jobs, progress)) as answers:
        for number, answer in answers:
            yield number, _result(answer)


def _result(answer: _Answer) -> Any:
    if answer.error is None:
        return answer.result
    if answer.trace:
        raise answer.error from _InWorker(answer.trace)
    raise answer.error


def _answers(
    work: Work[Any], names: Sequence[str], jobs: int | None, progress: Progress | None
) -> Generator[tuple[int, _Answer]]:
    """Yield splits as they finish. After an error, no further split begins."""
    if jobs is None or len(names) < 2:
        yield from _here(work, names, progress)
        return
    with _one_thread():
        # A worker, as of these functions or of a program that uses them, may start no workers.
        if jobs > 1 and not current_process().daemon:
            yield from _in_processes(work, names, min(jobs, len(names), most_workers()), progress)
        else:
            yield from _here(work, names, progress)


def _here(
    work: Work[Any], names: Sequence[str], progress: Progress | None
) -> Generator[tuple[int, _Answer]]:
    for number, name in enumerate(names):
        yield number, _Answer(work(number, _teller(progress, number, len(names), name)))


def _teller(progress: Progress | None, done: int, total: int, name: str) -> Progress:
    """Tell that a split begins, and return the function that tells the progress inside it."""

    def report(part: int, parts: int, detail: str) -> None:
        if progress is not None:
            progress(done, total, f'{name}: {part}/{parts} {detail}')

    if progress is not None:
        progress(done, total, name)
    return report


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let the libraries that are loaded compute with one thread."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    torch = sys.modules.get('torch')
    before = torch.get_num_threads() if torch else 0
    with threadpool_limits(1):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def _free_memory() -> int:
    """Return the memory that new processes can use [bytes]."""
    free = sys.maxsize
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/meminfo').read_text('ascii').splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if 'MemAvailable' in line)
    with contextlib.suppress(OSError, ValueError):  # 'max' is not a number: no limit
        limit, used = (int((_LIMITS / f'memory.{name}').read_text()) for name in ('max', 'current'))
        # Pages of files that were read count as used until they are needed for something else.
        cached = dict(s.split() for s in (_LIMITS / 'memory.stat').read_text().splitlines())
        free = min(free, limit - used + int(cached.get('inactive_file', 0)))
    return free


# -- processes


def _in_processes(
    work: Work[Any], names: Sequence[str], jobs: int, progress: Progress | None
) -> Generator[tuple[int, _Answer]]:
    left = iter(range(len(names)))
    done = 0
    # Each worker notices the end of this process, because nothing else holds the end for writing.
    alive = os.pipe()
    workers: list[_Worker] = []
    try:
        with _interrupt_waits():
            for _ in range(jobs):
                workers.append(_Worker(work, alive))
        for worker in workers:
            worker.begin(next(left))
        _teller(progress, 0, len(names), names[0])
        while busy := {w.connection: w for w in workers if w.number is not None}:
            for connection in wait(list(busy)):
                worker = busy[cast(Connection, connection)]
                number = cast(int, worker.number)
                told = worker.receive(names[number])
                if isinstance(told, _Answer):
                    done += 1
                    if told.error is not None:
                        left = iter(())
                    worker.begin(next(left, None))
                    _teller(progress, done, len(names), names[number])
                    yield number, told
                elif progress is not None:
                    progress(
                        done, len(names), f'{names[number]}: {told.part}/{told.parts} {told.detail}'
                    )
    finally:
        for worker in workers:
            worker.end()
        for end in alive:
            os.close(end)


@contextlib.contextmanager
def _interrupt_waits() -> Iterator[None]:
    """Handle a Ctrl-C of this time at the end.

    Python loses an interrupt that comes while it calls the functions before and after a fork. A new
    worker that does not ignore the signal yet must not handle it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread is interrupted.
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


class _Worker:
    """A fork of this process that does one split after the other.

    Ctrl-C does not reach the worker: this process ends it.
    """

    def __init__(self, work: Work[Any], alive: tuple[int, int]) -> None:
        self.number: int | None = None
        self.connection, theirs = get_context('fork').Pipe()
        self._process = get_context('fork').Process(
            target=_serve, args=(work, theirs, alive), daemon=True
        )
        with warnings.catch_warnings():
            # Other threads of this process do nothing that a worker uses, see `_serve`.
            warnings.simplefilter('ignore', DeprecationWarning)
            self._process.start()
        theirs.close()

    def begin(self, number: int | None) -> None:
        """Let the worker do a split; None if there is none."""
        self.number = number
        if number is not None:
            with contextlib.suppress(OSError):  # `receive` says that the worker died
                self.connection.send(number)

    def receive(self, name: str) -> _Answer | _Note:
        """Return what the worker sends.

        Raises
        ------
        EvaluationError
            The worker died.
        """
        try:
            told: _Answer | _Note = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
        else:
            return told
        status = self._process.exitcode
        killed = status == -signal.SIGKILL
        raise EvaluationError(
            where=name,
            expected='a process that computes this split',
            found=f'a process that ended {_how(status)}',
            advice='the memory was perhaps full: use fewer processes (--jobs 1)'
            if killed
            else 'use --jobs 1: then the error is not in another process',
        )

    def end(self) -> None:
        """End the worker and wait for it."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return f'by signal {-status} ({signal.Signals(-status).name})'
    return f'with exit status {status}'


def _serve(work: Work[Any], parent: Connection, alive: tuple[int, int]) -> None:
    """Work in the other process until this process ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Another thread of the parent may have held the locks of its streams. The process is killed at
    # the end, so that each line must be written at once.
    sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), 'w', 1, errors='replace') for fd in (1, 2))
    os.close(alive[1])
    threading.Thread(target=_end_with_parent, args=(alive[0],), daemon=True).start()
    while True:
        number = parent.recv()
        try:
            parent.send(_Answer(work(number, _noting(parent))))
        except Exception as error:  # the parent raises it
            _send_error(parent, error, f'\n{traceback.format_exc()}')


def _send_error(parent: Connection, error: Exception, trace: str) -> None:
    """Send an error, or its text if the other process cannot make the error again."""
    try:
        copy.copy(error)  # An exception with arguments of its own fails here as over there.
        parent.send(_Answer(error=error, trace=trace))
    except Exception:
        text = f'{type(error).__name__}: {error}'
        parent.send(_Answer(error=RuntimeError(text), trace=trace))


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)


def _noting(parent: Connection) -> Progress:
    """Return the function that sends the progress inside a split, not too often."""
    last = 0.0

    def note(part: int, parts: int, detail: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BETWEEN_NOTES:
            last = now
            parent.send(_Note(part, parts, detail))

    return note
