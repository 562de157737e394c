# SPDX-License-Identifier: Apache-2.0
"""Presets of openpi in PyTorch, on tiny policies of the real classes.

They need an environment with openpi and its files over transformers, in Python 3.11: see the table
of environments in ``test/README.md``.
"""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip(
    'openpi.models_pytorch',
    reason='NOT CHECKED HERE: the presets of openpi in PyTorch; a checkout of openpi is not on the '
    'path, see test/README.md',
)

import tiny_openpi as tiny
import torch
from tap_support import inputs_by_hand

from vla_feature_bridge import FeatureSpec
from vla_feature_bridge.taps import FeatureTap, TapError, check
from vla_feature_bridge.wire import StepReceiver

POOLING = (('horizon', 'mean'), ('denoise', 'mean'))
PRESETS = {'openpi_pi0': False, 'openpi_pi05': True}
every_preset = pytest.mark.parametrize('name', PRESETS)


def make(name, **changes):
    return tiny.pytorch_policy(pi05=PRESETS[name], **changes)


def tap_of(policy, name, **changes):
    return FeatureTap(policy, name, exec_horizon=5, **changes)


def head_of(policy):
    return policy._model.action_out_proj


def replayed(policy, states, noise):
    """Return the actions of the reply to which the states lead: the Euler steps, in robot units."""
    x = noise
    with torch.no_grad():
        for state in torch.from_numpy(states):
            x = x - head_of(policy)(state[None]) / len(states)
    return x[..., : tiny.ACTION_DIM].numpy() * (2 + 1e-6) + 5


@every_preset
@pytest.mark.parametrize('mode', ['no_grad', 'inference_mode', 'bfloat16'])
def test_features_and_actions_are_those_of_the_policy(name, mode):
    policy = make(name, dtype='bfloat16' if mode == 'bfloat16' else 'float32')
    raw, pooled = tap_of(policy, name, pooling='raw'), tap_of(policy, name)
    with torch.inference_mode(mode == 'inference_mode'), inputs_by_hand(head_of(policy)) as found:
        reply = policy.infer(tiny.observation())
    states = torch.cat(found).numpy()
    assert raw.last.problem == pooled.last.problem == ''
    assert raw.last.features.shape == states.shape == (10, tiny.HORIZON, tiny.WIDTH)
    np.testing.assert_array_equal(raw.last.features, states)
    spec = FeatureSpec('', 0, ('denoise', 'horizon'), POOLING)
    np.testing.assert_array_equal(pooled.last.features, spec.apply(states))
    assert pooled.feature_name == 'pre_velocity[horizon=mean,denoise=mean]'
    assert (raw.last.calls, raw.last.dtype) == (10, 'float32')
    assert reply['actions'].shape == (tiny.HORIZON, tiny.ACTION_DIM)
    np.testing.assert_array_equal(raw.last.actions, reply['actions'][None])
    assert raw.last.instruction == 'fold the towel'
    assert pooled.sink_options()['action_space'] == 'robot'
    assert pooled.sink_options()['policy'] == name.removeprefix('openpi_')


@every_preset
def test_the_other_model_is_refused(name):
    (other,) = set(PRESETS) - {name}
    policy = make(other)
    with pytest.raises(TapError, match=f'preset {name}: expected .* which has _model'):
        tap_of(policy, name)
    assert not head_of(policy)._forward_pre_hooks


@every_preset
def test_actions_do_not_change_and_nothing_stays(name):
    policy = make(name)

    def run():
        torch.manual_seed(5)
        return policy.infer(tiny.observation())['actions']

    before, attributes = run(), (set(vars(policy)), set(vars(policy._model)))
    with tap_of(policy, name) as tap:
        np.testing.assert_array_equal(run(), before)
        assert tap.last.problem == ''
    assert (set(vars(policy)), set(vars(policy._model))) == attributes
    assert not head_of(policy)._forward_pre_hooks
    np.testing.assert_array_equal(run(), before)


@every_preset
@pytest.mark.parametrize('steps', [10, 4, 7])
def test_the_states_in_order_lead_to_the_actions(name, steps):
    policy = make(name, sample_kwargs={} if steps == 10 else {'num_steps': steps})
    tap = tap_of(policy, name, pooling='raw')
    noise = np.random.default_rng(2).normal(size=(tiny.HORIZON, 32)).astype(np.float32)
    reply = policy.infer(tiny.observation(), noise=noise)
    assert (tap.last.calls, tap.last.expected_calls, tap.last.problem) == (steps, steps, '')
    expected = replayed(policy, tap.last.features, torch.from_numpy(noise)[None])
    np.testing.assert_allclose(tap.last.actions, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(tap.last.actions[0], reply['actions'])


@every_preset
def test_an_inference_that_fails_is_not_sent(name):
    policy = make(name)
    tap = tap_of(policy, name)
    with pytest.raises(KeyError):
        policy.infer({'prompt': 'fold the towel'})
    assert (tap.last, tap.problems) == (None, {'raised': 1})
    policy.infer(tiny.observation())
    assert tap.last.problem == ''


@pytest.mark.slow
@every_preset
def test_a_compiled_policy(name):
    """openpi compiles ``sample_actions`` by default; the mode decides how long that takes."""
    torch._dynamo.reset()
    policy = make(name, pytorch_compile_mode='default')
    tap = tap_of(policy, name, pooling='raw')
    noise = np.random.default_rng(2).normal(size=(tiny.HORIZON, 32)).astype(np.float32)
    for _ in range(2):
        reply = policy.infer(tiny.observation(), noise=noise)
        assert (tap.last.calls, tap.last.problem) == (10, '')
    expected = replayed(policy, tap.last.features, torch.from_numpy(noise)[None])
    np.testing.assert_allclose(reply['actions'][None], expected, rtol=0, atol=1e-4)
    plain = make(name)
    eager = tap_of(plain, name, pooling='raw')
    plain.infer(tiny.observation(), noise=noise)
    np.testing.assert_allclose(tap.last.features, eager.last.features, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_tap_after_the_first_compiled_inference_says_so():
    torch._dynamo.reset()
    policy = make('openpi_pi0', pytorch_compile_mode='default')
    policy.infer(tiny.observation())
    tap = tap_of(policy, 'openpi_pi0')
    policy.infer(tiny.observation())
    assert tap.last.features is None
    assert '_model.sample_actions' in tap.last.problem
    assert 'before the first inference' in tap.last.problem


@every_preset
def test_the_preset_fits(name):
    policy = make(name)
    report = check(policy, name, lambda policy: policy.infer(tiny.observation()))
    assert report.passed, str(report)
    assert str((10, tiny.HORIZON, tiny.WIDTH)) in str(report)


@every_preset
def test_the_command_of_the_page_checks_the_policy(name, tmp_path):
    (tmp_path / 'my_robot.py').write_text(
        'import tiny_openpi\n\ndef load():\n'
        f'    return tiny_openpi.pytorch_policy(pi05={PRESETS[name]})\n'
        '\ndef infer(policy):\n    policy.infer(tiny_openpi.observation())\n'
    )
    command = [sys.executable, '-m', 'vla_feature_bridge.taps', 'check', name]
    done = subprocess.run(
        [*command, '--policy', 'my_robot:load', '--inference', 'my_robot:infer'],
        cwd=tmp_path,
        # The path of these tests can be relative to another folder.
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f'The preset {name} fits this policy.\n')


# -- the server of openpi, and a bridge


def test_the_code_of_the_page_in_the_server_of_openpi(tmp_path, monkeypatch):
    """The lines of the page, a client of openpi, and every step at the bridge."""
    from openpi.serving.websocket_policy_server import WebsocketPolicyServer
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    page = Path(__file__).parents[3] / 'docs' / 'how-to' / 'tap_openpi.md'
    if not page.is_file():
        pytest.skip('needs the folder docs of a checkout')
    block = re.findall(r'^```python\n(.*?)^```$', page.read_text(), re.DOTALL | re.MULTILINE)[0]
    address, received = f'unix:{tmp_path}/bridge.sock', []
    monkeypatch.setenv('SAFE_BRIDGE', address)
    policy = make('openpi_pi0')
    with StepReceiver([address], lambda source, message: received.append(message)) as bridge:
        bridge.set_status(True)
        names = {'policy': policy}
        exec(block, names)
        states = inputs_by_hand(head_of(policy))
        with states as found, served(WebsocketPolicyServer, policy) as port:
            client = WebsocketClientPolicy('localhost', port)
            replies = [client.infer(tiny.observation(seed=seed)) for seed in range(3)]
        names['tap'].end(success=True)
        deadline = time.monotonic() + 30
        while len(received) < 5:
            assert time.monotonic() < deadline, (received, names['tap'].problems)
            time.sleep(0.01)
        names['tap'].detach()
    start, *steps, end = received
    assert (start.kind, end.kind) == ('start', 'end')
    spec = FeatureSpec('', 0, ('denoise', 'horizon'), POOLING)
    for number, (step, reply) in enumerate(zip(steps, replies, strict=True)):
        assert (step.step, step.exec_horizon, step.policy) == (number, 5, 'pi0')
        raw = torch.cat(found[10 * number : 10 * (number + 1)]).numpy()
        np.testing.assert_array_equal(step.features, spec.apply(raw))
        np.testing.assert_array_equal(step.actions, reply['actions'][None])
        assert step.instruction == 'fold the towel'


class served:
    """A server of a policy in a thread; the context is its port."""

    def __init__(self, server_class, policy):
        self._class, self._policy = server_class, policy

    def __enter__(self):
        import asyncio

        from websockets.asyncio.server import serve

        server = self._class(self._policy, host='localhost')
        self._loop, ready = asyncio.new_event_loop(), threading.Event()

        async def run():
            self._done = asyncio.Event()
            async with serve(
                server._handler, 'localhost', 0, compression=None, max_size=None
            ) as listening:
                self.port = listening.sockets[0].getsockname()[1]
                ready.set()
                await self._done.wait()

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(run()))
        self._thread.start()
        assert ready.wait(20)
        return self.port

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(20)
        self._loop.close()
