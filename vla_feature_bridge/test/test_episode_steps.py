# SPDX-License-Identifier: Apache-2.0
"""Steps and events of episodes without ROS: what they hold, and what is refused."""

import math
import time
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch

from vla_feature_bridge.episode_steps import EpisodeEventRecord, EpisodeSteps
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.signals import SignalStream, rollout_signals
from vla_feature_bridge.step import NO_FEATURE

NAME = 'hidden_states[token=last]'


def chunks(steps=1, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, 3, 4, 7)).astype(np.float32)


GOOD = chunks()[0]


@pytest.fixture
def steps():
    return EpisodeSteps(NAME, 2, policy='openvla', action_space='robot')


def test_an_episode_is_numbered_and_has_signals(steps):
    ticks = iter(range(100))
    steps = EpisodeSteps(NAME, 2, 'openvla', 'robot', clock=lambda: next(ticks))
    actions = chunks(3)
    (start,) = steps.start(task='mug', instruction='pick up the mug', episode_id='a')
    found = [steps.step(np.ones(4, np.float32), chunk, inference_time=0.25) for chunk in actions]
    end = steps.end(success=False, reason='late')
    assert start == EpisodeEventRecord('start', 'a', 'mug', 'pick up the mug', stamp=0)
    assert end == EpisodeEventRecord('end', 'a', 'mug', 'pick up the mug', False, 'late', stamp=4)
    assert [step.step for step in found] == [0, 1, 2]
    assert [step.stamp for step in found] == [1, 2, 3]
    for step in found:
        assert (step.episode_id, step.policy, step.action_space) == ('a', 'openvla', 'robot')
        assert (step.feature_name, step.exec_horizon, step.inference_time) == (NAME, 2, 0.25)
        assert step.instruction == 'pick up the mug'
    for name, values in rollout_signals(actions, 2).items():
        assert [np.float32(step.signals[name]) for step in found] == list(values)
    assert steps.episode_id == ''


def test_a_second_start_ends_the_first_episode(steps):
    steps.start(episode_id='a')
    end, start = steps.start(episode_id='b')
    assert (end.kind, end.episode_id, end.success) == ('end', 'a', None)
    assert end.reason == 'the next episode began'
    assert (start.kind, start.episode_id, steps.episode_id) == ('start', 'b', 'b')


def test_the_clock_is_the_clock_of_the_system(steps):
    before = time.time_ns()
    (start,) = steps.start()
    assert before <= start.stamp <= steps.step(np.zeros(4)).stamp <= time.time_ns()


def test_the_instruction_may_change_and_stays_changed(steps):
    steps.start(instruction='pick')
    given = [None, 'place', None, 'pour']
    found = [steps.step(np.zeros(4), instruction=text).instruction for text in given]
    assert found == ['pick', 'place', 'place', 'pour']
    assert steps.end().instruction == 'pick'


def test_the_horizon_may_change_with_every_step(steps):
    actions = chunks(3)
    steps.start()
    found = [
        steps.step(np.zeros(4), chunk, exec_horizon=horizon)
        for chunk, horizon in zip(actions, (1, None, np.int64(4)), strict=True)
    ]
    assert [step.exec_horizon for step in found] == [1, 2, 4]
    stream = SignalStream(1)
    expected = [stream.step(actions[0])]
    for chunk, horizon, executed in ((actions[1], 2, 1), (actions[2], 4, 2)):
        stream.exec_horizon = horizon
        expected.append(stream.step(chunk, executed))
    assert [step.signals for step in found] == expected


def test_the_number_of_executed_actions_changes_the_signals(steps):
    actions = chunks(2)
    expected = rollout_signals(actions, 2, executed=[0, 3])
    steps.start()
    steps.step(np.zeros(4), actions[0])
    step = steps.step(np.zeros(4), actions[1], executed=torch.tensor(3))
    for name, values in expected.items():
        assert np.float32(step.signals[name]) == values[1]
    with pytest.raises(
        SafeError, match=r"step 2 of episode .*expected 'executed' as an integer from 0 to 4"
    ):
        steps.step(np.zeros(4), actions[1], executed=5)


def test_a_black_box_step_has_actions_only(steps):
    steps.start()
    step = steps.step(None, GOOD)
    assert (step.features.shape, step.features.dtype) == ((0,), np.float32)
    assert step.feature_name == NO_FEATURE == 'none'
    assert step.signals['action_norm'] > 0
    with pytest.raises(SafeError, match='features at every step of an episode or at none'):
        steps.step(np.zeros(4), GOOD)
    steps.start()
    steps.step(np.zeros(4), GOOD)
    with pytest.raises(SafeError, match='found a step without features'):
        steps.step(None, GOOD)


def test_a_policy_without_features_may_not_send_any():
    steps = EpisodeSteps(NO_FEATURE, 2)
    steps.start()
    with pytest.raises(SafeError, match="expected no features, because feature_name is 'none'"):
        steps.step(np.zeros(4), GOOD)
    assert steps.step(None, GOOD).step == 0


@pytest.mark.parametrize(
    'number', [2, np.int8(2), np.uint64(2), np.array(2), torch.tensor(2), torch.tensor(2).int()]
)
def test_integers_of_every_kind_are_integers(number):
    steps = EpisodeSteps(NAME, number)
    steps.start()
    step = steps.step(np.zeros(4), GOOD, stamp=number, exec_horizon=number, executed=number)
    for value in (step.exec_horizon, step.stamp):
        assert type(value) is int
        assert value == 2


@pytest.mark.parametrize(
    'number', [0.25, np.float32(0.25), torch.tensor(0.25), torch.tensor(0.25).bfloat16()]
)
def test_numbers_of_every_kind_are_numbers(steps, number):
    steps.start()
    step = steps.step(np.zeros(4), inference_time=number)
    assert type(step.inference_time) is float
    assert step.inference_time == 0.25


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_are_arrays(steps, dtype):
    hidden = torch.linspace(-3, 3, 32, requires_grad=True).to(dtype)[::2]
    chunk = torch.from_numpy(GOOD).to(dtype)
    steps.start()
    step = steps.step(hidden, chunk, token_probability=torch.ones(3, dtype=dtype) / 2)
    name = str(dtype).removeprefix('torch.')
    assert step.features.dtype == {'bfloat16': ml_dtypes.bfloat16}.get(name, name)
    np.testing.assert_array_equal(
        step.features.astype(np.float64), hidden.detach().to(torch.float64).numpy()
    )
    np.testing.assert_array_equal(step.token_probability, [0.5] * 3)
    assert step.token_probability.dtype == np.float32
    expected = rollout_signals(chunk.to(torch.float64).numpy()[None], 2)
    assert {name: np.float32(value) for name, value in step.signals.items()} == {
        name: values[0] for name, values in expected.items()
    }


def test_a_time_of_ros_is_a_stamp(steps):
    steps.start()
    assert steps.step(np.zeros(4), stamp=SimpleNamespace(sec=1, nanosec=7)).stamp == 10**9 + 7


@pytest.mark.parametrize(
    ('success', 'expected'),
    [
        (True, True),
        (np.False_, False),
        (np.array(True), True),
        (torch.tensor(False), False),
        (None, None),
    ],
)
def test_outcomes(steps, success, expected):
    steps.start()
    assert steps.end(success).success is expected


@pytest.mark.parametrize('success', ['failure', '', 1, 0, 1.0, np.array([False]), torch.ones(1)])
def test_an_outcome_that_is_no_bool_is_refused(steps, success):
    steps.start()
    with pytest.raises(SafeError, match='end: expected success as True, False or None, found'):
        steps.end(success)
    assert steps.episode_id


@pytest.mark.parametrize(
    ('features', 'more', 'message'),
    [
        (np.zeros(5), {}, 'features of width 4 as before, found width 5'),
        (np.array([0, np.nan, 0, 0]), {}, 'expected finite features'),
        ([[1.0], [2.0, 3.0]], {}, 'features: expected an array'),
        (torch.zeros(4, device='meta'), {}, 'features: expected an array'),
        (object(), {}, 'found shape .* of object'),
        (np.zeros(4), {'actions': None}, 'at every step of an episode or at none'),
        (
            np.zeros(4),
            {'actions': GOOD[:, :, :6]},
            'an action_dim of 7 as in the previous action chunk',
        ),
        (np.zeros(4), {'actions': GOOD * np.inf}, 'expected finite actions'),
        (np.zeros(4), {'actions': GOOD.astype(float) * 1e200}, 'whose signal .* fits float32'),
        (np.zeros(4), {'exec_horizon': 5}, 'at least exec_horizon = 5 actions'),
        (np.zeros(4), {'exec_horizon': 0}, 'exec_horizon from 1 to'),
        (np.zeros(4), {'exec_horizon': 2.0}, 'exec_horizon from 1 to'),
        (np.zeros(4), {'executed': -1}, "expected 'executed' as an integer from 0 to 4"),
        (np.zeros(4), {'instruction': 7}, 'expected instruction as a text'),
        (np.zeros(4), {'instruction': '\ud800'}, 'expected instruction as a text'),
        (np.zeros(4), {'token_entropy': [1e300]}, 'expected finite token_entropy'),
        (np.zeros(4), {'inference_time': 1e300}, 'found 1e\\+300'),
        (np.zeros(4), {'stamp': 10**30}, 'expected stamp as an integer'),
        (np.zeros(4), {'stamp': np.array([1, 2])}, 'expected stamp as an integer'),
        (np.zeros(4), {'logits': [1.0]}, 'expected fields among token_probability'),
    ],
)
def test_a_refused_step_changes_nothing(steps, features, more, message):
    actions = chunks(2, seed=1)
    expected = rollout_signals(actions, 2)
    steps.start(episode_id='a', instruction='pick')
    steps.step(np.zeros(4), actions[0])
    with pytest.raises(SafeError, match=rf"step 1 of episode 'a': .*{message}"):
        steps.step(features, **{'actions': actions[1], **more})
    step = steps.step(np.zeros(4), actions[1])
    assert (step.step, step.instruction, step.exec_horizon) == (1, 'pick', 2)
    for name, values in expected.items():
        assert np.float32(step.signals[name]) == values[1]


@pytest.mark.parametrize('name', ['task', 'instruction', 'episode_id'])
def test_a_start_without_text_leaves_the_episode(steps, name):
    steps.start(episode_id='a')
    with pytest.raises(SafeError, match=f'start: expected {name} as a text'):
        steps.start(**{name: None})
    assert steps.episode_id == 'a'


def test_without_an_episode_there_is_no_step_and_no_end(steps):
    with pytest.raises(SafeError, match=r'publish: expected a running episode.*start'):
        steps.step(np.zeros(4))
    with pytest.raises(SafeError, match=r'end: expected a running episode.*start'):
        steps.end()
    steps.skip()
    steps.start()
    assert steps.step(np.zeros(4)).step == 0


def test_every_call_can_be_taken_back(steps):
    actions = chunks(2)
    steps.start(episode_id='a')
    steps.undo()
    assert steps.episode_id == ''
    steps.start(episode_id='b')
    steps.step(np.zeros(4), actions[0])
    steps.step(np.zeros(4), actions[0] + 1)
    steps.undo()
    step = steps.step(np.zeros(4), actions[1])
    assert step.step == 1
    assert np.float32(step.signals['chunk_mse']) == rollout_signals(actions, 2)['chunk_mse'][1]
    steps.end()
    steps.undo()
    assert steps.episode_id == 'b'


def test_a_skipped_inference_leaves_a_gap_and_its_signals_are_forgotten(steps):
    actions = chunks(2)
    steps.start()
    steps.step(np.zeros(4), actions[0])
    steps.skip()
    step = steps.step(np.zeros(4), actions[1])
    assert step.step == 2
    assert step.signals == SignalStream(2).step(actions[1])


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'feature_name': ''}, r"a feature_name, found ''; .*safe_training info.*'none'"),
        ({'feature_name': None}, 'a feature_name, found None'),
        ({'exec_horizon': 0}, 'exec_horizon from 1 to 4294967295, found 0'),
        ({'exec_horizon': '2'}, "exec_horizon from 1 to 4294967295, found '2'"),
        ({'exec_horizon': 2**32}, 'exec_horizon from 1 to'),
        ({'policy': None}, 'policy as a text'),
        ({'action_space': 3}, 'action_space as a text'),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(SafeError, match=f'settings of the policy: expected {message}'):
        EpisodeSteps(**{'feature_name': NAME, 'exec_horizon': 2, **settings})


def test_an_unknown_inference_time_is_nan(steps):
    steps.start()
    assert math.isnan(steps.step(np.zeros(4)).inference_time)
    assert math.isnan(steps.step(np.zeros(4), inference_time=math.nan).inference_time)
