# SPDX-License-Identifier: Apache-2.0
"""Taps of policies that ``torch.compile`` compiles: in time, too late, and around the method."""

import numpy as np
import pytest
import torch
from tap_support import FlowPolicy, flow_tap, infer

from vla_feature_bridge.taps import FeatureTap


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what other tests compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_policy(backend='eager'):
    """Return a policy that compiles its sampling, as LeRobot and openpi do."""
    torch.manual_seed(3)
    policy = FlowPolicy(num_inference_steps=3)
    policy.model.sample_actions = torch.compile(policy.model.sample_actions, backend=backend)
    return policy


def plain_features():
    torch.manual_seed(3)
    policy = FlowPolicy(num_inference_steps=3)
    tap = flow_tap(policy, pooling='raw')
    infer(policy)
    return tap.last.features


def replayed(policy, features):
    x = policy.noise()
    for state in torch.from_numpy(features):
        x = x - policy.model.action_out_proj(state[None]) / len(features)
    return x.detach().numpy()


@pytest.mark.parametrize('backend', ['eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_a_tap_before_the_first_inference_sees_every_call(backend):
    policy = compiled_policy(backend)
    tap = flow_tap(policy, pooling='raw')
    for _ in range(3):
        chunk = infer(policy)
        assert (tap.last.calls, tap.last.problem) == (3, '')
        assert tap.last.stamp > 0
    np.testing.assert_allclose(tap.last.features, plain_features(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(replayed(policy, tap.last.features), chunk, rtol=0, atol=1e-5)


def test_times_are_not_frozen_into_the_graph():
    policy = compiled_policy()
    tap = flow_tap(policy)
    stamps = []
    tap.on_inference(lambda inference: stamps.append(inference.stamp))
    for _ in range(3):
        infer(policy)
    assert len(set(stamps)) == 3


def test_a_tap_that_is_too_late_says_so_and_how_to_help():
    policy = compiled_policy()
    infer(policy)
    tap = flow_tap(policy)
    chunk = infer(policy)
    assert chunk.shape == (1, 8, 7)
    assert tap.last.features is None
    assert tap.problems == {'no_calls': 1}
    for part in ('model.sample_actions is compiled', 'before the first inference', '_dynamo.reset'):
        assert part in tap.last.problem
    torch._dynamo.reset()
    infer(policy)
    assert (tap.last.calls, tap.last.problem) == (3, ''), 'the advice helps'


def test_the_wrapped_method_may_be_compiled_afterwards():
    """lerobot-rollout compiles policy.predict_action_chunk after a tap is there."""
    torch.manual_seed(3)
    policy = FlowPolicy(num_inference_steps=3)
    tap = flow_tap(policy, pooling='raw')
    policy.predict_action_chunk = torch.compile(policy.predict_action_chunk, backend='eager')
    for _ in range(2):
        chunk = infer(policy)
        assert (tap.last.calls, tap.last.problem) == (3, '')
    np.testing.assert_array_equal(tap.last.actions, chunk.numpy())
    np.testing.assert_allclose(tap.last.features, plain_features(), rtol=0, atol=1e-5)
    tap.detach()
    assert tap.problems == {'replaced': 1}
    torch.testing.assert_close(infer(policy), chunk)


def test_a_compiled_method_may_be_wrapped():
    torch.manual_seed(3)
    policy = FlowPolicy(num_inference_steps=3)
    compiled = torch.compile(policy.predict_action_chunk, backend='eager')
    policy.predict_action_chunk = compiled
    tap = flow_tap(policy)
    infer(policy)
    assert (tap.last.calls, tap.last.problem) == (3, '')
    tap.detach()
    assert policy.predict_action_chunk is compiled
    late = flow_tap(policy)
    torch._dynamo.reset()
    infer(policy)
    assert late.last.calls == 3


def test_a_compiled_policy_is_tapped_inside_its_wrapper():
    torch.manual_seed(3)
    policy = torch.compile(FlowPolicy(num_inference_steps=3), backend='eager')
    tap = FeatureTap(
        policy, 'model.action_out_proj', calls=3, axes=['denoise', 'horizon'], ends='select_action'
    )
    policy.select_action(policy.observation())
    assert (tap.last.calls, tap.last.problem) == (3, '')


def test_a_compiled_submodule_in_front_of_the_head():
    """The diffusion policy of LeRobot compiles its U-Net, which holds the head."""
    torch.manual_seed(3)
    policy = FlowPolicy(num_inference_steps=3)
    policy.model = torch.compile(policy.model, backend='eager')
    with flow_tap(policy) as tap:
        infer(policy)
        assert (tap.last.calls, tap.last.problem) == (3, '')
    assert not tap.problems
