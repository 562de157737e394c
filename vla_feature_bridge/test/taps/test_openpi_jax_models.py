# SPDX-License-Identifier: Apache-2.0
"""The tap of openpi in JAX, on tiny policies of the real classes of openpi.

They need an environment with openpi, in Python 3.11: see the table of environments in
``test/README.md``.
"""

import numpy as np
import pytest

from vla_feature_bridge.taps.openpi_jax import OpenpiJaxTap

pytest.importorskip(
    'openpi.models',
    reason='NOT CHECKED HERE: the tap of openpi in JAX on its own models; a checkout of openpi is '
    'not on the path, see test/README.md',
)

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
