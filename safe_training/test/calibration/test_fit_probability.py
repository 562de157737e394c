# SPDX-License-Identifier: Apache-2.0
"""The map from score and time to the probability of failure, fitted on drawn rollouts."""

import numpy as np
import pytest

from safe_training.calibration.probability import FEWEST, fit_probability
from safe_training.metrics.reliability import probability_report
from safe_training.metrics.scored import ScoredRollout

LIMIT = 30


def drawn(generator, count, shift=2.0, tasks=4):
    """Return scores, outcomes and tasks; a failure runs to the limit and scores higher."""
    scores, failed, names = [], [], []
    for index in range(count):
        fails = bool(generator.random() < 0.3)
        length = LIMIT if fails else int(generator.integers(8, 20))
        # The score rises slowly, so that it says little at first.
        rising = shift * fails * np.arange(length) / LIMIT
        scores.append(rising + generator.normal(0.0, 0.7, size=length))
        failed.append(fails)
        names.append(f'task {index % tasks}')
    return scores, failed, names


def scored_of(scores, failed, tasks):
    return [ScoredRollout(s, f, t) for s, f, t in zip(scores, failed, tasks, strict=True)]


def test_probabilities_of_other_rollouts_are_better_than_time_alone_and_reliable():
    generator = np.random.default_rng(0)
    fitted = fit_probability(*drawn(generator, 400), described='drawn')
    assert (fitted.rollouts, fitted.described) == (400, 'drawn')
    report = probability_report(scored_of(*drawn(generator, 2000)), fitted)
    assert report.brier.detector < 0.9 * report.brier.clock
    assert report.brier.detector < 0.9 * report.brier.base_rate
    assert report.reliability.calibration_error < 0.05
    assert set(report.per_task) == {f'task {i}' for i in range(4)}


def test_a_score_that_says_nothing_gives_the_clock():
    generator = np.random.default_rng(1)
    scores, failed, tasks = drawn(generator, 400)
    noise = [generator.normal(size=len(s)) for s in scores]
    fitted = fit_probability(noise, failed, tasks)
    lows, highs = ([fitted.at(score, 9) for score in ends] for ends in ((-9.0,), (9.0,)))
    assert highs[0] - lows[0] < 0.15
    turned = fit_probability([-s for s in scores], failed, tasks)
    assert turned.at(-9.0, 9) == turned.at(9.0, 9), 'a score that falls with failure is not used'


def test_a_constant_score_is_no_difficulty():
    scores, failed, tasks = drawn(np.random.default_rng(2), 60)
    fitted = fit_probability([np.full(len(s), 7.0) for s in scores], failed, tasks)
    for step in (0, 5, 40):
        assert fitted.at(7.0, step) == pytest.approx(fitted.clock_at(step), abs=0.02)


def test_the_probability_rises_with_score_and_time():
    fitted = fit_probability(*drawn(np.random.default_rng(3), 200))
    values = np.array([[fitted.at(s, t) for t in range(60)] for s in np.linspace(-4, 6, 50)])
    assert (np.diff(values, axis=0) >= 0).all()
    assert (np.diff(values, axis=1) >= 0).all()
    assert ((values > 0) & (values < 1)).all()


def test_time_is_counted_as_on_a_task_that_the_fit_has_not_seen():
    """Three tasks of equal length, and one of twice the length whose rollouts are twice as slow."""
    scores, failed, tasks = drawn(np.random.default_rng(4), 400)
    slow = [np.repeat(s, 2) for s in scores]
    fitted = fit_probability(scores + slow, failed * 2, tasks + ['slow'] * 400)
    alone = fit_probability(scores, failed, tasks)
    assert fitted.median_steps == pytest.approx(alone.median_steps, abs=0.5)
    # With tasks of two lengths, the step says less: the curve over time is flatter.
    rise = [m.clock_at(20) - m.clock_at(5) for m in (fitted, alone)]
    assert rise[0] < rise[1]


def test_each_running_rollout_counts_once_at_a_time():
    """Steps that come twice as often, of a task of its own, change nothing."""
    scores, failed, tasks = drawn(np.random.default_rng(4), 200, tasks=1)
    once = fit_probability(scores, failed, tasks)
    half = fit_probability([np.repeat(s, 2) for s in scores], failed, tasks)
    assert half.median_steps == 2 * once.median_steps
    for step in (3, 9, 20):
        assert half.at(1.0, 2 * step + 1) == pytest.approx(once.at(1.0, step), abs=0.02)


def test_a_task_without_a_success_has_the_usual_length():
    scores, failed, tasks = drawn(np.random.default_rng(5), 100)
    fitted = fit_probability(scores, failed, tasks)
    more = [*scores, np.zeros(LIMIT)], [*failed, True], [*tasks, 'no success']
    assert fit_probability(*more).median_steps == fitted.median_steps


@pytest.mark.parametrize('failures', [0, FEWEST - 1, 60 - FEWEST + 1, 60])
def test_too_few_of_a_class_give_no_map(failures):
    scores = [np.zeros(3)] * 60
    outcomes = [index < failures for index in range(60)]
    assert fit_probability(scores, outcomes, ['a'] * 60) is None


def test_the_fit_is_the_same_every_time():
    made = [fit_probability(*drawn(np.random.default_rng(6), 80)) for _ in range(2)]
    assert made[0] == made[1]
