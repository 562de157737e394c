# SPDX-License-Identifier: Apache-2.0
"""The pages about taps are true: their code runs, their presets load, their tables are printed."""

import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flow_policy import FlowPolicy
from torch import nn

from vla_feature_bridge.taps import load_preset
from vla_feature_bridge.taps.__main__ import main
from vla_feature_bridge.wire import StepReceiver

TOP = Path(__file__).parents[2]
SUPPORT = TOP / 'test' / 'support'
SINK = "sink='auto'"
TORCH_POLICY = 'tap_a_torch_policy'


def blocks(page, language):
    text = (TOP / 'docs' / 'how-to' / f'{page}.md').read_text(encoding='utf-8')
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)


class SmolVla(FlowPolicy):
    """Names of SmolVLA: both ways to actions call ``_get_action_chunk``."""

    def __init__(self):
        super().__init__()
        self.config.num_steps = self.config.num_inference_steps

    def _get_action_chunk(self, batch, noise=None):
        return self.model.sample_actions(batch['observation.state'], noise)

    def predict_action_chunk(self, batch):
        return self._get_action_chunk(batch)

    def select_action(self, batch):
        return self._get_action_chunk(batch)[:, 0]


class OpenVla(nn.Module):
    """Names of OpenVLA: the head of the language model is called for each action token."""

    def __init__(self):
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.lm_head = nn.Linear(4, 9)

    @torch.no_grad()
    def predict_action(self):
        for position in range(7):
            self.language_model.lm_head(torch.ones(1, 3 if position == 0 else 1, 4))
        return np.arange(7.0)


class OpenPi:
    """Names of openpi: the policy is no module, and holds one."""

    def __init__(self):
        self._model = FlowPolicy(num_inference_steps=10).model
        self._model.state_proj = nn.Linear(1, 1)
        self._sample_kwargs = {}

    @torch.no_grad()
    def infer(self, obs):
        return {'actions': self._model.sample_actions(torch.ones(1, 6))[0].numpy(), 'obs': obs}


class GrootHead(nn.Module):
    """Names of the action head of GR00T: the decoder takes the state first."""

    def __init__(self):
        super().__init__()
        self.action_decoder = nn.Linear(4, 7)
        self.num_inference_timesteps, self.action_horizon = 4, 9

    @torch.no_grad()
    def get_action(self):
        for _ in range(self.num_inference_timesteps):
            decoded = self.action_decoder(torch.ones(1, 1 + self.action_horizon, 4))
        return decoded[:, 1:]


class GrootN16:
    """Names of Isaac GR00T N1.6."""

    def __init__(self):
        self.model = nn.Module()
        self.model.action_head = GrootHead()

    def get_action(self, observation):
        chunk = self.model.action_head.get_action().numpy()
        return {'arm': chunk[..., :6], 'hand': chunk[..., 6:]}, {}

    def reset(self):
        return {}


class LeRobotGroot(nn.Module):
    """Names of GR00T N1.7 in LeRobot."""

    def __init__(self):
        super().__init__()
        self._groot_model = nn.Module()
        self._groot_model.action_head = GrootHead()
        self._action_queue_steps = 6

    def predict_action_chunk(self, batch):
        return self._groot_model.action_head.get_action()

    def select_action(self, batch):
        return self.predict_action_chunk(batch)[:, 0]


class PI0Policy(FlowPolicy):
    """Names of pi0 in LeRobot."""


def use_openvla(names):
    names['vla'].predict_action()


def use_openpi(names):
    names['policy'].infer({'prompt': 'pick up the mug'})


def use_groot(names):
    names['policy'].get_action({})


def nothing_more(names):
    """The page itself makes an inference."""


#: Page, number of the block, names that the page presumes, what the reader does then, kinds of what
#: arrives at the bridge.
CASES = [
    (TORCH_POLICY, 0, {'policy': FlowPolicy}, nothing_more, ['start', 0, 'end']),
    ('tap_lerobot_pi0', 0, {'policy': FlowPolicy}, nothing_more, ['start', 0, 'end']),
    ('tap_lerobot_pi0', 1, {'policy': PI0Policy}, nothing_more, ['start', 0, 'end']),
    ('tap_lerobot_smolvla', 0, {'policy': SmolVla}, nothing_more, ['start', 0, 'end']),
    ('tap_openvla', 0, {'vla': OpenVla}, use_openvla, ['start', 0]),
    ('tap_openpi', 0, {'policy': OpenPi}, use_openpi, ['start', 0]),
    ('tap_groot', 0, {'policy': LeRobotGroot}, nothing_more, ['start', 0, 'end']),
    ('tap_groot', 1, {'policy': GrootN16}, use_groot, ['start', 0]),
]


@pytest.mark.parametrize(('page', 'number', 'presumed', 'then', 'kinds'), CASES)
def test_the_code_of_a_page_sends_steps(page, number, presumed, then, kinds, tmp_path, monkeypatch):
    address = f'unix:{tmp_path}/bridge.sock'
    monkeypatch.setenv('SAFE_BRIDGE', address)
    block = blocks(page, 'python')[number]
    assert SINK in block
    received = []
    names = {name: make() for name, make in presumed.items()}
    names['observation'] = FlowPolicy().observation()
    exec(blocks(page, 'python')[0].splitlines()[0], names)
    with StepReceiver([address], lambda source, message: received.append(message)) as bridge:
        bridge.set_status(True)
        exec(compile(block, page, 'exec'), names)
        then(names)
        deadline = time.monotonic() + 20
        while len(received) < len(kinds):
            assert time.monotonic() < deadline, (received, names['tap'].problems)
            time.sleep(0.01)
    assert [getattr(message, 'kind', getattr(message, 'step', None)) for message in received] == (
        kinds
    )
    assert not names['tap'].problems
    assert received[1].features.ndim == 1
    assert received[1].feature_name == names['tap'].feature_name
    names['tap'].detach()


def test_the_tap_without_a_bridge(capsys):
    policy = FlowPolicy()
    names = {'policy': policy, 'observation': policy.observation()}
    exec(blocks(TORCH_POLICY, 'python')[0].splitlines()[0], names)
    exec(compile(blocks(TORCH_POLICY, 'python')[1], TORCH_POLICY, 'exec'), names)
    assert capsys.readouterr().out == '(5, 8, 16) 5 \n'
    assert not policy.model.action_out_proj._forward_pre_hooks


def test_the_preset_of_the_page_prints_the_table_of_the_page(tmp_path, monkeypatch, capsys):
    (preset,), (table,) = blocks(TORCH_POLICY, 'yaml'), blocks(TORCH_POLICY, 'text')
    (tmp_path / 'my_policy.yaml').write_text(preset)
    (tmp_path / 'my_robot.py').write_text(
        f'import sys\nsys.path.insert(0, {str(SUPPORT)!r})\n'
        'from flow_policy import FlowPolicy as load\n\n'
        'def infer(policy):\n    policy.select_action(policy.observation())\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (command,) = [line for line in blocks(TORCH_POLICY, 'sh')[1].splitlines() if line]
    arguments = command.split('vla_feature_bridge.taps ')[1].split()
    try:
        assert main(arguments) == 0
    finally:
        sys.modules.pop('my_robot', None)
    measured = re.compile(r'^inference time.*$', re.MULTILINE)
    assert measured.sub('', capsys.readouterr().out) == measured.sub('', table)


def test_every_preset_that_a_page_names_exists():
    for page in (TOP / 'docs' / 'how-to').glob('tap_*.md'):
        text = page.read_text(encoding='utf-8')
        for name in re.findall(r'`((?:lerobot|openpi|openvla|groot)_\w+)`', text):
            assert load_preset(name)
        for name in re.findall(r'taps check (\w+)\s', text):
            assert name == 'auto' or load_preset(name)


def test_the_features_that_a_page_names_are_those_of_the_presets():
    text = (TOP / 'docs' / 'how-to' / 'tap_lerobot_pi0.md').read_text(encoding='utf-8')
    found = re.findall(r'\| `(\w+)` \| `([^`]+)`', text)
    assert len(found) == 5
    for name, feature in found:
        assert str(load_preset(name).spec) == feature
