# SPDX-License-Identifier: Apache-2.0
"""Inputs that people have and that no reader was written for: read, refused by name, or said."""

import collections
import datetime
import os
import pickle
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from openvla_dumps import write_episode
from test_pooled_npz import numbered, save

from safe_training.recordings.convert import convert
from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts, open_source
from vla_feature_bridge.rollout_set.reader import RolloutSet

STEM = 'task0--ep1--succ1'


@pytest.fixture
def dump(tmp_path):
    for episode in range(3):
        write_episode(tmp_path / 'dump', episode=episode)
    return tmp_path / 'dump'


def both(folder, name, target, action=shutil.copy):
    for suffix in ('.pkl', '.csv'):
        action(folder / f'{name}{suffix}', folder / f'{target}{suffix}')


# -- which files are episodes


@pytest.mark.parametrize(
    'name', [f'{STEM} (1)', f'{STEM} - Copy', f'{STEM}.sync-conflict-20260101-120000', 'backup']
)
def test_a_pickle_with_another_name_is_refused(dump, name):
    both(dump, STEM, name)
    with pytest.raises(DumpError, match=r'expected a file name like .*; rename the file, or move'):
        load_rollouts(dump)
    assert len(load_rollouts(dump, skip_bad=True)) == 3


@pytest.mark.parametrize(
    'name', [f'{STEM}.pkl~', f'{STEM}.pkl.part', f'.{STEM}.pkl.Xy3zQ1', 'Thumbs.db', 'Icon\r']
)
def test_what_programs_leave_is_no_episode(dump, name):
    shutil.copy(dump / f'{STEM}.pkl', dump / name)
    assert len(load_rollouts(dump)) == 3


def test_other_letters_of_a_name_are_said(dump):
    for suffix in ('.pkl', '.csv'):
        (dump / f'{STEM}{suffix}').rename(dump / f'{STEM}{suffix.upper()}')
    source = open_source(dump)
    assert len(list(source.rollouts())) == 2
    assert any(f'{STEM}.PKL' in note and 'not read' in note for note in source.notes)


def test_a_hard_link_under_another_number_is_a_copy(dump):
    both(dump, STEM, 'task0--ep8--succ1', os.link)
    with pytest.raises(DumpError, match=r'the same content twice|episode_idx 8|eposide_idx 8'):
        load_rollouts(dump)


def test_a_folder_with_the_name_of_a_pickle_is_no_pickle(dump):
    (dump / f'{STEM}.pkl').unlink()
    (dump / f'{STEM}.pkl').mkdir()
    with pytest.raises(DumpError, match='hidden states of the episode beside'):
        load_rollouts(dump)


def test_a_set_inside_the_dump_that_it_was_made_of(dump):
    convert(dump, dump / 'set')
    assert len(load_rollouts(dump)) == 3
    assert len(load_rollouts(dump / 'set')) == 3


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_letters_with_marks_in_either_form(dump, tmp_path, form):
    name = unicodedata.normalize(form, 'aufräumen größe')
    dump.rename(tmp_path / name)
    assert len(load_rollouts(tmp_path / name)) == 3


# -- arrays, numbers


@pytest.mark.parametrize('kind', ['>f4', '>f8', '>f2'])
def test_numbers_of_other_machines_are_stored_as_ours(tmp_path, kind):
    arrays = numbered()
    name = next(name for name in arrays if name.startswith('feat_'))
    arrays = {k: v.astype(kind) if k == name else v for k, v in arrays.items()}
    convert(save(tmp_path / 'x.npz', arrays), tmp_path / 'set')
    found = np.concatenate([r.features for r in RolloutSet.open(tmp_path / 'set')])
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, arrays[name])


@pytest.mark.parametrize(
    ('success', 'match'),
    [
        (lambda s: s.astype(float), None),
        (lambda s: s.astype(bool), None),
        (lambda s: np.where(s, '1', '0'), 'success with .* values 0 or 1'),
        (lambda s: s[:, None], 'success with .* values 0 or 1'),
        (lambda s: s + 1, 'success with .* values 0 or 1'),
    ],
)
def test_outcomes_of_an_archive(tmp_path, success, match):
    arrays = numbered()
    arrays['success'] = success(np.asarray(arrays['success']))
    path = save(tmp_path / 'x.npz', arrays)
    if match is None:
        assert [r.success for r in load_rollouts(path)] == [bool(v) for v in arrays['success']]
        return
    with pytest.raises(DumpError, match=match):
        load_rollouts(path)


@pytest.mark.parametrize('name', ['neg_logp_mean', 'n_tokens', 'reward', 'rgb_hash'])
def test_arrays_of_steps_that_nothing_takes_are_named(tmp_path, name):
    arrays = numbered()
    arrays[name] = np.arange(int(arrays['offsets'][-1]))
    source = open_source(save(tmp_path / 'x.npz', arrays))
    assert source.feature
    assert any('not read' in note and f'{name} int64' in note for note in source.notes)


@pytest.mark.parametrize('form', [list, tuple])
def test_hidden_states_as_a_sequence_of_steps(tmp_path, form):
    states = torch.randn(4, 7, 6)
    write_episode(tmp_path, hidden_states=form(states))
    (rollout,) = load_rollouts(tmp_path)
    np.testing.assert_array_equal(rollout.features, states[:, -1].numpy())


# -- pickles


@pytest.mark.parametrize(
    'extra',
    [
        collections.OrderedDict(a=1),
        np.str_('x'),
        np.float64(2.5),
        (1, 'a', None),
        {'nested': [1, {'deep': (2.0,)}]},
    ],
)
def test_other_plain_values_of_a_record_are_named_and_not_read(tmp_path, extra):
    write_episode(tmp_path, note=extra)
    source = open_source(tmp_path)
    assert len(list(source.rollouts())) == 1
    assert any('not read from' in note and 'note' in note for note in source.notes)


@pytest.mark.parametrize(
    'extra',
    [datetime.datetime(2026, 1, 1), collections.defaultdict(list), np.ma.array([1.0])],
    ids=['datetime', 'defaultdict', 'masked'],
)
def test_objects_of_other_classes_are_refused_by_their_class(tmp_path, extra):
    write_episode(tmp_path, note=extra)
    with pytest.raises(DumpError, match=r'reference to .*; nothing was executed; .* save only'):
        load_rollouts(tmp_path)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda data: data + data, 'write each value to its own file'),
        (lambda data: data + b'\n', 'found 1 more bytes'),
        (lambda data: data[:-1], 'copy the file'),
        (lambda data: b'\xef\xbb\xbf' + data, 'copy the file'),
        (lambda data: data.replace(b'\n', b'\r\n'), 'copy the file|get the file again'),
        (lambda data: pickle.dumps(pickle.dumps({})), 'not the pickle of an OpenVLA episode'),
    ],
)
def test_a_pickle_that_was_changed_on_its_way(dump, change, match):
    file = dump / f'{STEM}.pkl'
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DumpError, match=match) as caught:
        load_rollouts(dump)
    assert STEM in str(caught.value)
