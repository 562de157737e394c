# SPDX-License-Identifier: Apache-2.0
"""An infinite or missing statistic is refused when it is read, with file and step."""

import numpy as np
import pytest
from openvla_dumps import write_episode
from test_pooled_npz import named, numbered, save

from safe_training.recordings.convert import convert
from safe_training.recordings.errors import DumpError
from safe_training.recordings.readers.statistics import checked_statistics
from safe_training.recordings.sources import load_rollouts
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter


def change_cell(stem, column, text, row=2):
    file = stem.with_suffix('.csv')
    lines = file.read_text().splitlines()
    cells = lines[row].split(',')
    cells[lines[0].split(',').index(column)] = text
    lines[row] = ','.join(cells)
    file.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize(
    ('samples', 'column', 'text', 'match'),
    [
        (False, 'action/token_0_entropy', 'inf', 'token_entropy with finite .* infinity at step 1'),
        (False, 'action/token_6_prob', '-inf', 'token_probability with .* infinity at step 1'),
        (False, 'action/token_6_prob', 'nan', 'token_6_prob.* NaN at step 1'),
        (True, 'action/pos_var', 'inf', "the signal 'pos_var' with finite .* infinity at step 1"),
        (True, 'action/entropy_linkage.05', 'nan', 'linkage.05.* NaN at step 1'),
    ],
)
@pytest.mark.parametrize('jobs', [1, 2])
def test_a_cell_of_a_dump(tmp_path, samples, column, text, match, jobs):
    for episode in range(3):
        stem = write_episode(tmp_path / 'd', episode=episode, samples=samples)
        if episode == 1:
            change_cell(stem, column, text)
    with pytest.raises(DumpError, match=rf'task0--ep1--succ1\.csv.*{match}.*--skip-bad'):
        convert(tmp_path / 'd', tmp_path / 'set', jobs=jobs)
    assert not (tmp_path / 'set').exists()
    done = convert(tmp_path / 'd', tmp_path / 'set', jobs=jobs, skip_bad=True)
    assert done['rollouts'] == 2
    assert 'task0--ep1' in done['skipped'][0]
    assert len(load_rollouts(tmp_path / 'set')) == 2


def test_a_quantity_that_was_never_measured_is_read(tmp_path):
    stem = write_episode(tmp_path, samples=True)
    for row in range(1, 5):
        change_cell(stem, 'action/rot_var', 'nan', row)
    (rollout,) = load_rollouts(tmp_path)
    assert np.isnan(rollout.signals['rot_var']).all()


@pytest.mark.parametrize(
    ('make', 'name', 'place', 'value', 'match'),
    [
        (numbered, 'token_prob', (2, 0), np.inf, 'token_probability .*infinity at step 0'),
        (numbered, 'token_entropy', (5, 3), -np.inf, 'token_entropy .*infinity at step 2'),
        (numbered, 'token_entropy', (4, 3), np.nan, 'NaN before the last token at step 1'),
        (named, 'action_signals', (1, 1), np.inf, "the signal 'eef_z' .*infinity at step 1"),
        (numbered, 'action', (4, 1), np.inf, 'actions without NaN and infinity'),
    ],
)
def test_a_value_of_an_archive(tmp_path, make, name, place, value, match):
    arrays = make()
    arrays[name][place] = value
    path = save(tmp_path / 'x.npz', arrays)
    with pytest.raises(DumpError, match=rf'x\.npz: episode .*{match}'):
        load_rollouts(path)
    assert len(load_rollouts(path, skip_bad=True)) == 2


def test_nan_behind_the_last_token_is_no_value(tmp_path):
    arrays = numbered()
    for name in ('token_prob', 'token_entropy'):
        arrays[name][1, 5:] = np.nan
    rollouts = load_rollouts(save(tmp_path / 'x.npz', arrays))
    assert rollouts[0].step(1).token_probability.shape == (5,)


def test_other_statistics():
    def rollout(**fields):
        return Rollout(features=np.zeros((3, 2), np.float32), task='t', **fields)

    late = np.array([0.1, np.inf, 0.1], np.float32)
    with pytest.raises(DumpError, match=r'a: episode .*inference_time .*infinity at step 1'):
        checked_statistics(rollout(inference_time=late), 'a')
    first = np.array([np.nan, 1, 2], np.float32)
    checked_statistics(rollout(signals={'chunk_mse': first}, inference_time=first), 'a')


def test_a_set_of_an_older_version_still_loads(tmp_path):
    with RolloutSetWriter(tmp_path / 'set', feature=FeatureSpec('f', 2)) as writer:
        writer.add(
            Rollout(
                features=np.zeros((2, 2), np.float32),
                task='t',
                feature_name='f',
                success=True,
                token_entropy=np.array([[1], [np.inf]], np.float32),
            )
        )
    assert len(load_rollouts(tmp_path / 'set')) == 1
