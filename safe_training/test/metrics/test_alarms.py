# SPDX-License-Identifier: Apache-2.0
"""Alarm rates and classification at a threshold, as published and by hand."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from published_evaluation import SPLITS, TOLERANCE, alarm_steps, constant_threshold
from sklearn.metrics import (
    brier_score_loss,
    f1_score,
)

from safe_monitor_node.bands.band import Band
from safe_training.calibration.functional import functional_band
from safe_training.metrics.alarms import (
    alarm_report,
    alarm_report_until_min_length,
    classification_report,
    f1_of_failures,
)
from safe_training.metrics.reliability import reliability
from safe_training.metrics.scored import (
    MetricError,
    ScoredRollout,
    max_scores,
    max_scores_until_min_length,
    min_lengths,
    scores_at_min_length,
)


@pytest.mark.parametrize('split', SPLITS)
def test_published_rates_at_a_fixed_threshold(world, split):
    scored = world.scored[split]
    # D18: the published tables compare with >=. Just below 0.5, > is the same comparison.
    alarms = alarm_steps(scored, constant_threshold(np.nextafter(0.5, 0.0)))
    max_score = alarm_report(scored, alarms).pooled
    by_stop = alarm_report_until_min_length(scored, alarms, world.stops).pooled
    tables = {
        row['time']: row for row in world.published['fixed_threshold'] if row['split'] == split
    }
    for rates, row in ((max_score, tables['by final end']), (by_stop, tables['by earliest stop'])):
        assert rates.detection_rate == pytest.approx(row['tpr'], abs=TOLERANCE)
        assert rates.false_alarm_rate == pytest.approx(row['fpr'], abs=TOLERANCE)
        assert rates.balanced_accuracy == pytest.approx(row['bal_acc'], abs=TOLERANCE)
    published = tables['by earliest stop']['avg_det_time']
    assert max_score.detection_time == pytest.approx(published, abs=TOLERANCE)
    # D17: the published time by the earliest stop still counts alarms after it.
    missed = max_score.detection_rate - by_stop.detection_rate
    assert by_stop.detection_time >= published - TOLERANCE
    assert (by_stop.detection_time > published + TOLERANCE) == (missed > 0)


def test_published_functional_band_and_its_rates(world):
    functional = world.published['functional']
    alphas = [float(alpha) for alpha in functional['bands']]
    band = functional_band(
        functional['cal_part1_shuffled_padded'],
        functional['cal_part2_shuffled_padded'],
        alphas,
        quantile='published',
    )
    scored = world.scored['val_unseen']
    table = {(row['alpha'], row['time']): row for row in functional['table']}
    after_the_end = 0
    for alpha in alphas:
        upper = band.at(alpha).upper
        np.testing.assert_allclose(upper, functional['bands'][str(alpha)], rtol=TOLERANCE)
        # D18 again: >= in the tables.
        inclusive = Band(np.array([alpha]), np.nextafter(upper, -np.inf)[None], 'any', 10)
        alarms = alarm_steps(scored, inclusive.at(alpha))
        row = table[alpha, 'by earliest stop']
        rates = alarm_report_until_min_length(scored, alarms, world.stops).pooled
        assert rates.detection_rate == pytest.approx(row['tpr'], abs=TOLERANCE)
        assert rates.false_alarm_rate == pytest.approx(row['fpr'], abs=TOLERANCE)
        # D13: published, the last score is held up to the longest rollout and may cross the band
        # there, after the episode has ended.
        row = table[alpha, 'by final end']
        held = [
            (np.pad(r.scores, (0, upper.size - len(r)), mode='edge') >= upper).any() for r in scored
        ]
        failed = np.array([r.failed for r in scored])
        assert np.mean(np.array(held)[failed]) == pytest.approx(row['tpr'], abs=TOLERANCE)
        assert np.mean(np.array(held)[~failed]) == pytest.approx(row['fpr'], abs=TOLERANCE)
        rates = alarm_report(scored, alarms).pooled
        assert rates.false_alarm_rate <= row['fpr'] + TOLERANCE
        assert rates.detection_rate <= row['tpr'] + TOLERANCE
        after_the_end += sum(held) - sum(alarm is not None for alarm in alarms)
    # Alarms after the end, over 15 alphas; the scores of world 1 only grow.
    assert after_the_end == {0: 5, 1: 0, 2: 6}[world.number]


def test_no_alarm_after_the_episode_has_ended():
    # D13, its example: nothing crosses while the rollouts run, yet published tpr = fpr = 1.
    upper = np.array([2.0, 2.0, 2.0, 0.5])
    threshold = Band(np.array([0.2]), upper[None], 'any', 10).at(0.2)
    scored = [ScoredRollout([1.0, 1.0, 1.0], True, 't'), ScoredRollout([1.0, 1.0], False, 't')]
    rates = alarm_report(scored, alarm_steps(scored, threshold)).pooled
    assert (rates.detection_rate, rates.false_alarm_rate) == (0.0, 0.0)
    assert rates.detection_time == 1.0


def test_alarm_rates_by_hand():
    scored = [
        ScoredRollout([0, 0, 1, 1], True, 'a'),
        ScoredRollout([0, 0, 0, 0, 0, 0, 1, 0], True, 'b'),
        ScoredRollout([0, 0, 0, 0], True, 'a'),
        ScoredRollout([0, 1], False, 'a'),
        ScoredRollout([0, 0], False, 'b'),
        ScoredRollout([0, 0, 0], False, 'b'),
        ScoredRollout([0, 0, 0], False, 'c'),
    ]
    alarms = alarm_steps(scored, constant_threshold(0.5))
    assert alarms == [2, 6, None, 1, None, None, None]
    report = alarm_report(scored, alarms)
    assert report.pooled.detection_rate == pytest.approx(2 / 3)
    assert report.pooled.false_alarm_rate == pytest.approx(1 / 4)
    assert report.pooled.balanced_accuracy == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert report.pooled.detection_time == pytest.approx((2 / 4 + 6 / 8 + 1.0) / 3)
    assert (report.pooled.n_failures, report.pooled.n_successes) == (3, 4)
    assert report.per_task['a'].false_alarm_rate == 1.0
    assert report.per_task['b'].detection_time == 0.75
    assert math.isnan(report.per_task['c'].detection_rate)
    assert math.isnan(report.per_task['c'].balanced_accuracy)
    assert report.per_task['c'].false_alarm_rate == 0.0
    assert report.macro_false_alarm_rate == pytest.approx((1 + 0 + 0) / 3)
    assert report.macro_detection_rate == pytest.approx((0.5 + 1.0) / 2)
    assert report.macro_balanced_accuracy == pytest.approx((0.25 + 1.0) / 2)
    assert report.macro_detection_time == pytest.approx((0.75 + 0.75) / 2)

    early = alarm_report_until_min_length(scored, alarms, {'a': 2, 'b': 2, 'c': 3})
    assert early.pooled.detection_rate == 0.0
    assert early.pooled.detection_time == 1.0
    assert early.pooled.false_alarm_rate == pytest.approx(1 / 4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(-2, 2), step=st.floats(0, 2))
def test_a_higher_threshold_alarms_no_more_and_no_earlier(seed, low, step):
    generator = np.random.default_rng(seed)
    scored = [
        ScoredRollout(generator.normal(size=generator.integers(3, 9)), bool(index % 2), index % 3)
        for index in range(12)
    ]
    stops = min_lengths([r.task for r in scored], [len(r) for r in scored])
    reports = []
    for threshold in (low, low + step):
        alarms = alarm_steps(scored, constant_threshold(threshold))
        reports.append(alarm_report(scored, alarms).pooled)
        reports.append(alarm_report_until_min_length(scored, alarms, stops).pooled)
    for lower, higher in (
        (reports[0], reports[2]),
        (reports[1], reports[3]),
        (reports[0], reports[1]),
        (reports[2], reports[3]),
    ):
        assert lower.detection_rate >= higher.detection_rate
        assert lower.false_alarm_rate >= higher.false_alarm_rate
        assert lower.detection_time <= higher.detection_time


def test_rates_of_one_class_are_nan():
    scored = [ScoredRollout([0.0, 1.0], True, 't')]
    rates = alarm_report(scored, [1]).pooled
    assert rates.detection_rate == 1.0
    assert math.isnan(rates.false_alarm_rate)
    assert math.isnan(rates.balanced_accuracy)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 20))
def test_f1_and_brier_score_are_those_of_scikit_learn(seed, size):
    generator = np.random.default_rng(seed)
    failed, found = generator.random(size) < 0.5, generator.random(size) < 0.5
    values = generator.random(size)
    brier = brier_score_loss(failed, values, pos_label=True)
    assert reliability(values, failed).brier == pytest.approx(brier, rel=1e-14)
    f1 = f1_of_failures(failed, found)
    if failed.any():
        assert f1 == f1_score(failed, found, zero_division=0.0)
    else:
        assert np.isnan(f1)


@pytest.mark.parametrize('split', SPLITS)
def test_published_classification_at_a_fixed_threshold(world, split):
    scored = world.scored[split]
    failed = [rollout.failed for rollout in scored]
    compared = 0
    for row in world.published['fixed_threshold']:
        if row['split'] != split:
            continue
        values = {
            'at earliest stop': scores_at_min_length,
            'by earliest stop': max_scores_until_min_length,
            'by final end': lambda scored, stops: max_scores(scored),
        }[row['time']](scored, world.stops)
        check_classification(values, failed, row)
        compared += 1
    assert compared == 3


def check_classification(values, failed, row):
    # D18: published, >= the threshold.
    report = classification_report(values, failed, np.nextafter(row['threshold'], -np.inf))
    for name, expected in (
        ('tpr', row['tpr']),
        ('tnr', row['tnr']),
        ('fpr', row['fpr']),
        ('fnr', row['fnr']),
        ('accuracy', row['acc']),
        ('balanced_accuracy', row['bal_acc']),
        ('weighted_accuracy', row['weighted-acc']),
        ('f1', row['f1']),
        ('roc_auc', row['roc_auc']),
        ('average_precision', row['prc_auc']),
    ):
        assert getattr(report, name) == pytest.approx(expected, abs=TOLERANCE), name


def test_published_binary_classification(world):
    # By the end, on the seen validation split.
    scored = world.scored['val_seen']
    failed = [rollout.failed for rollout in scored]
    for row in world.published['binary_classification']:
        check_classification(max_scores(scored), failed, row)
        alarms = alarm_steps(scored, constant_threshold(np.nextafter(row['threshold'], -np.inf)))
        time = alarm_report(scored, alarms).pooled.detection_time
        assert time == pytest.approx(row['avg_det_time'], abs=TOLERANCE)
    assert [row['threshold'] for row in world.published['binary_classification']] == [0.2, 0.5, 0.8]


def test_classification_with_one_class_and_at_the_threshold():
    report = classification_report([0.5, 0.6], [False, False], 0.5)
    assert (report.fpr, report.tnr, report.accuracy) == (0.5, 0.5, 0.5)
    for name in ('tpr', 'fnr', 'balanced_accuracy', 'weighted_accuracy', 'f1', 'roc_auc'):
        assert math.isnan(getattr(report, name)), name
    nothing_found = classification_report([0.1, 0.2], [True, False], 0.5)
    assert (nothing_found.tpr, nothing_found.f1) == (0.0, 0.0)
    with pytest.raises(MetricError, match='expected a threshold, found NaN'):
        classification_report([0.1], [True], np.nan)
