# SPDX-License-Identifier: Apache-2.0
"""The action signals: computed by hand, and equal for live steps and whole rollouts."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from vla_feature_bridge.signals import (
    SIGNAL_NAMES,
    SignalError,
    SignalStream,
    action_signals,
    rollout_signals,
)

# Two arm dimensions and the gripper. The horizon is four, and two actions are executed.
PREVIOUS = np.array([[5, 0, -1], [1, 0, 1], [2, 0, -1], [3, 0, -1]], np.float32)
CHUNK = np.array([[2, 1, -1], [3, 1, 1], [0, 0, 1], [0, 0, 1]], np.float32)


def test_the_signals_of_a_step_worked_by_hand():
    signals = action_signals(PREVIOUS, CHUNK, 2)
    assert signals == {
        'action_norm': pytest.approx(math.sqrt(19)),
        # Actions of the last chunk that were not executed: (2, 0, -1), (3, 0, -1); (2, 1, -1) and
        # (3, 1, 1) replace them.
        'chunk_mse': pytest.approx((0 + 1 + 0 + 0 + 1 + 4) / 6),
        # The arm moves (5, 0), (1, 0), (2, 1), (3, 1): second differences (5, 1) and (0, -1).
        'action_jerk': pytest.approx(math.sqrt((25 + 1 + 0 + 1) / 4)),
        'direction_reversals': 0.0,
        # The gripper commands are -1, 1, -1, 1.
        'gripper_oscillation': 2.0,
    }


def test_the_first_step_has_no_past():
    signals = action_signals(None, CHUNK, 2)
    assert signals['chunk_mse'] == 0.0
    assert signals['action_jerk'] == 0.0, 'two actions have no second difference'
    assert signals['gripper_oscillation'] == 0.0
    assert signals['action_norm'] == pytest.approx(math.sqrt(19))


def test_arm_motions_against_each_other_are_reversals():
    chunk = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, -2, 0]])
    assert action_signals(None, chunk, 5)['direction_reversals'] == 2.0
    assert action_signals(None, chunk, 2)['direction_reversals'] == 1.0, 'executed motion only'


def test_the_gripper_is_no_arm_motion():
    chunk = np.array([[0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, -1]])
    signals = action_signals(None, chunk, 4)
    assert signals['direction_reversals'] == 0.0
    assert signals['action_jerk'] == 0.0
    assert signals['gripper_oscillation'] == 2.0


def test_a_gripper_that_waits_between_has_changed_its_direction_all_the_same():
    chunk = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert action_signals(None, chunk, 4)['gripper_oscillation'] == 1.0


def test_one_action_dimension_is_arm_and_gripper():
    chunk = np.array([[1.0], [-1.0], [1.0]])
    signals = action_signals(None, chunk, 3)
    assert signals['direction_reversals'] == 2.0
    assert signals['action_jerk'] == pytest.approx(4.0)


@pytest.mark.parametrize('executed', [4, 5, 100])
def test_a_chunk_that_was_executed_whole_overlaps_with_nothing(executed):
    assert action_signals(PREVIOUS, CHUNK, executed)['chunk_mse'] == 0.0


def test_a_shorter_next_chunk_is_compared_as_far_as_it_goes():
    signals = action_signals(PREVIOUS, CHUNK[:1], 1)
    assert signals['chunk_mse'] == pytest.approx((1 + 1 + 4) / 3)


def test_a_consistent_policy_has_no_chunk_error():
    plan = np.random.default_rng(0).normal(size=(20, 7))
    actions = np.stack([plan[t : t + 8] for t in range(0, 12, 2)])[:, None]
    assert rollout_signals(actions, 2)['chunk_mse'].tolist() == [0.0] * 6


def test_only_the_executed_sample_counts():
    actions = np.random.default_rng(0).normal(size=(5, 3, 4, 7))
    changed = actions.copy()
    changed[:, 1:] += 1.0
    for name, values in rollout_signals(changed, 2).items():
        np.testing.assert_array_equal(values, rollout_signals(actions, 2)[name])


def test_half_precision_is_computed_in_double():
    chunk = np.full((4, 7), 200.0, np.float16)
    assert action_signals(None, chunk, 2)['action_norm'] == pytest.approx(200 * math.sqrt(28))


@given(
    actions=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
        elements=st.floats(-10, 10, width=32),
    ),
    executed=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_a_rollouts_signals_are_those_of_its_steps_and_know_no_future(actions, executed):
    whole = rollout_signals(actions, executed)
    assert tuple(whole) == SIGNAL_NAMES
    stream = SignalStream(executed)
    for t, chunks in enumerate(actions):
        for name, value in stream.step(chunks).items():
            assert np.float32(value) == whole[name][t]
            assert math.isfinite(value)
            assert value >= 0.0
    for values in whole.values():
        assert values.shape == (len(actions),)
        assert values.dtype == np.float32
    half = rollout_signals(actions[: (len(actions) + 1) // 2], executed)
    for name, values in half.items():
        np.testing.assert_array_equal(values, whole[name][: len(values)])


def test_the_executed_number_of_the_last_chunk_is_given_one_step_later():
    stream = SignalStream(2)
    assert stream.step(PREVIOUS[None], executed=4) == action_signals(None, PREVIOUS, 2)
    assert stream.step(CHUNK[None], executed=np.int64(3)) == {
        'action_norm': pytest.approx(math.sqrt(19)),
        # The action of the last chunk that was not executed: (3, 0, -1); (2, 1, -1) replaces it.
        'chunk_mse': pytest.approx((1 + 1 + 0) / 3),
        # The arm moves (1, 0), (2, 0), (2, 1), (3, 1): second differences (-1, 1) and (1, -1).
        'action_jerk': pytest.approx(1.0),
        'direction_reversals': 0.0,
        # The gripper commands are 1, -1, -1, 1.
        'gripper_oscillation': 1.0,
    }


@given(
    actions=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.just(1), st.integers(1, 4), st.integers(1, 3)),
        elements=st.floats(-10, 10, width=32),
    ),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_executed_numbers_give_the_same_live_and_over_a_whole_rollout(actions, data):
    steps, _, horizon, _ = actions.shape
    executed = data.draw(st.lists(st.integers(0, horizon), min_size=steps, max_size=steps))
    whole = rollout_signals(actions, 2, executed)
    stream = SignalStream(2)
    for t, chunks in enumerate(actions):
        for name, value in stream.step(chunks, executed[t]).items():
            assert np.float32(value) == whole[name][t]
    nominal = rollout_signals(actions, 1, [1] * steps)
    for name, values in rollout_signals(actions, 1).items():
        np.testing.assert_array_equal(values, nominal[name])


@pytest.mark.parametrize('executed', [-1, 5, 1.0, '2'])
def test_a_number_that_the_last_chunk_does_not_have_is_refused_and_changes_nothing(executed):
    stream = SignalStream(2)
    stream.step(PREVIOUS[None])
    with pytest.raises(SignalError, match=rf"'executed' .* from 0 to 4 .*found {executed!r}"):
        stream.step(CHUNK[None], executed)
    assert stream.step(CHUNK[None]) == action_signals(PREVIOUS, CHUNK, 2)


def test_every_step_has_its_executed_number():
    with pytest.raises(SignalError, match='for each of 2 steps, found 1 numbers'):
        rollout_signals(np.stack([PREVIOUS, CHUNK])[:, None], 2, [2])


def test_a_stream_keeps_no_reference_to_the_senders_array():
    chunks = PREVIOUS[None].copy()
    stream = SignalStream(2)
    stream.step(chunks)
    chunks[...] = 99.0
    assert stream.step(CHUNK[None]) == action_signals(PREVIOUS, CHUNK, 2)


@pytest.mark.parametrize('shape', [(7,), (0, 7), (4, 0), (1, 4, 7)], ids=str)
def test_a_chunk_of_another_shape_is_refused(shape):
    with pytest.raises(SignalError, match='action chunk'):
        action_signals(None, np.zeros(shape), 2)


@pytest.mark.parametrize('shape', [(4, 7), (0, 4, 7), (1, 0, 7), (1, 4, 0)], ids=str)
def test_chunks_of_another_shape_are_refused(shape):
    with pytest.raises(SignalError, match='found shape'):
        SignalStream(2).step(np.zeros(shape))


def test_another_action_width_is_refused():
    with pytest.raises(SignalError, match=r'expected an action_dim of 3 .*found 2'):
        action_signals(PREVIOUS, CHUNK[:, :2], 2)
