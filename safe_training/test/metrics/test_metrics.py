# SPDX-License-Identifier: Apache-2.0
"""Rankings and alarm rates against the published numbers, and where ours differ on purpose."""

import math
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from shared_files import golden_json
from sklearn.metrics import (
    auc,
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.threshold import BandError
from safe_training.calibration.functional import functional_band
from safe_training.metrics import bootstrap
from safe_training.metrics.alarms import (
    alarm_report,
    alarm_report_until_min_length,
    classification_report,
    f1_of_failures,
)
from safe_training.metrics.bootstrap import bootstrap_auc_interval, bootstrap_interval
from safe_training.metrics.lead_time import lead_times
from safe_training.metrics.operating_curves import operating_curve
from safe_training.metrics.ranking import (
    rank,
    rank_by_task,
    rankings,
    rankings_at_quantiles,
    running_rankings,
)
from safe_training.metrics.reliability import reliability
from safe_training.metrics.scored import (
    OUTCOMES,
    MetricError,
    ScoredRollout,
    Task,
    clock_scores,
    max_scores,
    max_scores_until_min_length,
    min_lengths,
    scores_at_min_length,
    scores_at_quantile,
)


def alarm_steps(scored, threshold):
    return [threshold.first_crossing(rollout.scores) for rollout in scored]


TOLERANCE = 1e-5
SPLITS = ('train', 'val_seen', 'val_unseen')


@dataclass
class World:
    """One golden evaluation: scored rollouts of three splits and what was published on them."""

    number: int
    published: dict[str, Any]
    scored: dict[str, list[ScoredRollout]]
    stops: dict[Task, int]

    def task_of(self, split: str, name: str) -> Task:
        return next(r.task for r in self.scored[split] if str(r.task) == name)


@pytest.fixture(params=[0, 1, 2], ids=lambda number: f'world{number}')
def world(request):
    published = golden_json(f'eval_world{request.param}')
    scored, stops = {}, {}
    for split, rollouts in published['rollouts'].items():
        scored[split] = [
            ScoredRollout(np.array(scores), not rollout['success'], rollout['task_id'])
            for rollout, scores in zip(rollouts, published['scores'][split], strict=True)
        ]
        stops.update({rollout['task_id']: rollout['task_min_step'] for rollout in rollouts})
    return World(request.param, published, scored, stops)


def constant_threshold(value, length=64):
    return Band(np.array([0.5]), np.full((1, length), value), 'any', 10).at(0.5)


def trapezoidal_prc(values, failed):
    precision, recall, _ = precision_recall_curve(failed, values)
    return auc(recall, precision)


# --- rankings -----------------------------------------------------------------------------------


def test_min_lengths_are_the_published_ones(world):
    together = [rollout for split in SPLITS for rollout in world.scored[split]]
    found = min_lengths([r.task for r in together], [len(r) for r in together])
    assert found == world.stops


@pytest.mark.parametrize('split', SPLITS)
def test_published_roc_auc_pooled_and_per_task(world, split):
    published = world.published['roc_prc']
    report = rankings(world.scored[split], world.stops)
    compared = 0
    for name, when in (('early', 'max_score_until_min_length'), ('end', 'max_score')):
        pooled = report[when].pooled.roc_auc
        assert pooled == pytest.approx(
            published[f'falert_{name}_roc_auc/model_{split}'], abs=TOLERANCE
        )
        prefix = f'falert_{name}_roc_auc_taskwise/model_{split}'
        assert report[when].macro_roc_auc == pytest.approx(published[prefix], abs=TOLERANCE)
        for task, ranking in report[when].per_task.items():
            expected = published[f'{prefix}_{task}']
            assert ranking.roc_auc == pytest.approx(expected, abs=TOLERANCE)
            compared += 1
    assert compared == 2 * len({rollout.task for rollout in world.scored[split]})
    failed = [rollout.failed for rollout in world.scored[split]]
    for quantile in world.published['quantiles']:
        values = scores_at_quantile(world.scored[split], world.stops, quantile)
        expected = published[f'roc_auc/model_{split}_tq{quantile}']
        assert rank(values, failed).roc_auc == pytest.approx(expected, abs=TOLERANCE)
    expected = published[f'roc_auc/model_{split}_tq1.0']
    assert report['score_at_min_length'].pooled.roc_auc == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize('split', SPLITS)
def test_average_precision_where_the_published_prc_auc_is_a_trapezoid(world, split):
    # D8: under one name the published code logs the trapezoidal area (curves) and the average
    # precision (tables). Ours is the average precision everywhere.
    scored, published = world.scored[split], world.published['roc_prc']
    failed = [rollout.failed for rollout in scored]
    report = rankings(scored, world.stops)
    for name, when, values in (
        ('early', 'max_score_until_min_length', max_scores_until_min_length(scored, world.stops)),
        ('end', 'max_score', max_scores(scored)),
    ):
        logged = published[f'falert_{name}_prc_auc/model_{split}']
        assert trapezoidal_prc(values, failed) == pytest.approx(logged, abs=TOLERANCE)
        assert rank(values, failed).average_precision == report[when].pooled.average_precision
    tables = {
        row['time']: row for row in world.published['fixed_threshold'] if row['split'] == split
    }
    for time, when in (
        ('at earliest stop', 'score_at_min_length'),
        ('by earliest stop', 'max_score_until_min_length'),
        ('by final end', 'max_score'),
    ):
        pooled = report[when].pooled
        assert pooled.average_precision == pytest.approx(tables[time]['prc_auc'], abs=TOLERANCE)
        assert pooled.roc_auc == pytest.approx(tables[time]['roc_auc'], abs=TOLERANCE)


def test_trapezoid_and_average_precision_on_tied_scores():
    # D8, its example: with all scores tied at prevalence 0.1 the trapezoid says 0.55.
    values, failed = np.zeros(100), np.arange(100) < 10
    assert trapezoidal_prc(values, failed) == pytest.approx(0.55)
    assert rank(values, failed).average_precision == pytest.approx(0.10)
    assert rank(values, failed).roc_auc == 0.5


def test_one_class_has_no_ranking_and_does_not_enter_the_macro_average():
    # D9: published, such a task makes the task-wise ROC mean NaN and counts 0.5 or 1.0 in the PRC.
    for failed in (True, False):
        ranking = rank([0.1, 0.2], [failed, failed])
        assert math.isnan(ranking.roc_auc)
        assert math.isnan(ranking.average_precision)
        assert (ranking.n_failures, ranking.n_successes) == ((2, 0) if failed else (0, 2))
    report = rank_by_task(
        [0.1, 0.9, 0.5, 0.6, 0.7], [False, True, True, True, False], ['a', 'a', 'b', 'b', 'c']
    )
    assert math.isnan(report.per_task['b'].roc_auc)
    assert math.isnan(report.per_task['c'].average_precision)
    assert (report.macro_roc_auc, report.macro_average_precision) == (1.0, 1.0)
    assert (report.tasks_used, len(report.per_task)) == (1, 3)
    nothing = rank_by_task([0.1, 0.2], [True, True], ['a', 'a'])
    assert math.isnan(nothing.macro_roc_auc)
    assert nothing.tasks_used == 0


def test_no_rollouts_at_all_give_nan():
    report = rank_by_task([], [], [])
    assert math.isnan(report.pooled.roc_auc)
    assert report.per_task == {}


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=30),
    tasks=st.integers(1, 4),
)
def test_rankings_depend_on_the_order_of_the_scores_alone(pairs, tasks):
    values = np.array([value for value, _ in pairs], dtype=float)
    failed = np.array([outcome for _, outcome in pairs])
    labels = [index % tasks for index in range(len(pairs))]
    plain = rank_by_task(values, failed, labels)
    for moved in (np.exp(values / 4), 3 * values - 7, np.arctan(values)):
        report = rank_by_task(moved, failed, labels)
        assert report.pooled == plain.pooled or math.isnan(plain.pooled.roc_auc)
        assert report.macro_roc_auc == pytest.approx(plain.macro_roc_auc, nan_ok=True)
    if not math.isnan(plain.pooled.roc_auc):
        opposite = rank(-values, failed).roc_auc
        assert opposite == pytest.approx(1 - plain.pooled.roc_auc)


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.integers(-3, 3) | st.floats(-1e300, 1e300), st.booleans()),
        min_size=2,
        max_size=30,
    )
)
def test_a_ranking_is_that_of_scikit_learn(pairs):
    values = np.array([value for value, _ in pairs], dtype=float)
    failed = np.array([outcome for _, outcome in pairs])
    found = rank(values, failed)
    if failed.all() or not failed.any():
        assert math.isnan(found.roc_auc) and math.isnan(found.average_precision)
        return
    assert found.roc_auc == pytest.approx(roc_auc_score(failed, values), abs=1e-12)
    expected = average_precision_score(failed, values)
    assert found.average_precision == pytest.approx(expected, abs=1e-12)


def length_leak():
    """Three tasks of other lengths and success rates; failures run to their task's limit."""
    scored = []
    for task, (limit, successes) in {'easy': (20, 9), 'mid': (40, 5), 'hard': (60, 1)}.items():
        for index in range(10):
            length = limit // 2 + index if index < successes else limit
            scored.append(ScoredRollout(np.full(length, 0.3), index >= successes, task))
    stops = min_lengths([r.task for r in scored], [len(r) for r in scored])
    return scored, stops


def test_the_clock_shows_the_length_leak():
    # D39, D39b: by the end a clock is perfect; up to the earliest stop it knows the task alone.
    scored, stops = length_leak()
    clock = rankings(clock_scores(scored), stops)
    assert clock['max_score'].macro_roc_auc == 1.0
    assert clock['max_score'].pooled.roc_auc > 0.9
    for when in ('score_at_min_length', 'max_score_until_min_length'):
        assert clock[when].macro_roc_auc == 0.5
        assert clock[when].pooled.roc_auc > 0.75
    constant = rankings(scored, stops)
    assert constant['max_score'].pooled.roc_auc == 0.5


def test_scores_are_taken_at_by_and_over_the_right_steps():
    scored = [
        ScoredRollout(np.array([3.0, 1.0, 2.0, 9.0]), True, 't'),
        ScoredRollout([0, 5, 4], False, 't'),
    ]
    stops = min_lengths(['t', 't'], [4, 3])
    assert stops == {'t': 3}
    assert scores_at_quantile(scored, stops, 1.0).tolist() == [2.0, 4.0]
    assert scores_at_quantile(scored, stops, 0.0).tolist() == [3.0, 0.0]
    # Index round(2 * 0.25) = round(0.5) = 0 and round(2 * 0.75) = round(1.5) = 2.
    assert scores_at_quantile(scored, stops, 0.25).tolist() == [3.0, 0.0]
    assert scores_at_quantile(scored, stops, 0.75).tolist() == [2.0, 4.0]
    assert max_scores_until_min_length(scored, stops).tolist() == [3.0, 5.0]
    assert max_scores(scored).tolist() == [9.0, 5.0]


# --- alarms -------------------------------------------------------------------------------------


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


# --- intervals ----------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval():
    values = np.random.default_rng(0).normal(0.7, 0.05, size=200)
    interval = bootstrap_interval(values, generator=np.random.default_rng(1))
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.2 * half)
    again = bootstrap_interval(values, generator=np.random.default_rng(1))
    assert again == interval
    wider = bootstrap_interval(values, generator=np.random.default_rng(1), level=0.99)
    assert wider.low < interval.low
    assert wider.high > interval.high


def test_a_missing_split_is_counted_not_hidden():
    # T4: published, a NaN seed silently leaves the mean.
    interval = bootstrap_interval([0.5, np.nan, 0.7], generator=np.random.default_rng(0))
    assert (interval.value, interval.used, interval.given) == (pytest.approx(0.6), 2, 3)
    alone = bootstrap_interval([0.5, np.nan], generator=np.random.default_rng(0))
    assert alone.value == 0.5
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(2, 30))
def test_the_resampled_auc_is_that_of_scikit_learn(seed, levels):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, size=25).astype(float)
    failed = generator.random(25) < 0.4
    weights = generator.multinomial(25, np.full(25, 1 / 25), size=6)
    for found, row in zip(bootstrap._weighted_auc(scores, failed, weights), weights, strict=True):
        if 0 < row[failed].sum() < 25:
            expected = roc_auc_score(failed, scores, sample_weight=row)
            assert found == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(found)


def test_the_auc_interval_covers_the_true_auc():
    # Two normal classes one standard deviation apart: the AUC is Phi(1 / sqrt(2)).
    true_auc = 0.5 * (1 + math.erf(0.5))
    generator = np.random.default_rng(3)
    failed = np.arange(120) < 40
    covered, width = 0, 0.0
    for _ in range(150):
        interval = bootstrap_auc_interval(
            generator.normal(size=120) + failed, failed, generator=generator, resamples=200
        )
        covered += interval.low <= true_auc <= interval.high
        width += (interval.high - interval.low) / 150
    assert 0.88 <= covered / 150 <= 1.0
    assert 0.1 < width < 0.25


def test_resamples_of_one_class_are_counted():
    values, failed = np.arange(4.0), np.array([False, False, False, True])
    interval = bootstrap_auc_interval(values, failed, generator=np.random.default_rng(0))
    assert interval.value == 1.0
    # (3/4)^4 of the resamples hold no failure.
    assert interval.used / interval.given == pytest.approx(1 - 0.75**4 - 0.25**4, abs=0.04)
    one_class = bootstrap_auc_interval(values, [True] * 4, generator=np.random.default_rng(0))
    assert math.isnan(one_class.value)
    assert one_class.used == 0


def test_the_size_of_the_chunks_does_not_matter(monkeypatch):
    values, failed = np.arange(30.0) % 7, np.arange(30) % 3 == 0
    whole = bootstrap_auc_interval(values, failed, generator=np.random.default_rng(0))
    monkeypatch.setattr(bootstrap, '_BOOTSTRAP_CHUNK', 100)
    assert bootstrap_auc_interval(values, failed, generator=np.random.default_rng(0)) == whole


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


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('scores', 'failed', 'message'),
    [
        ([], True, r"task 'pour': expected scores of shape \(T,\) with T >= 1, found \(0,\)"),
        ([[0.1]], True, r'shape \(T,\)'),
        ([0.1, np.nan], True, "task 'pour', step 1: expected a finite score, found nan"),
        ([np.inf], True, 'step 0: expected a finite score, found inf'),
        ([0.1], 'yes', "expected failed to be True, False or None .no label., found 'yes'"),
    ],
)
def test_a_rollout_that_cannot_be_evaluated_is_refused(scores, failed, message):
    with pytest.raises(MetricError, match=message):
        ScoredRollout(scores, failed, 'pour')


@pytest.mark.parametrize(
    'measure',
    [
        lambda scored: rankings(scored, {'pour': 2}),
        lambda scored: rankings_at_quantiles(scored, {'pour': 2}),
        running_rankings,
        lambda scored: alarm_report(scored, [None, None]),
        lambda scored: lead_times(scored, [None, None], [None, None]),
        operating_curve,
    ],
)
def test_no_number_is_of_a_rollout_without_a_label(measure):
    scored = [ScoredRollout([0.1, 0.2], True, 'pour'), ScoredRollout([0.1, 0.2], None, 'pour')]
    with pytest.raises(MetricError, match=r"task 'pour': expected a label .*, found none; label"):
        measure(scored)


@pytest.mark.parametrize(
    ('failed', 'alarm', 'outcome'),
    [
        (True, None, 'miss'),
        (False, 1, 'false alarm'),
        (True, 1, 'detection'),
        (False, None, 'quiet'),
        (None, 1, 'unlabelled'),
        (None, None, 'unlabelled'),
    ],
)
def test_the_outcome_is_of_label_and_alarm(failed, alarm, outcome):
    scored = ScoredRollout([0.1, 0.2], failed, 'pour', alarm_step=alarm)
    assert scored.outcome == outcome
    assert outcome in (*OUTCOMES, 'unlabelled')


def test_what_was_not_judged_or_not_kept_is_refused_by_name():
    scored = ScoredRollout([0.1], True, 'pour', episode_id='pour/3')
    with pytest.raises(MetricError, match="episode 'pour/3': expected a threshold"):
        _ = scored.required_threshold
    with pytest.raises(MetricError, match="episode 'pour/3': expected the rollout"):
        _ = scored.required_rollout


def test_what_does_not_fit_together_is_refused():
    scored = [ScoredRollout([0.1, 0.2], True, 'a')]
    generator = np.random.default_rng(0)
    with pytest.raises(MetricError, match="expected a minimum length for task 'a', found none"):
        max_scores_until_min_length(scored, {'b': 1})
    with pytest.raises(
        MetricError, match="minimum length of task 'a' is 3, but a rollout of task 'a' has"
    ):
        max_scores_until_min_length(scored, {'a': 3})
    with pytest.raises(MetricError, match=r'quantile .*must be in \[0, 1\], found 1\.5'):
        scores_at_quantile(scored, {'a': 2}, 1.5)
    with pytest.raises(MetricError, match='1 tasks need as many lengths'):
        min_lengths(['a'], [1, 2])
    with pytest.raises(MetricError, match='has 0 steps'):
        min_lengths(['a'], [0])
    with pytest.raises(MetricError, match='2 alarms for 1 rollouts'):
        alarm_report(scored, [None, 1])
    with pytest.raises(MetricError, match='alarm at step 2 of a rollout'):
        alarm_report(scored, [2])
    with pytest.raises(MetricError, match='same shape'):
        rank([0.1, 0.2], [True])
    with pytest.raises(MetricError, match=r'outcomes \(failed\) must be booleans, found float64'):
        rank([0.1, 0.2], [0.0, np.nan])
    with pytest.raises(MetricError, match='value of rollout 1 is nan'):
        rank([0.1, np.nan], [True, False])
    with pytest.raises(MetricError, match='1 tasks for 2 rollouts'):
        rank_by_task([0.1, 0.2], [True, False], ['a'])
    with pytest.raises(MetricError, match='level'):
        bootstrap_interval([0.1], generator=generator, level=1.0)
    with pytest.raises(MetricError, match='resample'):
        bootstrap_interval([0.1], generator=generator, resamples=0)
    with pytest.raises(MetricError, match=r'shape \(N,\)'):
        bootstrap_interval([[0.1]], generator=generator)
    with pytest.raises(BandError, match='past the calibrated band of 1 steps'):
        alarm_steps(scored, constant_threshold(0.5, length=1))


# --- one threshold, moments and lead times ------------------------------------------------------


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


@pytest.mark.parametrize('split', SPLITS)
def test_published_rankings_at_time_quantiles(world, split):
    reports = rankings_at_quantiles(world.scored[split], world.stops)
    assert list(reports) == world.published['quantiles']
    for quantile, report in reports.items():
        expected = world.published['roc_prc'][f'roc_auc/model_{split}_tq{quantile}']
        assert report.pooled.roc_auc == pytest.approx(expected, abs=TOLERANCE)
    at_stop = rankings(world.scored[split], world.stops)['score_at_min_length']
    assert reports[1.0].macro_roc_auc == pytest.approx(at_stop.macro_roc_auc, nan_ok=True)


def test_rankings_of_what_is_still_running_leave_a_clock_at_chance():
    generator = np.random.default_rng(0)
    scored = [
        ScoredRollout(
            np.zeros(int(generator.integers(5, 20)) if success else 20), not success, task
        )
        for task in 'abc'
        for success in [True] * 8 + [False] * 4
    ]
    reports = running_rankings(clock_scores(scored), (0.25, 0.5, 0.75, 1.0, 1.2))
    for report in reports.values():
        assert report.macro_roc_auc == 0.5
        assert report.tasks_used == 3
    # Judged at the end instead, it is perfect.
    stops = min_lengths([r.task for r in scored], [len(r) for r in scored])
    assert rankings(clock_scores(scored), stops)['max_score'].macro_roc_auc == 1.0


def test_running_rankings_by_hand():
    scored = [
        ScoredRollout([0, 9, 0, 0], False, 'a'),
        ScoredRollout([0, 0], False, 'a'),
        ScoredRollout([1, 1, 1, 1, 1, 8], True, 'a'),
        ScoredRollout([5, 5], True, 'no success here'),
    ]
    # The median success of 'a' takes 3 steps.
    reports = running_rankings(scored, (1 / 3, 2 / 3, 1.0))
    assert [set(report.per_task) for report in reports.values()] == [{'a'}] * 3
    first, second, third = (report.per_task['a'] for report in reports.values())
    assert (first.n_successes, first.roc_auc) == (2, 1.0)
    assert (second.n_successes, second.roc_auc) == (2, 0.5)
    # The success of two steps has ended; the largest score so far of the other is 9.
    assert (third.n_successes, third.roc_auc) == (1, 0.0)
    assert running_rankings(scored, (3.0,))[3.0].per_task == {}
    with pytest.raises(MetricError, match='above 0'):
        running_rankings(scored, (0.0,))


def test_a_fraction_that_is_a_whole_step_but_for_rounding_is_that_step():
    assert math.ceil(0.07 * 100) == 8
    scores = np.zeros(100)
    scores[7] = 1.0
    scored = [ScoredRollout(np.zeros(100), False, 'a'), ScoredRollout(scores, True, 'a')]
    assert running_rankings(scored, (0.07,))[0.07].pooled.roc_auc == 0.5
    assert running_rankings(scored, (0.08,))[0.08].pooled.roc_auc == 1.0


def test_lead_times_by_hand():
    scored = [
        ScoredRollout(np.zeros(10), failed, 'a') for failed in (True, True, True, True, True, False)
    ]
    found = lead_times(scored, [2, 9, None, 4, 5, 3], [6, 8, 3, None, 5, None])
    assert found.leads.tolist() == [4.0, -1.0, 0.0]
    assert (found.mean, found.median) == (1.0, 0.0)
    assert (found.annotated, found.alarmed, found.in_time) == (4, 3, 2)
    nothing = lead_times(scored, [None] * 6, [None] * 6)
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.median)
    assert nothing.annotated == 0


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        ([None], '1 annotated steps for 2'),
        ([None, 1], 'a success of task .a. has the annotated failure step 1'),
        ([3, None], 'with 3 steps has the annotated failure step 3'),
        ([-1, None], 'has the annotated failure step -1'),
    ],
)
def test_annotations_that_cannot_be_are_refused(steps, message):
    scored = [ScoredRollout(np.zeros(3), True, 'a'), ScoredRollout(np.zeros(3), False, 'a')]
    with pytest.raises(MetricError, match=message):
        lead_times(scored, [None, None], steps)
