# SPDX-License-Identifier: Apache-2.0
"""The periodic calls of a fleet: in order, on time, and not made up for after a pause."""

from __future__ import annotations

import math

from safe_monitor_node.nodes.schedule import Schedule


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def run_until(schedule, clock, end):
    """Let the time go on to the end, and make the calls that are due."""
    while schedule.next_due() <= end:
        clock.time = max(clock.time, schedule.next_due())
        call = schedule.take_due()
        assert call is not None
        call.callback()
    clock.time = end
    assert schedule.take_due() is None


def test_calls_come_in_their_periods():
    clock, made = Clock(), []
    schedule = Schedule(clock)
    assert schedule.next_due() == math.inf
    assert schedule.take_due() is None
    schedule.every(1.0, lambda: made.append(('slow', clock.time)))
    schedule.every(0.4, lambda: made.append(('fast', round(clock.time, 9))))
    run_until(schedule, clock, 101.3)
    assert made == [('fast', 100.4), ('fast', 100.8), ('slow', 101.0), ('fast', 101.2)]


def test_missed_calls_are_not_made_up_for():
    clock, made = Clock(), []
    schedule = Schedule(clock)
    schedule.every(1.0, lambda: made.append(clock.time))
    clock.time = 107.5
    run_until(schedule, clock, 108.4)
    assert made == [107.5]
    run_until(schedule, clock, 108.5)
    assert made == [107.5, 108.5]


def test_a_call_that_ends_itself_comes_once():
    clock, made = Clock(), []
    schedule = Schedule(clock)

    def once():
        made.append(clock.time)
        call.cancel()

    call = schedule.every(1.0, once)
    run_until(schedule, clock, 110.0)
    assert made == [101.0]
    assert schedule.next_due() == math.inf


def test_reset_begins_the_period_again():
    clock, made = Clock(), []
    schedule = Schedule(clock)
    call = schedule.every(1.0, lambda: made.append(clock.time))
    clock.time = 100.9
    call.reset()
    run_until(schedule, clock, 101.8)
    assert made == []
    run_until(schedule, clock, 102.0)
    assert made == [101.9]


def test_of_the_calls_that_are_due_the_short_period_comes_first():
    clock, made = Clock(), []
    schedule = Schedule(clock)
    for name, period in (('diagnosis', 1.0), ('stop', 0.1), ('look', 1.5)):
        schedule.every(period, lambda name=name: made.append(name))
    clock.time = 101.6
    while (call := schedule.take_due()) is not None:
        call.callback()
    assert made == ['stop', 'diagnosis', 'look']
    # A busy machine: each call takes so long that the next stop is due again.
    made.clear()
    for _ in range(40):
        clock.time += 0.1
        call = schedule.take_due()
        if call is not None:
            call.callback()
    assert made.count('diagnosis') >= 2, 'a long period comes too when its time is over'
    assert made.count('stop') > 30


def test_a_call_is_made_early_by_its_slack_and_does_not_drift():
    clock, made = Clock(), []
    schedule = Schedule(clock)
    schedule.every(1.0, lambda: made.append(clock.time), slack=0.2)
    schedule.every(5.1, lambda: made.append('late'))
    clock.time = 100.7
    assert schedule.take_early() is None
    clock.time = 100.85
    schedule.take_early().callback()
    assert schedule.take_early() is None, 'each call is made once'
    assert schedule.next_due() == 102.0
    run_until(schedule, clock, 104.9)
    assert made == [100.85, 102.0, 103.0, 104.0]
    schedule.take_early().callback()
    assert made[-1] == 104.9
    clock.time = 105.09
    assert schedule.take_early() is None, 'a call without slack is made when it is due'


def test_a_call_that_is_overdue_comes_before_an_early_one():
    clock, made = Clock(), []
    schedule = Schedule(clock)
    schedule.every(1.0, lambda: made.append('overdue'))
    schedule.every(1.1, lambda: made.append('early'), slack=0.1)
    clock.time = 101.05
    while (call := schedule.take_early()) is not None:
        call.callback()
    assert made == ['overdue', 'early']
