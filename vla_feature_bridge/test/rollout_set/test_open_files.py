# SPDX-License-Identifier: Apache-2.0
"""A rollout set of any size is read with few open files and a limited number of memory maps."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from rollout_factory import make_rollout

from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout_set import mapping
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

SPEC = FeatureSpec('state', 4)
#: A file of so many steps is mapped.
LONG = mapping.SMALL_BYTES // 16 + 1


def write(path, count, steps):
    with RolloutSetWriter(path, feature=SPEC) as writer:
        for index in range(count):
            writer.add(make_rollout(index, steps=steps))
    return path


def maps_of_process():
    with open('/proc/self/maps') as lines:
        return sum('.safetensors' in line for line in lines)


@pytest.fixture(autouse=True)
def no_garbage():
    """Close the files and the maps that other tests have left to the garbage collector."""
    gc.collect()


@pytest.mark.parametrize('steps', [2, LONG])
def test_rollouts_keep_no_file_open(tmp_path, steps):
    path = write(tmp_path / 'set', 40, steps)
    before = len(os.listdir('/proc/self/fd'))
    rollouts = list(RolloutSet.open(path))
    assert len(os.listdir('/proc/self/fd')) == before
    for index, rollout in enumerate(rollouts):
        np.testing.assert_array_equal(rollout.features, make_rollout(index, steps=steps).features)


def test_a_set_is_read_with_fewer_open_files_than_rollouts(tmp_path):
    path = write(tmp_path / 'set', 200, LONG)
    code = (
        'import resource, sys\n'
        'from vla_feature_bridge.rollout_set.reader import RolloutSet\n'
        'resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n'
        'rollouts = list(RolloutSet.open(sys.argv[1]))\n'
        'print(len(rollouts), sum(float(r.features[-1, 0]) for r in rollouts))\n'
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    run = [sys.executable, '-c', code, str(path)]
    done = subprocess.run(run, check=True, env=environment, capture_output=True, text=True)
    total = sum(float(make_rollout(i, steps=LONG).features[-1, 0]) for i in range(200))
    assert done.stdout.split() == ['200', str(total)]


def test_large_files_are_mapped_and_small_ones_are_read(tmp_path):
    large = list(RolloutSet.open(write(tmp_path / 'large', 5, LONG)))
    assert maps_of_process() == 5
    small = list(RolloutSet.open(write(tmp_path / 'small', 5, 2)))
    assert maps_of_process() == 5
    assert len(large) == len(small)


def test_a_view_keeps_its_map_and_the_last_view_gives_it_back(tmp_path):
    before = mapping.maps()
    view = RolloutSet.open(write(tmp_path / 'set', 1, LONG))[0].features[LONG - 1 :, 2:]
    gc.collect()
    assert mapping.maps() == before + 1
    np.testing.assert_array_equal(view, make_rollout(0, steps=LONG).features[LONG - 1 :, 2:])
    del view
    gc.collect()
    assert mapping.maps() == before


def test_files_are_read_if_there_are_too_many_maps(tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, 'MAX_MAPS', mapping.maps() + 3)
    rollouts = list(RolloutSet.open(write(tmp_path / 'set', 8, LONG)))
    assert mapping.maps() == mapping.MAX_MAPS
    assert maps_of_process() == 3
    for index, rollout in enumerate(rollouts):
        np.testing.assert_array_equal(rollout.features, make_rollout(index, steps=LONG).features)
        assert not rollout.features.flags.writeable


def test_a_map_that_fails_is_not_counted(tmp_path):
    before = mapping.maps()
    with pytest.raises(OSError, match='missing'):
        mapping.file_bytes(tmp_path / 'missing')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(OSError, match='folder'):
        mapping.file_bytes(tmp_path / 'folder')
    assert mapping.maps() == before
