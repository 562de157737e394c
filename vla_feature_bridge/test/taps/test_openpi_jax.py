# SPDX-License-Identifier: Apache-2.0
"""The tap of openpi in JAX, on small models of Flax that are built and compiled as openpi's are.

Needs an environment with JAX and Flax::

    pip install 'jax==0.5.3' 'flax==0.10.2' pytest hypothesis
    python -m pytest vla_feature_bridge/test/taps/test_openpi_jax.py
"""

import functools
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.taps.errors import TapError
from vla_feature_bridge.taps.openpi_jax import OpenpiJaxTap

jax = pytest.importorskip(
    'jax', reason="NOT CHECKED HERE: openpi in JAX; pip install 'jax==0.5.3' 'flax==0.10.2'"
)
nnx = pytest.importorskip(
    'flax.nnx', reason="NOT CHECKED HERE: openpi in JAX; pip install 'flax==0.10.2'"
)
jnp = jax.numpy

HORIZON, WIDTH, DIM, VOCABULARY = 6, 16, 4, 24


class FlowModel(nnx.Module):
    """Denoises a chunk in a while loop, in bfloat16, as pi0 does."""

    def __init__(self, rngs):
        self.action_in_proj = nnx.Linear(DIM, WIDTH, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.action_out_proj = nnx.Linear(WIDTH, DIM, rngs=rngs)

    def sample_actions(self, rng, observation, *, num_steps=10, noise=None):
        shape = (len(observation), HORIZON, DIM)
        noise = jax.random.normal(rng, shape) if noise is None else noise
        dt = -1.0 / num_steps

        def step(carry):
            x, t = carry
            state = self.hidden(self.action_in_proj(x) + observation[:, None, :1] + t)
            v = self.action_out_proj(jnp.tanh(state).astype(jnp.bfloat16))
            return x + dt * v, t + dt

        x, _ = jax.lax.while_loop(lambda c: c[1] >= -dt / 2, step, (noise, 1.0))
        return x


class LanguageModel(nnx.Module):
    """Has the calls and the results of openpi's language model."""

    def __init__(self, rngs):
        self.embedder = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layer = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)
        self.module = SimpleNamespace(vocab_size=VOCABULARY)

    def __call__(self, tokens=None, *, embedded_prefix=None, embed_only=False):
        if embed_only:
            return self.embedder(tokens)
        pre_logits = jnp.tanh(self.layer(embedded_prefix)).astype(jnp.bfloat16)
        logits = self.head(pre_logits).astype(jnp.float32)
        return logits, None, {'pre_logits': pre_logits, 'logits': logits}


class FastModel(nnx.Module):
    """Generates tokens in a while loop that ends after the token 1, as pi0-FAST does."""

    def __init__(self, rngs):
        self.PaliGemma = nnx.Dict(llm=LanguageModel(rngs), img=nnx.Linear(2, 2, rngs=rngs))

    def sample_actions(self, rng, observation, *, max_decoding_steps=12, end_at=100):
        assert self.PaliGemma.llm.module.vocab_size == VOCABULARY
        prefix = self.PaliGemma.llm(observation, embed_only=True)
        logits, _, _ = self.PaliGemma.llm(embedded_prefix=prefix)

        def step(carry):
            last, tokens, _, number = carry
            token = jnp.where(number == end_at, 1, 2 + jnp.argmax(last[:, -1, 2:], axis=-1))
            tokens = tokens.at[:, number].set(token)
            last, _, _ = self.PaliGemma.llm(
                embedded_prefix=self.PaliGemma.llm(token[:, None], embed_only=True) + number
            )
            return last, tokens, jnp.all(token == 1), number + 1

        def go_on(carry):
            return ~carry[2] & (carry[3] < max_decoding_steps)

        tokens = jnp.zeros((len(observation), max_decoding_steps), jnp.int32)
        return jax.lax.while_loop(go_on, step, (logits[:, -1:], tokens, False, 0))[1]


def module_jit(method):
    """Freeze and compile the method of a module, as openpi does."""
    graph, state = nnx.split(method.__self__)

    @functools.partial(jax.jit, static_argnames=('num_steps', 'max_decoding_steps', 'end_at'))
    def compiled(state, *args, **kwargs):
        return method.__func__(nnx.merge(graph, state), *args, **kwargs)

    return lambda *args, **kwargs: compiled(state, *args, **kwargs)


class Policy:
    """Has the attributes of openpi's Policy, and infers as it does."""

    def __init__(self, model, observation, **sample_kwargs):
        self._model, self._observation = model, observation
        self._sample_kwargs = sample_kwargs
        self._is_pytorch_model = False
        self._sample_actions = module_jit(model.sample_actions)

    def infer(self, obs):
        outputs = self._sample_actions(jax.random.key(0), self._observation, **self._sample_kwargs)
        actions = np.asarray(outputs)[0]
        return {'actions': 3 * actions.reshape(len(actions), -1)}


def flow(batch=1, **sample_kwargs):
    return Policy(FlowModel(nnx.Rngs(0)), jnp.ones((batch, 3)), **sample_kwargs)


def fast(**sample_kwargs):
    return Policy(FastModel(nnx.Rngs(0)), jnp.array([[3, 4, 5]]), **sample_kwargs)


def tap_of(policy, **options):
    return OpenpiJaxTap(policy, exec_horizon=2, module_jit=module_jit, **options)


OBS = {'prompt': 'fold the towel'}


@pytest.mark.parametrize('steps', [{}, {'num_steps': 4}])
def test_the_states_lead_to_the_actions_which_do_not_change(steps):
    policy = flow(**steps)
    before = policy.infer(OBS)['actions']
    tap = tap_of(policy, pooling=())
    for _ in range(2):
        np.testing.assert_array_equal(policy.infer(OBS)['actions'], before)
    count = steps.get('num_steps', 10)
    assert tap.last.problem == ''
    assert (tap.last.calls, tap.last.expected_calls) == (count, count)
    assert tap.last.features.shape == (count, HORIZON, WIDTH)
    assert tap.last.dtype == 'bfloat16'
    x = jax.random.normal(jax.random.key(0), (1, HORIZON, DIM))
    for state in tap.last.features:
        head = policy._model.action_out_proj.inner
        x = x - head(jnp.asarray(state[None], jnp.bfloat16)) / count
    np.testing.assert_allclose(3 * np.asarray(x)[0], before, rtol=0, atol=1e-5)


def test_pooled_features_and_their_names():
    policy = flow()
    raw, pooled = tap_of(policy, pooling=()), tap_of(flow())
    policy.infer(OBS)
    pooled._policy.infer(OBS)
    pairs = (('horizon', 'mean'), ('denoise', 'mean'))
    spec = FeatureSpec('', 0, ('denoise', 'horizon'), pairs)
    np.testing.assert_allclose(
        pooled.last.features, spec.apply(raw.last.features), rtol=0, atol=1e-6
    )
    assert pooled.feature_name == 'pre_velocity[horizon=mean,denoise=mean]'
    assert (pooled.policy_name, tap_of(fast()).policy_name) == ('pi0', 'pi0_fast')
    assert pooled.last.instruction == 'fold the towel'
    assert pooled.last.actions.shape == (1, HORIZON, DIM)


@pytest.mark.parametrize(('end', 'tokens'), [({'end_at': 4}, 5), ({}, 12)])
def test_pi0_fast_has_one_state_for_each_token(end, tokens):
    policy = fast(**end)
    before = policy.infer(OBS)['actions']
    tap = tap_of(policy, pooling=())
    np.testing.assert_array_equal(policy.infer(OBS)['actions'], before)
    assert tap.last.problem == ''
    assert tap.last.calls == tokens + 1
    assert tap.last.features.shape == (tokens, WIDTH)
    llm = policy._model.PaliGemma.llm.inner
    logits = llm.head(jnp.asarray(tap.last.features, jnp.bfloat16))
    words = 2 + np.argmax(np.asarray(logits, np.float32)[:, 2:], axis=-1)
    said = before[:, 0][:tokens] // 3
    kept = slice(None, 4) if end else slice(None)
    np.testing.assert_array_equal(words[kept], said[kept])


def test_a_batch_of_two_is_refused():
    policy = flow(batch=2)
    tap = tap_of(policy)
    policy.infer(OBS)
    assert tap.last.features is None
    assert 'expected a batch of 1, found 2' in tap.last.problem


def test_another_number_of_calls_is_reported():
    policy = flow()
    tap = tap_of(policy)
    sample = policy._sample_actions
    policy._sample_actions = lambda *args: sample(*args, num_steps=7)
    policy.infer(OBS)
    assert tap.last.features is None
    assert 'expected 10 calls in one inference, found 7' in tap.last.problem


def test_a_function_that_was_compiled_before_is_reported():
    policy = flow()
    before = policy._sample_actions
    tap = tap_of(policy)
    policy._sample_actions = before  # somebody kept it
    policy.infer(OBS)
    assert tap.last.features is None
    assert 'was not called' in tap.last.problem
    assert tap.problems['no_calls'] == 1


def test_detach_leaves_the_policy_as_it_was():
    for policy in (flow(), fast()):
        sample, before = policy._sample_actions, policy.infer(OBS)['actions']
        tap = tap_of(policy)
        tap.detach()
        assert policy._sample_actions is sample
        assert 'infer' not in vars(policy)
        policy.infer(OBS)
        assert tap.last is None
        recompiled = module_jit(policy._model.sample_actions)
        policy._sample_actions = recompiled
        np.testing.assert_array_equal(policy.infer(OBS)['actions'], before)


def test_an_exception_of_the_policy_passes():
    policy = flow()
    tap = tap_of(policy)
    policy._sample_kwargs['num_steps'] = 'many'
    with pytest.raises(TypeError):
        policy.infer(OBS)
    assert tap.problems['raised'] == 1
    policy._sample_kwargs.clear()
    policy.infer(OBS)
    assert tap.last.problem == ''


def test_a_policy_in_another_object_is_found():
    policy = flow()
    recorder = SimpleNamespace(_policy=policy)
    tap = tap_of(recorder)
    recorder._policy.infer(OBS)
    assert tap.last.problem == ''


@pytest.mark.parametrize(
    ('policy', 'words'),
    [
        (SimpleNamespace(_model=object(), _sample_actions=0), 'create_trained_policy'),
        (
            SimpleNamespace(_model=object(), _sample_actions=0, _is_pytorch_model=True),
            "FeatureTap(policy, 'openpi_pi0')",
        ),
        (object(), 'create_trained_policy'),
    ],
)
def test_other_objects_are_refused(policy, words):
    with pytest.raises(TapError) as caught:
        tap_of(policy)
    assert words in str(caught.value)


def test_without_openpi_the_function_that_compiles_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openpi.shared', None)  # cannot be imported
    with pytest.raises(TapError, match='module_jit'):
        OpenpiJaxTap(flow(), exec_horizon=2)


def test_steps_and_episodes_reach_the_bridge(tmp_path):
    from vla_feature_bridge.wire import StepReceiver

    messages = []
    address = f'unix:{tmp_path}/bridge.sock'
    receiver = StepReceiver([address], lambda source, message: messages.append(message))
    receiver.set_status(True)
    policy = flow()
    tap = tap_of(policy, sink=address, episodes='instruction')
    states = []
    for prompt in ('open', 'open', 'close'):
        thread = threading.Thread(target=policy.infer, args=({'prompt': prompt},))
        thread.start()
        thread.join()
        states.append(tap.last.features)
    tap.detach()
    deadline = time.monotonic() + 20
    while len(messages) < 6:
        assert time.monotonic() < deadline, messages
        time.sleep(0.01)
    receiver.close()
    kinds = [getattr(m, 'kind', None) or m.step for m in messages]
    assert kinds == ['start', 0, 1, 'end', 'start', 0]
    steps = [m for m in messages if hasattr(m, 'features')]
    for step, state in zip(steps, states, strict=True):
        np.testing.assert_array_equal(step.features, state)
        assert (step.action_space, step.exec_horizon, step.policy) == ('robot', 2, 'pi0')
    assert [step.instruction for step in steps] == ['open', 'open', 'close']


def test_the_code_of_the_page_sends_steps(tmp_path, monkeypatch):
    from vla_feature_bridge.taps import openpi_jax
    from vla_feature_bridge.wire import StepReceiver

    page = Path(__file__).parents[3] / 'docs' / 'how-to' / 'tap_openpi.md'
    block = re.findall(r'^```python\n(.*?)^```$', page.read_text(), re.DOTALL | re.MULTILINE)[1]
    assert "sink='auto'" in block
    address = f'unix:{tmp_path}/bridge.sock'
    monkeypatch.setenv('SAFE_BRIDGE', address)
    # openpi is not here: its function that compiles is the one of this test.
    monkeypatch.setattr(openpi_jax, '_openpi_jit', lambda: module_jit)
    messages = []
    with StepReceiver([address], lambda source, message: messages.append(message)) as receiver:
        receiver.set_status(True)
        policy = flow()
        names = {'policy': policy}
        exec(block, names)
        policy.infer(OBS)
        names['tap'].detach()
        deadline = time.monotonic() + 20
        while len(messages) < 2:
            assert time.monotonic() < deadline, messages
            time.sleep(0.01)
    assert messages[1].exec_horizon == 5
    assert messages[0].instruction == 'fold the towel'
