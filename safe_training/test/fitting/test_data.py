# SPDX-License-Identifier: Apache-2.0
"""Training rollouts become arrays: read as float32, checked, and never padded."""

import dataclasses

import numpy as np
import pytest
import torch
from rollout_factory import make_rollout, make_rollouts
from shared_files import golden_arrays

from safe_monitor_node.detectors import DetectorError, make_detector
from safe_monitor_node.detectors.networks import pad_steps
from safe_training.fitting.data import stack_rollouts
from safe_training.fitting.density import training_inputs
from safe_training.fitting.learned import TrainingData

WIDTH = 6


def test_rollouts_of_any_float_dtype_are_read_as_float32_without_padding():
    rollouts = make_rollouts(5, dim=WIDTH)
    rollouts[1] = dataclasses.replace(rollouts[1], features=rollouts[1].features.astype(np.float64))
    data = TrainingData.of(rollouts)
    assert data.flat.dtype == torch.float32
    assert data.flat.shape == (sum(map(len, rollouts)), WIDTH)
    assert data.lengths.tolist() == [len(r) for r in rollouts]
    assert data.failed.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    np.testing.assert_array_equal(data.valid().sum(dim=1), data.lengths)
    taken = data.take(torch.tensor([3, 0]))
    assert taken.lengths.tolist() == [len(rollouts[3]), len(rollouts[0])]
    np.testing.assert_array_equal(
        taken.flat, np.concatenate([rollouts[3].features, rollouts[0].features])
    )


@pytest.mark.parametrize('empty', [slice(None), slice(3, 4)], ids=['all', 'one'])
def test_rollouts_without_features_are_refused_with_what_to_do(empty):
    rollouts = make_rollouts(5, dim=WIDTH)
    rollouts[empty] = [dataclasses.replace(r, features=r.features[:, :0]) for r in rollouts[empty]]
    first = rollouts[empty][0].episode_id
    with pytest.raises(DetectorError, match=r'found only signals.*--feature') as error:
        stack_rollouts(rollouts)
    assert repr(first) in str(error.value)


def test_rollouts_of_unequal_length_are_padded_as_published():
    arrays = golden_arrays('padding')
    rollouts = [
        make_rollout(
            k,
            features=arrays[f'pad/in/hidden{k}'].astype(np.float32),
            success=bool(arrays['pad/out/success'][k]),
            actions=arrays[f'pad/in/action{k}'].astype(np.float32)[:, None, None],
        )
        for k in range(3)
    ]
    data = TrainingData.of(rollouts)
    padded = pad_steps(data.flat, data.lengths)
    np.testing.assert_allclose(padded, arrays['pad/out/features'], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(data.valid(), arrays['pad/out/valid_masks'])
    np.testing.assert_array_equal(1 - data.failed, arrays['pad/out/success'])
    # The published code pads actions wrongly; these are what it means to give to RND.
    _, chunks = training_inputs(make_detector('rnd'), rollouts)
    padded = pad_steps(chunks.flatten(1), data.lengths)
    wanted = arrays['pad/out/action_vectors_intended']
    np.testing.assert_allclose(padded, wanted, rtol=1e-6, atol=1e-6)
    assert not np.allclose(wanted, arrays['pad/out/action_vectors_reference_buggy'])
