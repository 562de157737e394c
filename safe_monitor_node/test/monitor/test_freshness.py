# SPDX-License-Identifier: Apache-2.0
"""A verdict about the past is STALE: old steps, stamps of another time, a clock that stands."""

import math

import pytest

from safe_monitor_node.monitor.alarm import AlarmState, Verdict
from safe_monitor_node.monitor.freshness import Freshness

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState


def verdict(state):
    return Verdict(state, 'as it is', 4, 0.5, 1.0)


def aged(age, max_age=5.0):
    freshness = Freshness(max_age)
    freshness.take(4, age)
    return freshness


@pytest.mark.parametrize('age', [None, 0.0, 4.9, -4.9], ids=str)
def test_a_fresh_step_changes_nothing(age):
    for state in AlarmState:
        assert aged(age).applied_to(verdict(state)) == verdict(state)
    assert aged(age).warning == ''


@pytest.mark.parametrize('state', [UNKNOWN, NOMINAL, WARNING], ids=str)
def test_an_old_step_is_stale_and_says_why(state):
    stale = aged(8.24).applied_to(verdict(state))
    assert stale.state == STALE
    assert stale.step == 4
    assert math.isnan(stale.score)
    assert stale.reason == (
        'step 4: expected an age of at most 5 s (max_age) at arrival, found 8.24 s; the step has '
        'waited before its arrival, or the clocks of two computers differ'
    )


@pytest.mark.parametrize('state', [ALARM, INVALID, STALE], ids=str)
def test_what_is_true_also_if_late_stays(state):
    assert aged(8.0).applied_to(verdict(state)) == verdict(state)


def test_a_stamp_of_another_time_is_said_to_be_one():
    reason = aged(1.7e9).applied_to(verdict(NOMINAL)).reason
    assert 'not in the ROS time of this computer' in reason
    assert 'set use_sim_time' in reason


def test_without_a_largest_age_every_age_is_accepted():
    assert aged(1.7e9, max_age=0.0).applied_to(verdict(NOMINAL)) == verdict(NOMINAL)


def test_a_stamp_in_the_future_is_a_warning():
    freshness = aged(-60.0)
    assert freshness.applied_to(verdict(NOMINAL)) == verdict(NOMINAL)
    assert 'is 60 s in the future' in freshness.warning


def test_a_forgotten_step_has_no_age():
    freshness = aged(8.0)
    freshness.forget()
    assert freshness.age is None
    assert freshness.applied_to(verdict(UNKNOWN)) == verdict(UNKNOWN)


@pytest.mark.parametrize('state', [UNKNOWN, NOMINAL, WARNING, STALE], ids=str)
def test_a_clock_that_stands_still_is_stale_in_its_own_words(state):
    freshness = Freshness()
    freshness.clock_problem = 'no /clock for 3 s'
    assert freshness.applied_to(verdict(state)).state == STALE
    assert freshness.applied_to(verdict(state)).reason == 'no /clock for 3 s'
    assert freshness.applied_to(verdict(ALARM)) == verdict(ALARM)
    freshness.clock_problem = ''
    assert freshness.applied_to(verdict(state)) == verdict(state)
