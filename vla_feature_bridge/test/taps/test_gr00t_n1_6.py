# SPDX-License-Identifier: Apache-2.0
"""The preset of Isaac GR00T N1.6, and the arrays of its server, on its own classes.

They need an environment with Isaac GR00T: see the table of environments in ``test/README.md``.
"""

import numpy as np
import pytest

pytest.importorskip(
    'gr00t',
    reason='NOT CHECKED HERE: the preset of Isaac GR00T N1.6; a checkout of Isaac GR00T is not on '
    'the path, see test/README.md',
)

import tiny_gr00t as tiny
import torch
from tap_support import inputs_by_hand

from vla_feature_bridge import FeatureSpec
from vla_feature_bridge.relays.bounded_msgpack import unpack
from vla_feature_bridge.taps import FeatureTap, check, find_preset

POOLING = (('horizon', 'mean'), ('denoise', 'mean'))


def tap_of(policy, **changes):
    return FeatureTap(policy, 'groot_n1_6', exec_horizon=8, **changes)


def test_features_and_actions_are_those_of_the_policy():
    policy = tiny.policy()
    raw, pooled = tap_of(policy, pooling='raw'), tap_of(policy)
    with inputs_by_hand(policy.model.action_head.action_decoder) as found:
        actions, _ = policy.get_action(tiny.observation())
    states = torch.cat(found)
    assert states.shape == (tiny.STEPS, 1 + tiny.HEAD_HORIZON, tiny.HIDDEN), 'the state comes first'
    assert (raw.last.problem, raw.last.calls, raw.last.dtype) == ('', tiny.STEPS, 'bfloat16')
    expected = states[:, 1:].float().numpy()
    np.testing.assert_array_equal(raw.last.features, expected)
    spec = FeatureSpec('', 0, ('denoise', 'horizon'), POOLING)
    np.testing.assert_array_equal(pooled.last.features, spec.apply(expected))
    joined = np.concatenate(list(actions.values()), axis=-1)
    assert joined.shape == (1, tiny.HORIZON, 7)
    np.testing.assert_array_equal(raw.last.actions, joined)
    assert raw.last.instruction == 'fold the towel'


def test_actions_do_not_change():
    policy = tiny.policy()

    def run():
        torch.manual_seed(5)
        return policy.get_action(tiny.observation())[0]

    before = run()
    with tap_of(policy) as tap:
        after = run()
        assert tap.last.problem == ''
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)
    assert 'get_action' not in vars(policy)


def test_the_preset_is_found_by_the_class_and_fits():
    policy = tiny.policy()
    assert find_preset(policy).name == 'groot_n1_6'
    report = check(policy, 'auto', lambda policy: policy.get_action(tiny.observation()))
    assert report.passed, str(report)


def test_a_batch_of_two_is_refused():
    policy = tiny.policy()
    tap = tap_of(policy)
    one = tiny.observation()
    two = {
        name: {
            key: [*value] * 2 if name == 'language' else np.concatenate([value, value])
            for key, value in one[name].items()
        }
        for name in one
    }
    policy.get_action(two)
    assert tap.last.features is None
    assert 'batch' in tap.problems


def test_the_arrays_of_its_server_are_read():
    from gr00t.policy.server_client import MsgSerializer

    policy = tiny.policy()
    request = {'endpoint': 'get_action', 'data': {'observation': tiny.observation()}}
    actions, info = policy.get_action(tiny.observation())
    assert_same(unpack(MsgSerializer.to_bytes(request)), request)
    assert_same(unpack(MsgSerializer.to_bytes((actions, info))), [actions, info])


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected
