# SPDX-License-Identifier: Apache-2.0
"""The check of a preset, as a function and as a command."""

import subprocess
import sys
from pathlib import Path

import flow_policy
import pytest
from tap_support import FLOW, FlowPolicy, infer

from vla_feature_bridge.taps import TapError, check, preset_names
from vla_feature_bridge.taps.__main__ import main

MODULE = """
import sys
sys.path.insert(0, {support!r})
from flow_policy import FlowPolicy

def load():
    return FlowPolicy()

policy = FlowPolicy()

def infer(policy):
    policy.select_action(policy.observation())

def nothing(policy):
    pass
"""
PRESET = """
name: mine
module: model.action_out_proj
calls: {calls}
axes: [denoise, horizon]
pooling: [horizon=mean, denoise=mean]
ends: {ends}
actions: {actions}
distribution: torch
versions: ['0.0']
"""


@pytest.fixture
def robot(tmp_path, monkeypatch):
    """A folder with a module of a user and presets for its policy."""
    support = str(Path(flow_policy.__file__).parent)
    (tmp_path / 'my_robot.py').write_text(MODULE.format(support=support))
    actions = '[batch, horizon, action]'
    texts = {
        'good.yaml': PRESET.format(calls=5, ends='predict_action_chunk', actions=actions),
        'bad.yaml': PRESET.format(calls=10, ends='predict_action_chunk', actions=actions),
        'unfinished.yaml': PRESET.format(calls=10, ends='calls', actions='[]'),
        'missing.yaml': PRESET.format(calls=5, ends='predict_chunk', actions=actions),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop('my_robot', None)


@pytest.mark.parametrize('policy', ['my_robot:load', 'my_robot:policy'])
def test_a_preset_that_fits(robot, capsys, policy):
    arguments = ['check', 'good.yaml', '--policy', policy, '--inference', 'my_robot:infer']
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for part in (
        'FlowPolicy',
        'model.action_out_proj',
        'Linear',
        '(5, 8, 16)',
        '(denoise, horizon, width)',
        'float32',
        'model.action_out_proj[horizon=mean,denoise=mean]',
        '(16,)',
        '(1, 8, 7)',
        'the caller says it',
        'The preset mine fits this policy.',
    ):
        assert part in shown
    assert 'WRONG' not in shown


def test_a_preset_with_another_number_of_calls(robot, capsys):
    arguments = ['check', 'bad.yaml', '--policy', 'my_robot:load', '--inference', 'my_robot:infer']
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert 'problem: model.action_out_proj: expected 10 calls in one inference, found 5' in shown
    assert 'The preset mine does NOT fit this policy.' in shown
    (calls,) = [line for line in shown.splitlines() if line.startswith('calls')]
    assert calls.split() == ['calls', '10', '5', 'WRONG']


def test_an_inference_that_does_not_happen(robot, capsys):
    arguments = ['check', 'good.yaml', '--policy', 'my_robot:load']
    assert main([*arguments, '--inference', 'my_robot:nothing']) == 1
    assert '1, ended by predict_action_chunk()  0' in capsys.readouterr().out
    arguments[1] = 'unfinished.yaml'
    assert main([*arguments, '--inference', 'my_robot:infer']) == 1
    assert '1, ended by the last call' in (shown := capsys.readouterr().out)
    assert '0 (5 calls, and no more)' in shown


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['missing.yaml', '--policy', 'my_robot:load'], 'expected a method, found nothing'),
        (['nothing.yaml', '--policy', 'my_robot:load'], 'nothing.yaml: expected a readable file'),
        (['good.yaml', '--policy', 'my_robot'], '--policy: expected MODULE:NAME such as'),
        (['good.yaml', '--policy', 'my_robots:load'], "No module named 'my_robots'"),
        (['good.yaml', '--policy', 'my_robot:loads'], "has no attribute 'loads'"),
        (['auto', '--policy', 'my_robot:load'], 'a class that a preset names'),
    ],
)
def test_what_does_not_exist_is_named(robot, capsys, arguments, message):
    assert main(['check', *arguments, '--inference', 'my_robot:infer']) == 1
    assert message in capsys.readouterr().err


def test_without_an_inference_a_policy_of_lerobot_is_expected(robot, capsys):
    assert main(['check', 'good.yaml', '--policy', 'my_robot:load']) == 1
    assert 'expected a policy of LeRobot' in capsys.readouterr().err


def test_the_list_has_every_preset(capsys):
    assert main(['list']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert 'checked by running (0.6.1)' in lines[preset_names().index('lerobot_pi0')]


def test_a_preset_is_shown_with_every_field(capsys):
    assert main(['show', 'lerobot_pi0_fast']) == 0
    shown = capsys.readouterr().out
    assert 'module          model.paligemma_with_expert.paligemma.lm_head' in shown
    assert 'pooling         token=mean' in shown
    assert main(['show', 'lerobot']) == 1
    assert 'nearest: ' in capsys.readouterr().err


def test_a_function_of_python_checks_too():
    policy = FlowPolicy()
    report = check(policy, FLOW, infer)
    assert report.passed
    assert report.problems == ()
    assert {row.what: row.found for row in report.rows}['instruction'] == 'pour the tea'
    assert not policy.model.action_out_proj._forward_pre_hooks, 'the tap is removed'
    batch = check(policy, FLOW, lambda p: p.predict_action_chunk(p.observation(batch=2)))
    assert not batch.passed
    assert 'batch of 1' in batch.problems[0]
    with pytest.raises(ZeroDivisionError):
        check(policy, FLOW, lambda policy: 1 / 0)
    assert not policy.model.action_out_proj._forward_pre_hooks
    with pytest.raises(TapError):
        check(policy, 'openvla', infer)


@pytest.mark.parametrize('arguments', [['list'], ['show', 'openvla'], ['--help']])
def test_lists_load_no_torch(arguments):
    script = (
        'import sys\nfrom vla_feature_bridge.taps.__main__ import main\n'
        f'try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n'
        "assert 'torch' not in sys.modules and 'rclpy' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', script], check=True, timeout=60, capture_output=True)
