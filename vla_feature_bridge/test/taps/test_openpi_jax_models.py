# SPDX-License-Identifier: Apache-2.0
"""The tap of openpi in JAX, on tiny policies of the real classes of openpi.

They need an environment with openpi, in Python 3.11: see the table of environments in
``test/README.md``.
"""

from unittest import mock

import numpy as np
import pytest

from vla_feature_bridge.taps.openpi_jax import OpenpiJaxTap

pytest.importorskip(
    'openpi.models',
    reason='NOT CHECKED HERE: the tap of openpi in JAX on its own models; a checkout of openpi is '
    'not on the path, see test/README.md',
)

import jax
import jax.numpy as jnp
import tiny_openpi as tiny


@pytest.mark.slow
@pytest.mark.parametrize('pi05', [False, True], ids=['pi0', 'pi05'])
def test_the_states_in_order_lead_to_the_actions_which_do_not_change(pi05):
    policy, steps = tiny.jax_policy(pi05=pi05), 10
    noise = np.random.default_rng(2).normal(size=(tiny.HORIZON, 32)).astype(np.float32)
    before = policy.infer(tiny.observation(), noise=noise)['actions']
    tap = OpenpiJaxTap(policy, exec_horizon=5, pooling=())
    for _ in range(2):
        reply = policy.infer(tiny.observation(), noise=noise)
        np.testing.assert_array_equal(reply['actions'], before)
    assert tap.policy_name == ('pi05' if pi05 else 'pi0')
    assert (tap.last.problem, tap.last.calls, tap.last.expected_calls) == ('', steps, steps)
    assert tap.last.features.shape == (steps, tiny.HORIZON, tiny.WIDTH)
    assert tap.last.dtype == 'bfloat16'
    assert tap.last.instruction == 'fold the towel'
    np.testing.assert_array_equal(tap.last.actions, before[None])
    x, head = noise[None], policy._model.action_out_proj.inner
    for state in tap.last.features:
        x = x - np.asarray(head(jnp.asarray(state[None], jnp.bfloat16)), np.float32) / steps
    expected = x[..., : tiny.ACTION_DIM] * (2 + 1e-6) + 5
    np.testing.assert_allclose(tap.last.actions, expected, rtol=0, atol=0.02)
    tap.detach()
    np.testing.assert_array_equal(policy.infer(tiny.observation(), noise=noise)['actions'], before)


def fast_by_hand(policy):
    """Return the tap and the tokens of one inference, and the inputs of the head by hand."""
    from openpi.models.gemma_fast import Embedder

    found, decode = [], Embedder.decode

    def noted(self, x):
        jax.debug.callback(lambda state: found.append(np.array(state[0, -1])), x, ordered=True)
        return decode(self, x)

    tap = OpenpiJaxTap(policy, exec_horizon=5, pooling=())
    with mock.patch.object(Embedder, 'decode', noted):
        tokens = policy.infer(tiny.observation())['actions']
    return tap, tokens, np.stack(found)


@pytest.mark.slow
def test_pi0_fast_has_the_state_of_each_token_up_to_the_end():
    model = tiny.jax_fast_model()
    policy = tiny.jax_fast_policy(model)
    tap, tokens, states = fast_by_hand(policy)
    assert (tap.last.problem, tap.policy_name) == ('', 'pi0_fast')
    assert (tap.last.calls, tap.last.dtype) == (257, 'bfloat16')
    np.testing.assert_array_equal(tap.last.features, states[:-1].astype(np.float32))
    np.testing.assert_array_equal(tap.last.actions, tokens[None])
    # The head of the language model is its embedding.
    table = model.PaliGemma.llm.inner.embedder['input_embedding']
    said = np.argmax(tap.last.features @ np.asarray(table.value).T, axis=-1)
    np.testing.assert_array_equal(said, tokens[:, 0])
    tap.detach()
    np.testing.assert_array_equal(policy.infer(tiny.observation())['actions'], tokens)

    # The second different word becomes the end of the sequence, which is the token 1.
    length = int(np.argmax(said != said[0])) + 1
    swapped = jnp.array([1, said[length - 1]])
    table.value = table.value.at[swapped].set(table.value[swapped[::-1]])
    tap, tokens, states = fast_by_hand(tiny.jax_fast_policy(model))
    np.testing.assert_array_equal(tokens[:, 0], [*said[: length - 1], 1, *[0] * (256 - length)])
    assert (tap.last.problem, tap.last.calls) == ('', length + 1)
    np.testing.assert_array_equal(tap.last.features, states[:-1].astype(np.float32))
