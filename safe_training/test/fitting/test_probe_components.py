# SPDX-License-Identifier: Apache-2.0
"""The principal components of the probe, and those without the steps of one task."""

import numpy as np
import pytest
from rollout_factory import make_rollout

from safe_monitor_node.detectors import DetectorError, make_detector
from safe_training.evaluation.left_out import leave_one_task_out_scores
from safe_training.fitting.probe_components import TaskMoments, principal

WIDTH = 300
STEPS = 240


@pytest.fixture(scope='module')
def features():
    """Steps of four tasks: ten strong directions, noise, a large mean and two constant features."""
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(4), STEPS)
    strong = rng.normal(size=(len(task), 10)) * np.linspace(9, 3, 10)
    place = 3 * rng.normal(size=(4, 10))
    flat = (strong + place[task]) @ rng.normal(size=(10, WIDTH))
    flat = 50 + flat + 0.1 * rng.normal(size=flat.shape)
    flat[:, 7] = 3.0
    flat[task != 2, 8] = -1.0  # constant only without task 2
    return flat.astype(np.float32), task


def test_components_have_unit_variance_and_belong_to_their_map(features):
    flat, _ = features
    found = principal(flat, 10)
    assert found.values.shape == (len(flat), 10)
    np.testing.assert_allclose(found.values.std(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(flat @ found.projection.T + found.offset, found.values, atol=2e-3)
    np.testing.assert_array_equal(found.projection[:, 7], 0)


@pytest.mark.parametrize('left_out', range(4))
def test_components_without_a_task_are_those_of_the_other_steps(features, left_out):
    flat, task = features
    expected = principal(flat[task != left_out], 10)
    found = TaskMoments(flat, task).components(10, without=left_out)
    assert found.values.shape == expected.values.shape
    # Each component up to its sign.
    signs = np.sign((found.values * expected.values).sum(axis=0))
    np.testing.assert_allclose(found.values * signs, expected.values, atol=5e-3)
    other = flat[task == left_out]
    np.testing.assert_allclose(
        signs * (other @ found.projection.T + found.offset),
        other @ expected.projection.T + expected.offset,
        atol=1e-2,
    )
    constant = [7] if left_out != 2 else [7, 8]
    np.testing.assert_array_equal(found.projection[:, constant], 0)


def wide_rollouts(features):
    flat, task = features
    rng = np.random.default_rng(1)
    rollouts = []
    for index, start in enumerate(range(0, len(flat), 12)):
        failed = index % 3 == 0
        signal = np.exp(rng.normal(size=12) + failed).astype(np.float32)
        rollouts.append(
            make_rollout(
                index,
                features=flat[start : start + 12] + np.float32(2.0 * failed),
                task=f'task_{task[start]}',
                success=not failed,
                signals={'chunk_mse': signal},
            )
        )
    return rollouts


@pytest.mark.parametrize(
    'params', [{}, {'inputs': 'signals'}, {'method': 'distance'}, {'components': 5}]
)
def test_scores_without_each_task_are_those_of_separate_fits(features, params):
    rollouts = wide_rollouts(features)
    steps = sum(map(len, rollouts))
    assert TaskMoments.pay(steps, WIDTH, 4, params.get('components', 64))
    # Ten strong directions: more components would be noise, which no two methods agree on.
    params = {'components': 10, **params}
    probe = make_detector('linear_probe', **params).fit(rollouts)
    found = leave_one_task_out_scores(probe, rollouts)
    for task in sorted({r.task for r in rollouts}):
        model = make_detector('linear_probe', **params)
        model.fit([r for r in rollouts if r.task != task])
        for scores, rollout in zip(found, rollouts, strict=True):
            if rollout.task == task:
                np.testing.assert_allclose(scores, model.score(rollout), atol=0.02, rtol=0.02)


def test_a_task_that_cannot_be_left_out_is_named(features):
    rollouts = [r for r in wide_rollouts(features) if r.task == 'task_1' or r.success]
    with pytest.raises(DetectorError, match=r"without task 'task_1'.*and 0 failures"):
        leave_one_task_out_scores(make_detector('linear_probe'), rollouts)
