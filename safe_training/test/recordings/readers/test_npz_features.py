# SPDX-License-Identifier: Apache-2.0
"""Arrays of an npz archive that do not fit are read or refused by name; what is left is listed."""

import ml_dtypes
import numpy as np
import pytest
from test_pooled_npz import named, numbered, save

from safe_training.recordings.convert import convert
from safe_training.recordings.describe import info
from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts, open_source
from vla_feature_bridge.tokens import token_statistics

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(6, 4))


def test_bfloat16_is_read(tmp_path):
    values = ROWS.astype(ml_dtypes.bfloat16)
    path = save(tmp_path / 'x.npz', named(features=values))
    rollouts = load_rollouts(path)
    assert rollouts[0].features.dtype == ml_dtypes.bfloat16
    found = np.concatenate([rollout.features for rollout in rollouts])
    assert found.tobytes() == values.tobytes()
    convert(path, tmp_path / 'set')
    stored = np.concatenate([r.features for r in load_rollouts(tmp_path / 'set')])
    assert stored.tobytes() == values.tobytes()
    assert any('read as bfloat16' in note for note in info(path)['notes'])


@pytest.mark.parametrize(
    ('features', 'match'),
    [
        (RNG.normal(size=(6, 7, 4)), r'shape \(6, 7, 4\); pool .*array\.mean\(axis=1\)'),
        (RNG.normal(size=(6, 2, 7, 4)), r'array\.mean\(axis=\(1, 2\)\)'),
        (np.arange(24).reshape(6, 4), r'dtype int64 .*astype\("float32"\)'),
        (ROWS.astype(ml_dtypes.float8_e4m3fn), r'dtype \|V1 .*astype\("float32"\)'),
        (ROWS.astype(np.complex64), r'dtype complex64 .*astype'),
        (ROWS[:5], r'shape \(5, 4\); write one row for each step'),
        (ROWS[:, 0], r'shape \(6,\); write one vector .*array\[:, None\]'),
        (ROWS[:, :0], 'at least one column'),
    ],
)
@pytest.mark.parametrize('name', ['features', 'feat_mean', 'feat_last'])
def test_a_feature_that_does_not_fit_is_refused_by_name(tmp_path, name, features, match):
    arrays = named(features=None) | {name: features}
    path = save(tmp_path / 'x.npz', arrays)
    for action in (info, load_rollouts, lambda p: convert(p, tmp_path / 'set')):
        with pytest.raises(DumpError, match=rf'x\.npz: expected {name} with float .*{match}'):
            action(path)
    assert load_rollouts(path, feature='none').feature.name == 'none'


def test_a_single_feature_of_another_name_is_read(tmp_path):
    path = save(tmp_path / 'x.npz', named(features=None, feat_last=ROWS))
    assert str(load_rollouts(path).feature) == 'feat_last'


@pytest.mark.parametrize(
    'arrays', [{'feat_last': ROWS, 'feat_first': ROWS}, {'hidden': ROWS}, {'h': ROWS[:, None]}]
)
def test_a_person_must_choose(tmp_path, arrays):
    path = save(tmp_path / 'x.npz', named(features=None) | arrays)
    with pytest.raises(DumpError, match=rf'arrays {next(iter(arrays))} .*--feature NAME'):
        load_rollouts(path)
    assert load_rollouts(path, feature='none').feature.dim == 0


def test_any_fitting_array_can_be_chosen(tmp_path):
    path = save(tmp_path / 'x.npz', named(features=None, hidden=ROWS))
    rollouts = load_rollouts(path, feature='hidden')
    np.testing.assert_array_equal(rollouts[1].features, ROWS[2:3])


def test_what_is_not_read_is_listed(tmp_path):
    more = {'stamps': np.arange(6), 'feat_max': ROWS, 'gripper': ROWS[:, 0], 'seed': np.array(7)}
    path = save(tmp_path / 'x.npz', named() | more)
    expected = (
        'these arrays are not read: stamps int64 (6,), feat_max float64 (6, 4), '
        'gripper float64 (6,), seed int64 ()'
    )
    assert info(path)['notes'] == [expected]
    assert convert(path, tmp_path / 'set')['notes'] == [expected]


def test_nothing_is_listed_if_all_is_read(tmp_path):
    for make in (named, numbered):
        arrays = make()
        arrays.pop('feat_first', None)
        source = open_source(save(tmp_path / 'x.npz', arrays))
        assert len(list(source.rollouts())) == 3
        assert source.notes == []


@pytest.mark.parametrize('name', ['token_probability', 'token_probs'])
def test_token_statistics_under_other_names(tmp_path, name):
    values = RNG.random((6, 3)).astype(np.float32)
    path = save(tmp_path / 'x.npz', named() | {name: values, 'token_entropies': values * 2})
    source = open_source(path)
    rollout = next(iter(source.rollouts()))
    np.testing.assert_array_equal(rollout.token_probability, values[:2])
    np.testing.assert_array_equal(rollout.token_entropy, values[:2] * 2)
    assert source.notes == []


def test_token_statistics_from_logits(tmp_path):
    logits = RNG.normal(size=(6, 3, 10)).astype(np.float32)
    path = save(tmp_path / 'x.npz', named(logits=logits))
    rollouts = load_rollouts(path)
    expected = [token_statistics(step) for step in logits[3:]]
    np.testing.assert_array_equal(rollouts[2].token_probability, [p for p, _ in expected])
    np.testing.assert_array_equal(rollouts[2].token_entropy, [e for _, e in expected])
    logits[4, 1] = np.nan
    path = save(tmp_path / 'x.npz', named(logits=logits))
    with pytest.raises(DumpError, match="episode 'open/7': logits: "):
        load_rollouts(path)


def test_token_statistics_that_do_not_fit_are_refused_by_name(tmp_path):
    for values in (np.ones(6, np.float32), np.ones((6, 3), np.int64), np.ones((5, 3))):
        path = save(tmp_path / 'x.npz', named(token_prob=values))
        with pytest.raises(DumpError, match='expected token_prob with float values, 6 rows'):
            load_rollouts(path)
