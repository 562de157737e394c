# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: wrong usage, and a process of its own."""

import os
import subprocess
import sys

import pytest
from small_sets import contents


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'VERB'),
        (('train',), 'train'),
        (('fit',), 'required'),
        (('fit', 'set', '--detector', 'safe_mlp'), '--out'),
        (('fit', 'set', '--detector', 'sage_mlp', '--out', 'x'), 'safe_mlp'),
        (('fit', 'set', '--detector', 'clock', '--out', 'x', '--alpha', 'small'), '--alpha'),
        (
            ('fit', 'set', '--detector', 'clock', '--out', 'x', '--modulation', 'flat'),
            'max_deviation',
        ),
        (('judge', 'set'), 'FOLDER'),
        (('judge', 'set', 'x', '--bands', '--details'), 'not allowed with'),
        (('judge', 'set', 'x', '--detector', 'clock'), '--detector'),
        (('evaluate', 'set', '--bogus'), '--bogus'),
    ],
    ids=str,
)
def test_wrong_usage_is_status_2_and_says_what_is_right(run, arguments, message):
    status, said, errors = run(*arguments)
    assert (status, said) == (2, '')
    assert message in errors
    assert 'usage:' in errors


def test_a_real_process_ends_with_the_status_and_one_line_that_says_why(rollouts, folder):
    before = contents(folder)
    command = ['fit', str(rollouts), '--detector', 'clock', '--out', str(folder), '--json']
    done = subprocess.run(
        [sys.executable, '-m', 'safe_training', *command],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == (
        f'safe_training fit: {folder}: expected a new folder, found an existing folder; give '
        'another folder with --out, or add --overwrite\n'
    )
    assert contents(folder) == before
