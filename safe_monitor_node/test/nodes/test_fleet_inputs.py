# SPDX-License-Identifier: Apache-2.0
"""Events of a robot of a fleet: a flood of them is handled in parts, in order."""

from __future__ import annotations

import pytest

pytest.importorskip('safe_msgs.msg', reason='the messages must be built')

from safe_monitor_node.nodes.fleet_inputs import LimitedOrder


def message(name, time):
    return name, {'source_timestamp': time}


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def order(clock):
    return LimitedOrder(0.002, lambda: clock[0])


def given(order, clock, cost):
    """Return what the order gives in one turn, in which each event takes some time."""
    order.begin()
    names = []
    while (event := order.next_event()) is not None:
        names.append(event[0])
        clock[0] += cost
    step = order.take_step()
    return names, None if step is None else step[0]


def test_a_flood_is_handled_in_parts_and_its_step_comes_in_order(order, clock):
    order.put_events([message(f'e{i}', i) for i in range(5)] + [message('late', 9)], 100)
    order.step = message('step', 5)
    assert given(order, clock, 0.0015) == (['e0', 'e1'], None)
    assert order.holds
    assert given(order, clock, 0.0015) == (['e2', 'e3'], None)
    assert given(order, clock, 0.0015) == (['e4'], 'step')
    assert given(order, clock, 0.0015) == (['late'], None)
    assert not order.holds


def test_an_event_that_takes_long_is_handled_alone(order, clock):
    order.put_events([message('a', 1), message('b', 2)], 100)
    order.step = message('step', 3)
    assert given(order, clock, 1.0) == (['a'], None)
    assert given(order, clock, 1.0) == (['b'], 'step')


def test_events_that_take_no_time_are_all_handled(order, clock):
    order.put_events([message(f'e{i}', i) for i in range(40)], 100)
    order.step = message('step', 50)
    names, step = given(order, clock, 0.0)
    assert (len(names), step) == (40, 'step')
