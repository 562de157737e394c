# SPDX-License-Identifier: Apache-2.0
"""What does not fit is said once, is counted, gives no features, and never stops the policy."""

import logging

import numpy as np
import pytest
import torch
from tap_support import FLOW, FlowPolicy, flow_tap, infer
from torch import nn

from vla_feature_bridge.taps import FeatureTap, TapError
from vla_feature_bridge.taps.preset import Preset


def test_another_number_of_calls(caplog):
    policy = FlowPolicy()
    tap = flow_tap(policy)
    infer(policy)
    assert tap.last.problem == ''
    policy.config.num_inference_steps = 3
    infer(policy)
    assert tap.last.problem == '', 'the expected number is read at each inference'
    tap.detach()
    tap = flow_tap(policy, calls=10)
    for _ in range(3):
        infer(policy)
    assert tap.last.features is None
    assert (tap.last.calls, tap.last.expected_calls) == (3, 10)
    assert 'expected 10 calls in one inference, found 3' in tap.last.problem
    assert tap.problems == {'wrong_calls': 3}
    assert len([r for r in caplog.records if 'expected 10 calls' in r.message]) == 1
    assert tap.last.actions is not None


def test_a_number_of_calls_that_nobody_knows():
    policy = FlowPolicy()
    tap = flow_tap(policy, calls='config.steps')
    infer(policy)
    assert tap.last.expected_calls is None
    assert 'a number of calls at config.steps, found none; set `calls`' in tap.last.problem


def test_no_calls():
    policy = FlowPolicy()
    policy.model.action_out_proj = Forward(policy.model.action_out_proj)
    tap = flow_tap(policy, module='model.action_out_proj.inner')
    infer(policy)
    assert tap.last.features is None
    assert tap.problems['no_calls'] == 1
    assert 'its forward()' in tap.last.problem


class Forward(nn.Module):
    """Calls ``forward`` of a module directly, which skips hooks."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner.forward(x)


def test_a_batch_is_refused_and_not_guessed():
    policy = FlowPolicy()
    tap = flow_tap(policy)
    chunk = policy.predict_action_chunk(policy.observation(batch=2))
    assert chunk.shape == (2, 8, 7)
    assert tap.last.features is None
    assert tap.last.actions is None
    assert 'expected a batch of 1, found 2' in tap.last.problem
    assert tap.problems == {'batch': 1, 'actions': 1}
    infer(policy)
    assert tap.last.problem == ''


class Feeds(nn.Module):
    """Feeds its head with what a test gives."""

    def __init__(self):
        super().__init__()
        self.head = nn.Identity()

    def infer(self, *values, **named):
        for value in values:
            self.head(value)
        if named:
            self.head.forward = lambda **named: None
            self.head(**named)


@pytest.mark.parametrize(
    ('values', 'kind', 'text'),
    [
        ([torch.ones(1, 4)], 'shape', r'expected 3 axes .*, found shape (1, 4)'),
        ([torch.ones(1, 2, 3, 4)], 'shape', 'found shape (1, 2, 3, 4)'),
        ([torch.ones(1, 0, 4)], 'shape', 'found shape (1, 0, 4)'),
        (['text'], 'shape', 'expected a tensor, found str'),
        ([torch.ones(3, 2, 4)], 'batch', 'expected a batch of 1, found 3'),
        ([torch.ones(1, 2, 4, dtype=torch.int64)], 'dtype', 'found torch.int64'),
        ([torch.ones(1, 2, 4, dtype=torch.complex64)], 'dtype', 'found torch.complex64'),
        ([torch.ones(1, 2, 4).to(torch.float8_e4m3fn)], 'dtype', 'found torch.float8_e4m3fn'),
    ],
)
def test_an_input_that_is_no_hidden_state(values, kind, text):
    policy = Feeds()
    tap = FeatureTap(policy, 'head', axes=['horizon'], ends='infer')
    policy.infer(*values)
    assert tap.last.features is None
    assert tap.problems == {kind: 1}
    for part in text.split('.*'):
        assert part in tap.last.problem
    policy.infer(torch.ones(1, 2, 4))
    assert tap.last.features.shape == (2, 4)


@pytest.mark.parametrize(
    ('settings', 'shape', 'advice'),
    [
        ({'axes': ['horizon']}, (1, 4), 'found shape (1, 4); set axes=[], and pooling for these'),
        ({}, (1, 2, 4), "found shape (1, 2, 4); set axes=['axis_0'], and pooling"),
        ({'axes': ['calls', 'horizon'], 'calls': 3}, (1, 4), "set axes=['calls'], and pooling"),
        ({'keep': '[:, -1]'}, (1, 4), "or keep='all' instead of keep='[:, -1]'"),
        ({}, (4,), 'tap another submodule'),
    ],
)
def test_axes_that_do_not_fit_get_their_advice_without_a_preset(settings, shape, advice):
    policy = Feeds()
    tap = FeatureTap(policy, 'head', ends='infer', **settings)
    policy.infer(torch.ones(shape))
    assert advice in tap.last.problem
    assert 'another version' not in tap.last.problem
    named = FeatureTap(policy, Preset(name='theirs', module='head', ends='infer'))
    policy.infer(torch.ones(1, 2, 4))
    assert 'the preset is for another version of the policy' in named.last.problem


@pytest.mark.parametrize(
    'second', [torch.ones(1, 3, 4), torch.ones(1, 2, 5), torch.ones(1, 2, 4, dtype=torch.bfloat16)]
)
def test_inputs_that_differ_in_one_inference(second):
    policy = Feeds()
    tap = FeatureTap(policy, 'head', calls=2, axes=['call', 'horizon'], ends='infer')
    policy.infer(torch.ones(1, 2, 4), second)
    assert tap.last.features is None
    assert 'expected inputs of one shape, dtype and device' in tap.last.problem
    policy.infer(second, second)
    assert tap.last.problem == '' or 'width' in tap.last.problem


def test_another_width_than_before():
    policy = Feeds()
    tap = FeatureTap(policy, 'head', axes=['horizon'], pooling=['horizon=mean'], ends='infer')
    policy.infer(torch.ones(1, 2, 4))
    policy.infer(torch.ones(1, 2, 5))
    assert tap.last.features is None
    assert 'expected a width of 4 as before, found 5' in tap.last.problem


def test_too_few_positions():
    policy = Feeds()
    tap = FeatureTap(
        policy,
        'head',
        keep='[:, -action_horizon:]',
        action_horizon=6,
        axes=['horizon'],
        ends='infer',
    )
    policy.infer(torch.ones(1, 5, 2))
    assert 'at least 6 positions (action_horizon), found shape (1, 5, 2)' in tap.last.problem


def test_a_missing_argument():
    policy = Feeds()
    tap = FeatureTap(policy, 'head', axes=['horizon'], ends='infer')
    policy.infer(states=torch.ones(1, 2, 4))
    assert "expected argument 0, found 0 positions and the keywords ['states']" in tap.last.problem
    assert tap.last.features is None


def test_an_inference_without_an_end():
    policy = FlowPolicy()
    tap = FeatureTap(policy, FLOW, ends='calls', actions=[], calls=4)
    infer(policy)
    assert tap.last.calls == 4
    assert tap.unfinished == 1
    tap.end()
    assert tap.unfinished == 0
    assert tap.problems['unfinished'] == 1


def test_a_method_that_never_ends_is_not_collected(monkeypatch):
    monkeypatch.setattr('vla_feature_bridge.taps.capture.MAX_CALLS', 10)
    policy = FlowPolicy(num_inference_steps=12)
    tap = flow_tap(policy)
    infer(policy)
    assert 'more than 10 calls' in tap.last.problem
    assert tap.last.features is None
    assert tap.last.calls == 12


def test_a_callback_that_fails_does_not_stop_the_policy(caplog):
    policy = FlowPolicy()
    tap = flow_tap(policy)

    @tap.on_inference
    def fails(inference):
        raise RuntimeError('my callback')

    seen = []
    tap.on_inference(seen.append)
    for _ in range(2):
        infer(policy)
    assert tap.problems == {'callback': 2}
    assert len(seen) == 2
    assert sum('my callback' in record.message for record in caplog.records) == 1


def test_a_defect_of_the_tap_does_not_stop_the_policy(monkeypatch):
    policy = FlowPolicy()
    tap = flow_tap(policy)

    def broken(*args):
        raise RuntimeError('a defect')

    monkeypatch.setattr('vla_feature_bridge.taps.reader.actions_of', broken)
    chunk = infer(policy)
    assert chunk.shape == (1, 8, 7)
    assert 'the tap failed: RuntimeError: a defect' in tap.last.problem
    assert tap.last.features is None
    monkeypatch.setattr('vla_feature_bridge.taps.recorder.keep_state', broken)
    infer(policy)
    assert tap.problems['internal'] == 2 + 5


def test_a_clock_that_fails_does_not_stop_the_policy():
    policy = FlowPolicy()
    tap = flow_tap(policy, clock=lambda: 1 // 0)
    assert infer(policy).shape == (1, 8, 7)
    assert tap.last is None
    assert tap.problems == {'internal': 1}


def test_a_closed_tap_says_so(caplog):
    policy = FlowPolicy()
    tap = flow_tap(policy)
    tap.detach()
    assert tap.start(task='pour') == ''
    tap.end(success=True)
    assert tap.problems == {'closed': 2}
    assert 'start() of a tap that was detached' in caplog.text


def test_episodes_without_a_sink_are_said(caplog):
    tap = flow_tap(FlowPolicy())
    assert tap.start() == ''
    tap.end()
    assert tap.problems == {'no_sink': 2}


# -- what is refused at once


@pytest.mark.parametrize(
    ('preset', 'parts'),
    [
        ('model.action_out_pro', ['nearest: model.action_out_proj']),
        ('action_out_proj', ['nearest: model.action_out_proj']),
        ('lerobot_pi00', ['presets: lerobot_pi0,']),
        ('model.config', ['a submodule', 'presets:']),
        ('', ['none of them']),
        ('auto', ['FlowPolicy', 'a class that a preset names']),
        ('missing.yaml', ['missing.yaml: expected a readable file']),
    ],
)
def test_an_unknown_preset_or_submodule_names_the_nearest(preset, parts):
    with pytest.raises(TapError) as caught:
        FeatureTap(FlowPolicy(), preset)
    for part in parts:
        assert part in str(caught.value)


def test_a_preset_of_another_policy_says_what_is_missing():
    with pytest.raises(TapError, match=r'FlowPolicy\.model\.action_head: expected a submodule'):
        FeatureTap(FlowPolicy(), 'lerobot_act')
    with pytest.raises(TapError, match='an object of class SimpleNamespace'):
        flow_tap(FlowPolicy(), module='config')


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(TapError, match='expected a method, found nothing; nearest: select_action'):
        flow_tap(FlowPolicy(), ends='select_actions')
    with pytest.raises(TapError, match='expected a method, found an object of class'):
        flow_tap(FlowPolicy(), ends='config')


def test_a_policy_without_submodules():
    class Plain:
        def infer(self):
            return None

    with pytest.raises(TapError, match='the policy has no submodules'):
        FeatureTap(Plain(), 'head', ends='infer')


def test_options_that_do_not_exist():
    with pytest.raises(TapError, match=r"found 'callz'; nearest: calls"):
        flow_tap(FlowPolicy(), callz=5)
    with pytest.raises(TapError, match="episodes: expected 'caller' or 'reset', found 'auto'"):
        flow_tap(FlowPolicy(), episodes='auto')
    with pytest.raises(TapError, match='names each of the axes'):
        flow_tap(FlowPolicy(), pooling=['horizon=mean'])
    with pytest.raises(TapError, match="found 'median'"):
        flow_tap(FlowPolicy(), pooling=['horizon=median', 'denoise=mean'])


def test_the_log_names_the_preset(caplog):
    policy = FlowPolicy()
    with caplog.at_level(logging.WARNING, 'vla_feature_bridge.taps'):
        flow_tap(policy, calls=9)
        infer(policy)
    assert caplog.records[0].message.startswith('tap flow: model.action_out_proj: expected 9')


def test_a_problem_of_the_logits_keeps_the_features():
    policy = Feeds()
    tap = FeatureTap(
        policy, 'head', axes=['token'], calls=2, keep='[:, -1]', ends='infer', token_logits=True
    )
    policy.infer(torch.ones(1, 3, 4), torch.full((1, 3, 4), np.nan))
    assert tap.last.features.shape == (2, 4)
    assert tap.last.token_probability is None
    assert tap.problems == {'tokens': 1}
    assert 'expected logits that are finite or -inf' in tap.last.problem
