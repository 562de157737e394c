# SPDX-License-Identifier: Apache-2.0
"""A band with adaptive thresholds: its first values, the effect of each label, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from band_factory import constant_band, functional_band

from safe_monitor_node.bands.adaptive_band import AdaptiveBand, name_of
from safe_monitor_node.bands.adaptive_threshold import AdaptationError
from safe_monitor_node.bands.band import Band, BandShape

ALPHAS = (0.05, 0.1, 0.2)
STEPS = 12


def curves(count, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=generator.integers(4, STEPS + 1)) for _ in range(count)]


def functional(count=60, seed=0, modulation='std'):
    return functional_band(curves(count, seed), ALPHAS, STEPS, modulation)


def with_tasks(**tasks):
    band = functional()
    return Band(
        band.alphas, band.upper, band.kind, band.n_calibration, band.n_center, {}, band.shape, tasks
    )


@pytest.mark.parametrize('alpha', ALPHAS)
@pytest.mark.parametrize('modulation', ['max_deviation', 'std', 'constant'])
def test_before_the_first_label_the_thresholds_are_those_of_the_band(alpha, modulation):
    band = functional(modulation=modulation)
    threshold, warning = AdaptiveBand(band, alpha, 0.02).thresholds()
    np.testing.assert_array_equal(threshold.upper, band.at(alpha).upper)
    assert (threshold.alpha, threshold.task) == (alpha, '')
    assert warning is threshold
    one_for_all = constant_band([curve.max() for curve in curves(60)], ALPHAS, STEPS)
    threshold, _ = AdaptiveBand(one_for_all, alpha, 0.02).thresholds()
    np.testing.assert_allclose(threshold.upper, one_for_all.at(alpha).upper, rtol=1e-14)


def test_warnings_come_before_alarms_however_far_the_thresholds_move():
    band = functional()
    adaptive = AdaptiveBand(band, 0.1, 0.05, warning_alpha=0.2)
    generator = np.random.default_rng(0)
    for value in generator.normal(3.0, 2.0, size=300):
        threshold, warning = adaptive.thresholds()
        assert (threshold.alpha, warning.alpha) == (0.1, 0.2)
        assert (warning.upper <= threshold.upper).all()
        adaptive.observe('', value, value > adaptive.of('').threshold)
    assert (warning.upper < threshold.upper).any()


def test_the_nonconformity_says_whether_a_score_was_above_the_threshold():
    adaptive = AdaptiveBand(functional(), 0.1, 0.02)
    for scores in curves(200, seed=1):
        threshold, _ = adaptive.thresholds()
        crossed = threshold.first_crossing(scores) is not None
        value = adaptive.nonconformity('', scores)
        assert crossed == (value > adaptive.of('').threshold)
        adaptive.observe('', value, crossed)
    # An equal score is not above: the calibration rollout of the threshold raises no alarm.
    one = AdaptiveBand(constant_band([0.1, 0.7], (0.4,), 1), 0.4, 0.02)
    assert one.thresholds()[0].first_crossing([0.7]) is None


def test_each_task_with_a_finite_band_of_its_own_moves_by_itself():
    pour, rare = functional(seed=1), functional(count=3, seed=2)
    band = with_tasks(pour=pour, rare=rare)
    assert np.isinf(rare.at(0.1).upper).all()
    adaptive = AdaptiveBand(band, 0.1, 0.02)
    assert adaptive.tasks == ('', 'pour')
    assert [adaptive.task_of(task) for task in ('pour', 'rare', 'other', '')] == [
        'pour',
        '',
        '',
        '',
    ]
    threshold, warning = adaptive.thresholds('pour')
    np.testing.assert_array_equal(threshold.upper, pour.at(0.1).upper)
    assert threshold.task == warning.task == 'pour'
    np.testing.assert_array_equal(adaptive.thresholds('rare')[0].upper, band.at(0.1).upper)

    adaptive.observe('pour', 100.0, True)
    assert adaptive.of('pour').level < 0.1
    assert (adaptive.thresholds('pour')[0].upper > threshold.upper).all()
    np.testing.assert_array_equal(adaptive.thresholds('other')[0].upper, band.at(0.1).upper)
    adaptive.observe('rare', 100.0, True)
    assert adaptive.of('other').successes == 1
    scores = [0.5, 0.2]
    assert adaptive.nonconformity('pour', scores) != adaptive.nonconformity('rare', scores)


def test_a_label_that_is_withdrawn_leaves_nothing_behind():
    adaptive = AdaptiveBand(with_tasks(pour=functional(seed=1)), 0.1, 0.02)
    before = [adaptive.thresholds(task)[0].upper for task in adaptive.tasks]
    assert adaptive.revision == 0
    observation = adaptive.observe('pour', 100.0, True)
    adaptive.undo('pour', observation)
    after = [adaptive.thresholds(task)[0].upper for task in adaptive.tasks]
    np.testing.assert_array_equal(after, before)
    assert adaptive.revision == 2


def test_the_thresholds_are_infinite_when_the_level_leaves_the_unit_interval():
    adaptive = AdaptiveBand(functional(), 0.1, 0.5, warning_alpha=0.2)
    adaptive.observe('', 100.0, True)
    threshold, warning = adaptive.thresholds()
    assert (threshold.upper == math.inf).all()
    assert (warning.upper == math.inf).all()
    for _ in range(50):
        adaptive.observe('', 0.0, False)
    assert (adaptive.thresholds()[0].upper == -math.inf).all()


def test_scores_beyond_all_numbers_are_no_reason_to_fail():
    adaptive = AdaptiveBand(functional(modulation='constant'), 0.1, 0.02)
    assert adaptive.nonconformity('', [0.0, 1.7e308]) == math.inf


@pytest.mark.parametrize('tasks', [{}, {'pour': functional(seed=1)}])
def test_a_restored_band_goes_on_where_the_first_one_was(tasks):
    first = AdaptiveBand(with_tasks(**tasks), 0.1, 0.02)
    generator = np.random.default_rng(0)
    for value in generator.normal(2.0, 1.0, size=100):
        task = 'pour' if generator.random() < 0.5 else ''
        first.observe(task, value, value > first.of(task).threshold)
    second = AdaptiveBand(with_tasks(**tasks), 0.1, 0.02)
    second.restore(first.state())
    for task in first.tasks:
        np.testing.assert_array_equal(
            second.thresholds(task)[0].upper, first.thresholds(task)[0].upper
        )
        assert second.of(task).successes == first.of(task).successes
    assert second.revision == 0


def test_the_state_of_other_bands_is_refused():
    state = AdaptiveBand(with_tasks(pour=functional(seed=1)), 0.1, 0.02).state()
    with pytest.raises(
        AdaptationError, match=r"thresholds for the band of all tasks, found .* task 'pour'"
    ):
        AdaptiveBand(functional(), 0.1, 0.02).restore(state)


def test_a_band_that_does_not_say_what_it_is_made_of_is_refused():
    shape = BandShape(np.zeros(2), np.ones((1, 2)), np.array([[0.0, 1.0, 2.0]]))
    bare = Band(np.array([0.3]), np.ones((1, 2)), 'any', 3)
    with pytest.raises(
        AdaptationError, match=r'the band of all tasks: expected center.*fit the detector again'
    ):
        AdaptiveBand(bare, 0.3, 0.02)
    made_of = Band(np.array([0.3]), np.ones((1, 2)), 'any', 3, shape=shape, tasks={'pour': bare})
    with pytest.raises(AdaptationError, match=r"the band of task 'pour': .*adaptation_step to 0"):
        AdaptiveBand(made_of, 0.3, 0.02)


def test_names_for_a_person():
    assert name_of('') == 'the band of all tasks'
    assert name_of('pour') == "the band of task 'pour'"
