# SPDX-License-Identifier: Apache-2.0
"""The threshold of a new task from good runs: its formula, its limits, and the runs it counts."""

import math

import numpy as np
import pytest
from band_factory import constant_band

from safe_monitor_node.bands.adaptive_band import AdaptiveBand
from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.good_run_records import KEPT_RUNS, GoodRunRecords
from safe_monitor_node.bands.good_runs import (
    GoodRun,
    GoodRunsError,
    SeenScores,
    good_runs_band,
)

FOLDER_BAND = constant_band(np.arange(1, 40) / 10, (0.1, 0.2), 6)


def seen_scores(tasks=8, successes=12, spread=3.0, seed=0):
    rng = np.random.default_rng(seed)
    means = spread * rng.standard_normal(tasks)
    return SeenScores(
        {f't{i}': mean + rng.standard_normal(successes) for i, mean in enumerate(means)}
    )


def runs_of(values, name='r'):
    return [GoodRun(f'{name}{i}', float(value)) for i, value in enumerate(values)]


def test_from_five_runs_on_the_threshold_is_their_mean_and_a_quantile():
    # Every success of a task has the same largest score: the next one is like the good runs.
    seen = SeenScores({'a': np.full(8, 1.0), 'b': np.full(8, 5.0)})
    band = good_runs_band(seen, runs_of([2, 4, 3, 3, 3]), FOLDER_BAND)
    np.testing.assert_allclose(band.upper, 3.0)
    assert band.upper.shape == (2, 6)
    assert band.provenance['form'] == 'plain'
    # 15 draws of each task, each compared with the three other successes.
    assert band.n_calibration == 2 * 15 * 3


def test_the_spread_of_the_seen_tasks_is_that_of_the_formula():
    seen = SeenScores({'a': np.array([1.0, 3.0]), 'b': np.array([5.0, 9.0])})
    mu, sigma2, tau2 = seen.spread()
    # Task means 2 and 7; variances inside the tasks 2 and 8.
    assert (mu, sigma2) == (4.5, 5.0)
    assert tau2 == pytest.approx(12.5 - 5.0 / 2)


def test_below_five_runs_the_threshold_is_shrunk_towards_the_seen_tasks():
    seen = seen_scores()
    mu, sigma2, tau2 = seen.spread()
    shift = seen.shift(2)
    assert shift.form == 'shrunk'
    assert shift.factor == pytest.approx(tau2 / (tau2 + sigma2 / 2))
    assert shift.center(mu + 1.0) == pytest.approx(mu + shift.factor)
    assert seen.shift(2, 'plain').factor == 1.0
    still = SeenScores({task: np.ones(4) for task in 'ab'})
    assert still.shift(2).factor == 1.0, 'without any spread the good runs decide'
    # Seen tasks that differ only by chance tell where a new one lies.
    noisy = SeenScores({t: np.array([-1.0, 1.0, -1.0, 1.0]) for t in 'ab'})
    assert noisy.spread()[2] == 0.0
    assert noisy.shift(2).factor == 0.0


def test_the_differences_are_drawn_with_their_own_seed_and_ranked_exactly():
    seen = seen_scores()
    shift = seen.shift(5)
    assert shift.differences.size == 8 * 15 * 5
    np.testing.assert_array_equal(shift.differences, seen.shift(5).differences)
    ordered = SeenScores(dict(reversed(seen.largest.items())))
    np.testing.assert_array_equal(shift.differences, ordered.shift(5).differences)
    # ceil(601 * 0.9) = 541, ceil(601 * 0.999) = 601 > 600.
    assert shift.quantile(0.1) == shift.differences[540]
    assert shift.quantile(0.001) == math.inf


def test_a_score_as_high_as_the_threshold_is_no_alarm():
    seen = seen_scores()
    runs = runs_of([0.1, 0.7, 0.3, 0.9, 1.1])
    band = good_runs_band(seen, runs, FOLDER_BAND)
    shift = seen.shift(5)
    equal = shift.center(np.mean([run.largest for run in runs])) + shift.quantile(0.1)
    assert band.at(0.1).first_crossing([equal]) is None
    assert band.at(0.1).first_crossing([equal + 1e-9]) == 0
    assert (np.diff(band.upper, axis=0) <= 0).all()


@pytest.mark.parametrize(
    ('successes', 'k', 'message'),
    [
        (5, 5, r'with more than 5 successes, found k = 5.*use at most 4 good runs'),
        (5, 0, r'found k = 0.*use at least 1 good run'),
        (1, 1, r'seen tasks with 1, 1 successes; use at least 1 good run, or fit the detector on'),
    ],
)
def test_too_few_successes_of_the_seen_tasks_are_refused(successes, k, message):
    with pytest.raises(GoodRunsError, match=message):
        seen_scores(2, successes).shift(k)


@pytest.mark.parametrize(
    'largest',
    [{'a': [1.0]}, {'a': [1.0], '': [2.0]}, {'a': [1.0], 'b': []}, {'a': [1.0], 'b': [np.nan]}, {}],
)
def test_scores_that_are_none_are_refused(largest):
    with pytest.raises(GoodRunsError):
        SeenScores({task: np.array(values) for task, values in largest.items()})


@pytest.mark.parametrize(
    'content', [None, 3, {}, {'largest': [1.0]}, {'largest': {'a': 'x', 'b': [1.0]}}]
)
def test_other_content_of_a_folder_is_refused(content):
    with pytest.raises(GoodRunsError):
        SeenScores.from_dict(content)


def test_scores_are_stored_to_the_last_bit():
    seen = seen_scores()
    again = SeenScores.from_dict(seen.to_dict())
    for task, values in seen.largest.items():
        np.testing.assert_array_equal(again.largest[task], values)


# --- counted by a monitor


def records(wanted=3, known=('t0',), band=FOLDER_BAND):
    return GoodRunRecords(seen_scores(), band, known, wanted)


def test_a_task_has_a_band_after_k_runs_and_loses_it_with_one_of_them():
    counted = records()
    for number, run in enumerate(runs_of([1.0, 2.0, 3.0])):
        assert 'new' not in counted.bands
        assert counted.add('new', run)
        assert counted.count('new') == number + 1
    band = counted.bands['new']
    assert band.provenance['largest_scores'] == [1.0, 2.0, 3.0]
    assert counted.add('new', GoodRun('later', 9.0))
    assert counted.bands['new'] is band, 'the first k runs decide'
    assert counted.remove('r1') == 'new'
    assert counted.bands['new'].provenance['largest_scores'] == [1.0, 3.0, 9.0]
    counted.remove('later')
    assert 'new' not in counted.bands
    assert counted.count('new') == 2
    assert counted.remove('never heard of') == ''


def test_known_unnamed_and_repeated_runs_are_not_counted():
    counted = records()
    run = GoodRun('e', 1.0)
    assert not counted.add('t0', run)
    assert not counted.add('', run)
    before = counted.revision
    assert counted.add('new', run)
    assert not counted.add('new', run)
    assert not counted.add('another', run), 'an episode has one task'
    assert counted.revision == before + 1
    for index in range(KEPT_RUNS):
        counted.add('new', GoodRun(f'x{index}', 1.0))
    assert counted.count('new') == KEPT_RUNS


def test_the_runs_are_restored_with_the_same_thresholds():
    counted, again = records(), records()
    for run in runs_of([1.5, 2.5, 3.5, 4.5]):
        counted.add('new', run)
    counted.add('second', GoodRun('other', 1 / 3))
    again.restore(counted.state())
    assert again.state() == counted.state()
    np.testing.assert_array_equal(again.bands['new'].upper, counted.bands['new'].upper)
    more = records(wanted=4)
    more.restore(counted.state())
    assert more.bands['new'].provenance['k'] == 4


@pytest.mark.parametrize(
    'state',
    [
        [{'task': 't0', 'runs': [{'episode': 'e', 'largest': 1.0}]}],
        [{'task': 'new', 'runs': [{'episode': 'e', 'largest': math.inf}]}],
        [{'task': 'new', 'runs': [{'episode': 'e', 'largest': 1.0}] * 2}],
        [{'task': 3, 'runs': [{'episode': 'e', 'largest': 1.0}]}],
    ],
)
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(GoodRunsError):
        records().restore(state)


# --- beside adaptation


def test_a_learned_task_adapts_and_its_updates_end_with_its_band():
    counted = records(wanted=2)
    adaptive = AdaptiveBand(FOLDER_BAND, 0.1, 0.05)
    for run in runs_of([1.0, 2.0]):
        counted.add('new', run)
    assert adaptive.take_learned(counted.bands) == set()
    assert adaptive.tasks == ('', 'new')
    alarm, _ = adaptive.thresholds('new')
    np.testing.assert_array_equal(alarm.upper, counted.bands['new'].at(0.1).upper)
    adaptive.observe('new', adaptive.nonconformity('new', [50.0]), True)
    assert adaptive.thresholds('new')[0].at(0) > alarm.at(0)
    assert adaptive.take_learned(counted.bands) == set(), 'the updates stay'
    assert adaptive.of('new').successes == 1
    counted.remove('r0')
    assert adaptive.take_learned(counted.bands) == {'new'}
    assert adaptive.task_of('new') == ''


def test_a_band_without_a_finite_threshold_is_not_used():
    band = Band(np.array([0.0001, 0.1]), np.ones((2, 4)), 'any', 39)
    own = good_runs_band(seen_scores(), runs_of(np.arange(5)), band)
    assert not own.at(0.0001).can_alarm
    assert own.at(0.1).can_alarm
