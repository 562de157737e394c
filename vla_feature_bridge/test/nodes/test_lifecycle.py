# SPDX-License-Identifier: Apache-2.0
"""A managed node answers every request for a transition and survives it."""

import time

import pytest
import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from vla_feature_bridge.nodes.lifecycle import ManagedNode


class Fragile(ManagedNode):
    """A managed node whose set-up fails while ``broken`` is true."""

    broken = False

    def _setup(self):
        if self.broken:
            raise ValueError('the file is damaged')

    def _teardown(self):
        pass


@pytest.fixture
def managed():
    """Yield a managed node and a function that asks it for a transition over DDS."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Fragile('managed', context=context)
    other = Node('other', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    executor.add_node(other)

    def call(kind, name, request):
        client = other.create_client(kind, f'managed/{name}')
        assert client.wait_for_service(timeout_sec=10)
        future = client.call_async(request)
        deadline = time.monotonic() + 10
        while not future.done():
            assert time.monotonic() < deadline, f'{name} does not answer'
            executor.spin_once(timeout_sec=0.1)
        return future.result()

    def change(**transition):
        request = ChangeState.Request(transition=Transition(**transition))
        return call(ChangeState, 'change_state', request).success

    def state():
        return call(GetState, 'get_state', GetState.Request()).current_state.id

    yield node, change, state
    executor.shutdown()
    node.destroy_node()
    other.destroy_node()
    rclpy.shutdown(context=context)


def test_a_transition_that_the_state_does_not_allow_is_refused_by_id_and_by_label(managed):
    node, change, state = managed
    assert change(id=Transition.TRANSITION_CONFIGURE)
    assert change(id=Transition.TRANSITION_ACTIVATE)
    assert node.active
    # A lifecycle manager that does not look at the state begins with CONFIGURE.
    assert not change(id=Transition.TRANSITION_CONFIGURE)
    assert not change(label='configure')
    assert not change(id=99)
    assert state() == State.PRIMARY_STATE_ACTIVE
    assert node.active
    assert change(id=Transition.TRANSITION_DEACTIVATE)
    assert not node.active


def test_a_failed_set_up_leaves_the_node_unconfigured_with_its_reason(managed):
    node, change, state = managed
    node.broken = True
    assert not change(label='configure')
    assert node.failure == 'the file is damaged'
    assert state() == State.PRIMARY_STATE_UNCONFIGURED
    node.broken = False
    assert change(label='configure')
    assert node.failure == ''
