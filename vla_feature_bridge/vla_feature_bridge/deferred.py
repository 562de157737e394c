# SPDX-License-Identifier: Apache-2.0
"""Calls that another thread makes later, in their order. The thread of a policy does not wait."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

#: Largest number of calls that wait, and largest memory of what they hold [bytes].
MAX_CALLS, MAX_BYTES = 256, 64 << 20
#: A thread without work ends after this time [s]; the next call starts another.
_IDLE = 30.0
#: How long the exit of Python waits for the calls that are left [s].
_AT_EXIT = 2.0
#: How often a thread that waits checks whether others have made the calls [s].
_LOOK_AGAIN = 0.02

_ALL: weakref.WeakSet[DeferredCalls] = weakref.WeakSet()
_LOCKS: weakref.WeakSet[OwnedLock] = weakref.WeakSet()


@dataclass(eq=False)
class Deferred:
    """One call that is made later.

    Attributes
    ----------
    make : callable
        The call.
    drop : callable
        Called in the place of dropped calls, with their number.
    report : callable
        Takes the kind and the text of a problem: ``'internal'``, if the call raised an exception,
        or ``'thread'``, if the thread ended or cannot be started.
    size : int
        Memory of the data of the call [bytes].
    dropped : int
        Number of dropped calls that this one stands for; 0 if it was not dropped.
    number : int
        Number of the call in the order of :meth:`DeferredCalls.put`, from 1.
    """

    make: Callable[[], object] | None
    drop: Callable[[int], object]
    report: Callable[[str, str], object]
    size: int = 0
    dropped: int = 0
    number: int = 0


class OwnedLock:
    """A lock that a thread can take several times, and that knows whether this thread has it.

    In a forked child, a lock that another thread had is free: this thread is not there.
    """

    def __init__(self) -> None:
        self._begin()
        _LOCKS.add(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._owner = self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
        self._lock.release()

    @property
    def is_mine(self) -> bool:
        """True if this thread has the lock."""
        return self._owner == threading.get_ident()

    def _after_fork(self) -> None:
        if not self.is_mine:
            self._begin()


class DeferredCalls:
    """Makes calls in a thread of its own, one after the other, in the order of :meth:`put`.

    The thread starts with the first call. Call :meth:`settle` before you use the results of the
    calls: it makes the waiting calls in the thread of the caller, and waits for the running call.
    Therefore a reader never sees a state between two calls.

    If too many calls wait, the oldest calls are dropped. In the place of dropped calls, ``drop`` is
    called with their number.

    Parameters
    ----------
    name : str
        Name of the thread.
    max_calls, max_bytes : int
        As :data:`MAX_CALLS` and :data:`MAX_BYTES`. The newest call always waits.
    holds : callable, optional
        Returns True if this thread has a lock that the calls need. Then it cannot settle: the
        running call would wait for this thread.
    """

    def __init__(
        self,
        name: str,
        max_calls: int = MAX_CALLS,
        max_bytes: int = MAX_BYTES,
        holds: Callable[[], bool] = lambda: False,
    ) -> None:
        self._name, self._holds = name, holds
        self.max_calls, self.max_bytes = max_calls, max_bytes
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self._calls: deque[Deferred] = deque()
        self._lock = threading.RLock()  # guards what waits
        self._turn = threading.RLock()  # held while a call runs; a signal may come in between
        self._runner = 0  # the thread in which a call runs
        self._newest = self._done = 0  # numbers of the last call that was put, and made
        self._bytes = self._live = 0
        self._thread: threading.Thread | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def waiting(self) -> int:
        """Number of calls that wait or run."""
        return self._live

    @property
    def _is_inside(self) -> bool:
        return self._runner == threading.get_ident() or self._holds()

    def put(self, call: Deferred, now: bool = False) -> None:
        """Make a call later, in the thread. Never waits for a running call.

        Parameters
        ----------
        call : Deferred
        now : bool
            Make the call now, in the thread of the caller, after the calls that wait. Where
            :meth:`settle` does nothing, the thread makes the call later.
        """
        now = now and not self._is_inside
        with self._lock:
            self._calls.append(call)
            self._newest += 1
            call.number = self._newest
            self._live += 1
            self._bytes += call.size
            if self._live > self.max_calls or self._bytes > self.max_bytes:
                self._drop_oldest()
            problem = '' if now else self._keep_a_thread()
        if problem:
            call.report('thread', problem)
        if now or self._thread is None:
            self.settle()
        else:
            self._wake.put(None)

    def settle(self, timeout: float = -1) -> bool:
        """Make the waiting calls in this thread, and wait for the running call.

        Calls that are put after the begin of ``settle`` do not count: they could come forever. Does
        nothing inside a call, or if this thread has the lock that the calls need.

        Parameters
        ----------
        timeout : float
            How long to make calls, and to wait for another thread [s]; negative: until all calls
            are made. A call that this thread has begun is finished.

        Returns
        -------
        bool
            False if calls are left.
        """
        newest = self._newest
        if self._done >= newest or self._is_inside:
            return True
        until = time.monotonic() + timeout if timeout >= 0 else float('inf')
        while self._done < newest:
            left = until - time.monotonic()
            if left < 0:
                return False
            if not self._turn.acquire(timeout=min(left, _LOOK_AGAIN)):
                continue
            try:
                if self._done < newest:
                    self._make_next()
            finally:
                self._turn.release()
        return True

    def _make_next(self) -> None:
        """Make the oldest call; the caller holds the turn."""
        with self._lock:
            if not self._calls:
                # Nothing waits or runs. A signal can have ended a call before it was counted.
                self._done = self._newest
                self._live = self._bytes = 0
                return
            call = self._calls.popleft()
        self._runner = threading.get_ident()
        try:
            if call.make is None:
                call.drop(call.dropped)
            else:
                call.make()
        except Exception as error:  # The next calls must be made.
            call.report('internal', f'a deferred call failed: {type(error).__name__}: {error}')
        finally:
            self._runner = 0
            with self._lock:
                self._done = max(self._done, call.number)
                if not call.dropped:
                    self._live -= 1
                    self._bytes -= call.size

    def abandon(self) -> None:
        """Forget the calls that wait, and report how many."""
        with self._lock:
            left = [*self._calls]
            self._calls.clear()
        if left:
            lost = sum(call.dropped or 1 for call in left)
            text = f'Python ends, and {lost} calls were not made in time: they are lost'
            left[-1].report('thread', text)

    def _drop_oldest(self) -> None:
        """Drop the oldest calls above the limits, and keep their place."""
        while self._live > self.max_calls or self._bytes > self.max_bytes:
            place = next((n for n, c in enumerate(self._calls) if c.make is not None), None)
            if place is None or place == len(self._calls) - 1:
                return
            call = self._calls[place]
            call.make, call.dropped = None, 1
            self._live -= 1
            self._bytes -= call.size
            before = self._calls[place - 1] if place else None
            if before is not None and before.drop == call.drop:
                before.dropped += 1
                del self._calls[place]

    def _keep_a_thread(self) -> str:
        """Start the thread if it does not run. Return the problem; empty if there is none."""
        problem = ''
        if self._thread is not None:
            if self._thread.is_alive():
                return ''
            problem = f'the thread {self._name} ended; another one goes on'
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # too many threads, or Python ends
            self._thread = None
            problem = f'no thread {self._name} ({error}); the caller does its work'
        return problem

    def _run(self) -> None:
        while True:
            try:
                self._wake.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if not self._calls:
                        self._thread = None
                        return
            while self._calls:
                with self._turn:
                    self._make_next()

    def _after_fork(self) -> None:
        """Begin anew: the calls that wait belong to the parent, and the thread is not here."""
        self._begin()


def deferred_of(sink: object) -> DeferredCalls | None:
    """Return the deferred calls of a sink; None if it has none: it is called at once."""
    try:
        found = getattr(sink, 'deferred', None)
    except Exception:  # A sink of the user, which may do anything.
        return None
    return found if isinstance(found, DeferredCalls) else None


def settle_all() -> None:
    """Make the calls that wait; called at the exit of Python. Calls that are left are reported."""
    until = time.monotonic() + _AT_EXIT
    for calls in list(_ALL):
        if not calls.settle(max(0.0, until - time.monotonic())):
            calls.abandon()


def _after_fork() -> None:
    for lock in list(_LOCKS):
        lock._after_fork()
    for calls in list(_ALL):
        calls._after_fork()


atexit.register(settle_all)
os.register_at_fork(after_in_child=_after_fork)
