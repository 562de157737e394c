# SPDX-License-Identifier: Apache-2.0
"""Calls of other threads run in the thread of the executor, in order; errors stay there."""

import threading
import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from vla_feature_bridge.nodes.handover import Handover


@pytest.fixture
def spinning():
    """Yield a node and a function that spins it until a condition holds."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node('spinning', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin_until(condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            executor.spin_once(timeout_sec=0.05)

    yield node, spin_until
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_calls_of_many_threads_run_here_in_the_order_of_each_thread(spinning):
    node, spin_until = spinning
    errors, ran = [], []
    handover = Handover(node, errors.append)

    def work(name):
        for number in range(60):
            handover.call(lambda n=number: ran.append((name, n, threading.current_thread())))

    threads = [threading.Thread(target=work, args=(name,)) for name in 'abc']
    for thread in threads:
        thread.start()
    spin_until(lambda: len(ran) == 180)
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert {thread for _, _, thread in ran} == {threading.current_thread()}
    for name in 'abc':
        assert [number for who, number, _ in ran if who == name] == list(range(60))
    assert errors == []
    handover.close()


def test_an_error_is_reported_and_the_next_call_runs(spinning):
    node, spin_until = spinning
    errors, ran = [], []
    handover = Handover(node, errors.append)

    def fail():
        raise ValueError('it is wrong')

    def work():
        handover.call(fail)
        handover.call(lambda: ran.append(1))

    threading.Thread(target=work).start()
    spin_until(lambda: ran)
    assert [str(error) for error in errors] == ['it is wrong']
    handover.close()


def test_closing_lets_waiting_threads_go_and_runs_nothing_more(spinning):
    node, _ = spinning
    ran = []
    handover = Handover(node, print)
    thread = threading.Thread(target=handover.call, args=(lambda: ran.append(1),))
    thread.start()
    handover.close()
    thread.join(5)
    assert not thread.is_alive()
    handover.call(lambda: ran.append(2))
    assert handover.is_closed
    assert ran == []
