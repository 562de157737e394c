# SPDX-License-Identifier: Apache-2.0
"""The verbs ``info`` and ``convert``: what they print, what they make, what they leave behind."""

import csv
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from shared_files import DATA

from safe_training.cli import main as cli
from safe_training.recordings.convert import convert
from safe_training.recordings.describe import info
from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts
from vla_feature_bridge.rollout_set.layout import RolloutSetError
from vla_feature_bridge.rollout_set.reader import RolloutSet

DUMP = DATA / 'openvla_dump'
POOLED = DATA / 'miniature_disturbed.npz'


@pytest.fixture
def dump(tmp_path):
    """Six episodes of the shipped dump, to be damaged."""
    folder = tmp_path / 'dump'
    folder.mkdir()
    for file in DUMP.glob('task[01]--*'):
        shutil.copy(file, folder)
    assert len(list(folder.iterdir())) == 12
    return folder


def listing(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob('*'))


# -- info


def test_info_of_the_shipped_dump():
    found = info(DUMP)
    assert found['kind'] == 'openvla'
    assert found['why'] == 'contains task0--ep0--succ0.csv'
    assert (found['episodes'], found['successes'], found['failures']) == (24, 16, 8)
    assert found['feature']['text'] == 'hidden_states[token=last]'
    assert (found['feature']['dim'], found['dtype']) == (128, ['float32'])
    assert (found['actions'], found['tokens'], found['exec_horizon']) == (['1x1x7'], ['7'], [1])
    assert found['action_space'] == 'robot'
    assert [row['task_id'] for row in found['tasks']] == list(range(8))
    for row in found['tasks']:
        assert (row['episodes'], row['successes'], row['failures']) == (3, 2, 1)
        assert 1 <= row['shortest'] <= row['longest'] == 80
    assert found['bad'] == []


def test_info_of_the_shipped_archive():
    found = info(POOLED)
    archive = np.load(POOLED, allow_pickle=False)
    lengths = np.diff(archive['offsets'])
    assert (found['kind'], found['policy']) == ('pooled_npz', 'pol_full (token policy)')
    assert (found['episodes'], found['successes'], found['steps']) == (720, 548, 21213)
    assert found['length'] == {
        'shortest': lengths.min(),
        'median': np.median(lengths),
        'longest': lengths.max(),
    }
    assert (found['actions'], found['tokens']) == (['1x8x4'], ['none'])
    for row in found['tasks']:
        members = archive['task_id'] == row['task_id']
        assert row['successes'] == archive['success'][members].sum()
        assert row['episodes'] == 30


def test_info_lists_what_is_bad(dump, capsys):
    (dump / 'task1--ep1--succ0.csv').unlink()
    assert cli.main(['info', str(dump)]) == 1
    printed = capsys.readouterr()
    assert '5 (4 successes, 1 failures) of 2 tasks' in printed.out
    assert 'bad: ' in printed.err
    assert 'task1--ep1--succ0.csv: expected a file with the actions of the episode' in printed.err
    assert cli.main(['info', str(dump), '--json']) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found['episodes'], len(found['bad'])) == (5, 1)


@pytest.mark.parametrize('source', [DUMP, POOLED])
def test_info_prints_for_people_and_for_machines(source, capsys):
    assert cli.main(['info', str(source)]) == 0
    printed = capsys.readouterr().out
    assert 'episodes' in printed
    assert 'chunk_mse' in printed
    assert cli.main(['info', str(source), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['tasks']


def test_info_of_a_rollout_set_and_of_its_source_agree(tmp_path):
    convert(DUMP, tmp_path / 'set')
    of_set, of_dump = info(tmp_path / 'set'), info(DUMP)
    assert of_set['kind'] == 'rollout_set'
    for key in ('episodes', 'successes', 'steps', 'feature', 'tasks', 'signals', 'actions'):
        assert of_set[key] == of_dump[key]


def test_info_of_a_detector_folder_asks_the_folder(tmp_path, capsys):
    (tmp_path / 'detector.json').write_text('{}')
    assert cli.main(['info', str(tmp_path)]) == 1
    assert 'detector.json' in capsys.readouterr().err


# -- convert


@pytest.mark.parametrize('pooling', [None, (('token', 'mean'),), (('token', 'concat'),)])
def test_a_converted_set_holds_what_the_source_holds(tmp_path, pooling):
    expected = load_rollouts(DUMP, pooling=pooling)
    feature = expected.feature
    done = convert(DUMP, tmp_path / 'set', pooling=pooling)
    assert (done['rollouts'], done['feature'], done['skipped']) == (24, str(feature), [])
    found = RolloutSet.open(tmp_path / 'set')
    assert (found.feature, found.policy) == (feature, 'openvla')
    assert found.source == 'openvla: openvla_dump'
    assert done['steps'] == found.lengths.sum()
    for one, other in zip(found, expected, strict=True):
        assert (one.episode_id, one.task, one.success) == (
            other.episode_id,
            other.task,
            other.success,
        )
        for name in ('features', 'actions', 'token_probability', 'token_entropy'):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
        assert set(one.signals) == set(other.signals)


def test_convert_on_the_command_line(tmp_path, capsys):
    place = str(tmp_path / 'set')
    command = ['convert', str(DUMP), place, '--pooling', 'token=mean']
    assert cli.main(command) == 0
    assert 'hidden_states[token=mean] from openvla' in capsys.readouterr().out
    assert cli.main(command) == 1
    assert 'expected a path that does not exist' in capsys.readouterr().err
    assert cli.main([*command, '--overwrite', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['rollouts'] == 24
    assert listing(tmp_path)[0] == 'set'
    assert cli.main(['convert', str(DUMP), place, '--pooling', 'token=worst']) == 2
    assert 'pooling command: expected one of: first, last, mean' in capsys.readouterr().err


def test_a_set_can_be_converted_again(tmp_path):
    convert(DUMP, tmp_path / 'one')
    convert(tmp_path / 'one', tmp_path / 'two')
    one, two = RolloutSet.open(tmp_path / 'one'), RolloutSet.open(tmp_path / 'two')
    assert one.episode_ids == two.episode_ids
    for index in range(len(one)):
        assert one[index].features.tobytes() == two[index].features.tobytes()


def test_the_verbs_explain_themselves(capsys):
    for verb in ('info', 'convert'):
        assert cli.main([verb, '--help']) == 0
        assert f'python -m safe_training {verb} ' in capsys.readouterr().out


# -- bad input: one clear error, nothing executed, nothing left behind


class Malicious:
    def __reduce__(self):
        return os.system, ('touch executed',)


def _rewrite(dump, change):
    file = dump / 'task1--ep0--succ1.pkl'
    record = pickle.loads(file.read_bytes())
    change(record)
    file.write_bytes(pickle.dumps(record))


def _first_state_is_nan(record):
    record['hidden_states'][0, 6, 5] = torch.nan


def _wider_states(record):
    states = record['hidden_states']
    record['hidden_states'] = torch.cat([states, states], dim=2)


def _drop_rows(dump):
    file = dump / 'task1--ep0--succ1.csv'
    with file.open() as stream:
        rows = list(csv.reader(stream))
    with file.open('w', newline='') as stream:
        csv.writer(stream).writerows(rows[:-2])


def _empty(dump):
    for file in dump.iterdir():
        file.unlink()


PICKLE = 'task1--ep0--succ1.pkl'
DAMAGES = {
    'truncated': (
        lambda dump: (dump / PICKLE).write_bytes((dump / PICKLE).read_bytes()[:20_000]),
        f'{PICKLE}: expected .* before the end of the file; copy the file',
    ),
    'malicious': (
        lambda dump: (dump / PICKLE).write_bytes(pickle.dumps(Malicious())),
        f"{PICKLE}: expected .* found a reference to 'posix.system' .* nothing was executed",
    ),
    'malicious-inside': (
        lambda dump: _rewrite(dump, lambda record: record.update(extra=[Malicious()])),
        f"{PICKLE}: expected .* found a reference to 'posix.system' .* nothing was executed",
    ),
    'csv-missing': (
        lambda dump: (dump / 'task1--ep0--succ1.csv').unlink(),
        r'task1--ep0--succ1.csv: expected a file .* beside task1--ep0--succ1.pkl, found no file',
    ),
    'pickle-missing': (
        lambda dump: (dump / PICKLE).unlink(),
        f'{PICKLE}: expected a file .* beside task1--ep0--succ1.csv, found no file',
    ),
    'nan': (
        lambda dump: _rewrite(dump, _first_state_is_nan),
        f'{PICKLE}: expected hidden states without NaN and infinity, found NaN .* at step 0',
    ),
    'another-width': (
        lambda dump: _rewrite(dump, _wider_states),
        f'{PICKLE}: .* expected a pooled width of 128, found 256',
    ),
    'rows-missing': (_drop_rows, r'task1--ep0--succ1.csv: expected \d+ rows'),
    'renamed': (
        lambda dump: (dump / PICKLE).rename(dump / 'task1_ep0.pkl'),
        'task1_ep0.pkl: expected a file name like',
    ),
    'empty': (_empty, 'dump: expected one of these formats: .* found an empty folder'),
    'gone': (shutil.rmtree, 'dump: expected a file or folder, found no file or folder'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_bad_dump_gives_one_clear_error_and_leaves_nothing(
    tmp_path, dump, monkeypatch, capsys, name
):
    damage, message = DAMAGES[name]
    damage(dump)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(DumpError, match=message):
        convert(dump, tmp_path / 'new' / 'set')
    assert cli.main(['convert', str(dump), str(tmp_path / 'new' / 'set')]) == 1
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.count('safe_training convert: ') == 1
    assert 'Traceback' not in printed.err
    assert listing(tmp_path) == before


@pytest.mark.parametrize('name', sorted(set(DAMAGES) - {'empty', 'gone'}))
def test_a_bad_episode_can_be_skipped(tmp_path, dump, capsys, name):
    DAMAGES[name][0](dump)
    assert cli.main(['convert', str(dump), str(tmp_path / 'set'), '--skip-bad']) == 0
    assert 'skipped: ' in capsys.readouterr().err
    assert 'task1--ep0' not in RolloutSet.open(tmp_path / 'set').episode_ids
    assert len(RolloutSet.open(tmp_path / 'set')) == 5


def test_a_dump_with_nothing_good_leaves_nothing(tmp_path, dump):
    for file in dump.glob('*.csv'):
        file.unlink()
    before = listing(tmp_path)
    with pytest.raises(
        DumpError, match='at least one readable episode, found no readable episode among 6'
    ):
        convert(dump, tmp_path / 'set', skip_bad=True)
    assert listing(tmp_path) == before


def test_an_empty_rollout_set(tmp_path, capsys):
    convert(DUMP, tmp_path / 'set')
    manifest = tmp_path / 'set' / 'rollout_set.json'
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {'rollouts': 0}))
    with pytest.raises(RolloutSetError, match='expected 0 rollouts'):
        info(tmp_path / 'set')
    shutil.rmtree(tmp_path / 'set' / 'arrays')
    assert cli.main(['info', str(tmp_path / 'set')]) == 1
    assert 'rollouts.parquet' in capsys.readouterr().err


def test_an_unwritable_place(tmp_path, capsys):
    (tmp_path / 'file').write_text('x')
    assert cli.main(['convert', str(DUMP), str(tmp_path / 'file' / 'set')]) == 1
    assert str(tmp_path / 'file') in capsys.readouterr().err
    assert listing(tmp_path) == ['file']


# -- the shipped data


def test_the_shipped_data_is_what_its_checksums_say():
    lines = (DATA / 'SHA256SUMS').read_text().splitlines()
    files = {str(f.relative_to(DATA)) for f in DATA.rglob('*') if f.is_file()}
    listed = {line.split()[1].removeprefix('./') for line in lines}
    assert listed == files - {'SHA256SUMS', 'README.md'}
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest
    assert sum((DATA / name).stat().st_size for name in files) < 12_000_000


# -- raw sets, csv alone, several processes


def contents(path):
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob('*') if file.is_file()
    }


@pytest.mark.parametrize('pooling', [None, (('token', 'mean'),), (('token', 'first&last'),)])
def test_a_raw_set_can_be_pooled_in_any_way(tmp_path, pooling):
    convert(DUMP, tmp_path / 'raw', keep='raw')
    raw = RolloutSet.open(tmp_path / 'raw')
    assert (raw.feature.axes, raw.feature.pooled) == (('token',), False)
    assert raw[0].features.shape == (len(raw[0]), 7, 128)
    convert(tmp_path / 'raw', tmp_path / 'pooled', pooling=pooling)
    convert(DUMP, tmp_path / 'direct', pooling=pooling)
    found, expected = RolloutSet.open(tmp_path / 'pooled'), RolloutSet.open(tmp_path / 'direct')
    assert found.feature == expected.feature
    assert found.episode_ids == expected.episode_ids
    for one, other in zip(found, expected, strict=True):
        assert one.features.tobytes() == other.features.tobytes()
        assert one.actions.tobytes() == other.actions.tobytes()
        assert (one.video, one.success) == (other.video, other.success)
    convert(tmp_path / 'raw', tmp_path / 'copy', keep='raw')
    assert RolloutSet.open(tmp_path / 'copy').feature == raw.feature
    with pytest.raises(DumpError, match='expected a set with raw features, because of --keep raw'):
        convert(tmp_path / 'direct', tmp_path / 'more', keep='raw')


def test_several_processes_make_the_same_set(tmp_path):
    told = []
    convert(DUMP, tmp_path / 'one' / 'set')
    convert(
        DUMP,
        tmp_path / 'two' / 'set',
        jobs=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
    assert told == [(done, 24) for done in range(1, 25)]


@pytest.mark.parametrize('jobs', [1, 2])
def test_errors_in_several_processes(tmp_path, dump, jobs):
    _rewrite(dump, _wider_states)
    before = listing(tmp_path)
    with pytest.raises(DumpError, match=r'ep0--succ1.pkl: .* pooled width of 128, found 256'):
        convert(dump, tmp_path / 'set', jobs=jobs)
    assert listing(tmp_path) == before
    done = convert(dump, tmp_path / 'set', jobs=jobs, skip_bad=True)
    assert (done['rollouts'], len(done['skipped'])) == (5, 1)


def test_an_episode_without_its_pickle_is_worth_its_csv(tmp_path, dump):
    (dump / 'task0--ep0--succ0.pkl').unlink()
    for file in dump.glob('task1--*.pkl'):
        file.unlink()
    with pytest.raises(DumpError, match='or read the dump without features with --feature none'):
        convert(dump, tmp_path / 'set')
    convert(dump, tmp_path / 'set', feature='none')
    found = RolloutSet.open(tmp_path / 'set')
    convert(DUMP, tmp_path / 'whole')
    expected = {r.episode_id: r for r in RolloutSet.open(tmp_path / 'whole')}
    assert (len(found), str(found.feature), found.feature.dim) == (6, 'none', 0)
    for rollout in found:
        other = expected[rollout.episode_id]
        assert rollout.features.shape == (len(other), 0)
        assert rollout.success == other.success
        assert rollout.token_probability.tobytes() == other.token_probability.tobytes()
        # Another episode of the same task says what it is called, if any does.
        assert rollout.task == (other.task if rollout.task_id == 0 else 'task1')


def test_unseen_tasks_are_a_column(tmp_path, dump):
    other = tmp_path / 'other'
    other.mkdir()
    for file in DUMP.glob('task[23]--*'):
        shutil.copy(file, other)
    place = str(tmp_path / 'set')
    assert cli.main(['convert', str(dump), place, '--unseen-root', str(other)]) == 0
    found = RolloutSet.open(place)
    assert found.unseen == [False] * 6 + [True] * 6
    assert sorted(set(found.task_ids)) == [0, 1, 4, 5]
    assert [r.unseen for r in found] == found.unseen
    with pytest.raises(DumpError, match='found the first source again'):
        convert(dump, tmp_path / 'twice', unseen_root=dump)
    same_task = tmp_path / 'same_task'
    same_task.mkdir()
    for file in dump.glob('task0--ep0--*'):
        file.rename(same_task / file.name)
    with pytest.raises(RolloutSetError, match='only seen or only unseen rollouts of'):
        convert(dump, tmp_path / 'twice', unseen_root=same_task)


# -- interruptions


class Enough(KeyboardInterrupt):
    """Stands for Ctrl-C."""


def stop_after(count):
    def progress(done, total):
        if done == count:
            raise Enough

    return progress


@pytest.mark.parametrize('jobs', [1, 2])
def test_an_interrupted_conversion_is_continued(tmp_path, monkeypatch, jobs):
    place = tmp_path / 'new' / 'set'
    with pytest.raises(Enough):
        convert(DUMP, place, jobs=jobs, progress=stop_after(10))
    assert os.listdir(tmp_path / 'new') == ['.set.partial']
    # A line that a sudden end cut off, and an array file that was being written.
    journal = tmp_path / 'new' / '.set.partial' / 'journal.jsonl'
    assert journal.read_text().count('\n') == 11
    with journal.open('a') as stream:
        stream.write('{"row": {"epi')
    (journal.parent / 'arrays' / '000010.safetensors').write_bytes(b'half')
    told = []
    done = convert(DUMP, place, jobs=jobs, progress=lambda done, total: told.append(done))
    assert (done['continued'], done['rollouts']) == (10, 24)
    assert told == list(range(11, 25))
    convert(DUMP, tmp_path / 'whole' / 'set')
    assert contents(tmp_path / 'new') == contents(tmp_path / 'whole')


def test_what_was_skipped_before_an_interruption_stays_known(tmp_path, dump):
    _rewrite(dump, _wider_states)
    with pytest.raises(Enough):
        convert(dump, tmp_path / 'set', skip_bad=True, progress=stop_after(5))
    done = convert(dump, tmp_path / 'set', skip_bad=True)
    assert (done['continued'], done['rollouts'], len(done['skipped'])) == (5, 5, 1)


@pytest.mark.parametrize('what', ['pooling', 'file', 'arrays', 'journal'])
def test_other_work_does_not_continue(tmp_path, dump, what):
    with pytest.raises(Enough):
        convert(dump, tmp_path / 'set', progress=stop_after(4))
    partial = tmp_path / '.set.partial'
    pooling = None
    if what == 'pooling':
        pooling = (('token', 'mean'),)
    elif what == 'file':
        os.utime(dump / 'task0--ep0--succ0.pkl', (0, 0))
    elif what == 'arrays':
        (partial / 'arrays' / '000000.safetensors').write_bytes(b'cut')
    else:
        (partial / 'journal.jsonl').write_text('[1]\n')
    done = convert(dump, tmp_path / 'set', pooling=pooling)
    assert (done['continued'], done['rollouts']) == (0, 6)
    assert not partial.exists()
    for rollout in RolloutSet.open(tmp_path / 'set'):
        assert rollout.features.shape == (len(rollout), 128)


def test_two_conversions_into_one_place(tmp_path, dump):
    def second(done, total):
        if done == 2:
            with pytest.raises(
                RolloutSetError, match='another process that writes the same rollout set; wait'
            ):
                convert(dump, tmp_path / 'set')

    assert convert(dump, tmp_path / 'set', progress=second)['rollouts'] == 6


def test_an_interruption_says_how_to_continue(tmp_path, monkeypatch, capsys):
    def stopped(*arguments, **options):
        return convert(*arguments, **options | {'progress': stop_after(3)})

    monkeypatch.setattr('safe_training.recordings.convert.convert', stopped)
    place = tmp_path / 'set'
    assert cli.main(['convert', str(DUMP), str(place)]) == 1
    assert 'run the same command again to continue' in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(['convert', str(DUMP), str(place), '--json']) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)['continued'] == 3
    assert 'continued an interrupted conversion, which had finished 3 episodes' in printed.err


def test_a_killed_conversion_is_continued(tmp_path):
    code = (
        'import os, signal\n'
        'from safe_training.recordings.convert import convert\n'
        f'convert({str(DUMP)!r}, {str(tmp_path / "set")!r},\n'
        '        progress=lambda done, total: done == 7 and os.kill(os.getpid(), signal.SIGKILL))\n'
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == -9
    assert convert(DUMP, tmp_path / 'set')['continued'] == 7
    assert len(RolloutSet.open(tmp_path / 'set')) == 24
