# SPDX-License-Identifier: Apache-2.0
"""A rollout: what it accepts, what it refuses, and steps that are views of its arrays."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from rollout_factory import make_rollout

from vla_feature_bridge.rollout import Rollout, RolloutError
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep

MUG = {
    'features': np.arange(12, dtype=np.float32).reshape(3, 4),
    'task': 'mug',
    'success': True,
    'episode_index': 7,
    'instruction': 'put the mug on the plate',
    'policy': 'openvla',
    'feature_name': 'hidden_states[token=last]',
    'actions': np.arange(3 * 2 * 5 * 7, dtype=np.float64).reshape(3, 2, 5, 7),
    'exec_horizon': 2,
    'token_probability': np.array([[0.5, 0.6], [0.7, np.nan], [np.nan, np.nan]], np.float32),
    'token_entropy': np.array([[1.5, 1.6], [1.7, np.nan], [np.nan, np.nan]], np.float32),
    'signals': {'chunk_mse': np.array([0.0, 0.1, 0.2], np.float32)},
    'stamps': np.array([10, 20, 30], np.int64),
    'inference_time': np.array([0.1, 0.2, 0.3], np.float32),
    'action_space': 'robot',
}


def mug_rollout(**changes):
    return make_rollout(**{**MUG, **changes})


def test_a_step_carries_all_that_the_rollout_knows_of_it():
    rollout = mug_rollout()
    assert len(rollout) == 3
    step = rollout.step(1)
    np.testing.assert_array_equal(step.features, [4, 5, 6, 7])
    np.testing.assert_array_equal(step.actions, rollout.actions[1])
    np.testing.assert_array_equal(step.token_probability, np.array([0.7], np.float32))
    np.testing.assert_array_equal(step.token_entropy, np.array([1.7], np.float32))
    assert step.step == 1
    assert step.stamp == 20
    assert type(step.stamp) is int
    assert step.signals == {'chunk_mse': pytest.approx(0.1)}
    assert type(step.signals['chunk_mse']) is float
    assert step.inference_time == pytest.approx(0.2)
    whole = ('episode_id', 'policy', 'instruction', 'feature_name', 'exec_horizon', 'action_space')
    for name in whole:
        assert getattr(step, name) == getattr(rollout, name)


def test_a_step_of_a_bare_rollout_has_what_a_bare_step_has():
    rollout = Rollout(np.zeros((2, 3), np.float32), task='mug')
    step, bare = rollout.step(1), PolicyStep(np.zeros(3, np.float32), episode_id='mug/0', step=1)
    for field in dataclasses.fields(PolicyStep):
        if field.name != 'features':
            assert getattr(step, field.name) == getattr(bare, field.name), field.name


def test_the_table_of_fields_names_attributes_of_steps_and_rollouts():
    step_defaults = {f.name: f.default for f in dataclasses.fields(PolicyStep)}
    rollout_defaults = {f.name: f.default for f in dataclasses.fields(Rollout)}
    for field in STEP_FIELDS:
        assert step_defaults[field.name] == field.default
        assert rollout_defaults[field.stacked] is None
        assert field.doc


def test_a_step_copies_neither_features_nor_actions():
    rollout = mug_rollout()
    step = rollout.step(2)
    assert np.shares_memory(step.features, rollout.features)
    assert np.shares_memory(step.actions, rollout.actions)


def test_tokens_that_were_not_emitted_are_left_out():
    rollout = mug_rollout()
    assert rollout.step(0).token_probability.shape == (2,)
    assert rollout.step(2).token_probability.shape == (0,)


@pytest.mark.parametrize('t', [-1, 3, 100])
def test_a_step_that_is_not_there_is_an_index_error(t):
    with pytest.raises(IndexError, match=rf"'mug/7': expected a step from 0 to 2, found {t}"):
        mug_rollout().step(t)


def test_an_episode_is_named_for_its_task_unless_it_has_a_name():
    assert mug_rollout().episode_id == 'mug/7'
    assert mug_rollout(episode_id='run-3').episode_id == 'run-3'


def test_failure_is_the_positive_class_and_no_outcome_is_neither():
    assert mug_rollout(success=False).failed is True
    assert mug_rollout(success=True).failed is False
    with pytest.raises(RolloutError, match="'mug/7': expected an outcome, found none; label the "):
        _ = mug_rollout(success=None).failed


@pytest.mark.parametrize('dtype', [np.float16, np.float64, ml_dtypes.bfloat16])
def test_features_keep_their_dtype_and_may_be_raw(dtype):
    rollout = Rollout(np.zeros((3, 2, 5, 4), dtype), task='mug')
    assert rollout.step(0).features.shape == (2, 5, 4)
    assert rollout.step(0).features.dtype == dtype


@pytest.mark.parametrize('shape', [(), (4,), (0, 4), (0,)], ids=str)
def test_features_without_steps_are_refused(shape):
    with pytest.raises(RolloutError, match=r"'mug/7': expected features of shape \(T, \.\.\., D\)"):
        mug_rollout(features=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('actions', (2, 2, 5, 7)),
        ('actions', (3, 5, 7)),
        ('token_probability', (2, 2)),
        ('token_probability', (3,)),
        ('token_entropy', (4, 2)),
        ('stamps', (2,)),
        ('stamps', (3, 1)),
        ('inference_time', (4,)),
        ('inference_time', ()),
    ],
)
def test_arrays_that_do_not_belong_to_the_steps_are_refused(name, shape):
    with pytest.raises(RolloutError, match=rf"'mug/7': expected {name} of shape \(3[,)].*found"):
        mug_rollout(**{name: np.zeros(shape)})


def test_a_signal_of_another_length_is_refused_by_name():
    with pytest.raises(RolloutError, match=r"expected signal 'chunk_mse' of shape \(3\)"):
        mug_rollout(signals={'chunk_mse': np.zeros(2)})
