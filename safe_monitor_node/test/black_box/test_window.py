# SPDX-License-Identifier: Apache-2.0
"""The messages of the last seconds: which are kept, and how much memory they take."""

import pytest

from safe_monitor_node.black_box.window import Entry, Memory, Window

SECOND = 10**9
STEPS, EVENTS = 0, 1


def window(span=10.0, memory=10**6, whole=True):
    return Window(int(span * SECOND), Memory(memory), whole, frozenset({EVENTS}))


def add(kept, at, topic=STEPS, size=10, keep_from=None):
    entry = Entry(topic, int(at * SECOND), 0, bytes(size))
    kept.add(entry, keep_from)
    return entry


def times(entries):
    return [entry.time / SECOND for entry in entries]


def test_messages_leave_after_the_span():
    kept = window(whole=False)
    for at in range(30):
        add(kept, at)
    assert times(kept.take(0)) == list(range(19, 30))


def test_running_recordings_keep_what_they_need():
    kept = window(whole=False)
    for at in range(30):
        add(kept, at, keep_from=5 * SECOND)
    assert times(kept.take(5 * SECOND)) == list(range(5, 30))


def test_the_episode_that_was_running_is_kept_whole():
    kept = window()
    kept.began('first', 0)
    for at in range(4):
        kept.stepped('first', at, at * SECOND)
        add(kept, at)
    kept.ended('first', 4 * SECOND)
    kept.began('second', 5 * SECOND)
    for at in range(5, 40):
        kept.stepped('second', at - 5, at * SECOND)
        add(kept, at)
    assert kept.beginning(39 * SECOND) == 5 * SECOND
    assert times(kept.take(5 * SECOND)) == list(range(5, 40))


def test_an_ended_episode_is_not_kept_longer():
    kept = window()
    kept.began('first', 0)
    kept.ended('first', 4 * SECOND)
    assert kept.beginning(8 * SECOND) == -2 * SECOND
    assert kept.beginning(12 * SECOND) == 0
    assert kept.beginning(20 * SECOND) == 10 * SECOND


def test_an_episode_can_begin_without_a_start_and_again_with_the_same_id():
    kept = window(span=1.0)
    kept.stepped('e', 0, 1 * SECOND)
    kept.stepped('e', 1, 2 * SECOND)
    assert kept.beginning(3 * SECOND) == 1 * SECOND
    kept.stepped('e', 0, 4 * SECOND)
    kept.stepped('e', 1, 5 * SECOND)
    assert kept.beginning(6 * SECOND) == 4 * SECOND
    kept.began('f', 7 * SECOND)
    kept.stepped('f', 0, 8 * SECOND)
    assert kept.beginning(9 * SECOND) == 7 * SECOND, 'with its START'


def test_messages_of_two_topics_can_overtake_each_other():
    kept = window(span=1.0)
    kept.stepped('e', 0, 1 * SECOND)
    kept.began('e', 2 * SECOND)
    kept.stepped('e', 1, 3 * SECOND)
    kept.began('f', 5 * SECOND)
    kept.stepped('e', 2, 6 * SECOND)
    kept.ended('e', 7 * SECOND)
    kept.stepped('f', 0, 7 * SECOND)
    assert kept.beginning(5 * SECOND) == 1 * SECOND
    assert kept.beginning(9 * SECOND) == 5 * SECOND


def test_the_last_message_of_a_latched_topic_comes_with_a_recording():
    kept = window(span=2.0, whole=False)
    add(kept, 0, EVENTS)
    add(kept, 1, EVENTS, size=20)
    for at in range(2, 10):
        add(kept, at)
    taken = kept.take(8 * SECOND)
    assert times(taken) == [8, 8, 9]
    assert [(entry.topic, len(entry.data)) for entry in taken[:2]] == [(EVENTS, 20), (STEPS, 10)]


def test_the_memory_is_bounded_and_early_losses_are_counted():
    kept = window(memory=10 * (1000 + 250), whole=False)
    for at in range(20):
        add(kept, at * 0.1, size=1000)
    assert len(kept) == 10
    assert kept.dropped == 10
    assert kept.dropped_until == pytest.approx(0.9 * SECOND)


def test_the_rest_of_a_long_episode_is_given_up_without_a_count():
    kept = window(span=1.0, memory=10 * (1000 + 250))
    kept.began('e', 0)
    for at in range(20):
        add(kept, at, size=1000)
    assert len(kept) == 10
    assert kept.dropped == 0
    assert kept.dropped_until == 9 * SECOND


def test_messages_of_a_recording_count_until_it_is_written():
    kept = window(span=1.0, whole=False)
    memory = kept._memory
    for at in range(3):
        add(kept, at, size=750)
    taken = kept.take(0)
    assert memory.used == 2000, 'counted once'
    add(kept, 100, size=750)
    assert memory.used == 3000
    memory.release(taken)
    assert memory.used == 1000
    kept.clear()
    assert memory.used == 0
