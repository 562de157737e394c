# SPDX-License-Identifier: Apache-2.0
"""The scripts of the folder examples, run one after another as a person runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'
SCRIPTS = sorted(EXAMPLES.glob('*.py'))


def run(script, *arguments):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_rollouts_are_written_a_detector_is_fitted_and_alarms_are_raised(tmp_path):
    rollouts, detector = tmp_path / 'set', tmp_path / 'detector'
    assert run('own_recordings.py', rollouts) == f'{rollouts}: 160 rollouts\n'
    said = run('fit_and_judge.py', rollouts, detector)
    for words in ('never seen: ', 'promised false-alarm rate 10.0 %', 'train', 'seen', 'unseen'):
        assert words in said
    alarms = run('stream.py', rollouts, detector).splitlines()
    assert all(': alarm at step ' in line for line in alarms)
    failures = [line for line in alarms if '(failure)' in line]
    assert len(failures) > 40, 'half of the 80 failures, far more than of the successes'
    assert len(alarms) - len(failures) < 16


def lines_of_code(script):
    text = script.read_text().partition('"""')[2].partition('"""')[2]
    return [line for line in text.splitlines() if line.strip() and not line.startswith('#')]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.name)
def test_an_example_is_short_and_says_how_it_is_run(script):
    assert len(lines_of_code(script)) < 25
    assert f'python examples/{script.name} ' in script.read_text()
    assert f'python examples/{script.name} ' in (EXAMPLES / 'README.md').read_text()
