# SPDX-License-Identifier: Apache-2.0
"""Fitters are found in a source tree, too, and the entry points are those of the table."""

import subprocess
import sys
from pathlib import Path

import pytest

from safe_monitor_node.detectors import registry
from safe_training.fitting import FITTERS

PACKAGE = Path(__file__).resolve().parents[2]


def test_every_fitter_is_there_without_an_entry_point(monkeypatch):
    monkeypatch.setattr(registry, '_installed_fitters', lambda: ())
    for name, function in FITTERS.items():
        assert registry.fitter_of(name).__name__ == function.partition(':')[2]


def test_the_python_api_fits_in_a_source_tree():
    code = """
from importlib import metadata
metadata.entry_points = lambda **group: ()
import safe_training
safe_training.fit
from safe_monitor_node.detectors.registry import fitter_of
print(fitter_of('mahalanobis').__name__)
"""
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == 'fit_embedding\n', done.stderr


def test_an_installed_fitter_is_found_without_the_import(monkeypatch):
    monkeypatch.setattr(registry, '_REGISTERED', {})
    assert registry.fitter_of('mahalanobis').__name__ == 'fit_embedding'


def test_a_missing_fitter_is_a_fault_of_the_installation(monkeypatch):
    monkeypatch.setattr(registry, '_REGISTERED', {})
    monkeypatch.setattr(registry, '_installed_fitters', lambda: ())
    with pytest.raises(registry.NoFitterError, match='build the workspace again'):
        registry.fitter_of('mahalanobis')


def test_setup_makes_an_entry_point_of_each_fitter(monkeypatch):
    given = {}
    monkeypatch.setattr('setuptools.setup', lambda **options: given.update(options))
    monkeypatch.chdir(PACKAGE)
    source = (PACKAGE / 'setup.py').read_text()
    scope = {'__file__': str(PACKAGE / 'setup.py'), '__name__': 'setup'}
    exec(compile(source.replace('\ncopy_definitions()\n', '\n'), 'setup.py', 'exec'), scope)
    assert given['entry_points']['safe_monitor_node.fitters'] == [
        f'{name} = {function}' for name, function in FITTERS.items()
    ]
