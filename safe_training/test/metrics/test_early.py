# SPDX-License-Identifier: Apache-2.0
"""Failures found before a median success is over, and steps saved, beside the clock."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from safe_training.metrics.alarms import alarm_report
from safe_training.metrics.early import (
    clock_steps,
    early_curve,
    early_report,
    found_early,
    steps_saved,
)
from safe_training.metrics.scored import MetricError, ScoredRollout


def rollout(steps, failed, task='a'):
    return ScoredRollout(np.zeros(steps), failed, task)


def test_by_hand():
    # The median success of 'a' has 5 steps, that of 'b' 2.5: an alarm at step 2 is in time.
    scored = [
        rollout(4, False), rollout(5, False), rollout(8, False),
        rollout(10, True), rollout(10, True), rollout(10, True),
        rollout(2, False, 'b'), rollout(3, False, 'b'), rollout(6, True, 'b'),
    ]  # fmt: skip
    alarms = [None, None, 6, 4, 5, None, None, None, 2]
    report = early_report(scored, alarms)
    assert report.medians == {'a': 5.0, 'b': 2.5}
    assert report.false_alarm_rate == 1 / 5
    assert report.per_task['a'].found_early.detector == 1 / 3
    assert report.per_task['b'].found_early.detector == 1.0
    assert report.pooled.found_early.detector == 2 / 4
    assert report.macro_found_early.detector == pytest.approx((1 / 3 + 1) / 2)
    assert report.pooled.steps_saved.detector == (6 + 5 + 0 + 4) / 4
    # Successes that run at step k: 5 5 4 3 2 1 1 1 0 of 5. One of five runs at step 5.
    assert clock_steps(np.array([4, 5, 8, 2, 3]), 1 / 5) == [(5, 1.0)]
    assert report.pooled.found_early.clock == 0.0
    assert report.pooled.steps_saved.clock == (5 + 5 + 5 + 1) / 4
    assert report.pooled.steps_saved.gain == pytest.approx(15 / 4 - 16 / 4)
    assert found_early(scored, alarms) == report.pooled.found_early
    assert steps_saved(scored, alarms) == report.pooled.steps_saved


def test_the_clock_is_interpolated_between_two_alarm_steps():
    lengths = np.array([2.0, 4.0])
    # Rates at steps 0, 1, 2, 3, 4: 1, 1, 0.5, 0.5, 0.
    assert clock_steps(lengths, 0.5) == [(2, 1.0)]
    assert clock_steps(lengths, 0.75) == [(1, 0.5), (2, 0.5)]
    assert clock_steps(lengths, 0.25) == [(3, 0.5), (4, 0.5)]
    assert clock_steps(lengths, 0.0) == [(4, 1.0)]
    assert clock_steps(lengths, 1.0) == [(0, 1.0)]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.integers(0, 12))
def test_a_detector_that_is_the_clock_gains_nothing(seed, step):
    generator = np.random.default_rng(seed)
    scored = [
        rollout(int(generator.integers(1, 13)), bool(generator.random() < 0.5), str(task))
        for task in range(3)
        for _ in range(6)
    ]
    scored += [rollout(13, False), rollout(13, True)]
    alarms = [step if len(r) > step else None for r in scored]
    report = early_report(scored, alarms)
    running = [sum(len(r) > k for r in scored if not r.failed) for k in range(14)]
    if step and running[step] == running[step - 1]:
        # Several alarm steps have this rate: the clock has the earliest.
        assert report.pooled.steps_saved.gain <= 1e-9
        assert report.pooled.found_early.gain <= 1e-9
    else:
        for rates in (report.pooled, *report.per_task.values()):
            if rates.n_with_median:
                assert rates.found_early.gain == pytest.approx(0.0)
                assert rates.steps_saved.gain == pytest.approx(0.0)


def test_saved_steps_are_the_share_that_the_detection_time_leaves():
    scored = [rollout(10, True), rollout(10, True), rollout(3, False)]
    alarms = [4, None, None]
    saved = steps_saved(scored, alarms).detector
    assert saved == pytest.approx(10 * (1 - alarm_report(scored, alarms).pooled.detection_time))


def test_failures_of_a_task_without_a_success_are_left_out_and_counted():
    scored = [rollout(4, False), rollout(9, True), rollout(9, True, 'hopeless')]
    report = early_report(scored, [None, 3, 0])
    assert (report.pooled.n_failures, report.pooled.n_with_median) == (2, 1)
    assert report.pooled.found_early.detector == 1.0
    assert math.isnan(report.per_task['hopeless'].found_early.detector)
    assert report.per_task['hopeless'].steps_saved.detector == 9.0


def test_without_successes_or_failures_there_is_no_number():
    only_failures = early_report([rollout(5, True)], [2])
    assert math.isnan(only_failures.pooled.found_early.detector)
    assert math.isnan(only_failures.pooled.steps_saved.clock)
    assert only_failures.pooled.steps_saved.detector == 3.0
    only_successes = early_report([rollout(5, False)], [2])
    assert math.isnan(only_successes.pooled.found_early.detector)
    assert math.isnan(only_successes.macro_found_early.detector)


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(MetricError, match='for each of 1 rollouts, found 0 entries'):
        found_early([rollout(3, True)], [])
    with pytest.raises(MetricError, match='label'):
        steps_saved([ScoredRollout(np.zeros(3), None, 'a')], [None])


def test_the_curve_passes_through_the_number():
    generator = np.random.default_rng(3)
    scored, alarms = [], []
    for index in range(60):
        length = int(generator.integers(4, 30))
        scored.append(rollout(length, index % 3 == 0, str(index % 4)))
        alarms.append(int(generator.integers(length)) if generator.random() < 0.4 else None)
    curve = early_curve(scored, alarms)
    at_median = int(np.flatnonzero(curve.shares == 1.0)[0])
    assert curve.detector[at_median] == pytest.approx(curve.found_early.detector)
    assert curve.clock[at_median] == pytest.approx(curve.found_early.clock)
    for share in (curve.detector, curve.clock):
        assert (np.diff(share) >= -1e-12).all()
    detected = alarm_report(scored, alarms).pooled.detection_rate
    assert curve.detector[-1] == pytest.approx(detected)
