# SPDX-License-Identifier: Apache-2.0
"""The verb ``label``: outcomes into a set's index or beside a recording, by people or scripts."""

import io
import json
import os
import sys

import numpy as np
import pytest
from rollout_factory import make_rollout

from safe_training.cli.main import main
from safe_training.recordings.label_files import labels_file
from safe_training.recordings.sources import open_source
from safe_training.recordings.write_bag import write_bag
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

SPEC = FeatureSpec('f', 4)


def rollouts():
    outcomes = [True, None, None, False, None]
    return [
        make_rollout(
            n,
            steps=6,
            task=f'task {n % 2}',
            success=success,
            episode_id=f'ep/{n}',
            feature_name='f',
            instruction='lift [bold]it[/bold]\x1b[2J',
            stamps=10**18 + np.arange(6) * 10**8 + n * 10**10,
            failure_step=2 if success is False else None,
        )
        for n, success in enumerate(outcomes)
    ]


@pytest.fixture(params=['set', 'run.mcap', 'run.bag'])
def place(request, tmp_path):
    path = tmp_path / request.param
    if request.param == 'set':
        with RolloutSetWriter(path, feature=SPEC) as writer:
            for rollout in rollouts():
                writer.add(rollout)
    else:
        write_bag(path, rollouts(), SPEC)
    return path


def outcomes(path):
    return [(r.success, r.failure_step) for r in open_source(path).rollouts()]


BEFORE = [(True, None), (None, None), (None, None), (False, 2), (None, None)]


def all_bytes(path):
    files = sorted(path.rglob('*')) if path.is_dir() else [path]
    return {file: file.read_bytes() for file in files if file.is_file()}


def test_one_episode(place, capsys):
    before = all_bytes(place)
    arguments = ['label', str(place), '--episode', 'ep/1', '--outcome', 'failure']
    assert main([*arguments, '--failure-step', '5']) == 0
    assert '1 successes, 2 failures, 2 unlabelled' in capsys.readouterr().out
    assert main(['label', str(place), '--episode', 'ep/2', '--outcome', 'success']) == 0
    assert main(['label', str(place), '--episode', 'ep/3', '--outcome', 'unknown']) == 0
    assert outcomes(place) == [(True, None), (False, 5), (True, None), (None, None), (None, None)]
    changed = {file for file, data in all_bytes(place).items() if before.get(file) != data}
    # A recording is never changed; of a set, only its index.
    assert changed == ({place / 'rollouts.parquet'} if place.name == 'set' else set())
    leftovers = {place.name, *([f'{place.name}.labels.csv'] if place.name != 'set' else [])}
    assert set(os.listdir(place.parent)) == leftovers


def test_csv(place, tmp_path):
    file = tmp_path / 'outcomes.csv'
    file.write_text('outcome,episode_id,failure_step\nfailure,ep/4,0\nsuccess,ep/1,\n')
    assert main(['label', str(place), '--csv', str(file), '--json']) == 0
    assert outcomes(place) == [(True, None), (True, None), (None, None), (False, 2), (False, 0)]


def test_list(place, capsys):
    assert main(['label', str(place), '--list']) == 0
    assert capsys.readouterr().out == 'ep/1\tunknown\nep/2\tunknown\nep/4\tunknown\n'
    assert main(['label', str(place), '--list', '--all', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['unlabelled'] == ['ep/1', 'ep/2', 'ep/4']
    assert [row['outcome'] for row in found['episodes']][:2] == ['success', 'unknown']
    assert found['episodes'][3]['failure_step'] == 2
    assert found['episodes'][0]['steps'] == 6
    assert outcomes(place) == BEFORE


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--episode', 'ep/9', '--outcome', 'success'], "episode 'ep/9'"),
        (
            ['--episode', 'ep/1', '--outcome', 'failure', '--failure-step', '6'],
            'failure_step from 0 to 5, the last step of the episode, found 6',
        ),
        (
            ['--csv', 'CSV'],
            "line 3: expected one of the outcomes success, failure, unknown, found 'so'",
        ),
        ([], 'a terminal for questions'),
    ],
)
def test_refusals_change_nothing(place, tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / 'bad.csv').write_text('episode_id,outcome\nep/1,success\nep/2,so\n')
    arguments = [str(tmp_path / 'bad.csv') if a == 'CSV' else a for a in arguments]
    monkeypatch.setattr(sys, 'stdin', io.StringIO())
    before = all_bytes(tmp_path)
    assert main(['label', str(place), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert all_bytes(tmp_path) == before


@pytest.mark.parametrize(
    'arguments',
    [
        ['--episode', 'ep/1'],
        ['--outcome', 'success'],
        ['--episode', 'ep/1', '--outcome', 'success', '--failure-step', '1'],
        ['--episode', 'ep/1', '--outcome', 'failure', '--failure-step', '-1'],
        ['--episode', 'ep/1', '--outcome', 'fine'],
        ['--csv', 'x', '--list'],
    ],
)
def test_wrong_usage(tmp_path, arguments):
    assert main(['label', str(tmp_path), *arguments]) == 2


def test_neither_set_nor_recording(tmp_path, capsys):
    assert main(['label', str(tmp_path), '--list']) == 1
    assert 'expected a rollout set' in capsys.readouterr().err
    assert main(['label', str(tmp_path / 'none'), '--list']) == 1
    assert 'found no file or folder' in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def typed(monkeypatch, text):
    monkeypatch.setattr(sys, 'stdin', Terminal(text))


def test_terminal(place, monkeypatch, capsys):
    # Success for ep/1, a wrong key, failure with a step out of range, back, unknown step; skip.
    typed(monkeypatch, 's\nx\nf\n9\n3\nb\nf\n\n\n')
    assert main(['label', str(place)]) == 0
    shown = capsys.readouterr().out
    assert '3 episodes to label' in shown
    assert 'ep/1  (1 of 3)' in shown
    assert 'from 0 to 5, the last step of the episode, found 9' in ' '.join(shown.split())
    assert 'failure from step 3' in shown
    assert '\x1b[2J' not in shown
    if place.name != 'set':
        assert '6 steps, 0.5 s' in shown
        assert '[bold]it[/bold]' in shown
    assert outcomes(place) == [(True, None), (True, None), (False, None), (False, 2), (None, None)]


def test_terminal_keeps_what_was_said_before_it_ends(place, monkeypatch):
    typed(monkeypatch, 'f\n4\nq\n')
    assert main(['label', str(place)]) == 0
    typed(monkeypatch, 's\n')  # and the input ends
    assert main(['label', str(place)]) == 0
    assert outcomes(place) == [(True, None), (False, 4), (True, None), (False, 2), (None, None)]


def test_all_goes_through_labelled_episodes_too(place, monkeypatch, capsys):
    typed(monkeypatch, 'u\n' + '\n' * 4)
    assert main(['label', str(place), '--all']) == 0
    assert outcomes(place)[0] == (None, None)
    for number in range(5):
        main(['label', str(place), '--episode', f'ep/{number}', '--outcome', 'success'])
    capsys.readouterr()
    typed(monkeypatch, '')
    assert main(['label', str(place)]) == 0
    assert 'Every episode has an outcome' in capsys.readouterr().out


def test_other_columns_and_rows_of_the_csv_stay(tmp_path):
    write_bag(tmp_path / 'run.mcap', rollouts(), SPEC)
    file = labels_file(tmp_path / 'run.mcap')
    file.write_text('who,episode_id,outcome\n"a, b",ep/1,success\nc,ep/2,failure\n')
    arguments = ['--episode', 'ep/2', '--outcome', 'failure', '--failure-step', '1']
    assert main(['label', str(tmp_path / 'run.mcap'), *arguments]) == 0
    assert file.read_text() == (
        'episode_id,outcome,failure_step,who\nep/1,success,,"a, b"\nep/2,failure,1,c\n'
    )


def test_an_interrupted_write_leaves_the_old_file(place, monkeypatch):
    before = all_bytes(place.parent)

    def fail(*_):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', fail)
    assert main(['label', str(place), '--episode', 'ep/1', '--outcome', 'success']) == 1
    assert all_bytes(place.parent) == before


def test_a_labelled_set_is_still_whole(tmp_path):
    with RolloutSetWriter(tmp_path / 'set', feature=SPEC, policy='p') as writer:
        for rollout in rollouts():
            writer.add(rollout)
    before = RolloutSet.open(tmp_path / 'set')
    main(['label', str(tmp_path / 'set'), '--episode', 'ep/1', '--outcome', 'success'])
    after = RolloutSet.open(tmp_path / 'set')
    assert after.success == [True, True, None, False, None]
    assert (after.tasks, after.episode_ids) == (before.tasks, before.episode_ids)
    for one, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(one.features, other.features)


@pytest.mark.parametrize('place', ['run.mcap', 'run.bag'], indirect=True)
def test_unlabelled_episodes_are_listed_by_info_and_convert(place, tmp_path, capsys):
    assert main(['info', str(place), '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found['successes'], found['failures'], found['unlabelled']) == (1, 1, 3)
    assert main(['convert', str(place), str(tmp_path / 'made')]) == 0
    assert "3 episodes have no outcome: 'ep/1', 'ep/2', 'ep/4'" in capsys.readouterr().err
    assert RolloutSet.open(tmp_path / 'made').success == [True, None, None, False, None]


def test_convert_makes_what_the_name_or_the_flag_says(place, tmp_path):
    for destination, flags, kind in (
        ('a.mcap', [], 'rosbag2'),
        ('b.bag', ['--compression', 'zstd'], 'rosbag2'),
        ('c', ['--to', 'bag', '--frequency', '2'], 'rosbag2'),
        ('d', [], 'rollout_set'),
        ('e.bag', ['--to', 'set'], 'rollout_set'),
    ):
        assert main(['convert', str(place), str(tmp_path / destination), *flags]) == 0
        source = open_source(tmp_path / destination)
        assert source.kind == kind
        assert outcomes(tmp_path / destination) == BEFORE
