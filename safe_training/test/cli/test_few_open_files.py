# SPDX-License-Identifier: Apache-2.0
"""Every verb works on more rollouts than a process may have open files."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from small_sets import make_set

ROLLOUTS, OPEN_FILES = 1500, 128

_PROBE = """
import contextlib, io, json, resource, sys

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
from safe_training.cli.main import main

said = []
for words in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    said.append((words[0], status, out.getvalue(), err.getvalue()))
print(json.dumps(said))
"""


def ran(*commands, open_files=OPEN_FILES):
    """Run commands in one process with few open files; return what each one printed."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, '-c', _PROBE, str(open_files), words],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    printed = {}
    for verb, status, out, err in json.loads(done.stdout):
        assert status == 0, f'{verb}: {err}'
        printed[verb] = out
    return printed


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp('many') / 'set', tasks=6, per_task=ROLLOUTS // 6)


def test_each_verb_reads_a_set_with_more_rollouts_than_open_files(many, tmp_path):
    detector, page = tmp_path / 'detector', tmp_path / 'page.html'
    printed = ran(
        ('convert', many, tmp_path / 'copy', '--json'),
        ('convert', many, tmp_path / 'copy.mcap', '--json'),
        ('fit', tmp_path / 'copy', '--detector', 'mahalanobis', '--out', detector, '--json'),
        ('judge', many, detector, '--json'),
        ('evaluate', many, '--detector', 'mahalanobis', '--splits', '2', '--json'),
        ('report', many, detector, '--out', page, '--json'),
        ('info', tmp_path / 'copy.mcap', '--json'),
    )
    assert json.loads(printed['info'])['episodes'] == ROLLOUTS
    assert json.loads(printed['report'])['rollouts'] == ROLLOUTS
    parts = json.loads(printed['judge'])['parts']
    assert sum(part['failures'] + part['successes'] for part in parts) == ROLLOUTS


def test_a_dump_with_more_files_than_open_files_is_converted(tmp_path):
    names = [f'action/{n}' for n in ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'dgripper')]
    rows = '\n'.join([','.join(names), *[','.join(['0.5'] * 7)] * 2]) + '\n'
    (tmp_path / 'dump').mkdir()
    rng = np.random.default_rng(0)
    for number in range(2 * OPEN_FILES):
        stem = tmp_path / 'dump' / f'task0--ep{number}--succ1'
        record = {
            'hidden_states': rng.normal(size=(2, 7, 4)).astype(np.float32),
            'task_suite_name': 'toy',
            'task_id': 0,
            'task_description': 'lift',
            'episode_idx': number,
            'episode_success': True,
        }
        stem.with_suffix('.pkl').write_bytes(pickle.dumps(record))
        stem.with_suffix('.csv').write_text(rows)
    for jobs, open_files in ((1, OPEN_FILES), (40, 56)):
        words = ('convert', tmp_path / 'dump', tmp_path / f'set{jobs}', '--json', '--jobs', jobs)
        printed = ran(words, open_files=open_files)
        assert json.loads(printed['convert'])['rollouts'] == 2 * OPEN_FILES
