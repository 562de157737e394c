# SPDX-License-Identifier: Apache-2.0
"""The verbs ``info`` and ``convert``: what they print, what they make, what they leave behind."""

import csv
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_training import cli
from safe_training.conversion import convert, info
from safe_training.readers import DumpError, load_rollouts
from vla_feature_bridge.rollout_set import RolloutSet, RolloutSetError

DATA = Path(__file__).parents[1] / 'data'
DUMP = DATA / 'openvla_dump'
FLOW = DATA / 'miniature_flow.npz'


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
    assert found['why'] == 'holds task0--ep0--succ0.csv'
    assert (found['episodes'], found['successes'], found['failures']) == (24, 16, 8)
    assert found['feature']['text'] == 'hidden_states[token=last]'
    assert (found['feature']['dim'], found['dtype']) == (128, ['float32'])
    assert (found['actions'], found['tokens'], found['exec_horizon']) == (['1x1x7'], ['7'], [1])
    assert [row['task_id'] for row in found['tasks']] == list(range(8))
    for row in found['tasks']:
        assert (row['episodes'], row['successes'], row['failures']) == (3, 2, 1)
        assert 1 <= row['shortest'] <= row['longest'] == 80
    assert found['bad'] == []


def test_info_of_the_shipped_archive():
    found = info(FLOW)
    archive = np.load(FLOW, allow_pickle=False)
    lengths = np.diff(archive['offsets'])
    assert (found['kind'], found['policy']) == ('pooled_npz', 'flow')
    assert (found['episodes'], found['successes'], found['steps']) == (800, 431, 22839)
    assert found['length'] == {
        'shortest': lengths.min(),
        'median': np.median(lengths),
        'longest': lengths.max(),
    }
    assert (found['actions'], found['tokens']) == (['4x8x4'], ['none'])
    for row in found['tasks']:
        members = archive['task_id'] == row['task_id']
        assert row['successes'] == archive['success'][members].sum()
        assert row['episodes'] == 50


def test_info_lists_what_is_bad(dump, capsys):
    (dump / 'task1--ep1--succ0.csv').unlink()
    assert cli.main(['info', str(dump)]) == 1
    printed = capsys.readouterr()
    assert '5 (4 successes, 1 failures) of 2 tasks' in printed.out
    assert 'bad: ' in printed.err
    assert 'task1--ep1--succ0.csv: expected this file' in printed.err
    assert cli.main(['info', str(dump), '--json']) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found['episodes'], len(found['bad'])) == (5, 1)


@pytest.mark.parametrize('source', [DUMP, FLOW])
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
    with pytest.raises(DumpError, match=r'detector\.json'):
        info(tmp_path)
    assert cli.main(['info', str(tmp_path)]) == 1
    assert 'detector.json' in capsys.readouterr().err


# -- convert


@pytest.mark.parametrize('pooling', [None, (('token', 'mean'),), (('token', 'concat'),)])
def test_a_converted_set_holds_what_the_source_holds(tmp_path, pooling):
    expected, feature = load_rollouts(DUMP, pooling=pooling)
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
    assert 'expected a name that is free' in capsys.readouterr().err
    assert cli.main([*command, '--overwrite', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['rollouts'] == 24
    assert listing(tmp_path)[0] == 'set'
    with pytest.raises(SystemExit) as caught:
        cli.main(['convert', str(DUMP), place, '--pooling', 'token=worst'])
    assert caught.value.code == 2
    assert "unknown pooling command 'worst'" in capsys.readouterr().err


def test_a_set_can_be_converted_again(tmp_path):
    convert(DUMP, tmp_path / 'one')
    convert(tmp_path / 'one', tmp_path / 'two')
    one, two = RolloutSet.open(tmp_path / 'one'), RolloutSet.open(tmp_path / 'two')
    assert one.episode_ids == two.episode_ids
    for index in range(len(one)):
        assert one[index].features.tobytes() == two[index].features.tobytes()


def test_the_verbs_explain_themselves(capsys):
    for verb in ('info', 'convert'):
        with pytest.raises(SystemExit) as caught:
            cli.main([verb, '--help'])
        assert caught.value.code == 0
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
        f'{PICKLE}: expected .* until the end of the file; copy the file',
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
        r'task1--ep0--succ1.csv: expected this file .* beside task1--ep0--succ1.pkl, found none',
    ),
    'pickle-missing': (
        lambda dump: (dump / PICKLE).unlink(),
        f'{PICKLE}: expected this file .* beside task1--ep0--succ1.csv, found none',
    ),
    'nan': (
        lambda dump: _rewrite(dump, _first_state_is_nan),
        f'{PICKLE}: expected finite hidden states, found NaN or infinity at step 0',
    ),
    'another-width': (
        lambda dump: _rewrite(dump, _wider_states),
        f'{PICKLE}: .* expected a pooled width of 128, found 256',
    ),
    'rows-missing': (_drop_rows, r'task1--ep0--succ1.csv: expected \d+ rows'),
    'renamed': (
        lambda dump: (dump / PICKLE).rename(dump / 'task1_ep0.pkl'),
        'task1_ep0.pkl: expected a name like',
    ),
    'empty': (_empty, 'dump: expected one of: .* Found an empty folder'),
    'gone': (shutil.rmtree, 'dump: expected a file or folder, found none'),
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
    with pytest.raises(DumpError, match='at least one readable episode, found none of 6'):
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
