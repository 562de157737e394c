# SPDX-License-Identifier: Apache-2.0
"""The terminal view beside real monitors: it finds them, ends cleanly, and leaves the screen."""

from __future__ import annotations

import itertools
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

WATCH = [sys.executable, '-m', 'safe_monitor_node.nodes.watch']


def watch(*arguments, **kwargs):
    return subprocess.run(
        [*WATCH, *arguments], capture_output=True, text=True, timeout=60, check=False, **kwargs
    )


def test_one_table_shows_every_robot_and_what_its_monitor_says(
    probe, run_monitor, mlp_folder, quiet
):
    run_monitor(detector_folder=mlp_folder)
    run_monitor(('-r', '__ns:=/arm/left'), detector_folder=mlp_folder)
    probe.wait_until_active()
    view = subprocess.Popen(
        [*WATCH, '--once', '--wait', '6'], stdout=subprocess.PIPE, text=True, encoding='utf-8'
    )
    t = 0
    while view.poll() is None:
        last = probe.step(quiet(t, 'task/7'))
        t += 1
        time.sleep(0.5)  # few steps, because the band has an end
    out = view.communicate()[0]
    assert view.returncode == 0, out
    rows = {line.split()[0]: line for line in out.splitlines()[2:4]}
    assert set(rows) == {'/', '/arm/left'}, out
    assert '✓ NOMINAL' in rows['/']
    assert 'task/7' in rows['/']
    shown = rows['/'].split('NOMINAL')[1].split()
    assert float(shown[2]) == pytest.approx(last.threshold, rel=0.5)
    assert 0.5 < float(shown[5]) < 3, 'scores per second'
    assert '? UNKNOWN' in rows['/arm/left']
    assert max(map(len, out.splitlines())) <= 80


def test_a_killed_monitor_is_gone_within_seconds(probe, run_monitor, mlp_folder, quiet):
    monitor = run_monitor(detector_folder=mlp_folder, stale_after=600.0)
    probe.wait_until_active()
    probe.step(quiet(0))
    view = subprocess.Popen(
        [*WATCH, '--period', '0.2'], stdout=subprocess.PIPE, text=True, encoding='utf-8', bufsize=1
    )
    try:
        lines = itertools.islice(iter(view.stdout.readline, ''), 500)
        next(line for line in lines if 'NOMINAL' in line)
        os.kill(monitor.pid, signal.SIGSTOP)  # as a process that hangs; a killed one is the same
        began = time.monotonic()
        gone = next(line for line in lines if 'GONE' in line)
        assert 'NOMINAL' not in gone
        assert time.monotonic() - began < 6
    finally:
        os.kill(monitor.pid, signal.SIGCONT)
        view.send_signal(signal.SIGTERM)
        view.communicate(timeout=10)
    assert view.returncode == 0


def test_without_a_robot_the_status_is_1_and_the_text_says_why(own_domain):
    done = watch('--once', '--wait', '1')
    assert done.returncode == 1
    assert 'no robot yet' in done.stdout
    assert done.stderr == ''


@pytest.mark.parametrize('wrong', [['--wait', 'nan'], ['--period', '0'], ['--onse']])
def test_a_wrong_option_is_refused(own_domain, wrong):
    done = watch(*wrong)
    assert done.returncode == 2
    assert wrong[0] in done.stderr


@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_as_before_at_the_end(own_domain, end):
    main_end, terminal = pty.openpty()
    environment = {**os.environ, 'TERM': 'xterm'}
    view = subprocess.Popen(WATCH, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    seen = b''
    try:
        while b'no robot yet' not in seen:
            assert select.select([main_end], [], [], 20)[0], seen
            seen += os.read(main_end, 4096)
        view.send_signal(end)
        assert view.wait(10) == 0
        while select.select([main_end], [], [], 0)[0]:
            try:
                seen += os.read(main_end, 4096)
            except OSError:  # the other end is closed, and everything was read
                break
    finally:
        view.kill()
        os.close(main_end)
    assert seen.startswith(b'\x1b[?1049h')
    assert seen.endswith(b'\x1b[?1049l')
    assert b'Traceback' not in seen
