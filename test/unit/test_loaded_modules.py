# SPDX-License-Identifier: Apache-2.0
"""A robot loads no training code; everything but nodes and messages works without ROS."""

import json
import os
import subprocess
import sys

import pytest
from source_tree import NOT_ON_A_ROBOT, PACKAGES, ROS, RUNTIME, knows_ros, module_name, sources


def in_a_fresh_interpreter(code):
    """Run code in a new Python; returns what it prints as JSON."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


IMPORT_AND_USE = """
import importlib, json, sys, tempfile
from pathlib import Path

for name in {modules!r}:
    importlib.import_module(name)

import numpy as np
from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

with tempfile.TemporaryDirectory() as place:
    feature = FeatureSpec('hidden_states', 4)
    with RolloutSetWriter(Path(place) / 'set', feature=feature) as writer:
        writer.add(Rollout(np.zeros((3, 4), np.float32), task='t'))
    rollout = RolloutSet.open(Path(place) / 'set')[0]
    detector = make_detector('safe_lstm', hidden=2)
    detector.set_network(detector.build(4), 4)
    band = Band(np.array([0.1]), np.ones((1, 3)), 'any', 9)
    folder = CalibratedDetector(detector, feature, band, 0.1).save(Path(place) / 'd')
    stream = CalibratedDetector.load(folder).detector.stream()
    for t in range(3):
        stream.step(rollout.step(t))

print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))
"""


@pytest.mark.slow
@pytest.mark.ros
def test_a_robot_loads_no_training_code():
    modules = [module_name(source) for package in RUNTIME for source in sources(package)]
    assert 'safe_monitor_node.nodes.monitor_node' in modules
    assert 'vla_feature_bridge.nodes.replay_node' in modules
    loaded = set(in_a_fresh_interpreter(IMPORT_AND_USE.format(modules=modules)))
    assert {'rclpy', 'safe_msgs', 'torch', 'pyarrow'} <= loaded, 'the test sees what is loaded'
    assert not loaded & NOT_ON_A_ROBOT


WITHOUT_ROS = """
import sys

class NoRos:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ros!r}:
            raise ImportError(f'{{name}} is not there')

for name in list(sys.modules):
    assert name.split('.')[0] not in {ros!r}, name
sys.meta_path.insert(0, NoRos())
try:
    import rclpy
except ImportError:
    pass
else:
    raise AssertionError('rclpy is there')
"""


@pytest.mark.slow
def test_everything_but_nodes_and_messages_works_without_ros():
    modules = [
        module_name(source)
        for package in PACKAGES
        for source in sources(package)
        if not knows_ros(source) and source.name != '__main__.py'
    ]
    assert 'safe_training.cli.main' in modules
    code = WITHOUT_ROS.format(ros=sorted(ROS)) + IMPORT_AND_USE.format(modules=modules)
    assert not set(in_a_fresh_interpreter(code)) & ROS
