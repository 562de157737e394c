# SPDX-License-Identifier: Apache-2.0
"""Files and folders of another kind: the error names the kind and says what to do."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from openvla_dumps import write_episode
from rollout_factory import make_rollout

from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts, open_source
from safe_training.recordings.write_bag import write_bag
from vla_feature_bridge.pooling import FeatureSpec

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'a' * 64 + b'\nsize 9\n'


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('old.bag', b'#ROSBAG V2.0\n' + bytes(99), 'a ROS 1 recording; .*rosbags-convert'),
        ('x.mcap', b'#ROSBAG V2.0\n' + bytes(99), 'a ROS 1 recording; .*rosbags-convert'),
        ('x.mcap', POINTER, 'a Git LFS pointer .*git lfs pull'),
        ('x.db3', POINTER, 'a Git LFS pointer .*git lfs pull'),
        ('x.npz', POINTER, 'a Git LFS pointer .*git lfs pull'),
        ('x.npz', b'<!DOCTYPE html>', 'a web page .*failed'),
        ('x.mcap.gz', gzip.compress(b'x', mtime=0), 'gzip -d'),
        ('x.tar', b'd'.ljust(257, b'\x00') + b'ustar', 'tar -xf'),
        ('x.h5', b'\x89HDF\r\n\x1a\n', 'HDF5'),
        ('x.pkl', pickle.dumps({}), 'a pickle; give the folder'),
        ('x.mcap', bytes(4096), 'only zeros'),
    ],
)
def test_a_file_of_another_kind(tmp_path, name, content, match):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DumpError, match=match):
        open_source(file)


@pytest.mark.parametrize(
    ('files', 'match'),
    [
        (['policy_records/step_0.npy'], r'step_\*\.npy .*no hidden states; record with hidden'),
        (['step_0.npy', 'step_1.npy'], r'step_\*\.npy .*no hidden states'),
        (['env_records/a.txt', 'policy_records/step_3.npy'], 'no hidden states'),
        (['policy_records/step_0--meta.pkl'], 'without env_records; .*needs both'),
        (['meta/info.json', 'data/chunk-000/episode_000000.parquet'], 'LeRobot dataset'),
        (['1.0.0/libero-train.tfrecord-00000-of-00016'], 'RLDS'),
        (['data.zarr/a/0.0'], 'Zarr'),
    ],
)
def test_a_folder_of_another_recorder(tmp_path, files, match):
    for name in files:
        file = tmp_path / 'd' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('x')
    with pytest.raises(DumpError, match=match):
        open_source(tmp_path / 'd')


def test_a_folder_of_recordings(tmp_path):
    rollouts = [make_rollout(number) for number in range(2)]
    for name in ('monday', 'tuesday'):
        write_bag(tmp_path / 'lab' / name, rollouts, FeatureSpec('state', 4))
    with pytest.raises(DumpError, match='recordings: monday, tuesday; give the path of one'):
        open_source(tmp_path / 'lab')
    assert len(load_rollouts(tmp_path / 'lab' / 'monday')) == 2


def test_a_folder_that_contains_a_recording_of_ros_1(tmp_path):
    (tmp_path / 'run.bag').write_bytes(b'#ROSBAG V2.0\n' + bytes(99))
    with pytest.raises(DumpError, match=r'a ROS 1 recording with the name run\.bag; .*rosbags'):
        open_source(tmp_path)


@pytest.mark.parametrize('suffix', ['.pkl', '.csv'])
def test_pointers_in_a_dump(tmp_path, suffix):
    stem = write_episode(tmp_path)
    stem.with_suffix(suffix).write_bytes(POINTER)
    write_episode(tmp_path, episode=1)
    with pytest.raises(DumpError, match=rf'{stem.name}\{suffix}: .*Git LFS pointer'):
        load_rollouts(tmp_path)
    assert len(load_rollouts(tmp_path, skip_bad=True)) == 1


@pytest.mark.parametrize(
    'outcome',
    [
        torch.tensor(True),
        torch.tensor([1]),
        np.array(True),
        np.array([True]),
        np.float32(1.0),
        1.0,
        torch.tensor(1.0),
        np.uint8(1),
    ],
    ids=repr,
)
def test_an_outcome_in_any_type(tmp_path, outcome):
    write_episode(tmp_path, episode_success=outcome, task_description=np.str_('open it'))
    (rollout,) = load_rollouts(tmp_path)
    assert rollout.success is True
    assert rollout.instruction == 'open it'


@pytest.mark.parametrize(
    ('outcome', 'match'),
    [
        (torch.tensor(False), 'found 0; the file was renamed'),
        (np.array([True, False]), r'found an array of shape \(2,\); the file is not'),
        (0.5, 'found 0.5; the file was renamed'),
        (float('nan'), 'found nan; the file was renamed'),
        ('True', 'found a value of type str; the file is not'),
    ],
)
def test_an_outcome_that_is_none(tmp_path, outcome, match):
    write_episode(tmp_path, episode_success=outcome)
    with pytest.raises(DumpError, match=match):
        load_rollouts(tmp_path)
