# SPDX-License-Identifier: Apache-2.0
"""Messages of topics are joined by the real ``message_filters``, and each one is accounted for."""

import random
import sys

import pytest
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from vla_feature_bridge.ros.joins import Join, JoinError
from vla_feature_bridge.ros.messages import time_to_message

MILLISECOND = 1_000_000
NOT_HERE = (
    'message_filters is missing, so that NO JOIN IS TESTED: it comes with a ROS 2 distribution, '
    'not from PyPI; put the folder src of ros2/message_filters on PYTHONPATH'
)


@pytest.fixture
def real_filters():
    return pytest.importorskip('message_filters', reason=NOT_HERE)


def stamped(kind, milliseconds):
    message = kind()
    message.header.stamp = time_to_message(milliseconds * MILLISECOND)
    return message


class Sets:
    """Collects the stamps of each joined set, in milliseconds."""

    def __init__(self, *names, **options):
        self.stamps = []
        self.join = Join(names, self._take, **options)

    def _take(self, messages):
        self.stamps.append(tuple(message.stamp // MILLISECOND for message in messages))

    def add(self, name, milliseconds, now=0):
        kind = {'features': TwistStamped, 'actions': JointState, 'camera': TwistStamped}[name]
        self.join.add(name, stamped(kind, milliseconds), now * MILLISECOND)

    def counts(self, name):
        counts = self.join.counts[name]
        return counts.received, counts.joined, counts.waiting, counts.lost


def test_one_topic_needs_no_message_filters(monkeypatch):
    monkeypatch.setitem(sys.modules, 'message_filters', None)
    sets = Sets('actions')
    for milliseconds in (10, 20, 0):
        sets.add('actions', milliseconds, now=99)
    assert sets.stamps == [(10,), (20,), (99,)]
    assert sets.counts('actions') == (3, 3, 0, 0)


def test_without_message_filters_two_topics_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'message_filters', None)
    with pytest.raises(
        JoinError, match=r'message_filters.*apt: ros-DISTRO-message-filters'
    ) as told:
        Join(('features', 'actions'), print)
    assert 'https://github.com/ros2/message_filters and add its folder src to' in str(told.value)


def test_equal_stamps_are_joined_whatever_the_order(real_filters):
    sets = Sets('features', 'actions', rule='exact', queue_size=200)
    arrivals = [('features', 10 * t) for t in range(1, 101)] + [
        ('actions', 10 * t) for t in range(1, 101)
    ]
    random.Random(3).shuffle(arrivals)
    for name, milliseconds in arrivals:
        sets.add(name, milliseconds)
    assert sorted(sets.stamps) == [(10 * t, 10 * t) for t in range(1, 101)]
    assert sets.counts('features') == sets.counts('actions') == (100, 100, 0, 0)


def test_dropped_messages_leave_partners_that_are_counted_as_lost(real_filters):
    sets = Sets('features', 'actions', rule='exact', queue_size=5)
    for t in range(1, 101):
        if t % 10:
            sets.add('features', 10 * t)
        if t % 7:
            sets.add('actions', 10 * t)
    both = [t for t in range(1, 101) if t % 10 and t % 7]
    assert sets.stamps == [(10 * t, 10 * t) for t in both]
    for name, every in (('features', 10), ('actions', 7)):
        received = sum(1 for t in range(1, 101) if t % every)
        found = sets.counts(name)
        assert found[:2] == (received, len(both))
        assert found[2] <= 5
        assert found[3] == received - len(both) - found[2] > 0


def test_near_stamps_are_joined_with_the_nearest_and_far_ones_are_not(real_filters):
    sets = Sets('features', 'actions', rule='approximate', slop=0.02, queue_size=10)
    for t in range(1, 21):
        sets.add('features', 100 * t)
        sets.add('actions', 100 * t + (7 if t % 5 else 35))
    near = [t for t in range(1, 21) if t % 5]
    assert sets.stamps == [(100 * t, 100 * t + 7) for t in near]
    assert sets.counts('features')[:2] == (20, 16)


def test_messages_that_were_passed_over_are_without_partners_at_once(real_filters):
    sets = Sets('features', 'actions', rule='approximate', slop=0.02, queue_size=20)
    for t in (1, 2, 3):
        sets.add('features', 100 * t)
        sets.add('actions', 100 * t + (90 if t == 2 else 0))
    assert sets.stamps == [(100, 100), (300, 290)]
    assert sets.counts('features') == (3, 2, 0, 1)
    sets.add('features', 400)
    assert sets.counts('features') == (4, 2, 1, 1)


def test_three_topics_are_joined(real_filters):
    sets = Sets('camera', 'features', 'actions', rule='approximate', slop=0.05, queue_size=10)
    for t in range(1, 11):
        sets.add('features', 100 * t)
        sets.add('camera', 100 * t - 20)
        sets.add('actions', 100 * t + 15)
    assert sets.stamps == [(100 * t - 20, 100 * t, 100 * t + 15) for t in range(1, 11)]


def test_a_message_without_header_is_joined_by_the_time_of_receiving(real_filters):
    sets = Sets('features', 'actions', rule='approximate', slop=0.03)
    for t in range(1, 6):
        sets.add('features', 100 * t)
        sets.join.add('actions', Float64MultiArray(), (100 * t + 12) * MILLISECOND)
    assert sets.stamps == [(100 * t, 100 * t + 12) for t in range(1, 6)]
    assert sets.join.counts['actions'].without_stamp == 5


def test_a_stamp_of_zero_is_no_stamp(real_filters):
    sets = Sets('features', 'actions', rule='approximate', slop=0.03)
    sets.add('features', 500)
    sets.add('actions', 0, now=510)
    assert sets.stamps == [(500, 510)]
    assert sets.join.counts['actions'].without_stamp == 1


@pytest.mark.parametrize(
    ('options', 'found'),
    [
        ({'rule': 'exact'}, r'actions: .*because join is exact.*set the parameter join'),
        (
            {'rule': 'approximate', 'allow_headerless': False},
            r'allow_headerless is false.*to true',
        ),
    ],
)
def test_a_message_without_stamp_is_refused_where_it_cannot_be_joined(options, found, real_filters):
    sets = Sets('features', 'actions', **options)
    sets.add('features', 100)
    with pytest.raises(JoinError, match=found):
        sets.join.add('actions', Float64MultiArray(), 100 * MILLISECOND)
    assert sets.counts('actions') == (1, 0, 0, 1)
    sets.add('actions', 100)
    assert sets.stamps == [(100, 100)]


def test_an_error_of_the_reader_does_not_stop_the_join(real_filters):
    def fails_once(messages):
        taken.append(messages)
        if len(taken) == 1:
            raise ValueError('the first set is bad')

    taken = []
    join = Join(('features', 'actions'), fails_once)
    for t in (1, 2):
        join.add('features', stamped(TwistStamped, t), 0)
        join.add('actions', stamped(JointState, t), 0)
    assert len(taken) == 2
    assert join.problem == 'the first set is bad'
