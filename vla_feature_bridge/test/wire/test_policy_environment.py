# SPDX-License-Identifier: Apache-2.0
"""The side of the policy needs NumPy only: other packages are blocked in a process of its own."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from wire_processes import PATIENCE, Inbox, wait_for

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.signals import rollout_signals
from vla_feature_bridge.wire import StepReceiver

BLOCK = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED:
            raise ImportError(f'{name} is blocked')

sys.meta_path.insert(0, Blocker())
"""

CHAIN = """
import vla_feature_bridge.episode_steps, vla_feature_bridge.pooling, vla_feature_bridge.signals
import vla_feature_bridge.step, vla_feature_bridge.step_sink, vla_feature_bridge.tensors
import vla_feature_bridge.tokens, vla_feature_bridge.wire
import numpy as np
from vla_feature_bridge import FeatureSpec, PolicyStep, SignalStream
from vla_feature_bridge.wire import StepSender, StepReceiver
from vla_feature_bridge.step_sink import EpisodeSink
"""

SEND = """
sender = StepSender(sys.argv[1], source='arm', feature_name='f', exec_horizon=2, strict=True,
                    wait_for_monitor=0)
sender.start(episode_id='a')
for step in range(5):
    sender.publish(np.full((3, 4), step, np.float32), np.full((1, 4, 7), step, np.float64))
sender.end(success=True)
sender.close(timeout=60)
assert sender.sent == 5, sender.last_error
third_party = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps(sorted(name for name in third_party if not name.startswith('_'))))
"""

SEND_BFLOAT16 = """
import torch
from vla_feature_bridge.tensors import BFLOAT16_BITS, as_array
hidden = torch.linspace(-3, 3, 12).bfloat16().reshape(3, 4)
spec = FeatureSpec('h', 4, axes=('token',), pooling=(('token', 'mean'),))
assert as_array(hidden).dtype == BFLOAT16_BITS
sender = StepSender(sys.argv[1], source='arm', feature_name='h', exec_horizon=2, strict=True,
                    wait_for_monitor=0)
sender.start(episode_id='a')
chunk = torch.linspace(-1, 1, 28).reshape(1, 4, 7).bfloat16()
sender.publish(hidden, chunk, token_entropy=torch.ones(3).bfloat16() / 2,
               inference_time=torch.tensor(0.25).bfloat16())
sender.close(timeout=60)
bad = hidden.clone()
bad[0, 0] = float('nan')
try:
    from vla_feature_bridge.episode_steps import EpisodeSteps
    steps = EpisodeSteps('h', 2)
    steps.start()
    steps.step(bad)
except ValueError as error:
    assert 'expected finite features' in str(error)
else:
    raise AssertionError('NaN was accepted')
print(json.dumps(spec.apply(as_array(hidden)).tolist()))
"""


def run(script, blocked, *arguments):
    done = subprocess.run(
        [sys.executable, '-c', f'BLOCKED = {set(blocked)}\n{BLOCK}{CHAIN}{script}', *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture
def receiver(inbox, tmp_path):
    with StepReceiver([f'unix:{tmp_path / "s"}'], inbox) as receiver:
        yield receiver


def test_a_policy_sends_with_numpy_only(receiver, inbox):
    blocked = ['ml_dtypes', 'torch', 'rclpy', 'safe_msgs', 'pyarrow', 'yaml', 'builtin_interfaces']
    loaded = run(SEND, blocked, *receiver.addresses)
    # What site packages load when Python starts is not ours.
    assert {'numpy', 'vla_feature_bridge'} <= set(loaded)
    assert not set(loaded) & {*blocked, 'scipy', 'setuptools'}
    wait_for(lambda: len(inbox.messages) == 7)
    assert inbox.short() == [['a', 'start'], *[['a', n] for n in range(5)], ['a', 'end']]


def test_bfloat16_of_torch_needs_no_ml_dtypes(receiver, inbox):
    pooled = run(SEND_BFLOAT16, ['ml_dtypes', 'rclpy'], *receiver.addresses)
    wait_for(lambda: len(inbox.messages) == 2)
    step = inbox.messages[1][1]
    expected = np.linspace(-3, 3, 12, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(3, 4)
    assert step.features.dtype == step.actions.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(step.features, expected)
    np.testing.assert_array_equal(step.token_entropy, [0.5] * 3)
    assert step.inference_time == 0.25
    for name, values in rollout_signals(step.actions[None], 2).items():
        assert np.float32(step.signals[name]) == values[0]
    spec = FeatureSpec('h', 4, axes=('token',), pooling=(('token', 'mean'),))
    assert pooled == spec.apply(expected).tolist()


def test_the_receiver_needs_no_ml_dtypes_for_other_dtypes(tmp_path):
    script = """
received = []
with StepReceiver([sys.argv[1]], lambda source, message: received.append(message)) as receiver:
    sender = StepSender(sys.argv[1], feature_name='f', exec_horizon=1, wait_for_monitor=0)
    sender.start()
    sender.publish(np.zeros(4, np.float16))
    sender.close(timeout=60)
print(json.dumps([type(message).__name__ for message in received]))
"""
    assert run(script, ['ml_dtypes', 'torch', 'rclpy'], f'unix:{tmp_path / "s"}') == [
        'EpisodeEventRecord',
        'PolicyStep',
    ]
