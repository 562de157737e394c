# SPDX-License-Identifier: Apache-2.0
"""Dumps of OpenVLA: values equal to an independent reading, clear refusals."""

import csv
import os
import pickle
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from openvla_dumps import ACTIONS, SAMPLES, listing, write_episode
from shared_files import DATA

from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts, open_source
from vla_feature_bridge.signals import SIGNAL_NAMES, rollout_signals

DUMP = DATA / 'openvla_dump'


def read_directly(dump):
    """Read a dump of our own with pickle, torch and csv: nothing in common with the reader."""
    episodes = {}
    for file in dump.glob('*.pkl'):
        record = pickle.loads(file.read_bytes())
        states = record['hidden_states']
        states = torch.stack(states) if isinstance(states, list) else states
        index = record['eposide_idx'] if 'eposide_idx' in record else record['episode_idx']
        with file.with_suffix('.csv').open() as stream:
            rows = list(csv.DictReader(stream))
        episodes[record['task_id'], index] = (states.float(), record, rows)
    return episodes


def column(rows, names):
    return np.array([[float(row[name]) for name in names] for row in rows], np.float32)


POOLINGS = {
    None: lambda x: x[:, -1],
    'last': lambda x: x[:, 6],
    'first': lambda x: x[:, 0],
    '0.25': lambda x: x[:, 2],
    'mean': lambda x: x.mean(1),
    'first&last': lambda x: torch.cat([x[:, 0], x[:, 6]], 1),
    'concat': lambda x: x.flatten(1),
    'concat-1:6:2': lambda x: torch.cat([x[:, 1], x[:, 3], x[:, 5]], 1),
}


@pytest.mark.parametrize('command', POOLINGS)
def test_the_shipped_dump_equals_an_independent_reading(command):
    expected = read_directly(DUMP)
    pooling = None if command is None else (('token', command),)
    rollouts = load_rollouts(DUMP, pooling=pooling)
    feature = rollouts.feature
    assert str(feature) == f'hidden_states[token={command or "last"}]'
    assert len(rollouts) == len(expected) == 24
    for rollout in rollouts:
        states, record, rows = expected[rollout.task_id, rollout.episode_index]
        features = POOLINGS[command](states).numpy()
        assert rollout.features.dtype == np.float32
        assert feature.dim == features.shape[1]
        # torch may add up the tokens in another order than numpy.
        tolerance = 1e-6 if command == 'mean' else 0
        np.testing.assert_allclose(rollout.features, features, rtol=tolerance, atol=tolerance)
        assert rollout.success == record['episode_success']
        assert rollout.task == rollout.instruction == record['task_description']
        assert (rollout.exec_horizon, rollout.policy, rollout.video) == (1, 'openvla', '')
        assert rollout.feature_name == str(feature)
        assert rollout.action_space == 'robot'
        actions = column(rows, [f'action/{name}' for name in ACTIONS])
        np.testing.assert_array_equal(rollout.actions[:, 0, 0], actions)
        for values, what in (
            (rollout.token_probability, 'prob'),
            (rollout.token_entropy, 'entropy'),
        ):
            names = [f'action/token_{i}_{what}' for i in range(7)]
            np.testing.assert_array_equal(values, column(rows, names))
        signals = rollout_signals(rollout.actions, 1)
        assert set(rollout.signals) == set(SIGNAL_NAMES)
        for name in SIGNAL_NAMES:
            np.testing.assert_array_equal(rollout.signals[name], signals[name])


def test_counts_order_and_names_of_the_shipped_dump():
    source = open_source(DUMP)
    assert (source.kind, source.why) == ('openvla', 'contains task0--ep0--succ0.csv')
    assert len(source) == 24
    rollouts = list(source.rollouts())
    order = [(rollout.task_id, rollout.episode_index) for rollout in rollouts]
    assert order == sorted(order)
    assert rollouts[0].episode_id == 'task0--ep0'
    assert len({rollout.episode_id for rollout in rollouts}) == 24
    counts = Counter((rollout.task_id, rollout.success) for rollout in rollouts)
    assert counts == {
        (task, success): 2 if success else 1 for task in range(8) for success in (0, 1)
    }


def test_reading_keeps_one_episode_at_a_time():
    source = open_source(DUMP)
    told = []
    stream = source.rollouts(lambda done, total: told.append((done, total)))
    next(stream)
    assert told == [(0, 24)]
    assert len(list(stream)) == 23
    assert told == [(done, 24) for done in range(25)]


@pytest.mark.skipif('SAFE_SHARED' not in os.environ, reason='SAFE_SHARED is not set')
def test_the_full_dump_agrees_with_the_pooled_recording():
    shared = Path(os.environ['SAFE_SHARED']) / 'rollouts' / 'miniature'
    raw = load_rollouts(shared / 'raw' / 'openvla', pooling=(('token', 'mean'),))
    pooled = load_rollouts(shared / 'token_pooled.npz')
    by_name = {(rollout.task_id, rollout.episode_index): rollout for rollout in pooled}
    assert (len(raw), len(pooled)) == (96, 800)
    for one in raw:
        other = by_name[one.task_id, one.episode_index]
        assert (one.success, one.instruction) == (other.success, other.instruction)
        assert (len(one), one.exec_horizon) == (len(other), other.exec_horizon)
        # The raw states are bfloat16: half a unit in the last of 8 bits of values below 8.
        np.testing.assert_allclose(one.features, other.features, atol=2**-6)
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-6)
        np.testing.assert_allclose(one.token_probability, other.token_probability, atol=1e-6)


def edit_csv(stem, edit):
    file = stem.with_suffix('.csv')
    file.write_text(edit(file.read_text()))


def test_variances_over_samples_stay_under_their_names(tmp_path):
    write_episode(tmp_path, samples=True, steps=3)
    (rollout,) = load_rollouts(tmp_path)
    assert rollout.token_probability is None
    assert rollout.token_entropy is None
    assert set(rollout.signals) == {*SAMPLES, *SIGNAL_NAMES}
    first = 0.01 * (len(ACTIONS))
    np.testing.assert_allclose(rollout.signals['total_var'], [first, 1 + first, 2 + first])
    assert rollout.signals['entropy_linkage.05'].dtype == np.float32


def test_folders_of_any_depth_as_on_widowx(tmp_path):
    write_episode(tmp_path / 'b' / 'night', task=1, episode=10)
    write_episode(tmp_path / 'b' / 'night', task=1, episode=9)
    write_episode(tmp_path / 'a', task=1, episode=9, success=False)
    (tmp_path / 'a' / 'task1--ep9--succ0.mp4').write_bytes(b'')
    (tmp_path / 'a' / 'task1--ep8--succ0.mp4').write_bytes(b'')
    rollouts = load_rollouts(tmp_path)
    names = [rollout.episode_id for rollout in rollouts]
    assert names == ['a/task1--ep9', 'b/night/task1--ep9', 'b/night/task1--ep10']
    assert [rollout.video for rollout in rollouts] == ['a/task1--ep9--succ0.mp4', '', '']


@pytest.mark.parametrize('spelling', ['eposide_idx', 'episode_idx'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('stacked', [True, False])
def test_the_ways_in_which_hidden_states_are_stored(tmp_path, spelling, dtype, stacked):
    states = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    changes = {'eposide_idx': None, spelling: 0}
    write_episode(tmp_path, hidden_states=states if stacked else list(states), **changes)
    (rollout,) = load_rollouts(tmp_path, pooling=(('token', 'concat'),))
    np.testing.assert_array_equal(rollout.features, states.float().flatten(1).numpy())


def test_numpy_hidden_states_and_numpy_scalars(tmp_path):
    states = np.arange(4 * 7 * 6).reshape(4, 7, 6).astype(ml_dtypes.bfloat16)
    write_episode(
        tmp_path, hidden_states=states, task_id=np.int64(0), episode_success=np.bool_(True)
    )
    (rollout,) = load_rollouts(tmp_path)
    np.testing.assert_array_equal(rollout.features, states[:, 6].astype(np.float32))


def test_bfloat16_is_averaged_in_float32(tmp_path):
    write_episode(tmp_path, hidden_states=torch.linspace(4.9, 5.1, 168).reshape(4, 7, 6).bfloat16())
    (rollout,) = load_rollouts(tmp_path, pooling=(('token', 'mean'),))
    states = pickle.loads((tmp_path / 'task0--ep0--succ1.pkl').read_bytes())['hidden_states']
    np.testing.assert_allclose(rollout.features, states.double().mean(1).numpy(), rtol=1e-6)


def with_nan(step, token=3):
    states = torch.randn(4, 7, 6)
    states[step, token, 2] = torch.nan
    return states


RECORDS = {
    'nan': (
        {'hidden_states': with_nan(2)},
        'hidden states without NaN and infinity, found NaN or infinity at step 2',
    ),
    'nan-in-a-list': ({'hidden_states': list(with_nan(1))}, 'NaN or infinity at step 1'),
    'no-steps': ({'hidden_states': []}, r'\(steps, tokens, width\), found an empty list'),
    'two-axes': ({'hidden_states': torch.zeros(4, 6)}, r'found an array of shape \(4, 6\)'),
    'integers': (
        {'hidden_states': torch.zeros(4, 7, 6).int()},
        'with float values and no empty axis, found 4 steps of int32',
    ),
    'no-tokens': (
        {'hidden_states': torch.zeros(4, 0, 6)},
        r'found 4 steps of float32 with shape \(0, 6\)',
    ),
    'text': ({'hidden_states': 'x'}, 'found a value of type str'),
    'ragged': (
        {'hidden_states': [torch.zeros(7, 6), torch.zeros(7, 6), torch.zeros(5, 6)]},
        r'found an array of shape \(5, 6\) at step 2 and an array of shape \(7, 6\) at step 0',
    ),
    'mixed-dtypes': (
        {'hidden_states': [torch.zeros(7, 6), torch.zeros(7, 6).half()]},
        'with one dtype .* found float16 at step 1 and float32 at step 0',
    ),
    'none-in-a-list': ({'hidden_states': [None]}, 'found no value at step 0'),
    'no-hidden-states': ({'hidden_states': None}, 'the keys hidden_states, found only'),
    'no-description': ({'task_description': None}, 'the keys task_description, found only'),
    'no-episode': ({'eposide_idx': None}, 'the keys eposide_idx, found only'),
    'description-not-text': (
        {'task_description': 5},
        'task_description as text, found a value of type int',
    ),
    'another-task': ({'task_id': 3}, 'task_id 0, as in the file name, found 3'),
    'another-episode': ({'eposide_idx': 3}, 'eposide_idx 0, as in the file name, found 3'),
    'another-outcome': (
        {'episode_success': False},
        'episode_success 1, as in the file name, found 0',
    ),
    'outcome-not-boolean': ({'episode_success': 'yes'}, 'the file name, found a value of type str'),
    'another-length': ({'hidden_states': torch.zeros(5, 7, 6)}, 'expected 5 rows, .* found 4'),
    'another-width': (
        {'hidden_states': torch.zeros(4, 7, 8)},
        'expected a pooled width of 6, found 8',
    ),
}


def check_refused(folder, bad_file, message, good=('task0--ep1', 'task0--ep2')):
    """A bad episode is refused with its file name; ``skip_bad`` leaves out only this episode."""
    before = listing(folder)
    with pytest.raises(DumpError, match=message) as caught:
        load_rollouts(folder)
    assert str(caught.value).startswith(str(folder / bad_file))
    source = open_source(folder, skip_bad=True)
    assert [rollout.episode_id for rollout in source.rollouts()] == list(good)
    assert len(source.skipped) == 1
    assert bad_file in source.skipped[0]
    assert listing(folder) == before


@pytest.mark.parametrize('name', RECORDS)
def test_a_bad_pickle_is_refused_or_left_out(tmp_path, name):
    changes, message = RECORDS[name]
    write_episode(tmp_path, episode=1)
    write_episode(tmp_path, episode=2)
    if name == 'another-width':
        write_episode(tmp_path, episode=5, **changes)
        check_refused(tmp_path, 'task0--ep5--succ1.pkl', message)
        return
    write_episode(tmp_path, **changes)
    suffix = 'csv' if name == 'another-length' else 'pkl'
    check_refused(tmp_path, f'task0--ep0--succ1.{suffix}', message)


class Malicious:
    def __reduce__(self):
        return os.system, ('touch executed',)


@pytest.mark.parametrize(
    'content',
    [
        pickle.dumps(Malicious()),
        pickle.dumps({'hidden_states': [torch.zeros(7, 6)], 'x': Malicious()}),
        pickle.dumps([1, 2]),
        b'',
    ],
    ids=['call', 'call-inside', 'a-list', 'empty'],
)
def test_a_hostile_pickle_is_refused_or_left_out(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    dump = tmp_path / 'dump'
    for episode in range(3):
        write_episode(dump, episode=episode)
    (dump / 'task0--ep0--succ1.pkl').write_bytes(content)
    check_refused(dump, 'task0--ep0--succ1.pkl', r'expected .*, found .*; ')
    assert listing(tmp_path)[0] == 'dump'
    assert not (tmp_path / 'executed').exists()


def test_a_truncated_pickle_is_refused_or_left_out(tmp_path):
    for episode in range(3):
        write_episode(tmp_path, episode=episode)
    file = tmp_path / 'task0--ep0--succ1.pkl'
    file.write_bytes(file.read_bytes()[:-200])
    check_refused(tmp_path, file.name, 'before the end of the file; copy the file')


TABLES = {
    'row-missing': (lambda text: text.rsplit('\n', 2)[0] + '\n', 'expected 4 rows, .* found 3'),
    'row-more': (lambda text: text + text.splitlines()[-1] + '\n', 'expected 4 rows, .* found 5'),
    'empty': (lambda text: '', 'expected the columns action/dx, .* found an empty file'),
    'column-missing': (
        lambda text: text.replace('action/dz', 'z'),
        'expected the columns action/dz, found',
    ),
    'column-twice': (
        lambda text: text.replace('token_1_prob', 'token_0_prob'),
        "each column once, found the column 'action/token_0_prob' more than once",
    ),
    'word': (
        lambda text: text.replace('\n2,2.0,', '\n2,two,'),
        "number in row 3 after the header, column 'action/dx', found 'two'",
    ),
    'cell-missing': (
        lambda text: text.replace(text.splitlines()[2], '1,1.0,2'),
        "row 2 after the header, column 'action/dz', found a shorter row",
    ),
    'nan': (
        lambda text: text.replace('\n1,1.0,', '\n1,nan,'),
        'actions without NaN and infinity, found NaN or infinity at step 1',
    ),
    'quote': (lambda text: text + '"', 'expected a csv file, found text that is not csv'),
}


@pytest.mark.parametrize('name', TABLES)
def test_a_bad_csv_is_refused_or_left_out(tmp_path, name):
    edit, message = TABLES[name]
    for episode in range(3):
        write_episode(tmp_path, episode=episode)
    edit_csv(tmp_path / 'task0--ep0--succ1', edit)
    check_refused(tmp_path, 'task0--ep0--succ1.csv', message)


@pytest.mark.parametrize('suffix', ['csv', 'pkl'])
def test_a_missing_file_is_named_before_anything_is_read(tmp_path, monkeypatch, suffix):
    for episode in range(3):
        write_episode(tmp_path, episode=episode, width=6)
    (tmp_path / f'task0--ep2--succ1.{suffix}').unlink()
    other = 'pkl' if suffix == 'csv' else 'csv'
    source = open_source(tmp_path)
    stream = source.rollouts()
    monkeypatch.setattr(type(source), 'feature', None)
    with pytest.raises(DumpError, match=rf'beside task0--ep2--succ1\.{other}, found no file; copy'):
        next(stream)
    monkeypatch.undo()
    check_refused(
        tmp_path, f'task0--ep2--succ1.{suffix}', 'found no file', ['task0--ep0', 'task0--ep1']
    )


def test_a_renamed_pickle(tmp_path):
    for episode in range(3):
        write_episode(tmp_path, episode=episode)
    (tmp_path / 'task0--ep0--succ1.pkl').rename(tmp_path / 'best.pkl')
    with pytest.raises(DumpError, match=r'best\.pkl: expected a file name like task0--ep0--succ1'):
        load_rollouts(tmp_path)
    source = open_source(tmp_path, skip_bad=True)
    assert len(list(source.rollouts())) == 2
    assert len(source.skipped) == 2


def test_a_renamed_episode(tmp_path):
    for episode in range(3):
        stem = write_episode(tmp_path, episode=episode)
    for suffix in ('.csv', '.pkl'):
        stem.with_suffix(suffix).rename(tmp_path / f'task0--ep2--succ0{suffix}')
    check_refused(
        tmp_path,
        'task0--ep2--succ0.pkl',
        'episode_success 0, as in the file name, found 1',
        ['task0--ep0', 'task0--ep1'],
    )


def test_an_episode_with_both_outcomes(tmp_path):
    for episode in range(3):
        write_episode(tmp_path, episode=episode)
    write_episode(tmp_path, episode=0, success=False)
    with pytest.raises(DumpError, match=r'files with one outcome of this episode .* both outcomes'):
        load_rollouts(tmp_path)
    rollouts = load_rollouts(tmp_path, skip_bad=True)
    assert [rollout.episode_id for rollout in rollouts] == ['task0--ep1', 'task0--ep2']


def test_a_dump_with_nothing_readable(tmp_path):
    write_episode(tmp_path, hidden_states=[])
    with pytest.raises(
        DumpError, match=r'at least one readable episode, found no readable .* 1; .*ep0'
    ):
        load_rollouts(tmp_path, skip_bad=True)


def test_what_is_left_out_is_said(tmp_path, caplog):
    write_episode(tmp_path, episode=0)
    write_episode(tmp_path, episode=1, hidden_states=[])
    load_rollouts(tmp_path, skip_bad=True)
    assert 'episode left out: ' in caplog.text
    assert 'task0--ep1--succ1.pkl' in caplog.text


def test_options_that_do_not_fit_a_dump(tmp_path):
    write_episode(tmp_path)
    with pytest.raises(
        DumpError, match=r"the feature hidden_states or none, .* found 'pre_logits'"
    ):
        open_source(tmp_path, feature='pre_logits')
    with pytest.raises(DumpError, match=r"names each of the axes \['token'\] once"):
        open_source(tmp_path, pooling=(('horizon', 'mean'),))
