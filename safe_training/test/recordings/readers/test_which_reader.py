# SPDX-License-Identifier: Apache-2.0
"""Which reader a path is for, and what no reader takes."""

import shutil

import numpy as np
import pytest
from openvla_dumps import write_episode
from shared_files import DATA

from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import load_rollouts, open_source
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

DUMP = DATA / 'openvla_dump'


def test_a_rollout_set_is_a_source(tmp_path):
    rollouts = load_rollouts(DUMP)
    feature = rollouts.feature
    with RolloutSetWriter(tmp_path / 'set', feature=feature, policy='openvla') as writer:
        for rollout in rollouts[:5]:
            writer.add(rollout)
    source = open_source(tmp_path / 'set')
    assert (source.kind, source.policy, source.feature) == ('rollout_set', 'openvla', feature)
    found = load_rollouts(tmp_path / 'set')
    for one, other in zip(found, rollouts, strict=False):
        assert isinstance(one, Rollout)
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.actions, other.actions)
    open_source(tmp_path / 'set', pooling=(('token', 'last'),), feature='hidden_states')
    with pytest.raises(
        DumpError, match=r'expected the pooling of this set, .* found the pooling token=mean'
    ):
        open_source(tmp_path / 'set', pooling=(('token', 'mean'),))
    with pytest.raises(
        DumpError, match=r"expected the feature 'hidden_states', .* found 'feat_mean'"
    ):
        open_source(tmp_path / 'set', feature='feat_mean')


def test_a_set_with_a_lost_file(tmp_path):
    rollouts = load_rollouts(DUMP)
    feature = rollouts.feature
    with RolloutSetWriter(tmp_path / 'set', feature=feature) as writer:
        for rollout in rollouts[:3]:
            writer.add(rollout)
    file = tmp_path / 'set' / 'arrays' / '000001.safetensors'
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.write_bytes(data)
    found = load_rollouts(tmp_path / 'set', skip_bad=True)
    assert [rollout.episode_id for rollout in found] == ['task0--ep0', 'task0--ep3']


def test_what_no_reader_recognises(tmp_path):
    def message(path):
        with pytest.raises(DumpError) as caught:
            open_source(path)
        assert str(caught.value).startswith(f'{path}: expected ')
        return str(caught.value)

    assert 'found an empty folder; check the path' in message(tmp_path)
    assert 'a file or folder, found no file or folder; check the path' in message(
        tmp_path / 'nothing'
    )
    (tmp_path / 'a.txt').write_text('hello')
    assert 'found a folder that contains a.txt; check' in message(tmp_path)
    assert 'found a file of 5 bytes with the name a.txt; check' in message(tmp_path / 'a.txt')
    np.savez(tmp_path / 'other.npz', x=np.zeros(3))
    looked_for = message(tmp_path / 'other.npz')
    for part in ('rollout_set.json', 'offsets, success', 'task{t}--ep{e}--succ{0|1}.csv'):
        assert part in looked_for
    (tmp_path / 'z.npz').write_bytes(b'hello')
    assert 'a NumPy archive (.npz), found the error: File is not a zip file' in message(
        tmp_path / 'z.npz'
    )


def test_openpi_records_are_not_taken_for_openvla(tmp_path):
    write_episode(tmp_path / 'env_records')
    (tmp_path / 'policy_records').mkdir()
    with pytest.raises(
        DumpError, match=r'policy_records: expected files named \*meta\.pkl, one file'
    ):
        open_source(tmp_path)
    with pytest.raises(DumpError, match='expected one of these formats: '):
        open_source(tmp_path / 'env_records')


def test_other_pickles_beside_a_dump_do_not_matter(tmp_path):
    write_episode(tmp_path / 'libero')
    (tmp_path / 'notes').mkdir()
    shutil.copy(tmp_path / 'libero' / 'task0--ep0--succ1.pkl', tmp_path / 'notes' / 'x.pkl')
    rollouts = load_rollouts(tmp_path)
    assert len(rollouts) == 1
