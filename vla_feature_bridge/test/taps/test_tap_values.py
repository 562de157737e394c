# SPDX-License-Identifier: Apache-2.0
"""A tap gives exactly the values that the submodule received, in their order."""

import numpy as np
import pytest
import torch
from tap_support import FLOW, FlowPolicy, flow_tap, infer, recorded
from torch import nn

from vla_feature_bridge import FeatureSpec
from vla_feature_bridge.taps import FeatureTap, Preset

SPEC = FeatureSpec(
    'pre_velocity', 0, ('denoise', 'horizon'), (('horizon', 'mean'), ('denoise', 'mean'))
)


def test_raw_features_are_the_inputs_bit_for_bit():
    policy = FlowPolicy()
    tap = flow_tap(policy, pooling='raw')
    chunk, states = recorded(policy, lambda: infer(policy))
    assert tap.last.features.shape == (5, 8, 16)
    assert tap.last.features.dtype == np.float32
    np.testing.assert_array_equal(tap.last.features, states.numpy())
    np.testing.assert_array_equal(tap.last.actions, chunk.numpy())
    assert tap.last.feature_name == 'pre_velocity'
    assert (tap.last.calls, tap.last.expected_calls, tap.last.problem) == (5, 5, '')


def test_raw_features_in_their_order_lead_to_the_actions():
    policy = FlowPolicy()
    tap = flow_tap(policy, pooling='raw')
    infer(policy)
    x = policy.noise()
    for state in torch.from_numpy(tap.last.features):
        x = x - policy.model.action_out_proj(state[None]) / 5
    np.testing.assert_allclose(tap.last.actions, x.detach().numpy(), rtol=0, atol=1e-6)


def test_pooled_features_are_those_of_the_one_definition():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    _, states = recorded(policy, lambda: infer(policy))
    np.testing.assert_array_equal(tap.last.features, SPEC.apply(states.numpy()))
    assert tap.last.feature_name == 'pre_velocity[horizon=mean,denoise=mean]'
    assert tap.last.shape == (5, 8, 16)


@pytest.mark.parametrize('mode', ['no_grad', 'inference_mode', 'grad', 'autocast'])
def test_every_mode_of_inference_gives_the_same_as_by_hand(mode):
    policy = FlowPolicy()
    modes = {
        'no_grad': torch.no_grad(),
        'inference_mode': torch.inference_mode(),
        'grad': torch.enable_grad(),
        'autocast': torch.autocast('cpu', torch.bfloat16),
    }

    def run():
        # Not the method of the class, which switches gradients off.
        with modes[mode]:
            return policy.model.sample_actions(
                policy.observation()['observation.state'].requires_grad_(mode == 'grad'),
                policy.noise(),
            )

    policy.predict_action_chunk = run
    tap = flow_tap(policy, pooling='raw')
    _, states = recorded(policy, lambda: policy.predict_action_chunk())
    assert states.dtype == (torch.bfloat16 if mode == 'autocast' else torch.float32)
    assert tap.last.dtype == str(states.dtype).removeprefix('torch.')
    np.testing.assert_array_equal(tap.last.features, states.float().numpy())
    assert not tap.problems


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_kept_and_bfloat16_is_exact(dtype):
    policy = FlowPolicy().to(dtype)
    raw, pooled = flow_tap(policy, pooling='raw'), flow_tap(policy)
    state, noise = policy.observation()['observation.state'], policy.noise()
    _, states = recorded(
        policy,
        lambda: policy.predict_action_chunk(
            {'observation.state': state.to(dtype)}, noise.to(dtype)
        ),
    )
    assert states.dtype == dtype
    expected = states.float() if dtype == torch.bfloat16 else states
    assert raw.last.features.dtype == expected.numpy().dtype
    np.testing.assert_array_equal(raw.last.features, expected.numpy())
    np.testing.assert_array_equal(pooled.last.features, SPEC.apply(expected.numpy()))
    assert raw.last.actions.dtype == expected.numpy().dtype


@pytest.mark.parametrize('pooling', ['raw', ['horizon=first', 'denoise=last']])
def test_features_stay_when_the_next_inference_comes(pooling):
    policy = FlowPolicy()
    tap = flow_tap(policy, pooling=pooling)
    seen = []
    tap.on_inference(seen.append)
    infer(policy, 0)
    kept = seen[0].features.copy()
    for seed in range(1, 4):
        infer(policy, seed)
    assert not np.array_equal(seen[1].features, kept)
    np.testing.assert_array_equal(seen[0].features, kept)


def test_modes_may_change_from_inference_to_inference():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    for number in range(4):
        with torch.inference_mode(number % 2 == 0):
            _, states = recorded(policy, lambda: infer(policy))
        np.testing.assert_array_equal(tap.last.features, SPEC.apply(states.numpy()))
    assert not tap.problems


def test_actions_stay_when_the_policy_changes_its_own():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    chunk = infer(policy)
    before = tap.last.actions.copy()
    chunk.zero_()
    np.testing.assert_array_equal(tap.last.actions, before)


def test_select_action_makes_an_inference_only_when_it_needs_actions():
    policy = FlowPolicy(n_action_steps=4)
    tap = flow_tap(policy)
    ticks = []
    tap.on_inference(lambda inference: ticks.append(tick))
    for tick in range(9):
        policy.select_action(policy.observation(tick))
    assert ticks == [0, 4, 8]
    assert tap.exec_horizon == 4


def test_the_instruction_is_that_of_each_inference():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    forms = (
        (['cut'], 'cut'),
        ('stir', 'stir'),
        (None, ''),
        (['a', 'b'], ''),
        (np.array('cut'), 'cut'),
        (np.array([['cut']]), 'cut'),
        ({'annotation.human.task': [['cut']]}, 'cut'),
        ({'one': ['cut'], 'two': ['stir']}, ''),
    )
    for words, expected in forms:
        policy.predict_action_chunk({**policy.observation(), 'task': words})
        assert (tap.last.instruction, tap.problems) == (expected, {})
    assert tap.inferences == len(forms)


@pytest.mark.parametrize(
    'words',
    [
        'cut the tea\n',
        'Task: cut the tea, State: 128 -1 7;\nAction: ',
        'Task: cut the tea, State: 128 255;\n',
    ],
)
def test_the_instruction_is_read_out_of_a_prompt(words):
    policy = FlowPolicy()
    tap = flow_tap(policy)
    policy.predict_action_chunk({**policy.observation(), 'task': [words]})
    assert tap.last.instruction == 'cut the tea'


@pytest.mark.parametrize(
    'words',
    ['Task: cut', 'go to Task: a, State: 1;', 'Task: a, State: Ohio;', 'Task: a, State: 1; then b'],
)
def test_other_words_stay_as_they_are(words):
    policy = FlowPolicy()
    tap = flow_tap(policy)
    policy.predict_action_chunk({**policy.observation(), 'task': [words]})
    assert tap.last.instruction == words


def test_time_and_thread_of_an_inference():
    policy = FlowPolicy()
    tap = flow_tap(policy, clock=lambda: 1234)
    infer(policy)
    assert tap.last.stamp == 1234
    assert tap.last.thread == 'MainThread'
    assert 0 < tap.last.inference_time < 60


# -- which part of the input


class Head(nn.Module):
    """Calls ``head`` with tensors that a test gives."""

    def __init__(self, by_name=False):
        super().__init__()
        self.head, self.by_name = nn.Identity(), by_name

    def infer(self, *tensors):
        for tensor in tensors:
            if self.by_name:
                self.head.forward = lambda states: states
                self.head(states=tensor)
            else:
                self.head(tensor)


def numbers(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


def test_the_last_position_is_kept():
    policy = Head()
    tap = FeatureTap(policy, 'head', calls=2, keep='[:, -1]', axes=['token'], ends='infer')
    policy.infer(numbers(1, 9, 4), numbers(1, 1, 4) + 100)
    expected = [[32, 33, 34, 35], [100, 101, 102, 103]]
    np.testing.assert_array_equal(tap.last.features, expected)


def test_the_last_positions_are_kept():
    policy = Head()
    policy.horizon = 3
    tap = FeatureTap(
        policy,
        'head',
        calls=2,
        keep='[:, -action_horizon:]',
        action_horizon='horizon',
        axes=['denoise', 'horizon'],
        ends='infer',
    )
    states = [numbers(1, 5, 2), numbers(1, 5, 2) * 2]
    policy.infer(*states)
    expected = np.stack([state[0, 2:].numpy() for state in states])
    np.testing.assert_array_equal(tap.last.features, expected)


def test_channels_in_front_are_moved_behind():
    policy = Head()
    tap = FeatureTap(
        policy,
        'head',
        calls=2,
        keep='channels_first',
        axes=['denoise', 'horizon'],
        pooling=['horizon=concat', 'denoise=last'],
        ends='infer',
    )
    states = [numbers(1, 4, 3), numbers(1, 4, 3) * 2]
    policy.infer(*states)
    np.testing.assert_array_equal(tap.last.features, states[1][0].T.ravel().numpy())
    assert tap.last.shape == (2, 3, 4)


def test_one_call_has_no_axis_of_calls():
    policy = Head()
    tap = FeatureTap(policy, 'head', axes=['horizon'], pooling=['horizon=last'], ends='infer')
    policy.infer(numbers(1, 3, 2))
    np.testing.assert_array_equal(tap.last.features, [4, 5])
    tap.detach()
    tap = FeatureTap(policy, 'head', ends='infer')
    policy.infer(numbers(1, 5))
    np.testing.assert_array_equal(tap.last.features, np.arange(5))
    assert tap.last.feature_name == 'head'


def test_not_contiguous_inputs_keep_their_values():
    policy = Head()
    tap = FeatureTap(policy, 'head', axes=['horizon'], ends='infer')
    state = numbers(4, 1, 6).transpose(0, 1)[:, :, ::2]
    policy.infer(state)
    np.testing.assert_array_equal(tap.last.features, state[0].numpy())


def test_an_argument_by_its_name():
    policy = Head(by_name=True)
    tap = FeatureTap(policy, 'head', argument='states', axes=['horizon'], ends='infer')
    policy.infer(numbers(1, 3, 2))
    np.testing.assert_array_equal(tap.last.features, numbers(3, 2).numpy())


def test_an_inference_can_end_with_its_last_call():
    policy = FlowPolicy()
    tap = FeatureTap(policy, FLOW, ends='calls', actions=[], pooling='raw')
    seen = []
    tap.on_inference(seen.append)
    for seed in range(3):
        _, states = recorded(policy, lambda seed=seed: infer(policy, seed))
        np.testing.assert_array_equal(tap.last.features, states.numpy())
    assert [inference.calls for inference in seen] == [5, 5, 5]
    assert seen[0].actions is None


def test_a_black_box_has_actions_and_no_features():
    policy = FlowPolicy()
    tap = FeatureTap(policy, 'black_box')
    chunk = infer(policy)
    assert tap.last.features is None
    assert tap.last.feature_name == 'none'
    np.testing.assert_array_equal(tap.last.actions, chunk.numpy())
    assert not tap.problems
    assert not policy.model.action_out_proj._forward_pre_hooks


# -- what a method returns


class Returns(nn.Module):
    """Returns what a test gives."""

    def infer(self, result):
        return result


@pytest.mark.parametrize(
    ('axes', 'where', 'result', 'expected'),
    [
        (['batch', 'horizon', 'action'], '', torch.ones(1, 3, 2), np.ones((1, 3, 2))),
        (['horizon', 'action'], '', np.ones((3, 2)), np.ones((1, 3, 2))),
        (['action'], '', np.arange(7.0), np.arange(7.0).reshape(1, 1, 7)),
        (['horizon', 'action'], 'actions', {'actions': np.ones((3, 2))}, np.ones((1, 3, 2))),
        (
            ['batch', 'horizon', 'action'],
            '0.*',
            ({'arm': np.zeros((1, 4, 6)), 'hand': np.ones((1, 4, 1))}, {}),
            np.concatenate([np.zeros((1, 4, 6)), np.ones((1, 4, 1))], axis=2),
        ),
    ],
)
def test_actions_are_found_in_what_the_method_returns(axes, where, result, expected):
    policy = Returns()
    tap = FeatureTap(policy, 'black_box', ends='infer', actions=axes, actions_from=where)
    assert policy.infer(result) is result
    np.testing.assert_array_equal(tap.last.actions, expected)


@pytest.mark.parametrize(
    ('result', 'found'),
    [
        (torch.ones(2, 3, 2), 'batch of 1'),
        (torch.ones(3, 2), r'shape \(3, 2\)'),
        (None, r'shape \(\) of object'),
        ({'actions': 1}, 'of object'),
        (np.zeros((1, 0, 2)), r'shape \(1, 0, 2\)'),
    ],
)
def test_other_results_are_a_problem(result, found):
    policy = Returns()
    tap = FeatureTap(policy, 'black_box', ends='infer')
    assert policy.infer(result) is result
    assert tap.last.actions is None
    assert tap.problems['actions'] == 1
    with pytest.raises(AssertionError, match=found):
        raise AssertionError(tap.last.problem)


def test_a_missing_entry_of_the_result_is_named():
    policy = Returns()
    tap = FeatureTap(policy, 'black_box', ends='infer', actions_from='actions')
    policy.infer({'action': 1, 'state': 2})
    assert "an entry 'actions'" in tap.last.problem
    assert 'action, state' in tap.last.problem


def test_a_preset_of_a_file_is_the_same_as_fields(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text(
        'name: mine\nmodule: model.action_out_proj\ncalls: config.num_inference_steps\n'
        'axes: [denoise, horizon]\nfeature: pre_velocity\n'
        'pooling: [horizon=mean, denoise=mean]\nends: predict_action_chunk\n'
    )
    policy = FlowPolicy()
    by_file, by_fields = FeatureTap(policy, file), flow_tap(policy)
    by_path = FeatureTap(
        policy, 'model.action_out_proj', calls=5, axes=['denoise', 'horizon'], ends='select_action'
    )
    assert isinstance(by_file.preset, Preset)
    policy.select_action(policy.observation())
    np.testing.assert_array_equal(by_file.last.features, by_fields.last.features)
    np.testing.assert_array_equal(SPEC.apply(by_path.last.features), by_fields.last.features)
    assert by_path.last.feature_name == 'model.action_out_proj'
