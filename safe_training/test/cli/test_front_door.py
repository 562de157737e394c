# SPDX-License-Identifier: Apache-2.0
"""The command line answers at once: help and ``info`` load nothing that takes long to import."""

import json
import subprocess
import sys

import pytest
from shared_files import DATA

from safe_training.cli.main import VERBS, main, parser_of, verb_module

SLOW = {'cv2', 'jinja2', 'matplotlib', 'pandas', 'ray', 'scipy', 'sklearn', 'torch'}
ONLY_TO_PRINT_OR_READ = {'pyarrow', 'rich'}


def loaded_by(code):
    """Run code in a new Python; returns the packages and the modules of ours that it loaded."""
    code += '\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    return {n.split('.')[0] for n in names} | {n for n in names if n.startswith('safe_training.')}


def running(*commands):
    calls = [f'assert main({[str(word) for word in command]}) == 0' for command in commands]
    return '\n'.join(['from safe_training.cli.main import main', *calls])


def test_help_of_the_command_and_of_every_verb():
    helps = [['--help'], *([verb, '--help'] for verb in VERBS)]
    assert not loaded_by(running(*helps)) & (SLOW | ONLY_TO_PRINT_OR_READ)


def test_help_of_the_command_loads_no_verb():
    loaded = loaded_by(running(['--help']))
    verbs = {f'safe_training.cli.{verb.module}' for verb in VERBS.values()}
    assert 'safe_training.cli.main' in loaded and not loaded & verbs


@pytest.mark.parametrize('source', ['openvla_dump', 'miniature_disturbed.npz'])
def test_info_of_a_dump_or_an_archive(source):
    loaded = loaded_by(running(['info', DATA / source]))
    assert 'safe_training.recordings.describe' in loaded and 'rich' in loaded
    assert not loaded & (SLOW | {'pyarrow'})
    assert 'rich' not in loaded_by(running(['info', DATA / source, '--json']))


@pytest.mark.parametrize('module', ['', '.sources', '.describe', '.convert'])
def test_the_room_of_recordings(module):
    loaded = loaded_by(f'import safe_training.recordings{module}')
    assert not loaded & (SLOW | ONLY_TO_PRINT_OR_READ)


@pytest.mark.parametrize('verb', VERBS)
def test_a_verb_explains_itself_with_an_example(verb, capsys):
    assert main([verb, '--help']) == 0
    said = capsys.readouterr().out
    assert f'usage: safe_training {verb} ' in said
    assert f'python -m safe_training {verb} ' in said and '--json' in said
    assert verb_module(verb).DESCRIPTION.split()[0] in said


def test_the_help_of_the_command_names_every_verb(capsys):
    assert main(['--help']) == 0
    said = capsys.readouterr().out
    for verb, (_, summary) in VERBS.items():
        assert f'  {verb} ' in said
        assert ' '.join(summary.split()[:3]) in said


@pytest.mark.parametrize('verb', VERBS)
def test_options_are_written_in_full(verb, capsys):
    (option, *_) = [o for o in parser_of(verb)._option_string_actions if o.startswith('--j')]
    assert main([verb, *['x'] * 3, option[:-1]]) == 2
    assert '--jso' in capsys.readouterr().err or verb != 'info'
