# SPDX-License-Identifier: Apache-2.0
"""Events and steps that wait together are given in the order of their publication."""

from __future__ import annotations

import pytest

from safe_monitor_node.nodes.publication_order import EventNumbers, PublicationOrder

MOST = 3


def at(time, name):
    return name, {'source_timestamp': time}


def given(order, steps, events=(), most=MOST):
    """Put events, then give everything as the monitor does: names in their order."""
    order.put_events([at(*event) for event in events], most)
    names, left = [], [at(*step) for step in steps]
    while True:
        if order.step is None and left:
            order.step = left.pop(0)
        while (event := order.next_event()) is not None:
            names.append(event[0])
        if (step := order.take_step()) is None:
            return names
        names.append(step[0])


def test_an_event_comes_before_the_steps_that_were_published_after_it():
    order = PublicationOrder()
    steps = [(11, 'a0'), (12, 'a1'), (21, 'b0'), (22, 'b1')]
    events = [(10, 'START a'), (13, 'END a'), (20, 'START b'), (23, 'END b')]
    expected = ['START a', 'a0', 'a1', 'END a', 'START b', 'b0', 'b1', 'END b']
    assert given(order, steps, events, 100) == expected
    assert not order.holds


def test_an_event_alone_waits_for_nothing():
    assert given(PublicationOrder(), [], [(10, 'END a')]) == ['END a']


def test_an_event_that_comes_late_is_given_at_once():
    order = PublicationOrder()
    assert given(order, [(11, 'b0')]) == ['b0']
    assert given(order, [(12, 'b1')], [(10, 'START b')]) == ['START b', 'b1']


def test_without_times_events_come_first():
    assert given(PublicationOrder(), [(0, 'a0')], [(0, 'END a')]) == ['END a', 'a0']


def test_an_event_of_another_clock_waits_for_no_more_steps_than_there_were():
    order = PublicationOrder()
    steps = [(time, f'a{time}') for time in range(6)]
    assert given(order, steps, [(10**9, 'END a')]) == ['a0', 'a1', 'a2', 'END a', 'a3', 'a4', 'a5']


def test_events_of_several_publishers_come_in_the_order_of_time():
    order = PublicationOrder()
    order.put_events([at(30, 'END')], MOST)
    assert given(order, [(25, 'step')], [(10, 'START'), (20, 'LABEL')]) == [
        'START',
        'LABEL',
        'step',
        'END',
    ]


def test_what_is_cleared_is_not_given():
    order = PublicationOrder()
    order.put_events([at(10, 'END')], MOST)
    order.step = at(5, 'step')
    assert order.holds
    order.clear()
    assert not order.holds
    assert order.next_event() is None and order.take_step() is None


@pytest.mark.parametrize(
    ('numbers', 'publishers', 'after'),
    [
        pytest.param([1, 2, 3], 1, None, id='none is missing'),
        pytest.param([57, 58, 59], 1, None, id='found after its first messages'),
        pytest.param([57, 3, 58, 4, 59, 5], 2, None, id='two publishers'),
        pytest.param([57, 1, 2], 1, None, id='restarted'),
        pytest.param([1, 1, 1, 2, 2, 2], 3, None, id='three begin together'),
        pytest.param([None, None], 1, None, id='a middleware without numbers'),
        pytest.param([1, 2, 4, 5], 1, 4, id='one is missing'),
        pytest.param([57, 1, 2, 59], 2, 59, id='one of two publishers lost one'),
    ],
)
def test_numbers_that_are_left_out_show_a_loss(numbers, publishers, after):
    found = EventNumbers()
    shown = [number for number in numbers if found.shows_loss(number, lambda: publishers)]
    assert shown == [number for number in [after] if number]
