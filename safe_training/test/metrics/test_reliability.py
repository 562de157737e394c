# SPDX-License-Identifier: Apache-2.0
"""Whether probabilities of failure can be taken at their word."""

import numpy as np
import pytest

from safe_training.metrics.reliability import reliability
from safe_training.metrics.scored import MetricError


def test_by_hand():
    found = reliability([0.1, 0.15, 0.9, 1.0], [False, True, True, True], bins=5)
    assert found.brier == pytest.approx((0.01 + 0.7225 + 0.01 + 0.0) / 4)
    assert found.bin_count.tolist() == [2, 0, 0, 0, 2]
    assert found.bin_confidence[[0, 4]] == pytest.approx([0.125, 0.95])
    assert found.bin_frequency[[0, 4]] == pytest.approx([0.5, 1.0])
    assert np.isnan(found.bin_confidence[1:4]).all()
    assert found.calibration_error == pytest.approx((2 * 0.375 + 2 * 0.05) / 4)


def test_true_probabilities_are_reliable_and_overconfident_ones_are_not():
    generator = np.random.default_rng(0)
    truth = generator.uniform(size=20_000)
    failed = generator.uniform(size=truth.size) < truth
    honest = reliability(truth, failed)
    boastful = reliability(np.where(truth > 0.5, 1.0, 0.0), failed)
    assert honest.calibration_error < 0.02
    assert honest.brier == pytest.approx(1 / 6, abs=0.01)
    assert boastful.calibration_error == pytest.approx(0.25, abs=0.02)
    assert boastful.brier > honest.brier
    assert (honest.bin_count > 1800).all()


def test_one_outcome_is_enough():
    found = reliability([0.25, 0.25], [False, False])
    assert found.brier == pytest.approx(0.0625)
    assert found.calibration_error == pytest.approx(0.25)


@pytest.mark.parametrize(
    ('values', 'failed', 'bins', 'message'),
    [
        ([], [], 10, 'expected at least one rollout.*, found no'),
        ([0.5], [True], 0, 'at least one bin'),
        ([0.5, 1.5], [True, False], 10, r'rollout 1: expected a probability .*, found 1\.5'),
        ([-0.1], [True], 10, r'rollout 0: expected a probability .*, found -0\.1'),
        ([np.nan], [True], 10, 'nan'),
        ([0.5], [True, False], 10, 'same shape'),
    ],
)
def test_what_is_no_probability_is_refused(values, failed, bins, message):
    with pytest.raises(MetricError, match=message):
        reliability(values, failed, bins)
