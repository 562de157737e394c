# SPDX-License-Identifier: Apache-2.0
"""The names that a user imports from the package, and that importing it loads nothing."""

import json
import subprocess
import sys

import pytest

import vla_feature_bridge
import vla_feature_bridge.ros


@pytest.mark.parametrize('module', [vla_feature_bridge, vla_feature_bridge.ros])
def test_every_public_name_is_there(module):
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
        assert name in dir(module)


@pytest.mark.parametrize('module', [vla_feature_bridge, vla_feature_bridge.ros])
def test_another_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="has no attribute 'Rolout'"):
        _ = module.Rolout


@pytest.mark.parametrize(
    ('statement', 'not_loaded'),
    [
        ('import vla_feature_bridge', ['numpy', 'ml_dtypes', 'pyarrow', 'torch', 'rclpy']),
        ('import vla_feature_bridge.ros', ['numpy', 'torch', 'rclpy']),
        (
            'from vla_feature_bridge import PolicyStep, Rollout, RolloutSet, FeatureSpec',
            ['pyarrow', 'torch', 'rclpy'],
        ),
    ],
)
def test_importing_loads_only_what_is_needed(statement, not_loaded):
    script = f'{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))'
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True, timeout=60
    )
    assert not set(not_loaded) & set(json.loads(done.stdout))
