# SPDX-License-Identifier: Apache-2.0
"""The queue of a sender is bounded, and drops images before steps and steps before events."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vla_feature_bridge.wire.send_queue import Outgoing, SendQueue


def taken(queue):
    found = []
    while (frame := queue.take()) is not None:
        found.append((frame.kind, frame.data))
    return found


def test_frames_keep_their_order():
    queue = SendQueue(10, 1000)
    for number, kind in enumerate(['start', 'step', 'image', 'step', 'end']):
        queue.put(Outgoing(kind, bytes([number])))
    assert [data[0] for _, data in taken(queue)] == [0, 1, 2, 3, 4]
    assert not queue.dropped
    assert (len(queue), queue.bytes) == (0, 0)


def test_the_oldest_of_the_least_important_kind_is_dropped():
    queue = SendQueue(3, 1000)
    for number, kind in enumerate(['start', 'step', 'step', 'image', 'step', 'step', 'end']):
        queue.put(Outgoing(kind, bytes([number])))
    assert taken(queue) == [('start', b'\0'), ('step', b'\5'), ('end', b'\6')]
    assert queue.dropped == {'image': 1, 'step': 3}


def test_bytes_are_bounded_too():
    queue = SendQueue(100, 1000)
    for number in range(20):
        queue.put(Outgoing('step', bytes([number]) * 300))
    assert queue.bytes == 900
    assert [data[0] for _, data in taken(queue)] == [17, 18, 19]
    assert queue.dropped['step'] == 17


def test_events_alone_are_bounded():
    queue = SendQueue(4, 1000)
    for number in range(10):
        queue.put(Outgoing('start' if number % 2 == 0 else 'end', bytes([number])))
    assert [data[0] for _, data in taken(queue)] == [6, 7, 8, 9]


@settings(deadline=None)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(['start', 'end', 'step', 'image']), st.integers(1, 9))
    ),
    depth=st.integers(1, 5),
    size=st.integers(9, 30),
)
def test_nothing_is_lost_without_being_counted(kinds, depth, size):
    queue = SendQueue(depth, size)
    for kind, length in kinds:
        queue.put(Outgoing(kind, bytes(length)))
        assert len(queue) <= depth
        assert queue.bytes <= size
    left = taken(queue)
    assert len(left) + sum(queue.dropped.values()) == len(kinds)
