# SPDX-License-Identifier: Apache-2.0
"""A tap changes nothing of a policy, and leaves nothing behind."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from tap_support import FLOW, FlowPolicy, flow_tap, infer
from torch import nn

from vla_feature_bridge.taps import FeatureTap, TapError


def traces(policy):
    """Return everything that a tap could leave in a policy."""
    return {
        name: (
            dict(vars(module)),
            dict(module._forward_pre_hooks),
            dict(module._forward_pre_hooks_with_kwargs),
            dict(module._forward_hooks),
            dict(module._forward_hooks_with_kwargs),
        )
        for name, module in policy.named_modules()
    }


def test_actions_are_the_same_with_and_without_a_tap():
    policy = FlowPolicy()
    without = infer(policy)
    with flow_tap(policy):
        within = infer(policy)
    assert torch.equal(without, within)
    assert torch.equal(without, infer(policy))


@pytest.mark.parametrize(
    'fields',
    [
        {},
        {'episodes': 'reset', 'sink': 'unix:/tmp/nobody_listens_here.sock'},
        {'token_logits': True},
    ],
)
def test_detach_leaves_the_policy_as_it_was(fields):
    policy = FlowPolicy()
    before = traces(policy)
    tap = flow_tap(policy, **fields)
    assert traces(policy) != before
    infer(policy)
    tap.detach()
    assert traces(policy) == before
    tap.detach()
    assert 'predict_action_chunk' not in vars(policy)


def test_an_attribute_of_the_instance_comes_back():
    policy = FlowPolicy()
    own = policy.predict_action_chunk
    policy.predict_action_chunk = own
    with flow_tap(policy):
        assert policy.predict_action_chunk is not own
    assert vars(policy)['predict_action_chunk'] is own


@pytest.mark.parametrize(
    'fields',
    [
        {'ends': 'predict_chunk'},
        {'episodes': 'reset', 'reset': 'restart', 'sink': 'unix:/tmp/nobody_listens_here.sock'},
        {'episodes': 'reset', 'reset': '', 'sink': 'unix:/tmp/nobody_listens_here.sock'},
        {'token_ids': ['model.tokens'], 'calls': 'tokens'},
        {'keep': '[:, -action_horizon:]', 'action_horizon': 'config.missing'},
        {'token_logits': True, 'vocabulary': 'fast'},
        {'sink': 'nowhere'},
    ],
)
def test_a_tap_that_does_not_fit_leaves_the_policy_as_it_was(fields):
    policy = FlowPolicy()
    before = traces(policy)
    with pytest.raises(ValueError):
        flow_tap(policy, **fields)
    assert traces(policy) == before


def test_an_object_that_allows_no_attributes_is_refused():
    class Closed:
        __slots__ = ('head',)

        def infer(self):
            return None

    policy = Closed()
    policy.head = nn.Linear(2, 2)
    with pytest.raises(TapError, match='an attribute that can be set'):
        FeatureTap(policy, 'head', ends='infer')
    assert not policy.head._forward_pre_hooks


def test_a_copy_of_a_tapped_policy_is_not_tapped():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    chunk, seen = infer(policy), tap.last
    for copied in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(infer(copied), chunk)
        assert tap.last is seen
        assert copied.predict_action_chunk.__self__ is copied
    assert not tap.problems
    infer(policy)
    assert tap.last is not seen


def test_a_copy_keeps_an_attribute_of_the_instance():
    policy = FlowPolicy()
    policy.predict_action_chunk = Doubled(policy)
    with flow_tap(policy) as tap:
        copied = copy.deepcopy(policy)
        assert type(copied.predict_action_chunk) is Doubled
        infer(copied)
        assert tap.last is None


class Doubled:
    """A method that somebody replaced."""

    def __init__(self, policy):
        self.policy = policy

    def __call__(self, *args, **kwargs):
        return 2 * FlowPolicy.predict_action_chunk(self.policy, *args, **kwargs)


def test_the_state_dict_does_not_change():
    policy = FlowPolicy()
    before = list(policy.state_dict())
    flow_tap(policy)
    assert list(policy.state_dict()) == before


def test_a_wrapped_method_looks_like_the_method():
    policy = FlowPolicy()
    signature = inspect.signature(policy.predict_action_chunk)
    flow_tap(policy)
    assert inspect.signature(policy.predict_action_chunk) == signature
    assert policy.predict_action_chunk.__doc__ == FlowPolicy.predict_action_chunk.__doc__
    assert policy.predict_action_chunk.__name__ == 'predict_action_chunk'


def test_an_exception_of_the_policy_passes_and_the_next_inference_is_whole():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    infer(policy)
    seen = tap.last
    broken = policy.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        infer(policy)
    broken.remove()
    assert tap.last is seen
    assert tap.problems == {'raised': 1}
    infer(policy)
    assert tap.last.calls == 5
    np.testing.assert_array_equal(tap.last.features, seen.features)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_taps_may_be_removed_in_any_order(order):
    policy = FlowPolicy()
    before = traces(policy)
    taps = [flow_tap(policy) for _ in range(3)]
    left = set(range(3))
    for number in order:
        taps[number].detach()
        left.remove(number)
        for tap in taps:
            tap.last = None
        infer(policy)
        assert {n for n, tap in enumerate(taps) if tap.last} == left
    assert traces(policy) == before
    assert not any(tap.problems for tap in taps)


def test_an_attribute_that_somebody_else_replaced_is_left(caplog):
    policy = FlowPolicy()
    tap = flow_tap(policy)
    tapped = policy.predict_action_chunk
    policy.predict_action_chunk = lambda *args: 2 * tapped(*args)
    tap.detach()
    assert tap.problems == {'replaced': 1}
    assert 'predict_action_chunk was replaced after the tap was attached' in caplog.text
    doubled = infer(policy)
    del policy.predict_action_chunk
    assert torch.equal(doubled, 2 * infer(policy))
    assert tap.last is None


def test_inferences_inside_a_detached_method_are_not_noted(caplog):
    policy = FlowPolicy()
    tap = flow_tap(policy)
    tapped = policy.predict_action_chunk
    tap.detach()
    assert torch.equal(tapped(policy.observation(), policy.noise()), infer(policy))
    assert tap.last is None


def test_the_policy_is_tapped_behind_its_wrapper():
    class PeftModel(nn.Module):
        """The part of PEFT's class by which a tap knows it."""

        def __init__(self, policy):
            super().__init__()
            self.base_model = nn.Module()
            self.base_model.model = policy

        def get_base_model(self):
            return self.base_model.model

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.base_model.model, name)

    wrapped = PeftModel(FlowPolicy())
    for preset in (FLOW, FLOW.with_changes(module='base_model.model.model.action_out_proj')):
        with FeatureTap(wrapped, preset) as tap:
            infer(wrapped)
            assert tap.last.shape == (5, 8, 16)
            assert tap.exec_horizon == 4
