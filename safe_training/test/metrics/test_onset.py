# SPDX-License-Identifier: Apache-2.0
"""Where a failure began, estimated from all scores of a rollout."""

import numpy as np
import pytest

from safe_training.metrics.onset import Located, onset_report, onset_step
from safe_training.metrics.scored import MetricError, ScoredRollout


@pytest.mark.parametrize(
    ('values', 'step'),
    [
        ([0, 0, 0, 1, 1], 3),
        ([0, 1, 1, 1, 1, 1, 1, 1], 1),
        ([0, 0, 0, 0, 0, 0, 0, 1], 7),
        ([0, 0.1, -0.1, 0, 2, 2.1, 1.9], 4),
        # A short peak is not the change that explains most.
        ([0, 2, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], 6),
        ([5, 4, 3, 2], 0),
        ([1, 1, 1], 0),
        ([3], 0),
    ],
)
def test_the_step_from_which_on_values_are_higher(values, step):
    assert onset_step(values) == step


def test_it_is_the_division_with_the_smallest_squares():
    generator = np.random.default_rng(0)
    for _ in range(50):
        length = int(generator.integers(2, 30))
        begins = int(generator.integers(1, length + 1))
        values = generator.normal(size=length) + 2.0 * (np.arange(length) >= begins)
        squares = {
            step: values[:step].var() * step + values[step:].var() * (length - step)
            for step in range(1, length)
            if values[step:].mean() > values[:step].mean()
        }
        expected = min(squares, key=squares.__getitem__) if squares else 0
        assert onset_step(values) == expected


def test_a_change_in_noise_is_found():
    generator = np.random.default_rng(1)
    distances = []
    for _ in range(200):
        begins = int(generator.integers(5, 35))
        values = generator.normal(size=40) + 2.0 * (np.arange(40) >= begins)
        distances.append(abs(onset_step(values) - begins))
    assert np.median(distances) == 0 and np.mean(distances) < 1


@pytest.mark.parametrize('values', [[], [[1.0]], [0.0, np.nan]])
def test_values_that_cannot_be_are_refused(values):
    with pytest.raises(MetricError, match=r'expected finite values of shape \(T,\)'):
        onset_step(values)


def scored(length, begun, estimate, failed=True):
    return ScoredRollout(np.zeros(length), failed, 'a', failure_step=begun, onset_step=estimate)


def test_the_report_by_hand():
    rollouts = [
        scored(10, 4, 5),
        scored(11, 0, 3),
        scored(21, 10, 10),
        scored(9, None, 2),  # not annotated
        scored(9, None, None, failed=False),
    ]
    found = onset_report(rollouts, [9, None, 11, 0, 3])
    assert found.leads.leads.tolist() == [-1.0, -3.0, 0.0]
    assert found.onset == Located(1.0, pytest.approx(2 / 3))
    # The second has no alarm: its last step is 10.
    assert found.alarm == Located(5.0, pytest.approx(1 / 3))
    # The middles are 5, 5 and 10.
    assert found.middle == Located(1.0, pytest.approx(2 / 3))


def test_without_annotations_or_estimates_there_is_no_report():
    assert onset_report([scored(5, None, 2)], [1]) is None
    assert onset_report([scored(5, 2, None)], [1]) is None
    with pytest.raises(MetricError, match='no annotated failure step for a success'):
        onset_report([scored(5, 2, 2, failed=False)], [1])
