# SPDX-License-Identifier: Apache-2.0
"""The Python API does what its page shows, and loads nothing before it is used."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

import safe_training

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'reference' / 'python_api.md'
HEAVY = ('torch', 'sklearn', 'scipy', 'matplotlib', 'pyarrow')


def test_the_page_shows_what_happens(tmp_path, monkeypatch):
    (tmp_path / 'test').symlink_to(ROOT / 'test')
    monkeypatch.chdir(tmp_path)
    # Not testfile(): the name of the page as it is, and no option that hides a difference.
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), {}, PAGE.name, str(PAGE), 0)
    said: list[str] = []
    found = doctest.DocTestRunner().run(test, out=said.append)
    assert found.attempted > 20
    assert not found.failed, ''.join(said)


@pytest.mark.parametrize(
    'code',
    [
        'import safe_training',
        # Each of these needs some of them only when it fits, reads or draws.
        'import safe_training; [getattr(safe_training, name) for name in safe_training.__all__]',
    ],
)
def test_importing_loads_nothing_heavy(code):
    told = f'import json, sys; {code}; print(json.dumps(sorted(sys.modules)))'
    done = subprocess.run(
        [sys.executable, '-c', told], capture_output=True, text=True, check=True, timeout=120
    )
    assert not set(HEAVY) & set(json.loads(done.stdout))


def test_every_name_is_there_and_in_the_map():
    for name in safe_training.__all__:
        assert getattr(safe_training, name).__name__ == name
        assert name in safe_training.__doc__
        assert name in dir(safe_training)
    with pytest.raises(AttributeError, match="has no attribute 'teach'"):
        _ = safe_training.teach
