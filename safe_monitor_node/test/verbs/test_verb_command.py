# SPDX-License-Identifier: Apache-2.0
"""The verbs of an operator: they are listed fast, found by entry points, and pass words on."""

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safe_monitor_node.verbs.command import GROUP, find_verbs, main
from safe_monitor_node.verbs.live import VERBS
from safe_monitor_node.verbs.passing import take_all_words

PACKAGE = Path(__file__).parents[2]


def entry_points_of(setup):
    """Return the entry points that a setup.py states, by group."""
    for node in ast.walk(ast.parse(setup.read_text())):
        if isinstance(node, ast.keyword) and node.arg == 'entry_points':
            return ast.literal_eval(node.value)
    raise AssertionError(f'{setup} has no entry points')


@pytest.fixture
def another_package(tmp_path, monkeypatch):
    """Install a package with a verb ``greet`` that passes its words on."""
    (tmp_path / 'greeting.py').write_text(
        'from safe_monitor_node.verbs.passing import take_all_words\n'
        'class Greet:\n'
        '    """Greet somebody.\n\n    And more."""\n'
        '    def add_arguments(self, parser, cli_name):\n'
        '        take_all_words(parser)\n'
        '    def main(self, *, args):\n'
        '        print(args.words)\n'
        '        return 7\n'
    )
    info = tmp_path / 'greeting-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text(f'[{GROUP}]\ngreet = greeting:Greet\n')
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_setup_makes_an_entry_point_of_every_verb():
    stated = entry_points_of(PACKAGE / 'setup.py')
    assert stated[GROUP] == [
        f'{name} = {verb.__module__}:{verb.__name__}' for name, verb in VERBS.items()
    ]
    assert stated['ros2cli.command'] == ['safe = safe_monitor_node.verbs.command:SafeCommand']


def test_every_verb_says_in_one_line_what_it_does(capsys):
    assert main(['--help']) == 0
    help_text = capsys.readouterr().out
    for name, verb in VERBS.items():
        summary = verb.__doc__.partition('\n')[0].rstrip('.')
        assert summary
        assert any(line.split() == [name, *summary.split()] for line in help_text.splitlines())
    assert main([]) == 0
    assert capsys.readouterr().out == help_text


def test_a_verb_of_another_package_gets_its_words_untouched(another_package, capsys):
    assert 'greet' in find_verbs()
    assert main(['--help']) == 0
    assert 'greet' in capsys.readouterr().out
    words = ['--help', '-x', '--detector', 'a b', '--', '-1', '']
    assert main(['greet', *words]) == 7
    assert capsys.readouterr().out == f'{words}\n'


def test_words_pass_through_a_parser_with_subcommands_too():
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers().add_parser('safe').add_subparsers().add_parser('fit')
    take_all_words(sub)
    words = ['--alpha', '0.1', '-h', 'x', '--', '--y=1']
    assert parser.parse_args(['safe', 'fit', *words]).words == words


def test_an_unknown_verb_is_refused_with_the_nearest_name(capsys):
    assert main(['statsu']) == 2
    assert 'nearest name is status' in capsys.readouterr().err


@pytest.mark.parametrize(
    'words',
    [['label'], ['label', 'good'], ['status', '--wait', 'nan'], ['doctor', '--wit', '1'], ['load']],
)
def test_wrong_usage_is_status_2(words, capsys):
    assert main(words) == 2
    assert 'usage: safe' in capsys.readouterr().err


@pytest.mark.parametrize('words', [['--help'], ['status', '--help'], ['doctor', '--help']])
def test_help_imports_neither_ros_nor_numpy_nor_torch(words):
    code = (
        'import json, sys\n'
        'from safe_monitor_node.verbs.command import main\n'
        f'status = main({words!r})\n'
        'print(json.dumps([status, sorted({n.split(".")[0] for n in sys.modules})]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    status, loaded = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    assert not {'rclpy', 'numpy', 'torch', 'ros2cli', 'safe_msgs'} & set(loaded)


def test_the_package_can_be_run_as_a_module():
    done = subprocess.run(
        [sys.executable, '-m', 'safe_monitor_node', '--help'],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    assert 'doctor' in done.stdout


@pytest.mark.ros
@pytest.mark.parametrize('module', ['doctor', 'monitor_calls', 'status'])
def test_a_verb_that_runs_loads_no_torch(module):
    code = (
        f'import sys\nimport safe_monitor_node.nodes.{module}\n'
        "print({'rclpy', 'torch', 'safe_training'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "{'rclpy'}", done.stderr
