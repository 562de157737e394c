# SPDX-License-Identifier: Apache-2.0
"""Gives each test the marker of its folder; ``pyproject.toml`` says what each marker means."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine, drawing examples can be slow. This is not a failure.
settings.register_profile('safe', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('safe')

TOP = Path(__file__).parent
MARKERS = {
    'launch/test': 'ros',
    'safe_monitor_node/test/nodes': 'ros',
    'test/system': 'ros',
    'vla_feature_bridge/test/nodes': 'ros',
    'vla_feature_bridge/test/ros': 'ros',
    'test/browser': 'browser',
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the marker of its folder."""
    for item in items:
        for folder, marker in MARKERS.items():
            if item.path.is_relative_to(TOP / folder):
                item.add_marker(marker)
