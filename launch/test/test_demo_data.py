# SPDX-License-Identifier: Apache-2.0
"""The recordings of the demo: installed with the package, and found from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared_files import DATA

from safe_bringup import demo_recordings
from safe_bringup.demo_recordings import DUMP, POOLED, DemoError, data_folder

PACKAGE = Path(__file__).parents[1]


def install_data(package: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, 'setup.py', '-q', 'install_data', '--install-dir', str(out)],
        cwd=package,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Make the code believe that it is installed, and not in a checkout."""
    module = tmp_path / 'lib' / 'python3' / 'site-packages' / 'safe_bringup' / 'module.py'
    monkeypatch.setattr(demo_recordings, '__file__', str(module))
    monkeypatch.delenv('SAFE_DEMO_DATA', raising=False)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    return tmp_path


def test_the_package_installs_the_recordings(tmp_path):
    done = install_data(PACKAGE, tmp_path)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / 'share' / 'safe_bringup' / 'data'
    files = {p.relative_to(DATA) for p in DATA.rglob('*') if p.is_file()}
    assert {p.relative_to(installed) for p in installed.rglob('*') if p.is_file()} == files
    for name in (POOLED, f'{DUMP}/task0--ep0--succ0.pkl'):
        assert (installed / name).read_bytes() == (DATA / name).read_bytes()


def test_a_package_folder_that_was_copied_alone_installs_and_says_what_is_missing(tmp_path):
    alone = tmp_path / 'alone' / 'launch'
    shutil.copytree(PACKAGE, alone, symlinks=True)
    done = install_data(alone, tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert 'expected the recorded rollouts of the demo, found none' in done.stderr
    share = tmp_path / 'out' / 'share' / 'safe_bringup'
    assert (share / 'launch' / 'demo.launch.py').is_file()
    assert not (share / 'data').exists()


def test_the_installed_recordings_are_found_from_any_folder(elsewhere, monkeypatch):
    assert install_data(PACKAGE, elsewhere).returncode == 0
    monkeypatch.chdir('/')
    assert data_folder() == elsewhere / 'share' / 'safe_bringup' / 'data'


def test_a_checkout_needs_no_installed_recordings(monkeypatch):
    monkeypatch.delenv('SAFE_DEMO_DATA', raising=False)
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.devnull)
    # The tests may run on an installed package.
    module = PACKAGE / 'safe_bringup' / 'demo_recordings.py'
    monkeypatch.setattr(demo_recordings, '__file__', str(module))
    assert data_folder() == DATA


def test_the_variable_comes_first_and_is_not_passed_over(elsewhere, monkeypatch):
    assert install_data(PACKAGE, elsewhere).returncode == 0
    monkeypatch.setenv('SAFE_DEMO_DATA', str(DATA))
    assert data_folder() == DATA
    monkeypatch.setenv('SAFE_DEMO_DATA', str(elsewhere / 'nothing'))
    with pytest.raises(DemoError, match=f'{elsewhere}/nothing: expected the file {POOLED}'):
        data_folder()


def test_an_installation_without_recordings_says_where_they_would_be(elsewhere):
    marker = elsewhere / 'share' / 'ament_index' / 'resource_index' / 'packages' / 'safe_bringup'
    marker.parent.mkdir(parents=True)
    marker.touch()
    (elsewhere / 'share' / 'safe_bringup').mkdir()
    with pytest.raises(DemoError) as raised:
        data_folder()
    assert raised.value.where == f'{elsewhere}/share/safe_bringup/data'
    assert 'set SAFE_DEMO_DATA' in raised.value.advice
