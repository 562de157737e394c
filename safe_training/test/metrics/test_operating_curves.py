# SPDX-License-Identifier: Apache-2.0
"""Curves over thresholds and promised rates: as published, by hand, and against the slow way."""

import numpy as np
import pytest
from published_curve import published_operating_curve
from published_evaluation import SPLITS, TOLERANCE, alarm_steps, golden_rollouts
from shared_files import golden_json

from safe_monitor_node.bands.band import Band
from safe_training.metrics.alarms import alarm_report
from safe_training.metrics.operating_curves import (
    alpha_curve,
    default_thresholds,
    operating_curve,
)
from safe_training.metrics.scored import MetricError, ScoredRollout


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('number', [0, 1, 2])
def test_the_published_curve(number, split):
    world = golden_json(f'eval_world{number}')
    published = world['det_time_curves'][split]
    curve = published_operating_curve(golden_rollouts(world, split), world['score_dtype'])
    found = {
        'threshold': curve.thresholds,
        'avg_det_time': curve.detection_time,
        'tpr': curve.detection_rate,
        'tnr': 1 - curve.false_alarm_rate,
        'acc': curve.accuracy,
        'bal_acc': curve.balanced_accuracy,
        'f1': curve.f1,
    }
    assert set(found) == set(published)
    for name, values in found.items():
        np.testing.assert_allclose(
            values, published[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )


def test_the_thresholds_that_are_published_do_not_give_back_their_own_rates():
    # D16: squeezed with max - min + 1e-5, reported with max - min. Ours are used as they stand.
    scored = [ScoredRollout(np.array([0.0, 1e-6 * (i + 1)]), i % 2 == 0, 't') for i in range(10)]
    published = published_operating_curve(scored)
    again = operating_curve(scored, np.nextafter(published.thresholds, -np.inf))
    assert (again.detection_rate != published.detection_rate).any()
    ours = operating_curve(scored)
    np.testing.assert_array_equal(
        operating_curve(scored, ours.thresholds).detection_rate, ours.detection_rate
    )


def some_rollouts(seed, n=25):
    generator = np.random.default_rng(seed)
    return [
        ScoredRollout(
            np.round(generator.normal(size=generator.integers(1, 12)), 1),
            bool(generator.integers(2)),
            't',
        )
        for _ in range(n)
    ]


@pytest.mark.parametrize('seed', range(5))
def test_the_curve_is_what_alarms_at_each_threshold_give(seed):
    scored = some_rollouts(seed)
    curve = operating_curve(scored)
    assert (np.diff(curve.thresholds) > 0).all()
    for k, threshold in enumerate(curve.thresholds):
        band = Band(np.array([0.5]), np.full((1, 12), threshold), 'any', 10)
        rates = alarm_report(scored, alarm_steps(scored, band.at(0.5))).pooled
        assert curve.detection_rate[k] == pytest.approx(rates.detection_rate)
        assert curve.false_alarm_rate[k] == pytest.approx(rates.false_alarm_rate)
        assert curve.balanced_accuracy[k] == pytest.approx(rates.balanced_accuracy)
        assert curve.detection_time[k] == pytest.approx(rates.detection_time)
    # The ends: every rollout at once, and none at all.
    assert (curve.detection_rate[0], curve.false_alarm_rate[0]) == (1.0, 1.0)
    assert (curve.detection_rate[-1], curve.false_alarm_rate[-1]) == (0.0, 0.0)
    assert (curve.detection_time[0], curve.detection_time[-1]) == (0.0, 1.0)
    # Every balanced accuracy that any threshold reaches is on it.
    finer = operating_curve(scored, np.concatenate([r.scores for r in scored]))
    assert curve.balanced_accuracy.max() >= finer.balanced_accuracy.max() - 1e-12


def test_the_curve_by_hand():
    scored = [
        ScoredRollout([0, 2, 1, 3], True, 'a'),
        ScoredRollout([0, 0, 0, 1], True, 'a'),
        ScoredRollout([1, 0], False, 'a'),
    ]
    curve = operating_curve(scored, [2.0, 0.0])
    assert curve.thresholds.tolist() == [0.0, 2.0]
    assert curve.detection_rate.tolist() == [1.0, 0.5]
    assert curve.false_alarm_rate.tolist() == [1.0, 0.0]
    assert curve.balanced_accuracy.tolist() == [0.5, 0.75]
    assert curve.accuracy == pytest.approx([2 / 3, 2 / 3])
    assert curve.f1 == pytest.approx([0.8, 2 / 3])
    assert curve.detection_time.tolist() == [(1 / 4 + 3 / 4) / 2, (3 / 4 + 1) / 2]
    assert default_thresholds(scored)[0] < 0


def test_one_class_has_no_rate_of_the_other():
    scored = [ScoredRollout([0.0, 1.0], False, 'a')]
    curve = operating_curve(scored)
    for missing in (curve.detection_rate, curve.balanced_accuracy, curve.f1, curve.detection_time):
        assert np.isnan(missing).all()
    assert np.isfinite(curve.false_alarm_rate).all()


@pytest.mark.parametrize(
    ('scored', 'thresholds', 'message'),
    [
        ([], None, 'expected at least one rollout.*, found no'),
        ([], [0.5], 'expected at least one rollout.*, found no'),
        ([ScoredRollout([0.0], True, 'a')], [], r'K >= 1'),
        ([ScoredRollout([0.0], True, 'a')], [np.nan], r'without NaN, found .* with 1 NaN'),
    ],
)
def test_what_has_no_curve_is_refused(scored, thresholds, message):
    with pytest.raises(MetricError, match=message):
        operating_curve(scored, thresholds)


def test_alpha_curve_counts_alarms_inside_the_rollouts():
    band = Band(np.array([0.1, 0.3]), np.array([[np.inf] * 4, [2.0, 2.0, 2.0, 0.5]]), 'any', 5)
    scored = [
        ScoredRollout([1, 1, 1, 1], True, 'a'),
        ScoredRollout([3, 1, 1], True, 'a'),
        ScoredRollout([1, 1, 1], False, 'a'),
    ]
    curve = alpha_curve(scored, band)
    assert curve.alphas.tolist() == [0.1, 0.3]
    assert curve.detection_rate.tolist() == [0.0, 1.0]
    # D13: held past its end, the success would cross the band at the last step.
    assert curve.false_alarm_rate.tolist() == [0.0, 0.0]
    assert curve.balanced_accuracy.tolist() == [0.5, 1.0]
    assert curve.detection_time.tolist() == [1.0, (3 / 4 + 0) / 2]
