# SPDX-License-Identifier: Apache-2.0
"""Intervals over tasks: how often they cover, and what they leave out."""

import math

import numpy as np
import pytest

from safe_training.metrics.scored import MetricError
from safe_training.metrics.task_bootstrap import paired_task_interval, task_interval

TASKS, UNSEEN, SPLITS = 12, 4, 10
SIMULATIONS = 600


def simulated(generator):
    """Return the cells of one evaluation: tasks differ by 0.1, a rerun of a task by 0.05."""
    means = generator.normal(0.7, 0.1, size=TASKS)
    return {
        (f'task {task}', split): (means[task] + generator.normal(0.0, 0.05), 1.0)
        for split in range(SPLITS)
        for task in generator.permutation(TASKS)[:UNSEEN]
    }


def over_splits(cells, generator):
    """Return the percentile bootstrap interval of the mean over splits, which is too narrow."""
    means = np.array(
        [
            np.mean([value for (_, s), (value, _) in cells.items() if s == split])
            for split in range(SPLITS)
        ]
    )
    drawn = means[generator.integers(SPLITS, size=(1000, SPLITS))].mean(axis=1)
    return np.quantile(drawn, (0.025, 0.975))


def test_a_dozen_tasks_cover_in_about_nine_of_ten_cases_and_splits_in_half():
    generator = np.random.default_rng(0)
    by_tasks = by_splits = 0
    for _ in range(SIMULATIONS):
        cells = simulated(generator)
        found = task_interval(cells, resamples=1000)
        by_tasks += found.low <= 0.7 <= found.high
        low, high = over_splits(cells, generator)
        by_splits += low <= 0.7 <= high
    assert 0.86 <= by_tasks / SIMULATIONS <= 0.94
    assert by_splits / SIMULATIONS <= 0.60


def test_a_paired_interval_covers_the_difference_and_is_narrower():
    generator = np.random.default_rng(1)
    covered, narrower = 0, 0
    for _ in range(400):
        first = simulated(generator)
        second = {key: (v - 0.02 + generator.normal(0, 0.02), w) for key, (v, w) in first.items()}
        paired = paired_task_interval(first, second, resamples=500)
        covered += paired.low <= 0.02 <= paired.high
        alone = task_interval(first, resamples=500)
        narrower += paired.high - paired.low < alone.high - alone.low
    assert covered / 400 >= 0.86
    assert narrower == 400


def test_a_task_counts_once_however_often_it_is_unseen():
    cells = {('a', split): (1.0, 1.0) for split in range(9)} | {('b', 0): (0.0, 1.0)}
    found = task_interval(cells)
    assert found.value == 0.5
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_rate_is_weighted_by_its_rollouts():
    cells = {('a', 0): (0.5, 30.0), ('a', 1): (0.7, 30.0), ('b', 0): (0.0, 10.0)}
    assert task_interval(cells).value == pytest.approx(0.6 * 30 / 40)


def test_missing_values_are_left_out_and_counted():
    cells = {('a', 0): (0.4, 1.0), ('b', 0): (np.nan, 1.0), ('c', 0): (0.8, 0.0)}
    found = task_interval(cells)
    assert (found.value, found.used, found.given) == (0.4, 1, 3)
    assert math.isnan(found.low)
    nothing = task_interval({('a', 0): (np.nan, 1.0)})
    assert math.isnan(nothing.value)
    assert nothing.used == 0


def test_only_common_tasks_and_splits_are_compared():
    first = {('a', 0): (0.9, 1.0), ('a', 1): (0.1, 1.0), ('b', 0): (0.6, 1.0), ('c', 0): (0.0, 1.0)}
    second = {('a', 0): (0.7, 1.0), ('b', 0): (0.5, 1.0), ('d', 0): (1.0, 1.0)}
    found = paired_task_interval(first, second)
    assert found.value == pytest.approx((0.2 + 0.1) / 2)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (found.used, found.given) == (2, 4)
    turned = paired_task_interval(second, first)
    assert (turned.low, turned.high) == (-found.high, -found.low)


def test_the_order_of_the_splits_changes_nothing():
    cells = simulated(np.random.default_rng(2))
    again = dict(reversed(list(cells.items())))
    assert task_interval(cells) == task_interval(again)


def test_impossible_levels_are_refused():
    with pytest.raises(MetricError, match=r'level inside \(0, 1\), found 1\.0'):
        task_interval({('a', 0): (0.1, 1.0)}, level=1.0)
    with pytest.raises(MetricError, match='at least one resample, found 0'):
        paired_task_interval({}, {}, resamples=0)
