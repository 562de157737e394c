# SPDX-License-Identifier: Apache-2.0
"""What ``.ci/run`` says about the tests that were not run."""

import subprocess
import sys
from pathlib import Path

NOT_RUN = Path(__file__).parents[2] / '.ci' / 'not_run.py'

TESTS = """
import pytest

@pytest.mark.skipif(True, reason='no browser')
@pytest.mark.parametrize('n', range(3))
def test_a_page(n):
    pass

def test_a_ray():
    pytest.skip('no ray')

@pytest.mark.xfail(reason='known', strict=True)
def test_known():
    raise AssertionError

def test_passes():
    pass
"""


def not_run(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, NOT_RUN, *arguments], capture_output=True, text=True, timeout=60
    )


def results_of(folder: Path) -> Path:
    (folder / 'pytest.ini').write_text('[pytest]\n')
    results = folder / 'tests.xml'
    command = [sys.executable, '-m', 'pytest', f'--junit-xml={results}', str(folder)]
    subprocess.run(command, capture_output=True, cwd=folder, timeout=60)
    return results


def test_one_line_for_each_reason(tmp_path):
    (tmp_path / 'test_some.py').write_text(TESTS)
    (tmp_path / 'test_more.py').write_text(
        "import pytest\npytest.importorskip('not_there', reason='no OpenCV')\n"
    )
    done = not_run(results_of(tmp_path))
    assert done.returncode == 0, done.stderr
    *lines, other = done.stdout.splitlines()
    assert lines == [
        'not run: 3 tests: no browser',
        'not run: 1 module: no OpenCV',
        'not run: 1 test: no ray',
    ]
    assert f'a Python other than {sys.version_info.major}.{sys.version_info.minor}' in other


def test_a_module_is_counted_once_although_each_run_collects_it(tmp_path):
    (tmp_path / 'test_some.py').write_text(TESTS)
    (tmp_path / 'test_more.py').write_text(
        "import pytest\npytest.importorskip('not_there', reason='no OpenCV')\n"
    )
    results = results_of(tmp_path)
    lines = not_run(results, results).stdout.splitlines()
    assert lines[:3] == [
        'not run: 6 tests: no browser',
        'not run: 2 tests: no ray',
        'not run: 1 module: no OpenCV',
    ]


def test_a_run_that_skips_nothing_says_so(tmp_path):
    (tmp_path / 'test_some.py').write_text('def test_passes():\n    pass\n')
    assert 'no test was skipped' in not_run(results_of(tmp_path)).stdout


def test_results_that_cannot_be_read_are_an_error(tmp_path):
    (tmp_path / 'cut.xml').write_text('<testsuites><testsuite>')
    for results in (tmp_path / 'cut.xml', tmp_path / 'none.xml'):
        done = not_run(results)
        assert done.returncode == 1
        assert f'{results}: expected a JUnit file of pytest, found' in done.stderr
