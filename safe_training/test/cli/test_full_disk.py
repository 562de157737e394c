# SPDX-License-Identifier: Apache-2.0
"""A full disk, a read-only disk and a second writer: one clear error, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from rollout_factory import make_rollout
from small_sets import SPEC, make_set

from safe_training.recordings.labels import Label, set_labels, write_set_labels
from safe_training.sweep.grid import SweepError
from vla_feature_bridge.atomic import locked
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

#: Runs commands, and prints for each one its status, its error text and what lies on the disk.
_PROBE = """
import contextlib, io, json, pathlib, sys

from safe_training.cli.main import main

disk, said = pathlib.Path(sys.argv[1]), []
for words in json.loads(sys.argv[2]):
    before = sorted(map(str, disk.rglob('*')))
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        status = main(words)
    new = sorted(set(map(str, disk.rglob('*'))) - set(before))
    said.append((words, status, err.getvalue(), new))
print(json.dumps(said))
"""
#: Mounts a small disk that only the command sees.
_ON_DISK = 'mount -t tmpfs -o size=$1 none "$2" && mount -o remount,$3 "$2"'


def private_mounts():
    """Return whether this user may mount a disk that only one process sees."""
    if shutil.which('unshare') is None:
        return False
    probe = ['unshare', '-Urm', 'sh', '-c', 'mount -t tmpfs none /mnt']
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(
    not private_mounts(), reason='needs a disk of its own (unshare -Urm)'
)


def on_disk(disk, commands, *, size='64k', mode='rw'):
    """Run commands with a small disk at a path; returns what the probe prints."""
    disk.mkdir()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    words = json.dumps([[str(word) for word in command] for command in commands])
    script = f'{_ON_DISK} && shift 3 && exec "$@"'
    probe = ['unshare', '-Urm', 'sh', '-c', script, '_', size, str(disk), mode]
    probe += [sys.executable, '-c', _PROBE, str(disk), words]
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """Return a set of 400 kB."""
    path = tmp_path_factory.mktemp('wide') / 'rollouts'
    with RolloutSetWriter(path, feature=SPEC) as writer:
        for index in range(20):
            writer.add(make_rollout(index, steps=1250))
    return path


def outputs(rollouts, wide, folder, disk):
    """Return commands that write to a disk: each with more than 64 kB."""
    yield 'convert', wide, disk / 'set'
    yield 'convert', wide, disk / 'run.mcap'
    yield 'convert', wide, disk / 'run.bag'
    fit = ('fit', rollouts, '--detector', 'safe_mlp', '--param', 'epochs=1')
    yield *fit, '--param', 'hidden=8000', '--out', disk / 'detector'
    yield 'report', rollouts, folder, '--out', disk / 'page.html'
    yield 'figures', rollouts, folder, '--out', disk / 'figures', '--format', 'svg'


@needs_mounts
def test_a_full_disk_is_named_and_nothing_half_written_stays(rollouts, wide, folder, tmp_path):
    disk = tmp_path / 'disk'
    for words, status, said, new in on_disk(disk, [*outputs(rollouts, wide, folder, disk)]):
        assert status == 1, words
        assert 'Traceback' not in said
        assert '\n' not in said.strip(), said
        assert str(disk) in said
        assert 'No space left on device; free space on this disk, or write to another' in said
        # Figures that were complete before the disk was full may stay.
        kept = [name for name in new if words[0] != 'figures' or 'partial' in name]
        assert kept == [], words


@needs_mounts
def test_a_read_only_disk_is_named_before_long_work(rollouts, wide, folder, tmp_path):
    disk = tmp_path / 'disk'
    more = [
        ('evaluate', rollouts, '--detector', 'clock', '--splits', '2', '--out', disk / 'results'),
        ('fit', tmp_path / 'no set is needed', '--detector', 'safe_mlp', '--out', disk / 'mlp'),
    ]
    commands = [*outputs(rollouts, wide, folder, disk), *more]
    for words, status, said, _ in on_disk(disk, commands, mode='ro'):
        assert status == 1, words
        assert '\n' not in said.strip(), said
        assert str(disk) in said
        assert 'Read-only file system; write to a folder on another disk' in said


def command(*words):
    """Start a command in its own process."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    run = [sys.executable, '-m', 'safe_training', *map(str, words)]
    return subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, text=True)


def test_of_two_conversions_to_one_name_one_says_that_it_lost(wide, tmp_path):
    words = ('convert', wide, tmp_path / 'set', '--json')
    both = [command(*words), command(*words)]
    said = [process.communicate()[1] for process in both]
    lost = [text for process, text in zip(both, said, strict=True) if process.returncode]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert '\n' not in lost[0].strip()
    assert 'another process that writes the same' in lost[0] or 'does not exist' in lost[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ['set']


def test_two_writers_without_a_journal_one_wins(tmp_path):
    with (
        pytest.raises(ValueError, match='set: expected a path that does not exist'),
        RolloutSetWriter(tmp_path / 'set', feature=SPEC) as slower,
    ):
        slower.add(make_rollout())
        with RolloutSetWriter(tmp_path / 'set', feature=SPEC) as faster:
            faster.add(make_rollout())
    assert [entry.name for entry in tmp_path.iterdir()] == ['set']


def test_labels_of_two_people_at_the_same_time_are_all_kept(tmp_path):
    path = make_set(tmp_path / 'set', tasks=1, per_task=12, outcome=lambda index: None)
    names = list(set_labels(path))
    with locked(path):
        started = [
            command('label', path, '--episode', name, '--outcome', 'success') for name in names[:2]
        ]
        time.sleep(3)
        assert [process.poll() for process in started] == [None, None]  # both wait
    for process in started:
        assert process.wait(60) == 0
        process.communicate()
    write_set_labels(path, {names[2]: Label(False, None)})
    found = set_labels(path)
    assert [found[name].success for name in names[:4]] == [True, True, False, None]


def test_a_second_sweep_of_the_same_folder_is_refused(rollouts, tmp_path, run):
    (tmp_path / 'out').mkdir()
    grid = tmp_path / 'grid.yaml'
    grid.write_text('benchmark: toy\ndetectors:\n  - name: clock\n')
    words = ('sweep', rollouts, '--grid', grid, '--splits', '2', '--out', tmp_path / 'out')
    with locked(tmp_path / 'out'):
        status, _, said = run(*words)
    assert status == 1
    assert 'found another sweep that is still running; wait until' in said
    assert SweepError.__name__ not in said
    status, _, said = run(*words)
    assert status == 0, said


@pytest.mark.parametrize('name', ['x' * 300, 'missing/folder/set'])
def test_errors_of_the_file_system_say_what_to_do(tmp_path, run, name):
    status, _, said = run('info', tmp_path / name)
    assert status == 1
    assert '; check the path' in said or '; use a shorter name' in said
