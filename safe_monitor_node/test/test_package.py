# SPDX-License-Identifier: Apache-2.0
"""The Python API of the package, and the modules that it loads."""

import json
import subprocess
import sys

import numpy as np
import pytest

import safe_monitor_node
from vla_feature_bridge.pooling import FeatureSpec


def loaded_after(code):
    """Run code in a new Python; returns the top-level modules that it has loaded."""
    code += '\nimport json, sys; print(json.dumps(sorted({n.split(".")[0] for n in sys.modules})))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize('name', safe_monitor_node.__all__)
def test_every_name_of_the_api_is_there(name):
    assert getattr(safe_monitor_node, name).__name__ == name
    assert name in dir(safe_monitor_node)


def test_dir_lists_the_subpackages_that_are_loaded():
    assert safe_monitor_node.EpisodeMonitor
    assert {'monitor', 'detectors', '__doc__', *safe_monitor_node.__all__} <= set(
        dir(safe_monitor_node)
    )


def test_a_calibrated_detector_can_be_a_key():
    detector = safe_monitor_node.make_detector('action_norm')
    detector.load_state({}, 4)
    band = safe_monitor_node.Band(np.array([0.1]), np.ones((1, 3)), 'any', 9)
    one, other = (
        safe_monitor_node.CalibratedDetector(detector, FeatureSpec('features', 4), band, 0.1)
        for _ in range(2)
    )
    assert {one: 1, other: 2}[one] == 1


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="'safe_monitor_node' has no attribute 'Monitor'"):
        safe_monitor_node.Monitor  # noqa: B018


def test_the_package_itself_loads_nothing():
    assert 'numpy' not in loaded_after('import safe_monitor_node')


SCORE = """
import sys, tempfile
import numpy as np
from safe_monitor_node import Band, CalibratedDetector, EpisodeMonitor, load_detector, make_detector
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import PolicyStep

detector = make_detector('action_norm')
detector.load_state({}, 4)
band = Band(np.array([0.1]), np.ones((1, 3)), 'any', 9)
with tempfile.TemporaryDirectory() as place:
    calibrated = CalibratedDetector(detector, FeatureSpec('features', 4), band, 0.1)
    monitor = EpisodeMonitor(load_detector(calibrated.save(place + '/detector')))
step = PolicyStep(np.zeros(4, np.float32), episode_id='a', signals={'action_norm': 2.0})
assert monitor.step(step, 0.0).verdict.state.name == 'ALARM'
"""


def test_a_detector_in_numpy_is_saved_loaded_and_scored_without_torch():
    loaded = loaded_after(SCORE)
    assert not loaded & {'torch', 'pyarrow', 'rclpy', 'safe_training', 'scipy', 'sklearn'}


@pytest.mark.ros
@pytest.mark.parametrize('node', ['monitor', 'watch', 'dashboard', 'markers', 'overlay'])
def test_a_node_loads_no_torch(node):
    loaded = loaded_after(f'import safe_monitor_node.nodes.{node}_node')
    assert 'rclpy' in loaded
    assert not loaded & {'torch', 'pyarrow', 'safe_training', 'cv2', 'cv_bridge'}
