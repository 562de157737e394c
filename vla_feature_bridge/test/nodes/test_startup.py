# SPDX-License-Identifier: Apache-2.0
"""A signal ends the process of a node cleanly while the node is still being imported."""

import gc
import signal
import subprocess
import sys

import pytest

from vla_feature_bridge.nodes import startup

SLOW_NODE = """
import time

print('importing', flush=True)
while True:
    time.sleep(0.01)
"""

RUNNING_NODE = """
import time
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt

@ends_on_interrupt
def main(args=None):
    try:
        print('running', flush=True)
        while True:
            time.sleep(0.01)
    finally:
        print('torn down', flush=True)
"""

DELETING_NODE = """
import time
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt

class Slow:
    def __del__(self):
        print('deleting', flush=True)
        time.sleep(0.5)

@ends_on_interrupt
def main(args=None):
    try:
        Slow()
        while True:
            time.sleep(0.01)
    finally:
        print('torn down', flush=True)
"""

ENDING_NODE = """
def main(args=None):
    print(args, flush=True)
    return 3
"""


@pytest.fixture
def start(tmp_path):
    """Yield a function that starts a node in a process of its own."""
    started = []

    def run(source):
        (tmp_path / 'node_under_test.py').write_text(source)
        (tmp_path / 'script.py').write_text(
            'import sys\n'
            'from vla_feature_bridge.nodes.startup import start\n'
            'def load():\n'
            '    import node_under_test\n'
            '    return node_under_test.main\n'
            "sys.exit(start(load, ['argument']))\n"
        )
        started.append(
            subprocess.Popen(
                [sys.executable, str(tmp_path / 'script.py')],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


both = pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)


@both
def test_a_signal_during_the_import_ends_the_process_without_a_word(start, number):
    process = start(SLOW_NODE)
    assert process.stdout.readline() == 'importing\n'
    process.send_signal(number)
    assert process.communicate(timeout=30) == ('', '')
    assert process.returncode == 0


@both
def test_a_signal_while_the_node_runs_lets_it_tear_down(start, number):
    process = start(RUNNING_NODE)
    assert process.stdout.readline() == 'running\n'
    process.send_signal(number)
    assert process.communicate(timeout=30) == ('torn down\n', '')
    assert process.returncode == 0


@both
def test_a_signal_while_an_object_is_deleted_is_not_lost(start, number):
    process = start(DELETING_NODE)
    assert process.stdout.readline() == 'deleting\n'
    process.send_signal(number)
    assert process.communicate(timeout=30) == ('torn down\n', '')
    assert process.returncode == 0


def test_the_status_of_the_node_is_that_of_the_process(start):
    process = start(ENDING_NODE)
    assert process.communicate(timeout=30) == ("['argument']\n", '')
    assert process.returncode == 3


@pytest.mark.parametrize('module', ['monitor', 'replay'])
@pytest.mark.parametrize('after', [1, 100, 300])
def test_a_real_node_ends_cleanly_wherever_its_import_is(module, after):
    package = {'monitor': 'safe_monitor_node', 'replay': 'vla_feature_bridge'}[module]
    process = subprocess.Popen(
        # Python says on stderr which module it has imported.
        [sys.executable, '-X', 'importtime', '-m', f'{package}.nodes.{module}'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        lines = iter(process.stderr.readline, '')
        assert any('vla_feature_bridge.nodes.startup' in line for line in lines)
        for _ in range(after):
            next(lines)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.wait()
    assert 'Traceback' not in rest
    assert process.returncode == 0


def test_the_interpreter_does_not_look_for_garbage_when_a_node_has_ended():
    gc.unfreeze()
    try:
        assert startup.start(lambda: lambda args: 3) == 3
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
