# SPDX-License-Identifier: Apache-2.0
"""The shares of the time of a process: who needs more than the others waits, and not for long."""

from __future__ import annotations

import pytest

from safe_monitor_node.nodes.fleet_shares import BURST, TimeShares


class Clock:
    """A steady clock that a test sets."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return Clock()


def run(shares, clock, costs, frequencies, seconds):
    """Serve robots that send at frequencies, one after another; return the waiting times of each.

    A robot keeps at most 100 messages, as the subscription of steps does.
    """
    due = dict.fromkeys(costs, clock.time)
    queues = {robot: [] for robot in costs}
    waited = {robot: [] for robot in costs}
    end = clock.time + seconds
    while clock.time < end:
        for robot, frequency in frequencies.items():
            while due[robot] <= clock.time:
                queues[robot] = [*queues[robot], due[robot]][-100:]
                due[robot] += 1 / frequency
        waiting = [robot for robot, queue in queues.items() if queue]
        if not waiting:
            clock.time = min(due.values())
            continue
        for robot in shares.first(waiting, len(costs)):
            clock.time += costs[robot]
            shares.charge(robot, costs[robot])
            waited[robot].append(clock.time - queues[robot].pop(0))
    return waited


def test_robots_with_equal_needs_never_wait_for_their_share(clock):
    shares = TimeShares(clock)
    costs = dict.fromkeys('abcd', 0.004)
    # They need 1.6 times the time that there is.
    waited = run(shares, clock, costs, dict.fromkeys('abcd', 100.0), 5.0)
    served = [len(each) for each in waited.values()]
    assert max(served) - min(served) <= 1
    assert all(shares.debt(robot, 4) <= BURST for robot in 'abcd')


def test_a_flood_of_one_robot_leaves_the_others_alone(clock):
    robots = [f'r{i}' for i in range(20)]
    costs = dict.fromkeys(robots, 0.002)
    usual = dict.fromkeys(robots, 20.0)
    alone = run(TimeShares(clock), clock, costs, usual, 5.0)
    flooded = run(TimeShares(clock), clock, costs, {**usual, 'r7': 1000.0}, 5.0)
    for robot in robots:
        if robot != 'r7':
            # One message of the flood can be in front of it, and those before its debt grew.
            assert sorted(flooded[robot])[-5] <= max(alone[robot]) + 0.0021
            assert len(flooded[robot]) >= len(alone[robot]) - 1
    # It gets its own share and what the others leave.
    assert len(flooded['r7']) > 3 * len(alone['r7'])


def test_a_robot_that_needs_much_gets_the_time_that_nobody_wants(clock):
    shares = TimeShares(clock)
    costs = dict.fromkeys('abc', 0.002)
    waited = run(shares, clock, costs, {'a': 400.0, 'b': 1.0, 'c': 1.0}, 5.0)
    assert len(waited['a']) == pytest.approx(2000, abs=20)


def test_a_debt_is_forgotten_soon(clock):
    shares = TimeShares(clock)
    shares.charge('a', 1e6)
    assert shares.first(['a', 'b'], 10) == ['b']
    assert shares.first(['a'], 10) == ['a']
    clock.time += 1.01 * BURST / 0.15
    assert shares.first(['a', 'b'], 10) == ['a', 'b']


def test_of_robots_with_too_much_debt_the_smallest_comes_first(clock):
    shares = TimeShares(clock)
    for robot, seconds in (('a', 0.09), ('b', 0.07), ('c', 0.08)):
        shares.charge(robot, seconds)
        shares.debt(robot, 10)
    assert shares.first(['a', 'b', 'c'], 10) == ['b']
    assert shares.first([], 10) == []
