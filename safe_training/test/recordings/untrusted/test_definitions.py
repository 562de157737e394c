# SPDX-License-Identifier: Apache-2.0
"""The installation copies the message definitions from safe_msgs, where they are written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safe_training.recordings.untrusted import cdr

ROOT = Path(__file__).parents[4]
NAMES = ['EpisodeEvent.msg', 'FailureScore.msg', 'PolicyStep.msg', 'Tensor.msg']


@pytest.fixture
def checkout(tmp_path):
    """Make a folder with the package and nothing beside it."""
    package = tmp_path / 'checkout' / 'safe_training'
    (package / 'safe_training').mkdir(parents=True)
    (package / 'resource').mkdir()
    (package / 'resource' / 'safe_training').touch()
    (package / 'safe_training' / '__init__.py').touch()
    tables = ('safe_training/fitting/__init__.py', 'safe_training/cli/main.py')  # of setup.py
    for name in ('setup.py', 'setup.cfg', 'package.xml', *tables):
        (package / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / 'safe_training' / name, package / name)
    return tmp_path / 'checkout'


def build(checkout, out, prefix=''):
    return subprocess.run(
        [sys.executable, 'setup.py', '-q', 'build', '-b', str(out)],
        cwd=checkout / 'safe_training',
        env={**os.environ, 'AMENT_PREFIX_PATH': str(prefix)},
        capture_output=True,
        text=True,
    )


def assert_built(out):
    for name in NAMES:
        built = out / 'lib' / 'safe_training' / 'definitions' / name
        assert built.read_bytes() == (ROOT / 'safe_msgs' / 'msg' / name).read_bytes()


def test_a_build_copies_them_from_the_checkout(checkout, tmp_path):
    shutil.copytree(ROOT / 'safe_msgs', checkout / 'safe_msgs')
    stale = checkout / 'safe_training' / 'safe_training' / 'definitions' / 'Tensor.msg'
    stale.parent.mkdir()
    stale.write_text('uint8 old')
    done = build(checkout, tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert_built(tmp_path / 'out')


def test_a_build_copies_them_from_the_installed_package(checkout, tmp_path):
    shutil.copytree(ROOT / 'safe_msgs' / 'msg', tmp_path / 'ros' / 'share' / 'safe_msgs' / 'msg')
    done = build(checkout, tmp_path / 'out', tmp_path / 'ros')
    assert done.returncode == 0, done.stderr
    assert_built(tmp_path / 'out')


def test_a_source_archive_has_them(checkout, tmp_path):
    copies = checkout / 'safe_training' / 'safe_training' / 'definitions'
    copies.mkdir()
    for name in NAMES:
        shutil.copy(ROOT / 'safe_msgs' / 'msg' / name, copies)
    done = build(checkout, tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert_built(tmp_path / 'out')


def test_a_build_without_them_fails_and_says_what_to_do(checkout, tmp_path):
    done = build(checkout, tmp_path / 'out')
    assert done.returncode == 1
    assert f'expected {", ".join(NAMES)}' in done.stderr
    assert 'build and source safe_msgs first' in done.stderr


def test_a_missing_copy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    monkeypatch.setattr(cdr, '__file__', str(tmp_path / 'a' / 'b' / 'c' / 'cdr.py'))
    with pytest.raises(
        cdr.BagMessageError, match=r'Tensor\.msg: expected the copy .* found no copy, .* install'
    ):
        cdr.own_definition('safe_msgs/msg/Tensor')


@pytest.mark.parametrize('name', ['Tensor', 'PolicyStep', 'EpisodeEvent', 'FailureScore'])
def test_a_clone_without_a_build_has_definitions(name, monkeypatch):
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    # The tests may run on an installed package.
    module = ROOT / 'safe_training/safe_training/recordings/untrusted/cdr.py'
    monkeypatch.setattr(cdr, '__file__', str(module))
    folders = cdr._definition_folders()[1:]  # the first holds the copies of a build
    monkeypatch.setattr(cdr, '_definition_folders', lambda: folders)
    assert folders == [ROOT / 'safe_msgs' / 'msg']
    assert cdr.own_definition(f'safe_msgs/msg/{name}')
