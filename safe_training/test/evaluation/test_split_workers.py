# SPDX-License-Identifier: Apache-2.0
"""The work of splits in several processes: equal results, errors, and the end of every process."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from rollout_factory import make_rollouts

from safe_training.evaluation.evaluate import evaluate
from safe_training.evaluation.protocol import EvaluationError, Protocol, choose_splits
from safe_training.evaluation.split_workers import run_as_finished, run_each, useful_jobs
from safe_training.recordings.sources import load_rollouts

DEMO = Path(__file__).parents[3] / 'test/data/miniature_disturbed.npz'
NAMES = [f'split {number}' for number in range(5)]


def children():
    """Return the process ids of the children of this process."""
    return {int(pid) for pid in Path('/proc/thread-self/children').read_text().split()}


def test_results_come_in_the_order_of_the_splits():
    def work(number, report):
        time.sleep(0.05 * (number == 0))
        return number, os.getpid()

    before = children()
    found = list(run_each(work, NAMES, jobs=3))
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    assert os.getpid() not in {pid for _, pid in found}
    first, _ = next(run_as_finished(work, NAMES, jobs=3))
    assert first != 0
    assert children() == before


def test_the_same_rows_from_one_process_and_from_two():
    everything = load_rollouts(str(DEMO))
    tasks = sorted({rollout.task for rollout in everything})[:6]
    rollouts = everything.take(rollout for rollout in everything if rollout.task in tasks)
    protocol = Protocol()
    splits = choose_splits(rollouts, protocol, range(3))
    names = ['linear_probe', 'signal']
    one, two = (evaluate(names, rollouts, splits, protocol=protocol, jobs=jobs) for jobs in (1, 2))
    for row in (*one, *two):
        del row.values['fit_seconds']
    assert len(one) == len(two) == 12
    assert repr(one) == repr(two)  # NaN is not equal to itself


def test_progress_counts_splits_and_says_what_happens_inside():
    told = []

    def work(number, report):
        report(1, 4, 'a quarter')

    list(run_each(work, NAMES, jobs=2, progress=lambda *what: told.append(what)))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {total for _, total, _ in told} == {5}
    assert told[-1][0] == 5
    assert any(note.endswith(': 1/4 a quarter') for _, _, note in told)


def test_the_first_split_that_fails_is_raised_with_its_traceback():
    def work(number, report):
        if number == 1:
            time.sleep(0.2)
        if number:
            raise EvaluationError(where=NAMES[number], expected='a', found='b', advice='c')
        return number

    found = []
    before = children()
    with pytest.raises(EvaluationError, match=r'split 1: expected a, found b; c') as caught:
        found.extend(run_each(work, NAMES, jobs=3))
    assert 'in work' in str(caught.value.__cause__)
    assert children() == before


def test_a_process_that_dies_is_named_with_its_split():
    def work(number, report):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    before = children()
    with pytest.raises(EvaluationError, match=r'split 3: .* by signal 9 \(SIGKILL\); .*--jobs 1'):
        list(run_each(work, NAMES, jobs=2))
    assert children() == before


class TwoArgumentsError(Exception):
    """An error that pickle cannot make again, as some libraries have them."""

    def __init__(self, place, reason):
        super().__init__(f'{place}: {reason}')


def test_an_error_that_pickle_cannot_make_again_keeps_its_text():
    def work(number, report):
        raise TwoArgumentsError('layer 3', 'a wrong width')

    with pytest.raises(RuntimeError, match=r'^TwoArgumentsError: layer 3: a wrong wid') as caught:
        list(run_each(work, NAMES, jobs=2))
    assert 'in work' in str(caught.value.__cause__)


def test_a_result_that_pickle_cannot_send_is_the_error():
    with pytest.raises(Exception, match='pickle'):
        list(run_each(lambda number, report: lambda: 1, NAMES, jobs=2))


def test_a_process_that_ends_itself_is_not_said_to_lack_memory():
    with pytest.raises(EvaluationError, match=r'with exit status 5; use --jobs 1: ') as caught:
        list(run_each(lambda number, report: sys.exit(5), NAMES, jobs=2))
    assert 'memory' not in str(caught.value)


def test_what_a_process_prints_is_not_lost(capfd):
    def work(number, report):
        print(f'out {number}')
        print(f'err {number}', file=sys.stderr)

    list(run_each(work, NAMES, jobs=2))
    printed, complained = capfd.readouterr()
    assert sorted(printed.splitlines()) == [f'out {number}' for number in range(5)]
    assert sorted(complained.splitlines()) == [f'err {number}' for number in range(5)]


def test_stopping_early_ends_the_processes():
    before = children()
    with closing(run_each(lambda number, report: number, NAMES, jobs=2)) as found:
        assert next(found) == 0
        assert len(children() - before) == 2
    assert children() == before


def test_ctrl_c_ends_the_command_and_its_processes():
    splits = ('--detector', 'linear_probe', '--splits', '200', '--jobs', '2', '--json')
    with started('-m', 'safe_training', 'evaluate', str(DEMO), *splits) as (process, workers):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, complaint = process.communicate(timeout=60)
        assert complaint == b'safe_training evaluate: interrupted\n'
        assert process.returncode == 1
        assert not any(is_there(pid) for pid in workers)


def test_ctrl_c_while_a_process_starts_is_not_lost():
    """Python ignores exceptions of the functions that it calls after a fork."""
    script = (
        'import os, signal, threading, time\n'
        'from safe_training.evaluation.split_workers import run_each\n'
        'threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n'
        'interrupt = lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1))\n'
        'os.register_at_fork(after_in_parent=interrupt)\n'
        'list(run_each(lambda number, report: time.sleep(600), "ab", jobs=2))'
    )
    ended = subprocess.run([sys.executable, '-c', script], capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGINT
    assert b'Exception ignored' not in ended.stderr


def test_processes_end_with_a_parent_that_is_killed():
    script = (
        'import time\n'
        'from safe_training.evaluation.split_workers import run_each\n'
        'list(run_each(lambda number, report: time.sleep(600), "ab", jobs=2))'
    )
    with started('-c', script) as (process, workers):
        process.kill()
        process.wait()
        wait_for(lambda: not any(is_there(pid) for pid in workers))


@contextmanager
def started(*words):
    """Start Python, and yield the process and its two workers."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    process = subprocess.Popen([sys.executable, *words], **pipes, start_new_session=True)
    listing = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    with process:
        try:
            yield (
                process,
                wait_for(lambda: len(found := listing.read_text().split()) == 2 and found),
            )
        finally:
            process.kill()


def is_there(pid):
    """Return whether a process runs; False for one that ended and that nobody waited for."""
    try:
        return ') Z ' not in Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return False


def wait_for(condition, timeout=60):
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_each_process_computes_with_one_thread():
    def work(number, report):
        from threadpoolctl import threadpool_info

        return {pool['num_threads'] for pool in threadpool_info()}

    for jobs in (1, 2):
        assert np.unique([list(found) for found in run_each(work, NAMES, jobs=jobs)]) == [1]


def test_fewer_processes_if_the_memory_is_small(monkeypatch):
    rollouts = make_rollouts(20, rng=np.random.default_rng(0))
    workers = 'safe_training.evaluation.split_workers'
    monkeypatch.setattr(f'{workers}.usable_cores', lambda: 8)
    monkeypatch.setattr(f'{workers}._free_memory', lambda: 1 << 40)
    assert useful_jobs(rollouts, 50) == 8
    assert useful_jobs(rollouts, 3) == 3
    monkeypatch.setattr(f'{workers}._free_memory', lambda: 1 << 30)
    assert 1 <= useful_jobs(rollouts, 50) < 8
    monkeypatch.setattr(f'{workers}._free_memory', lambda: 0)
    assert useful_jobs(rollouts, 50) == 1


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    rollouts = make_rollouts(20, rng=np.random.default_rng(0))
    workers = 'safe_training.evaluation.split_workers'
    monkeypatch.setattr(f'{workers}.usable_cores', lambda: 8)
    monkeypatch.setattr(f'{workers}._LIMITS', tmp_path)
    (tmp_path / 'memory.max').write_text(f'{1 << 30}\n')
    (tmp_path / 'memory.current').write_text(f'{900 << 20}\n')
    (tmp_path / 'memory.stat').write_text(f'anon 5\ninactive_file {500 << 20}\n')
    assert useful_jobs(rollouts, 50) == 2  # 624 MiB are free
    (tmp_path / 'memory.stat').write_text('anon 5\n')
    assert useful_jobs(rollouts, 50) == 1


def test_splits_inside_of_a_split_are_computed_by_its_worker():
    def inner(number, report):
        return number, os.getpid()

    def outer(number, report):
        return os.getpid(), list(run_each(inner, NAMES, jobs=2))

    for worker, found in run_each(outer, NAMES, jobs=2):
        assert found == [(number, worker) for number in range(5)]
