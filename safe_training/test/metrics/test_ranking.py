# SPDX-License-Identifier: Apache-2.0
"""Rankings against the published numbers, and where ours differ on purpose."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from published_evaluation import SPLITS, TOLERANCE
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)

from safe_training.metrics.ranking import (
    rank,
    rank_by_task,
    rankings,
    rankings_at_quantiles,
    running_rankings,
)
from safe_training.metrics.scored import (
    MetricError,
    ScoredRollout,
    clock_scores,
    max_scores,
    max_scores_until_min_length,
    min_lengths,
    scores_at_quantile,
)


def trapezoidal_prc(values, failed):
    precision, recall, _ = precision_recall_curve(failed, values)
    return auc(recall, precision)


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
        assert clock[when].pooled.roc_auc == pytest.approx(0.86, abs=0.005)
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
