# SPDX-License-Identifier: Apache-2.0
"""The learned period of steps, and the silence that it allows."""

import math

import pytest

from safe_monitor_node.monitor.step_period import (
    LONGEST_SILENCE,
    PERIODS,
    SHORTEST_SILENCE,
    StepPeriod,
)


def after(*intervals):
    period = StepPeriod()
    for interval in intervals:
        period.add(interval)
    return period


def test_before_the_second_step_the_silence_is_the_shortest():
    period = StepPeriod()
    assert period.period is None
    assert period.silence == SHORTEST_SILENCE
    assert period.explain() == 'no period is known yet'


def test_a_fast_policy_may_pause_for_the_shortest_silence():
    period = after(*[0.1] * 30)
    assert period.period == 0.1
    assert period.silence == SHORTEST_SILENCE
    assert period.explain() == '3 times the period of 0.1 s, but at least 2 s'


def test_a_policy_of_chunks_may_pause_for_several_periods():
    period = after(3.0, 3.1, 2.9)
    assert period.silence == pytest.approx(PERIODS * 3.0)
    assert period.explain() == '3 times the period of 3 s'


def test_the_silence_has_a_longest():
    assert after(3600.0).silence == LONGEST_SILENCE
    assert 'at most 30 s' in after(3600.0).explain()


def test_the_longest_interval_counts_only_if_it_is_the_only_one():
    assert after(20.0).period == 20.0
    assert after(20.0, 0.1).period == 0.1
    assert after(*[0.1] * 19, 20.0).period == 0.1


def test_a_policy_that_alternates_is_as_slow_as_its_long_pauses():
    assert after(*[0.1, 3.0] * 10).period == 3.0


def test_only_the_last_intervals_count():
    assert after(*[3.0] * 20, *[0.1] * 20).period == 0.1


def test_an_interval_that_cannot_be_is_ignored():
    assert after(-1.0, math.nan).period is None
