# SPDX-License-Identifier: Apache-2.0
"""Monitors with the same detector folder share one detector in memory, and never an old one."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from band_factory import constant_band

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.storage import shared_detectors
from safe_monitor_node.storage.detector_folder import DetectorFolderError
from safe_monitor_node.storage.shared_detectors import shared_detector
from vla_feature_bridge.pooling import FeatureSpec


def save(folder, scale=1.0, overwrite=False):
    detector = make_detector('action_norm')
    detector.load_state({}, 4)
    band = constant_band(scale * (np.arange(39) + 1) / 39, (0.1,), 20)
    calibrated = CalibratedDetector(detector, FeatureSpec('f', 4), band, 0.1)
    return calibrated.save(folder, overwrite=overwrite)


def test_equal_folders_are_one_detector_in_memory(tmp_path):
    folder = save(tmp_path / 'one')
    first = shared_detector(folder)
    assert shared_detector(str(folder)) is first
    copy = shutil.copytree(folder, tmp_path / 'copy')
    assert shared_detector(copy) is first
    assert shared_detector(save(tmp_path / 'other', 2.0)) is not first
    assert shared_detector('signal_probe') is shared_detector('signal_probe')


def test_a_folder_that_was_replaced_is_read_again(tmp_path):
    folder = save(tmp_path / 'one')
    first = shared_detector(folder)
    save(folder, 2.0, overwrite=True)
    second = shared_detector(folder)
    assert second.band.at(0.1).at(0) == pytest.approx(2 * first.band.at(0.1).at(0))


def test_a_damaged_folder_is_refused_although_its_detector_is_in_memory(tmp_path):
    folder = save(tmp_path / 'one')
    first = shared_detector(folder)
    weights = folder / 'weights.safetensors'
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DetectorFolderError, match='sha256'):
        shared_detector(folder)
    weights.unlink()
    with pytest.raises(DetectorFolderError, match='no such file'):
        shared_detector(folder)
    weights.write_bytes(data)
    assert shared_detector(folder) is first


def test_a_detector_without_a_monitor_leaves_the_memory(tmp_path):
    folder = save(tmp_path / 'one')
    gc.collect()  # what other tests left
    kept = shared_detector(folder)
    before = len(shared_detectors._loaded)
    del kept
    gc.collect()
    assert len(shared_detectors._loaded) == before - 1


@pytest.mark.parametrize('error', ['OSError', 'ValueError', 'RuntimeError', 'ImportError'])
def test_a_broken_pytorch_of_one_robot_does_not_end_a_fleet(error, tmp_path):
    (tmp_path / 'torch.py').write_text(f"raise {error}('libcudart.so.12: cannot open it')\n")
    (tmp_path / 'detector.json').write_text('{"detector": "rnd"}')
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r}); '
        'from safe_monitor_node.storage.shared_detectors import import_code; '
        f'import_code({str(tmp_path)!r})'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


WHILE_IT_OPENS = """
import json, sys, threading, time
from safe_monitor_node.storage.shared_detectors import open_torch

sys.setswitchinterval(0.0005)
took = []
def work():
    began = time.monotonic()
    open_torch()
    took.append(time.monotonic() - began)

thread = threading.Thread(target=work)
longest, last = 0.0, time.monotonic()
thread.start()
while thread.is_alive():
    time.sleep(0.001)
    longest, last = max(longest, time.monotonic() - last), time.monotonic()
libraries = 'libtorch_cpu' in open('/proc/self/maps').read()
import torch
print(json.dumps([took[0], longest, libraries, float(torch.ones(3).sum())]))
"""


def test_other_threads_go_on_while_the_libraries_of_pytorch_are_opened():
    pytest.importorskip('torch', reason='PyTorch is needed')
    done = subprocess.run(
        [sys.executable, '-c', WHILE_IT_OPENS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    took, longest, libraries, total = json.loads(done.stdout)
    assert libraries
    assert total == 3.0
    assert longest < max(0.5 * took, 0.1), f'a pause of {longest:.2f} s of {took:.2f} s'
