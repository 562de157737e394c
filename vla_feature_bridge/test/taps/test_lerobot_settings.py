# SPDX-License-Identifier: Apache-2.0
"""The variables of the environment that configure the tap of LeRobot's programs."""

import os

import pytest

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.taps.lerobot_settings import LerobotSettings


def test_without_variables_the_bridge_of_this_user_is_meant():
    settings = LerobotSettings.read({}, program='/opt/bin/lerobot-rollout')
    assert settings == LerobotSettings(address=f'unix:/tmp/safe_bridge_{os.getuid()}.sock')
    assert (settings.enabled, settings.preset, settings.exec_horizon) == (True, 'auto', None)


def test_variables():
    settings = LerobotSettings.read(
        {
            'SAFE_BRIDGE': 'tcp://robot:7001',
            'SAFE_SOURCE': 'left_arm',
            'SAFE_TASK': 'fold',
            'SAFE_PRESET': 'lerobot_act',
            'SAFE_EXEC_HORIZON': '25',
            'SAFE_WAIT': '0',
        },
        program='policy_server.py',
    )
    assert settings == LerobotSettings(
        address='tcp://robot:7001',
        source='left_arm',
        task='fold',
        preset='lerobot_act',
        exec_horizon=25,
        wait=0.0,
    )


@pytest.mark.parametrize(
    ('switch', 'program', 'enabled'),
    [
        ('0', 'lerobot-rollout', False),
        ('', 'lerobot-rollout', True),
        ('', '/usr/bin/lerobot-train', False),
        ('', '/site-packages/lerobot/scripts/lerobot_train.py', False),
        ('1', '/usr/bin/lerobot-train', True),
    ],
)
def test_a_program_that_trains_is_tapped_only_on_demand(switch, program, enabled):
    assert LerobotSettings.read({'SAFE_TAP': switch}, program).enabled is enabled


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('SAFE_TAP', 'off'),
        ('SAFE_BRIDGE', 'robot:7001'),
        ('SAFE_EXEC_HORIZON', '0'),
        ('SAFE_EXEC_HORIZON', 'ten'),
        ('SAFE_WAIT', '-1'),
        ('SAFE_WAIT', 'nan'),
        ('SAFE_WAIT', 'soon'),
    ],
)
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(SafeError) as caught:
        LerobotSettings.read({name: value}, 'lerobot-eval')
    assert repr(value) in str(caught.value)
    assert name in str(caught.value) or name == 'SAFE_BRIDGE'
