# SPDX-License-Identifier: Apache-2.0
"""Attaches the tap of SAFE to the policies of this process when LeRobot imports its plugins."""

from __future__ import annotations

from vla_feature_bridge.taps.lerobot_plugin import install, uninstall

__all__ = ['install', 'uninstall']

install()
