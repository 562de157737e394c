# SPDX-License-Identifier: Apache-2.0
"""A pool of threads, because a client of OpenVLA opens a connection for each request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

_MOST_IDLE = 16


class Crew:
    """Runs jobs in daemon threads; a thread whose job has ended waits for the next job.

    Starting a new thread takes milliseconds on a busy machine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = 0
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def run(self, job: Callable[[], None]) -> None:
        """Run a job, which must not raise, in a thread.

        Raises
        ------
        RuntimeError
            The system cannot start another thread.
        """
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._jobs.put(job)
                return
        threading.Thread(target=self._work, args=(job,), name='crew', daemon=True).start()

    def _work(self, job: Callable[[], None]) -> None:
        while True:
            job()
            with self._lock:
                if self._idle >= _MOST_IDLE:
                    return
                self._idle += 1
            job = self._jobs.get()
