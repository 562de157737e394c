# SPDX-License-Identifier: Apache-2.0
"""Pooled archives: values equal to their arrays, clear refusals."""

import json
import zipfile

import numpy as np
import pytest
from shared_files import DATA

from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts, open_source
from vla_feature_bridge.signals import SIGNAL_NAMES, rollout_signals

POOLED = DATA / 'miniature_disturbed.npz'


def test_the_shipped_archive_equals_its_arrays():
    rollouts = load_rollouts(POOLED)
    feature = rollouts.feature
    archive = np.load(POOLED, allow_pickle=False)
    offsets = archive['offsets']
    features, actions = archive['feat_last'], archive['action'][:, None]
    assert (len(rollouts), feature.dim, str(feature)) == (720, 128, 'feat_last')
    for index, rollout in enumerate(rollouts):
        rows = slice(offsets[index], offsets[index + 1])
        assert rollout.features.dtype == np.float16
        np.testing.assert_array_equal(rollout.features, features[rows])
        np.testing.assert_array_equal(rollout.actions, actions[rows])
    assert [rollout.success for rollout in rollouts] == archive['success'].astype(bool).tolist()
    assert [rollout.task_id for rollout in rollouts] == archive['task_id'].tolist()
    assert [r.episode_index for r in rollouts] == archive['episode_idx'].tolist()
    names = archive['task_names'][archive['task_id']].tolist()
    assert [rollout.task for rollout in rollouts] == names
    assert rollouts[-1].instruction == str(archive['task_instructions'][23])
    assert {rollout.exec_horizon for rollout in rollouts} == {4}
    assert {rollout.policy for rollout in rollouts} == {'pol_full (token policy)'}
    assert rollouts[50].episode_id == 'push-v3/20'
    expected = rollout_signals(rollouts[50].actions, 4)
    for name in SIGNAL_NAMES:
        np.testing.assert_array_equal(rollouts[50].signals[name], expected[name])


def named(**changes):
    """Arrays of an archive in the named layout: three episodes of 2, 1 and 3 steps."""
    rng = np.random.default_rng(0)
    arrays = {
        'offsets': np.array([0, 2, 3, 6]),
        'success': np.array([True, False, True]),
        'task': np.array(['open', 'close', 'open']),
        'instruction': np.array(['open it', 'close it', 'open that']),
        'episode_index': np.array([0, 0, 7]),
        'features': rng.normal(size=(6, 4)).astype(np.float16),
        'action_signals': rng.normal(size=(6, 2)).astype(np.float32),
        'action_signal_names': np.array(['action_norm', 'eef_z']),
    } | changes
    return {name: array for name, array in arrays.items() if array is not None}


def numbered(**changes):
    """Arrays of an archive in the numbered layout."""
    rng = np.random.default_rng(0)
    arrays = {
        'offsets': np.array([0, 2, 3, 6]),
        'success': np.array([1, 0, 1], np.int8),
        'task_id': np.array([1, 0, 1], np.int32),
        'task_names': np.array(['close', 'open']),
        'task_instructions': np.array(['close it', 'open it']),
        'episode_idx': np.array([0, 0, 7], np.int32),
        'feat_mean': rng.normal(size=(6, 4)).astype(np.float16),
        'feat_first': rng.normal(size=(6, 3)).astype(np.float16),
        'action': rng.normal(size=(6, 7)).astype(np.float32),
        'token_prob': rng.random((6, 7)).astype(np.float32),
        'token_entropy': rng.random((6, 7)).astype(np.float32),
        'meta_json': np.array(json.dumps({'args': {'kind': 'token', 'exec_horizon': 4}})),
    } | changes
    return {name: array for name, array in arrays.items() if array is not None}


def save(path, arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_the_named_layout(tmp_path):
    arrays = named()
    rollouts = load_rollouts(save(tmp_path / 'x.npz', arrays))
    feature = rollouts.feature
    assert str(feature) == 'features'
    assert [rollout.episode_id for rollout in rollouts] == ['open/0', 'close/0', 'open/7']
    assert [rollout.task_id for rollout in rollouts] == [1, 0, 1]
    assert [rollout.instruction for rollout in rollouts] == ['open it', 'close it', 'open that']
    assert [rollout.success for rollout in rollouts] == [True, False, True]
    np.testing.assert_array_equal(rollouts[2].features, arrays['features'][3:])
    np.testing.assert_array_equal(rollouts[2].signals['eef_z'], arrays['action_signals'][3:, 1])
    assert set(rollouts[0].signals) == {'action_norm', 'eef_z'}
    assert rollouts[0].actions is None


def test_an_archive_of_signals_alone(tmp_path):
    path = save(tmp_path / 'x.npz', named(features=None, instruction=None))
    rollouts = load_rollouts(path)
    feature = rollouts.feature
    assert (str(feature), feature.dim) == ('none', 0)
    assert [rollout.features.shape for rollout in rollouts] == [(2, 0), (1, 0), (3, 0)]
    assert rollouts[1].signals['eef_z'].shape == (1,)
    assert rollouts[0].instruction == ''
    rollouts = load_rollouts(path, feature='action_signals')
    feature = rollouts.feature
    assert feature.dim == 2
    np.testing.assert_array_equal(rollouts[1].features[0], named()['action_signals'][2])


def test_the_numbered_layout_with_tokens(tmp_path):
    arrays = numbered()
    rollouts = load_rollouts(save(tmp_path / 'x.npz', arrays), feature='feat_first')
    feature = rollouts.feature
    assert (str(feature), feature.dim) == ('feat_first', 3)
    last = rollouts[2]
    assert (last.task, last.instruction, last.policy) == ('open', 'open it', 'token policy')
    assert last.exec_horizon == 1  # a chunk of one action executes one, whatever was asked for
    assert last.actions.shape == (3, 1, 1, 7)
    np.testing.assert_array_equal(last.actions[:, 0, 0], arrays['action'][3:])
    np.testing.assert_array_equal(last.token_probability, arrays['token_prob'][3:])
    np.testing.assert_array_equal(last.token_entropy, arrays['token_entropy'][3:])
    assert set(last.signals) == set(SIGNAL_NAMES)


def test_chunks_without_samples(tmp_path):
    chunks = np.random.default_rng(0).normal(size=(6, 8, 4)).astype(np.float32)
    (first, *_) = load_rollouts(save(tmp_path / 'x.npz', numbered(action=chunks)))
    assert (first.actions.shape, first.exec_horizon) == ((2, 1, 8, 4), 4)
    np.testing.assert_array_equal(first.actions[:, 0], chunks[:2])


def test_signals_of_the_archive_win_over_derived_ones(tmp_path):
    arrays = named(action=np.ones((6, 7), np.float32))
    (first, *_) = load_rollouts(save(tmp_path / 'x.npz', arrays))
    assert set(first.signals) == {*SIGNAL_NAMES, 'eef_z'}
    np.testing.assert_array_equal(first.signals['action_norm'], arrays['action_signals'][:2, 0])


def nan_at(row):
    features = np.ones((6, 4), np.float16)
    features[row, 1] = np.nan
    return features


ARCHIVES = {
    'nan': (
        named(features=nan_at(4)),
        "'open/7': expected features without NaN and infinity, .* at step 1",
    ),
    'infinite-actions': (
        numbered(action=np.full((6, 7), np.inf, np.float32)),
        'actions without NaN and infinity',
    ),
    'empty-episode': (named(offsets=np.array([0, 2, 2, 6])), "'close/0': expected at least one"),
    'no-episodes': (
        named(offsets=np.array([0])),
        'offsets as integers .* for at least one episode',
    ),
    'offsets-fall': (named(offsets=np.array([0, 4, 3, 6])), 'start at 0 and never decrease'),
    'offsets-begin-late': (
        named(offsets=np.array([1, 2, 3, 6])),
        r'start at 0 .* found the offsets \[1, 2, 3, 6\]',
    ),
    'offsets-too-far': (
        named(offsets=np.array([0, 2, 3, 7])),
        r'expected features with float values and the shape \(7, width\)',
    ),
    'offsets-are-floats': (
        named(offsets=np.array([0.0, 6.0])),
        'offsets as integers .* found the dtype float64',
    ),
    'success-too-short': (
        named(success=np.array([True, False])),
        r'success with 3 values 0 or 1, .* found the dtype bool and the shape \(2,\)',
    ),
    'success-is-2': (named(success=np.array([0, 1, 2])), r'found the values \[0, 1, 2\]'),
    'task-too-short': (named(task=np.array(['a', 'b'])), 'task with 3 texts'),
    'task-not-text': (named(task=np.array([1, 2, 3])), 'task with 3 texts'),
    'same-episode-twice': (named(episode_index=np.array([0, 0, 0])), "'open/0' more than once"),
    'no-episode-index': (named(episode_index=None), 'an array episode_index'),
    'signal-names-too-few': (named(action_signal_names=np.array(['a'])), 'names with 2 texts'),
    'signal-names-repeat': (
        named(action_signal_names=np.array(['a', 'a'])),
        r"different names .* found \['a', 'a'\]",
    ),
    'no-signal-names': (named(action_signal_names=None), 'an array action_signal_names'),
    'unknown-task': (numbered(task_id=np.array([0, 1, 2])), 'task_id from 0 to 1'),
    'rows-missing': (
        numbered(token_prob=np.zeros((5, 7), np.float32)),
        'token_prob with float values',
    ),
    'meta-not-json': (numbered(meta_json=np.array('{')), "JSON with the key 'args' in meta_json"),
    'meta-horizon': (
        numbered(meta_json=np.array('{"args": {"exec_horizon": 0}}')),
        'exec_horizon in meta_json as an integer from 1, found 0',
    ),
    'object-array': (
        named(features=np.array([[{}]] * 6, dtype=object)),
        'array features.npy of Python objects; Python objects can execute code',
    ),
}


@pytest.mark.parametrize('name', ARCHIVES)
def test_a_bad_archive_is_refused(tmp_path, name):
    arrays, message = ARCHIVES[name]
    path = save(tmp_path / 'bad.npz', arrays)
    with pytest.raises(DumpError, match=message) as caught:
        load_rollouts(path)
    assert str(caught.value).startswith(str(path))


def test_bad_episodes_of_an_archive_can_be_left_out(tmp_path):
    path = save(tmp_path / 'x.npz', named(features=nan_at(4)))
    source = open_source(path, skip_bad=True)
    assert [rollout.episode_id for rollout in source.rollouts()] == ['open/0', 'close/0']
    assert 'open/7' in source.skipped[0]


def test_options_that_do_not_fit_an_archive(tmp_path):
    path = save(tmp_path / 'x.npz', numbered())
    with pytest.raises(DumpError, match='one of the features feat_mean, feat_first, none, found'):
        load_rollouts(path, feature='hidden_states')
    with pytest.raises(DumpError, match='already pooled, found --pooling token=mean'):
        open_source(path, pooling=(('token', 'mean'),))


def test_damaged_archives_are_refused(tmp_path):
    whole = save(tmp_path / 'x.npz', named()).read_bytes()
    file = tmp_path / 'y.npz'
    for end in range(0, len(whole), 41):
        file.write_bytes(whole[:end])
        with pytest.raises(DumpError, match=r'y\.npz: '):
            load_rollouts(file)
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 0xFF
        file.write_bytes(data)
        try:
            load_rollouts(file)
        except DumpError as error:
            assert 'y.npz: ' in str(error)


def test_an_archive_cannot_claim_more_than_it_holds(tmp_path):
    path = save(tmp_path / 'x.npz', named(features=None))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (6, 1000000000000), }"
    header += b' ' * (118 - len(header) - 1) + b'\n'
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('features.npy', b'\x93NUMPY\x01\x00\x76\x00' + header + bytes(96))
    with pytest.raises(DumpError, match=r'array features of shape \(6, 1000000000000\)'):
        load_rollouts(path)
