# SPDX-License-Identifier: Apache-2.0
"""The bands that training calibrates are the bands that a robot's labels move."""

import numpy as np
import pytest

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_training.calibration.constant import constant_band
from safe_training.calibration.functional import calibrate

ALPHAS = (0.05, 0.1, 0.2)
STEPS = 12


def curves(count, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=generator.integers(4, STEPS + 1)) for _ in range(count)]


def functional(**options):
    generator = np.random.default_rng(7)
    return calibrate(curves(60), ALPHAS, max_steps=STEPS, generator=generator, **options)


@pytest.mark.parametrize('alpha', ALPHAS)
@pytest.mark.parametrize('modulation', ['max_deviation', 'std', 'constant'])
def test_before_the_first_label_the_thresholds_are_those_of_a_functional_band(alpha, modulation):
    band = functional(modulation=modulation)
    threshold, warning = AdaptiveBand(band, alpha, 0.02).thresholds()
    np.testing.assert_array_equal(threshold.upper, band.at(alpha).upper)
    assert (threshold.alpha, threshold.task) == (alpha, '')
    assert warning is threshold


@pytest.mark.parametrize('alpha', ALPHAS)
def test_before_the_first_label_the_thresholds_are_those_of_a_constant_band(alpha):
    band = constant_band(curves(60), ALPHAS, max_steps=STEPS)
    threshold, _ = AdaptiveBand(band, alpha, 0.02).thresholds()
    np.testing.assert_allclose(threshold.upper, band.at(alpha).upper, rtol=1e-14)


def test_the_nonconformity_says_whether_a_score_was_above_the_threshold():
    adaptive = AdaptiveBand(functional(), 0.1, 0.02)
    for scores in curves(200, seed=1):
        threshold, _ = adaptive.thresholds()
        crossed = threshold.first_crossing(scores) is not None
        value = adaptive.nonconformity('', scores)
        assert crossed == (value > adaptive.of('').threshold)
        adaptive.observe('', value, crossed)


def test_the_rollout_that_a_threshold_comes_from_raises_no_alarm():
    adaptive = AdaptiveBand(constant_band([[0.1], [0.7]], (0.4,), max_steps=1), 0.4, 0.02)
    assert adaptive.thresholds()[0].first_crossing([0.7]) is None


def test_scores_beyond_all_numbers_are_no_reason_to_fail():
    adaptive = AdaptiveBand(functional(modulation='constant'), 0.1, 0.02)
    assert adaptive.nonconformity('', [0.0, 1.7e308]) == np.inf
