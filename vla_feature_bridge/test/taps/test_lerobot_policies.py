# SPDX-License-Identifier: Apache-2.0
"""Presets of LeRobot, on tiny policies of the real classes.

They need an environment with LeRobot, in Python 3.12 or newer::

    pip install 'lerobot[pi,smolvla,diffusion]==0.6.1' peft dm-tree pytest hypothesis
    HF_HUB_OFFLINE=1 python -m pytest vla_feature_bridge/test/taps/test_lerobot_policies.py
"""

import copy
import inspect
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tap_support import inputs_by_hand

from vla_feature_bridge import FeatureSpec
from vla_feature_bridge.taps import FeatureTap, check, find_preset
from vla_feature_bridge.taps.lerobot import infer_once
from vla_feature_bridge.wire import StepReceiver

pytest.importorskip(
    'lerobot',
    reason="NOT CHECKED HERE: the presets of LeRobot; pip install 'lerobot[pi,smolvla,diffusion]'",
)
tiny = pytest.importorskip('tiny_lerobot')

FLOW_POOLING = (('horizon', 'mean'), ('denoise', 'mean'))
MAKERS = {
    'lerobot_act': tiny.act,
    'lerobot_diffusion': tiny.diffusion,
    'lerobot_pi0': tiny.pi0,
    'lerobot_pi05': tiny.pi05,
    'lerobot_smolvla': tiny.smolvla,
    'lerobot_pi0_fast': tiny.pi0_fast,
}
HEADS = {
    'lerobot_act': lambda policy: policy.model.action_head,
    'lerobot_diffusion': lambda policy: policy.diffusion.unet.final_conv,
    'lerobot_pi0': lambda policy: policy.model.action_out_proj,
    'lerobot_pi05': lambda policy: policy.model.action_out_proj,
    'lerobot_smolvla': lambda policy: policy.model.action_out_proj,
    'lerobot_pi0_fast': lambda policy: policy.model.paligemma_with_expert.paligemma.lm_head,
}
#: Raw shape, axes, dtype, chunk, exec_horizon, feature with its default pooling.
EXPECTED = {
    'lerobot_act': ((12, 32), ('horizon',), (1, 12, 6), 5, 'pre_action[horizon=mean]'),
    'lerobot_diffusion': (
        (6, 16, 32),
        ('denoise', 'horizon'),
        (1, 4, 6),
        4,
        'pre_noise[horizon=mean,denoise=mean]',
    ),
    'lerobot_pi0': (
        (3, 8, 64),
        ('denoise', 'horizon'),
        (1, 8, 6),
        8,
        'pre_velocity[horizon=mean,denoise=mean]',
    ),
    'lerobot_pi05': (
        (3, 8, 64),
        ('denoise', 'horizon'),
        (1, 8, 6),
        8,
        'pre_velocity[horizon=mean,denoise=mean]',
    ),
    'lerobot_smolvla': (
        (4, 10, 48),
        ('denoise', 'horizon'),
        (1, 10, 6),
        10,
        'pre_velocity[horizon=mean,denoise=mean]',
    ),
    'lerobot_pi0_fast': ((5, 64), ('token',), (1, 8, 6), 8, 'pre_logits[token=mean]'),
}
WORDS = ('Action', ':', 'w300', 'w301', '|')
every_preset = pytest.mark.parametrize('name', MAKERS)
flow_presets = pytest.mark.parametrize('name', ['lerobot_pi0', 'lerobot_pi05', 'lerobot_smolvla'])


@pytest.fixture(scope='module')
def smolvlm(tmp_path_factory):
    return tiny.write_tiny_smolvlm(tmp_path_factory.mktemp('smolvlm'))


@pytest.fixture
def make(smolvlm):
    """Return a function that makes a tiny policy for a preset."""

    def made(name, **changes):
        maker = MAKERS[name]
        policy = maker(smolvlm, **changes) if maker is tiny.smolvla else maker(**changes)
        if name == 'lerobot_pi0_fast':
            policy.said = tiny.say(policy, WORDS)
        return policy

    return made


def by_hand(name, policy, run):
    """Return a function's result, and the raw features by the ``forward`` of the head."""
    part = (lambda x: x[:, -1]) if name == 'lerobot_pi0_fast' else (lambda x: x)
    with inputs_by_hand(HEADS[name](policy), part) as found:
        result = run()
    states = torch.stack(found)[:, 0].float().numpy()
    if name == 'lerobot_diffusion':
        states = states.transpose(0, 2, 1)
    return result, states[0] if name == 'lerobot_act' else states


@every_preset
@pytest.mark.parametrize('mode', ['no_grad', 'inference_mode'])
def test_features_and_actions_are_those_of_the_policy(make, name, mode):
    policy = make(name)
    shape, axes, chunk, exec_horizon, feature = EXPECTED[name]
    raw, pooled = FeatureTap(policy, name, pooling='raw'), FeatureTap(policy, name)
    with torch.inference_mode(mode == 'inference_mode'):
        action, states = by_hand(name, policy, lambda: policy.select_action(tiny.observation()))
    assert raw.last.problem == pooled.last.problem == ''
    assert raw.last.features.shape == states.shape == shape
    np.testing.assert_array_equal(raw.last.features, states)
    spec = FeatureSpec('', 0, axes, pooled.preset.pooling)
    np.testing.assert_array_equal(pooled.last.features, spec.apply(states))
    assert pooled.feature_name == feature
    assert raw.last.calls == (1 if name == 'lerobot_act' else shape[0])
    assert raw.last.actions.shape == chunk
    np.testing.assert_array_equal(raw.last.actions[:, 0], action.numpy())
    assert raw.last.instruction == 'fold the towel'
    assert pooled.sink_options()['exec_horizon'] == exec_horizon
    assert pooled.sink_options()['action_space'] == 'normalized'


@every_preset
def test_actions_do_not_change_and_nothing_stays(make, name):
    policy = make(name)

    def run():
        policy.reset()
        torch.manual_seed(5)
        return policy.select_action(tiny.observation())

    before = run()
    model = policy.diffusion if name == 'lerobot_diffusion' else policy.model
    attributes = set(vars(policy)), set(vars(model))
    with FeatureTap(policy, name) as tap:
        torch.testing.assert_close(run(), before, rtol=0, atol=0)
        assert tap.last.problem == ''
        copied = copy.deepcopy(policy)
    assert (set(vars(policy)), set(vars(model))) == attributes
    assert not HEADS[name](policy)._forward_pre_hooks
    torch.testing.assert_close(run(), before, rtol=0, atol=0)
    seen = tap.last
    copied.reset()
    copied.select_action(tiny.observation())
    assert tap.last is seen


@every_preset
def test_an_inference_is_made_only_when_actions_are_needed(make, name):
    policy = make(name)
    tap = FeatureTap(policy, name)
    ticks = []
    tap.on_inference(lambda inference: ticks.append(tick))
    horizon = tap.exec_horizon
    for tick in range(horizon + 1):
        policy.select_action(tiny.observation(seed=tick))
    assert ticks == [0, horizon]


@every_preset
def test_predict_action_chunk_is_an_inference_too(make, name):
    policy = make(name)
    batch = tiny.observation()
    if name == 'lerobot_diffusion':  # expects a history
        batch = {key: batch[key][:, None].repeat_interleave(2, 1) for key in list(batch)[:2]}
    with FeatureTap(policy, name) as tap:
        chunk = policy.predict_action_chunk(batch)
    np.testing.assert_array_equal(tap.last.actions, chunk.numpy())
    assert tap.last.features is not None


@every_preset
def test_a_batch_of_two_is_refused(make, name):
    policy = make(name)
    tap = FeatureTap(policy, name)
    policy.select_action(tiny.observation(batch=2))
    assert tap.last.features is None
    assert tap.problems['batch'] == 1


@every_preset
def test_the_preset_is_found_by_the_class_and_fits(make, name):
    policy = make(name)
    assert find_preset(policy).name == name
    report = check(policy, 'auto', infer_once)
    assert report.passed, str(report)
    assert str(EXPECTED[name][0]) in str(report)
    assert 'The preset' in str(report)


# -- orders and dtypes


@flow_presets
def test_the_order_is_that_of_denoising(make, name):
    policy = make(name)
    tap = FeatureTap(policy, name, pooling='raw')
    noise = torch.randn(1, *EXPECTED[name][2][1:2], 32, generator=torch.Generator().manual_seed(2))
    policy.predict_action_chunk(tiny.observation(), noise=noise)
    states = torch.from_numpy(tap.last.features)
    x = noise
    with torch.no_grad():
        for state in states:
            x = x - policy.model.action_out_proj(state[None]) / len(states)
    np.testing.assert_allclose(tap.last.actions, x[..., :6].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['lerobot_pi0', 'lerobot_pi05'])
def test_a_policy_in_bfloat16_has_float32_states(make, name):
    policy = make(name, dtype='bfloat16')
    tap = FeatureTap(policy, name, pooling='raw')
    _, states = by_hand(name, policy, lambda: policy.select_action(tiny.observation()))
    assert tap.last.dtype == 'float32'
    np.testing.assert_array_equal(tap.last.features, states)


@pytest.mark.parametrize('name', ['lerobot_act', 'lerobot_diffusion', 'lerobot_smolvla'])
def test_autocast(make, name):
    policy = make(name)
    tap = FeatureTap(policy, name, pooling='raw')
    with torch.autocast('cpu', torch.bfloat16):
        _, states = by_hand(name, policy, lambda: policy.select_action(tiny.observation()))
    assert tap.last.problem == ''
    np.testing.assert_array_equal(tap.last.features, states)
    assert (tap.last.dtype == 'bfloat16') == (name == 'lerobot_diffusion')


def test_the_number_of_denoising_steps_is_that_of_the_policy(make):
    for steps in (2, 7):
        policy = make('lerobot_pi0', num_inference_steps=steps)
        tap = FeatureTap(policy, 'lerobot_pi0')
        policy.select_action(tiny.observation())
        assert (tap.last.calls, tap.last.expected_calls) == (steps, steps)
    policy.predict_action_chunk(tiny.observation(), num_steps=4)
    assert 'expected 7 calls in one inference, found 4' in tap.last.problem
    policy = make('lerobot_diffusion', num_inference_steps=3, noise_scheduler_type='DDIM')
    tap = FeatureTap(policy, 'lerobot_diffusion')
    policy.select_action(tiny.observation())
    assert (tap.last.calls, tap.last.problem) == (3, '')


def test_a_temporal_ensemble_infers_at_every_tick(make):
    policy = make('lerobot_act', temporal_ensemble_coeff=0.01, n_action_steps=1)
    tap = FeatureTap(policy, 'lerobot_act')
    seen = []
    tap.on_inference(seen.append)
    for tick in range(3):
        policy.select_action(tiny.observation(seed=tick))
    assert len(seen) == 3
    assert tap.exec_horizon == 1


# -- pi0-FAST


@pytest.mark.parametrize(
    ('changes', 'calls'),
    [({}, 5), ({'use_kv_cache': False}, 9), ({'temperature': 0.1}, 9)],
    ids=['cache', 'no cache', 'sampled'],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_pi0_fast_is_cut_at_the_end_of_the_action(make, changes, calls, dtype):
    policy = make('lerobot_pi0_fast', dtype=dtype, **changes)
    head = HEADS['lerobot_pi0_fast'](policy)
    logits = []
    head.register_forward_hook(lambda m, a, output: logits.append(output[0, -1].detach().clone()))
    tap = FeatureTap(policy, 'lerobot_pi0_fast', pooling='raw')
    _, states = by_hand(
        'lerobot_pi0_fast', policy, lambda: policy.predict_action_chunk(tiny.observation())
    )
    assert tap.last.problem == ''
    assert tap.last.calls == tap.last.expected_calls == calls
    assert tap.last.dtype == dtype
    np.testing.assert_array_equal(tap.last.features, states[:5])
    kept = slice(tiny.VOCABULARY - tiny.SKIPPED - tiny.FAST, tiny.VOCABULARY - tiny.SKIPPED)
    assert policy._paligemma_tokens_to_act_tokens(torch.tensor(kept.stop - 1)) == 0
    assert policy._paligemma_tokens_to_act_tokens(torch.tensor(kept.start)) == tiny.FAST - 1
    for row, probability, entropy in zip(
        logits, tap.last.token_probability, tap.last.token_entropy, strict=False
    ):
        values = [math.exp(float(v)) for v in row[kept].float() - row[kept].float().max()]
        shares = [value / sum(values) for value in values]
        assert probability == pytest.approx(max(shares), rel=1e-5)
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-5)
    assert len(tap.last.token_entropy) == 5


def test_pi0_fast_without_an_end_uses_all_tokens(make, smolvlm):
    policy = tiny.pi0_fast()
    tiny.say(policy, ('Action', ':', 'w300'))
    tap = FeatureTap(policy, 'lerobot_pi0_fast', pooling='raw')
    policy.config.validate_action_token_prefix = False
    policy.predict_action_chunk(tiny.observation())
    assert tap.last.features.shape == (9, 64)
    assert tap.last.problem == ''


# -- real-time chunking


@flow_presets
def test_real_time_chunking(make, name):
    from lerobot.configs.types import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    config = RTCConfig(
        enabled=True,
        execution_horizon=4,
        prefix_attention_schedule=RTCAttentionSchedule.EXP,
    )
    policy = make(name, rtc_config=config)
    tap = FeatureTap(policy, name, pooling='raw')
    first = policy.predict_action_chunk(tiny.observation())
    wants_gradients = []
    HEADS[name](policy).register_forward_pre_hook(
        lambda module, args: wants_gradients.append(args[0].requires_grad)
    )
    _, states = by_hand(
        name,
        policy,
        lambda: policy.predict_action_chunk(
            tiny.observation(seed=1),
            inference_delay=1,
            prev_chunk_left_over=first[0, 4:],
            execution_horizon=4,
        ),
    )
    assert any(wants_gradients)
    assert tap.last.problem == ''
    np.testing.assert_array_equal(tap.last.features, states)
    # The engine of LeRobot asks for the signature before it starts.
    inspect.signature(policy.predict_action_chunk).bind(
        {}, inference_delay=1, prev_chunk_left_over=None
    )
    report = check(policy, name, infer_once)
    assert report.passed, str(report)


# -- wrappers


def test_a_policy_with_an_adapter_of_peft(make):
    peft = pytest.importorskip('peft')
    policy = make('lerobot_pi0')
    config = peft.LoraConfig(
        r=2, target_modules=policy._get_default_peft_targets()['target_modules']
    )
    early = FeatureTap(policy, 'lerobot_pi0', pooling='raw')
    wrapped = peft.get_peft_model(policy, config)
    late = FeatureTap(wrapped, 'auto', pooling='raw')
    assert type(policy.model.action_out_proj).__module__.startswith('peft.')
    wrapped.select_action(tiny.observation())
    assert early.last.problem == late.last.problem == ''
    assert early.last.features.shape == (3, 8, 64)
    np.testing.assert_array_equal(early.last.features, late.last.features)
    late.detach()
    assert 'predict_action_chunk' in vars(policy)
    early.detach()
    assert 'predict_action_chunk' not in vars(policy)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['lerobot_pi0', 'lerobot_smolvla', 'lerobot_diffusion'])
def test_a_compiled_policy(make, name):
    torch._dynamo.reset()
    plain = make(name)
    torch.manual_seed(5)
    expected = FeatureTap(plain, name, pooling='raw')
    plain.select_action(tiny.observation())
    policy = make(name, compile_model=True, compile_mode='default')
    tap = FeatureTap(policy, name, pooling='raw')
    for _ in range(2):
        policy.reset()
        torch.manual_seed(5)
        policy.select_action(tiny.observation())
        assert tap.last.problem == ''
        np.testing.assert_allclose(tap.last.features, expected.last.features, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_tap_after_the_first_compiled_inference_says_so(make):
    torch._dynamo.reset()
    policy = make('lerobot_pi0', compile_model=True, compile_mode='default')
    policy.select_action(tiny.observation())
    tap = FeatureTap(policy, 'lerobot_pi0')
    policy.reset()
    policy.select_action(tiny.observation())
    assert tap.last.features is None
    assert 'model.sample_actions' in tap.last.problem
    assert 'before the first inference' in tap.last.problem


# -- GR00T N1.7


@pytest.fixture
def groot():
    pytest.importorskip('tree', reason='GR00T of LeRobot needs dm-tree: pip install dm-tree')
    return tiny.groot


@pytest.mark.parametrize('use_bf16', [False, True])
def test_groot_gives_the_positions_of_actions(groot, use_bf16):
    policy = groot(use_bf16=use_bf16)
    raw = FeatureTap(policy, 'lerobot_groot', pooling='raw')
    pooled = FeatureTap(policy, 'auto')
    decoder = policy._groot_model.action_head.action_decoder
    with inputs_by_hand(decoder) as found:
        action = policy.select_action(tiny.groot_observation())
    states = torch.cat(found)
    assert states.shape == (4, 1 + 10, 24), 'the state comes first'
    assert raw.last.problem == ''
    assert raw.last.dtype == ('bfloat16' if use_bf16 else 'float32')
    expected = states[:, 1:].float().numpy()
    np.testing.assert_array_equal(raw.last.features, expected)
    spec = FeatureSpec('', 0, ('denoise', 'horizon'), FLOW_POOLING)
    np.testing.assert_array_equal(pooled.last.features, spec.apply(expected))
    np.testing.assert_array_equal(raw.last.actions[:, 0], action.float().numpy())
    assert raw.last.instruction == 'fold the towel'
    assert raw.exec_horizon == 6


def test_groot_in_order_leads_to_the_actions(groot):
    policy = groot()
    tap = FeatureTap(policy, 'lerobot_groot', pooling='raw')
    torch.manual_seed(4)
    policy.predict_action_chunk(tiny.groot_observation())
    torch.manual_seed(4)
    x = torch.randn(1, 10, 6)
    decoder = policy._groot_model.action_head.action_decoder
    with torch.no_grad():
        for state in torch.from_numpy(tap.last.features):
            x = x + decoder(state[None], torch.tensor([1])) / 4
    np.testing.assert_allclose(tap.last.actions, x[:, :6].numpy(), rtol=0, atol=1e-5)


# -- the pages of the documentation

HOW_TO = Path(__file__).parents[3] / 'docs' / 'how-to'


@pytest.mark.parametrize(
    ('page', 'number', 'name'),
    [
        ('tap_lerobot_pi0.md', 0, 'lerobot_pi0'),
        *(('tap_lerobot_pi0.md', 1, name) for name in MAKERS),
        ('tap_lerobot_smolvla.md', 0, 'lerobot_smolvla'),
        ('tap_groot.md', 0, 'lerobot_groot'),
    ],
)
def test_the_code_of_a_page_runs_on_the_policy(
    make, groot, page, number, name, tmp_path, monkeypatch
):
    if not HOW_TO.is_dir():
        pytest.skip('needs the folder docs of a checkout')
    found = re.findall(r'^```python\n(.*?)^```$', (HOW_TO / page).read_text(), re.DOTALL | re.M)
    address, received = f'unix:{tmp_path}/bridge.sock', []
    monkeypatch.setenv('SAFE_BRIDGE', address)
    is_groot = name == 'lerobot_groot'
    names = {
        'policy': groot() if is_groot else make(name),
        'observation': tiny.groot_observation() if is_groot else tiny.observation(),
    }
    with StepReceiver([address], lambda source, message: received.append(message)) as bridge:
        bridge.set_status(True)
        exec(found[0].splitlines()[0], names)
        exec(found[number], names)
        deadline = time.monotonic() + 30
        while len(received) < 3:
            assert time.monotonic() < deadline, (received, names['tap'].problems)
            time.sleep(0.01)
    start, step, end = received
    assert (start.kind, step.step, end.kind) == ('start', 0, 'end')
    assert step.feature_name == names['tap'].feature_name
    assert step.instruction == 'fold the towel'
    assert not names['tap'].problems
    names['tap'].detach()


def test_the_command_of_a_page_checks_the_policy(smolvlm, tmp_path):
    (tmp_path / 'my_robot.py').write_text(
        f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n'
        'import tiny_lerobot\n\ndef load_policy():\n'
        f'    return tiny_lerobot.smolvla({str(smolvlm)!r})\n'
    )
    command = [sys.executable, '-m', 'vla_feature_bridge.taps', 'check', 'lerobot_smolvla']
    done = subprocess.run(
        [*command, '--policy', 'my_robot:load_policy'],
        cwd=tmp_path,
        # The path of these tests can be relative to another folder.
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'^lerobot +0\.6\.1 +0\.6\.1', done.stdout, re.MULTILINE)
    assert done.stdout.endswith('The preset lerobot_smolvla fits this policy.\n')
