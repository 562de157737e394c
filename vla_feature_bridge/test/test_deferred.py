# SPDX-License-Identifier: Apache-2.0
"""Calls that a thread makes later: their order, what is dropped, and threads that end."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vla_feature_bridge import deferred
from vla_feature_bridge.deferred import Deferred, DeferredCalls, OwnedLock


class Work:
    """Calls that note what happens."""

    def __init__(self, **limits):
        self.calls = DeferredCalls('test_deferred', **limits)
        self.made, self.lost, self.problems = [], [], []
        self.gate = threading.Event()
        self.began = threading.Event()

    def put(self, make, size=0):
        self.calls.put(Deferred(make, self.drop, self.report, size))

    def number(self, number, size=0):
        self.put(lambda: self.made.append((number, threading.current_thread().name)), size)

    def wait_at_the_gate(self):
        """Put a call that does not end before the gate opens, and wait until it runs."""

        def stop():
            self.began.set()
            assert self.gate.wait(20)

        self.put(stop)
        assert self.began.wait(20)

    def drop(self, count):
        self.made.append((f'{count} dropped', threading.current_thread().name))

    def report(self, kind, text):
        self.problems.append((kind, text))

    @property
    def numbers(self):
        return [number for number, _ in self.made]


def test_calls_are_made_in_their_order_in_one_thread():
    work = Work(max_calls=1000)
    for number in range(500):
        work.number(number)
    assert work.calls.settle()
    assert work.numbers == list(range(500))
    assert {name for _, name in work.made} <= {'test_deferred', 'MainThread'}
    assert work.calls.waiting == 0
    assert not work.problems


def test_put_does_not_wait_and_settle_does():
    work = Work()
    work.wait_at_the_gate()
    work.number(1)
    assert work.made == []
    assert work.calls.waiting == 2
    assert not work.calls.settle(timeout=0.01)
    threading.Timer(0.05, work.gate.set).start()
    assert work.calls.settle()
    assert work.numbers == [1]


def test_settle_inside_a_call_does_nothing():
    work = Work()
    work.put(lambda: (work.calls.settle(), work.made.append((1, ''))))
    work.number(2)
    work.calls.settle()
    assert work.numbers == [1, 2]


def test_calls_of_many_threads_keep_the_order_of_each():
    work = Work(max_calls=10_000)

    def put(thread):
        for number in range(200):
            work.number((thread, number))
            if number % 20 == thread:
                work.calls.settle()

    threads = [threading.Thread(target=put, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    work.calls.settle()
    for n in range(4):
        assert [number for thread, number in work.numbers if thread == n] == list(range(200))


@pytest.mark.parametrize('limits', [{'max_calls': 4}, {'max_bytes': 40}])
def test_the_oldest_are_dropped_and_keep_their_place(limits):
    work = Work(**limits)
    work.wait_at_the_gate()
    for number in range(10):
        work.number(number, size=10)
    work.gate.set()
    work.calls.settle()
    # The call at the gate counts as one of four calls, but holds no memory.
    kept = 3 if 'max_calls' in limits else 4
    assert work.numbers == [f'{10 - kept} dropped', *range(10 - kept, 10)]
    work.number('next', size=10)
    work.calls.settle()
    assert work.numbers[-1] == 'next'
    assert work.calls.waiting == 0


def test_the_newest_call_is_never_dropped():
    work = Work(max_bytes=40)
    work.number('large', size=1000)
    work.calls.settle()
    assert work.numbers == ['large']


def test_a_call_that_fails_is_said_and_the_next_are_made():
    work = Work()
    work.put(lambda: 1 // 0)
    work.number(2)
    work.calls.settle()
    assert work.numbers == [2]
    assert work.problems == [
        (
            'internal',
            'a deferred call failed: ZeroDivisionError: integer division or modulo by zero',
        )
    ]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_thread_that_ended_is_said_and_another_goes_on():
    work = Work()
    work.wait_at_the_gate()
    dying = work.calls._thread
    # As what stops a thread from outside does; the thread ends when its call returns.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(dying.ident), ctypes.py_object(SystemExit)
    )
    work.gate.set()
    dying.join(20)
    assert not dying.is_alive()
    work.number(1)
    deadline = time.monotonic() + 20
    while not work.made and time.monotonic() < deadline:
        time.sleep(0.01)
    assert work.made == [(1, 'test_deferred')]
    assert work.problems == [('thread', 'the thread test_deferred ended; another one goes on')]


def test_without_a_thread_the_caller_does_the_work(monkeypatch):
    def none(thread):
        raise RuntimeError("can't start new thread")

    work = Work()
    monkeypatch.setattr(threading.Thread, 'start', none)
    work.number(1)
    assert work.made == [(1, 'MainThread')]
    assert work.problems[0][0] == 'thread'
    assert "can't start new thread" in work.problems[0][1]


def test_an_idle_thread_ends_and_the_next_call_starts_another(monkeypatch):
    monkeypatch.setattr(deferred, '_IDLE', 0.02)
    work = Work()
    work.number(1)
    work.calls._thread.join(20)
    work.number(2)
    work.calls.settle()
    assert work.numbers == [1, 2]
    assert not work.problems


def test_a_child_process_begins_anew():
    work = Work()
    work.wait_at_the_gate()
    work.number(1)
    child = os.fork()
    if not child:  # pragma: no cover
        right = work.calls.waiting == 0 and work.calls.settle(1)
        work.number(2)
        work.calls.settle()
        os._exit(0 if right and work.numbers == [2] else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    work.gate.set()
    work.calls.settle()
    assert work.numbers == [1]


def test_a_child_process_does_not_wait_for_a_lock_of_another_thread_of_the_parent():
    """The policy infers in one thread while another thread starts workers."""
    lock, is_held, is_over = OwnedLock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            is_held.set()
            is_over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(20)
    child = os.fork()
    if not child:  # pragma: no cover
        signal.alarm(10)
        with lock:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    is_over.set()
    thread.join()
    assert status == 0


def test_a_child_process_keeps_a_lock_of_the_thread_that_forked():
    lock = OwnedLock()
    with lock:
        child = os.fork()
        is_mine = lock.is_mine
    if not child:  # pragma: no cover
        os._exit(0 if is_mine else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert not lock.is_mine


def test_the_exit_of_python_makes_what_waits():
    script = (
        'import time\n'
        'from vla_feature_bridge.deferred import Deferred, DeferredCalls\n'
        "calls = DeferredCalls('t')\n"
        'for n in range(3):\n'
        '    calls.put(Deferred(lambda n=n: (time.sleep(0.1), print(n)), print, print))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ['0', '1', '2']
    assert done.stderr == ''


def test_settle_does_not_wait_for_calls_that_are_put_later():
    work = Work()
    ended = threading.Event()

    def feed():
        while not ended.is_set():
            work.put(lambda: time.sleep(0.001))
            time.sleep(0.0003)

    thread = threading.Thread(target=feed)
    thread.start()
    time.sleep(0.1)
    asking = threading.Thread(target=work.calls.settle, daemon=True)
    asking.start()
    asking.join(5)
    was_answered = not asking.is_alive()
    ended.set()
    thread.join()
    assert was_answered


def test_settle_makes_calls_for_a_limited_time():
    work = Work()
    for _ in range(40):
        work.put(lambda: time.sleep(0.05))
    began = time.monotonic()
    assert not work.calls.settle(timeout=0.2)
    assert time.monotonic() - began < 1.0
    assert work.calls.waiting


def test_a_call_that_an_interrupt_ended_uncounted_does_not_stop_the_next():
    work = Work()
    work.wait_at_the_gate()
    work.number(1)
    work.calls._calls.popleft()  # what a signal between two lines of `_make_next` leaves
    work.gate.set()
    assert work.calls.settle(timeout=10)
    assert work.calls.waiting == 0
    work.number(2)
    assert work.calls.settle(timeout=10)
    assert work.numbers == [2]


def test_now_makes_the_call_here_after_those_that_wait():
    work = Work()
    work.wait_at_the_gate()
    work.number(1)
    threading.Timer(0.05, work.gate.set).start()
    work.calls.put(
        Deferred(lambda: work.made.append((2, threading.current_thread().name)), print, print),
        now=True,
    )
    assert work.numbers == [1, 2]


def test_now_starts_no_thread():
    work = Work()
    for _ in range(100):
        work.calls.put(
            Deferred(lambda: work.made.append(('', threading.current_thread().name)), print, print),
            now=True,
        )
    assert {name for _, name in work.made} == {'MainThread'}
    assert work.calls._thread is None


def test_now_inside_a_call_is_later():
    work = Work()
    inner = Deferred(lambda: work.made.append((2, '')), work.drop, work.report)
    work.put(lambda: (work.calls.put(inner, now=True), work.made.append((1, ''))))
    deadline = time.monotonic() + 20
    while len(work.made) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert work.numbers == [1, 2]


def test_the_exit_of_python_says_what_it_does_not_make():
    script = (
        'import time\n'
        'from vla_feature_bridge.deferred import Deferred, DeferredCalls\n'
        "calls = DeferredCalls('t')\n"
        'for n in range(200):\n'
        '    calls.put(Deferred(lambda: time.sleep(0.1), print, print))\n'
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=True
    )
    assert time.monotonic() - began < 12.0
    assert 'calls were not made in time: they are lost' in done.stdout
