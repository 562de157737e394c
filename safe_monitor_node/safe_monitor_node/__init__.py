# SPDX-License-Identifier: Apache-2.0
"""Scores policy steps as they arrive, compares the scores with a calibrated band and raises alarms.

detectors             all failure detectors, by name
bands                 thresholds with a promised false-alarm rate
calibrated_detector   a fitted detector with its band
storage               detector folders and adaptation files
monitor               the alarm, one episode after another; no ROS
looking               robots in the terminal, in the browser and in the camera image; no ROS
threads               limits the CPU threads of NumPy and PyTorch
black_box             the last seconds before and after an alarm, in a file; no ROS
nodes                 the ROS 2 nodes
verbs                 the commands of an operator: ``ros2 safe VERB``

Each subpackage imports only subpackages that are listed above it. The package does not import
``safe_training``. The names below are loaded when they are first used::

    from safe_monitor_node import AlarmConfig, EpisodeMonitor, load_detector

    monitor = EpisodeMonitor(load_detector('my_detector'), config=AlarmConfig(k=2, n=3))
    result = monitor.step(step, now)  # a vla_feature_bridge.step.PolicyStep, and seconds
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_monitor_node.bands.band import Band
    from safe_monitor_node.calibrated_detector import CalibratedDetector
    from safe_monitor_node.detectors.registry import make_detector
    from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmState
    from safe_monitor_node.monitor.episode_monitor import EpisodeMonitor
    from safe_monitor_node.monitor.steps import StepResult
    from safe_monitor_node.storage.detector_folder import load_detector

__all__ = [
    'AlarmConfig',
    'AlarmState',
    'Band',
    'CalibratedDetector',
    'EpisodeMonitor',
    'StepResult',
    'load_detector',
    'make_detector',
]

_MODULES = {
    'AlarmConfig': 'monitor.alarm',
    'AlarmState': 'monitor.alarm',
    'Band': 'bands.band',
    'CalibratedDetector': 'calibrated_detector',
    'EpisodeMonitor': 'monitor.episode_monitor',
    'StepResult': 'monitor.steps',
    'load_detector': 'storage.detector_folder',
    'make_detector': 'detectors.registry',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
