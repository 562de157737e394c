# SPDX-License-Identifier: Apache-2.0
"""A sender over real sockets: order, loss, processes that die, and what it never does: wait."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from wire_processes import (
    PATIENCE,
    Inbox,
    ReceiverProcess,
    bare_bridge,
    read_frame,
    wait_for,
)

from vla_feature_bridge.deferred import Deferred
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.wire import StepReceiver, StepSender, link
from vla_feature_bridge.wire.messages import (
    BridgeStatus,
    decode_event,
    decode_hello,
    decode_step,
    encode_refusal,
    encode_status,
    is_resent,
)

CHUNK = np.random.default_rng(0).normal(size=(1, 4, 7)).astype(np.float32)


def make_sender(address, **settings):
    return StepSender(
        str(address),
        **{
            'feature_name': 'f',
            'exec_horizon': 2,
            'policy': 'pi0',
            'action_space': 'robot',
            'wait_for_monitor': 0,
            **settings,
        },
    )


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture(params=['unix', 'tcp'])
def receiver(request, inbox, tmp_path):
    address = f'unix:{tmp_path / "s"}' if request.param == 'unix' else 'tcp://127.0.0.1:0'
    with StepReceiver([address], inbox) as receiver:
        yield receiver


@pytest.fixture
def address(tmp_path):
    return f'unix:{tmp_path / "s"}'


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(link, 'PAUSE_AFTER_REFUSAL', 0.05)
    monkeypatch.setattr(link, 'LONGEST_PAUSE', 0.1)


def test_two_episodes_arrive_in_order(receiver, inbox):
    features = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)
    sender = make_sender(receiver.addresses[0], source='arm')
    first = sender.start(task='mug', instruction='pick up the mug')
    sent = [sender.publish(row, CHUNK, inference_time=0.25) for row in features[:3]]
    sender.end(success=np.True_, reason='done')
    second = sender.start(episode_id='mine')
    sent += [sender.publish(row, CHUNK, stamp=7) for row in features[3:]]
    sender.end(success=False)
    sender.close()
    wait_for(lambda: len(inbox.messages) == 10)
    assert inbox.short('arm') == [
        [first, 'start'],
        *[[first, step] for step in range(3)],
        [first, 'end'],
        [second, 'start'],
        *[[second, step] for step in range(3)],
        [second, 'end'],
    ]
    steps = [message for _, message in inbox.messages if hasattr(message, 'features')]
    for found, expected, row in zip(steps, sent, features, strict=True):
        np.testing.assert_array_equal(found.features, row)
        np.testing.assert_array_equal(found.actions, CHUNK)
        assert found.signals == expected.signals
        assert (found.policy, found.action_space, found.exec_horizon) == ('pi0', 'robot', 2)
        assert found.stamp == expected.stamp
    events = [message for _, message in inbox.messages if hasattr(message, 'kind')]
    assert [event.success for event in events] == [None, True, None, False]
    assert (events[0].task, events[0].instruction) == ('mug', 'pick up the mug')
    assert (sender.published, sender.sent, sender.refused, sender.dropped) == (6, 6, 0, 0)
    assert sender.state == 'closed'


def test_large_steps_arrive_whole(receiver, inbox):
    features = np.random.default_rng(1).normal(size=(10, 50, 1024)).astype(np.float32)
    sender = make_sender(receiver.addresses[0])
    sender.start()
    for n in range(5):
        sender.publish(features + n, CHUNK)
    wait_for(lambda: len(inbox.messages) == 6)
    for n, (_, step) in enumerate(inbox.messages[1:]):
        np.testing.assert_array_equal(step.features, features + n)
    sender.close()


def test_arrays_may_change_after_they_were_published(receiver, inbox):
    features = np.zeros(100_000, np.float32)
    sender = make_sender(receiver.addresses[0], queue_bytes=1 << 30)
    sender.start()
    for n in range(20):
        features[:] = n
        sender.publish(features)
    sender.close(timeout=PATIENCE)
    wait_for(lambda: len(inbox.messages) == 21)
    assert [step.features.max() for _, step in inbox.messages[1:]] == list(range(20))


def test_images_arrive(receiver, inbox):
    array = np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8)
    sender = make_sender(receiver.addresses[0])
    sender.image('wrist', array, stamp=5)
    sender.image('depth', array.astype(np.float32))
    sender.close()
    wait_for(lambda: inbox.messages)
    image = inbox.messages[0][1]
    assert (image.name, image.stamp, len(inbox.messages)) == ('wrist', 5, 1)
    np.testing.assert_array_equal(image.array, array)
    assert sender.refused == 1
    assert 'expected uint8 of shape (height, width, 3)' in sender.last_error


def test_steps_of_the_time_before_the_bridge_arrive(address, inbox, impatient, caplog):
    sender = make_sender(address)
    sender.start(episode_id='a')
    for _ in range(5):
        assert sender.publish(np.zeros(4)) is not None
    wait_for(lambda: 'no connection to the bridge' in sender.last_error)
    assert 'bridge, or ./dev run vla_feature_bridge bridge' in sender.last_error
    assert (sender.state, sender.waiting) == ('connecting', 6)
    with StepReceiver([address], inbox):
        wait_for(lambda: sender.sent == 5)
        wait_for(lambda: inbox.short() == [['a', 'start'], *[['a', n] for n in range(5)]])
        assert sender.state == 'connected'
        sender.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    found = [text for text in warnings if 'connected as' in text]
    assert found == [f"{address}: connected as ''; 6 steps and events that waited are sent now"]


def test_a_killed_bridge_is_found_again(tmp_path, impatient):
    address = f'unix:{tmp_path / "s"}'
    with ReceiverProcess(address) as first:
        sender = make_sender(address, source='arm')
        sender.start(episode_id='a')
        for _ in range(10):
            sender.publish(np.zeros(4))
        wait_for(lambda: len(first.messages) == 11)
        first.kill()
    for _ in range(10):
        assert sender.publish(np.zeros(4)) is not None
    wait_for(lambda: sender.state == 'connecting')
    with ReceiverProcess(address) as second:
        wait_for(lambda: sender.state == 'connected')
        sender.publish(np.zeros(4))
        sender.end(success=True)
        sender.close(timeout=PATIENCE)
        wait_for(lambda: ['arm', 'a', 'end'] in second.messages)
        messages = second.messages
    # The second process does not know the episode: it gets the START again. Steps that were on
    # their way to the first process may be missing, and the numbers show it.
    assert messages[0] == ['arm', 'a', 'start']
    numbers = [what for _, _, what in messages[1:-1]]
    assert numbers == list(range(numbers[0], 21))
    assert 10 <= numbers[0] <= 12
    assert sender.dropped == 0


def test_a_bridge_that_is_told_again_does_not_hear_twice(receiver, inbox):
    sender = make_sender(receiver.addresses[0])
    sender.start(episode_id='a')
    sender.publish(np.zeros(4))
    wait_for(lambda: len(inbox.messages) == 2)
    for count in range(2, 5):
        sender._link._socket.shutdown(socket.SHUT_RDWR)  # as a broken network does
        wait_for(lambda n=count: receiver.statistics()[sender.source].connections == n)
    sender.publish(np.zeros(4))
    wait_for(lambda: len(inbox.messages) == 3)
    sender.end()
    wait_for(lambda: len(inbox.messages) == 4)
    sender._link._socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: receiver.statistics()[sender.source].connections == 5)
    sender.start(episode_id='b')
    sender.close()
    wait_for(lambda: len(inbox.messages) == 5)
    assert inbox.short() == [['a', 'start'], ['a', 0], ['a', 1], ['a', 'end'], ['b', 'start']]


def test_the_event_is_marked_when_it_is_sent_again(tmp_path):
    with bare_bridge(tmp_path / 's') as accept:
        sender = make_sender(f'unix:{tmp_path / "s"}', source='arm')
        sender.start(episode_id='a', task='mug')
        instances = set()
        for number in range(3):
            with accept() as connection:
                hello = decode_hello(read_frame(connection))
                instances.add(hello.instance)
                assert (hello.source, hello.policy, hello.pid) == ('arm', 'pi0', os.getpid())
                connection.sendall(encode_status(BridgeStatus(True)))
                frame = read_frame(connection)
                event = decode_event(frame)
                assert (event.kind, event.episode_id, event.task) == ('start', 'a', 'mug')
                assert is_resent(frame) == (number > 0)
                sender.publish(np.zeros(4))
                assert decode_step(read_frame(connection)).step == number
        assert len(instances) == 1
        sender.close(timeout=0)


def test_a_reader_that_stops_costs_the_oldest_steps_only(tmp_path):
    with bare_bridge(tmp_path / 's') as accept:
        sender = make_sender(f'unix:{tmp_path / "s"}', queue_depth=8)
        with accept() as connection:
            read_frame(connection)
            connection.sendall(encode_status(BridgeStatus(True)))
            sender.start(episode_id='a')
            large = np.zeros(1 << 18, np.float32)  # more than the system keeps for a reader
            for _ in range(60):
                assert sender.publish(large) is not None
                assert sender.waiting <= 9
            sender.end(success=True)
            assert sender.dropped >= 60 - 9
            assert (sender.dropped_events, sender.dropped_images) == (0, 0)
            assert sender.state == 'connected'
            frames = []
            while not frames or frames[-1].kind != 'event' or frames[-1].header['event'] == 'start':
                frames.append(read_frame(connection))
            counts = [frame.header['dropped'] for frame in frames]
            numbers = [frame.header['step'] for frame in frames if frame.kind == 'step']
        assert frames[0].header['event'] == 'start'
        assert numbers == sorted(set(numbers))
        # END pushed out one more step; the newest steps arrived.
        assert numbers[-7:] == list(range(53, 60))
        assert len(numbers) + sender.dropped == 60
        assert counts == sorted(counts)
        assert counts[-1] >= sender.dropped - 1
        sender.close(timeout=0)


def test_a_stopped_bridge_makes_nobody_wait(tmp_path):
    address = f'unix:{tmp_path / "s"}'
    with ReceiverProcess(address) as bridge:
        sender = make_sender(address, source='arm', queue_depth=10)
        sender.start(episode_id='a')
        wait_for(lambda: len(bridge.messages) == 1)
        bridge.signal(signal.SIGSTOP)
        for _ in range(100):
            sender.publish(np.zeros(1 << 17, np.float32))
        dropped = sender.dropped
        assert dropped > 50
        bridge.signal(signal.SIGCONT)
        sender.close(timeout=PATIENCE)
        wait_for(lambda: bridge.messages[-1] == ['arm', 'a', 99])
        numbers = [what for _, _, what in bridge.messages[1:]]
        assert numbers == sorted(set(numbers))
        assert len(numbers) + sender.dropped == 100


def test_the_bridge_says_whether_a_monitor_listens(receiver):
    sender = make_sender(receiver.addresses[0])
    wait_for(lambda: sender.state == 'connected')
    assert not sender.monitor_listens
    for listens in (True, False, True):
        receiver.set_status(listens)
        wait_for(lambda expected=listens: sender.monitor_listens == expected)
    sender.close()
    assert not sender.monitor_listens


def test_the_first_start_waits_for_the_monitor(receiver, inbox):
    sender = make_sender(receiver.addresses[0], wait_for_monitor=PATIENCE)
    threading.Timer(0.2, lambda: receiver.set_status(True)).start()
    begin = time.monotonic()
    sender.start()
    assert time.monotonic() - begin >= 0.15
    assert sender.monitor_listens
    assert not sender.last_error
    receiver.set_status(False)
    wait_for(lambda: not sender.monitor_listens)
    sender.start()  # does not wait again
    sender.close()


def test_a_monitor_that_does_not_come_is_no_error(receiver, inbox):
    sender = make_sender(receiver.addresses[0], wait_for_monitor=0.1, strict=True)
    episode = sender.start()
    assert 'no monitor listens after 0.1 s (wait_for_monitor)' in sender.last_error
    sender.close()
    wait_for(lambda: inbox.short() == [[episode, 'start']])


def test_the_second_sender_of_a_name_is_refused_and_tries_again(receiver, inbox, impatient, caplog):
    first = make_sender(receiver.addresses[0], source='arm')
    wait_for(lambda: first.state == 'connected')
    second = make_sender(receiver.addresses[0], source='arm')
    second.start(episode_id='b')
    wait_for(lambda: second.state == 'refused')
    expected = f'the bridge refuses .arm.: .* found one that process {os.getpid()} has; give every'
    assert re.search(expected, second.last_error)
    wait_for(lambda: receiver.refusals > 3)
    refused = [record for record in caplog.records if 'the bridge refuses' in record.message]
    assert len(refused) == 1
    assert not inbox.messages
    first.close()
    wait_for(lambda: second.state == 'connected')
    wait_for(lambda: inbox.short() == [['b', 'start']])
    second.close()


def test_nothing_is_raised_into_the_loop_of_the_policy(receiver, inbox, caplog):
    sender = make_sender(receiver.addresses[0], source='arm')
    assert sender.publish(np.zeros(4)) is None
    sender.end(success=True)
    assert sender.refused == 2
    episode = sender.start(task=None, instruction=b'x', episode_id=3)
    assert episode
    assert sender.publish(np.zeros(4), CHUNK).step == 0
    for bad in (np.full(4, np.nan), np.zeros(5), object(), None):
        assert sender.publish(bad, CHUNK) is None
    assert sender.publish(np.zeros(4), CHUNK, logits=3) is None
    assert sender.publish(np.zeros(4), CHUNK, stamp='now') is None
    assert sender.publish(np.zeros(4), CHUNK).step == 7
    sender.end(success='failure', reason=7)
    sender.close()
    assert (sender.published, sender.refused, sender.dropped) == (2, 13, 0)
    wait_for(lambda: len(inbox.messages) == 4)
    # Refused steps are gaps that the monitor can see.
    assert inbox.short() == [[episode, 'start'], [episode, 0], [episode, 7], [episode, 'end']]
    assert receiver.statistics()['arm'].missing == 6
    start, end = inbox.messages[0][1], inbox.messages[-1][1]
    assert (start.task, start.instruction) == ('', '')
    assert (end.success, end.reason) == (None, '')
    warnings = [r.message for r in caplog.records if r.name == 'vla_feature_bridge']
    assert any('expected finite features' in text for text in warnings)


def test_a_clock_and_a_log_that_fail_stop_no_policy(receiver, monkeypatch):
    def fail(*arguments):
        raise RuntimeError('broken')

    sender = make_sender(receiver.addresses[0])
    monkeypatch.setattr(logging.getLogger('vla_feature_bridge'), 'warning', fail)
    monkeypatch.setattr(sender._episode_steps, '_clock', fail)
    assert sender.start() == ''
    assert sender.publish(np.zeros(4)) is None
    sender.end()
    sender.close(timeout='long')
    assert sender.refused == 4
    assert sender.state == 'closed'


def test_a_problem_is_logged_once(receiver, caplog):
    sender = make_sender(receiver.addresses[0])
    sender.start()
    for _ in range(50):
        sender.publish(np.full(4, np.nan))
    sender.close()
    found = [r for r in caplog.records if 'expected finite features' in r.message]
    assert len(found) == 1
    assert found[0].levelno == logging.WARNING
    assert sender.refused == 50
    assert sender.last_error.startswith('step 49 of episode ')


def test_a_strict_sender_raises(receiver):
    sender = make_sender(receiver.addresses[0], strict=True)
    with pytest.raises(SafeError, match='expected a running episode'):
        sender.publish(np.zeros(4))
    sender.start()
    with pytest.raises(SafeError, match='expected finite features'):
        sender.publish(np.full(4, np.nan))
    assert sender.publish(np.zeros(4)).step == 0
    with pytest.raises(SafeError, match='expected success as True'):
        sender.end(success=1)
    with pytest.raises(SafeError, match='expected uint8'):
        sender.image('x', np.zeros(3))
    sender.close()
    with pytest.raises(SafeError, match='expected an open StepSender, found a closed StepSender'):
        sender.publish(np.zeros(4))
    with pytest.raises(SafeError, match='expected an open StepSender'):
        sender.start()
    assert sender.episode_id


def test_a_step_larger_than_the_queue_is_refused(receiver):
    sender = make_sender(receiver.addresses[0], queue_bytes=10_000)
    sender.start()
    assert sender.publish(np.zeros(4000, np.float32)) is None
    assert 'expected at most queue_bytes = 10000 bytes' in sender.last_error
    assert (sender.refused, sender.dropped) == (1, 0)
    sender.close()


def test_threads_may_share_a_sender(receiver, inbox):
    sender = make_sender(receiver.addresses[0], source='arm')
    sender.start(episode_id='a')
    threads = [
        threading.Thread(target=lambda: [sender.publish(np.zeros(64)) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sender.close(timeout=PATIENCE)
    wait_for(lambda: len(inbox.messages) == 201)
    assert [what for _, what in inbox.short()[1:]] == list(range(200))


def test_closing_says_what_was_not_sent(tmp_path, caplog):
    sender = make_sender(f'unix:{tmp_path}/nobody.sock', wait_for_monitor=0.0)
    sender.start()
    sender.publish(np.ones(4))
    sender.close(0.1)
    assert 'closed, but 2 steps and events were not sent: they are lost' in caplog.text
    assert sender.waiting == 2


def test_closing_gives_up_after_its_timeout(tmp_path):
    with bare_bridge(tmp_path / 's'):  # never accepts
        sender = make_sender(f'unix:{tmp_path / "s"}')
        sender.start()
        begin = time.monotonic()
        sender.close(timeout=0.2)
        assert time.monotonic() - begin < PATIENCE / 2
        assert sender.state == 'closed'
        sender.close()
        assert sender.start() == ''
        assert 'found a closed StepSender' in sender.last_error


def test_a_child_after_a_fork_says_so_and_leaves_the_parent_alone(tmp_path):
    script = """
import os, sys
import numpy as np
from vla_feature_bridge.wire import StepSender
sender = StepSender(sys.argv[1], source='arm', feature_name='f', exec_horizon=1)
sender.start(episode_id='a')
sender.publish(np.zeros(4))
child = os.fork()
if child == 0:
    ok = sender.publish(np.zeros(4)) is None
    ok = ok and 'make a StepSender after the fork' in sender.last_error
    sender.close()
    sys.exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
sender.publish(np.zeros(4))
sys.exit(os.waitstatus_to_exitcode(status))
"""
    address = f'unix:{tmp_path / "s"}'
    with ReceiverProcess(address) as bridge:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', script, address], timeout=PATIENCE, check=False
        )
        assert done.returncode == 0
        expected = [['arm', 'a', what] for what in ('start', 0, 1)]
        wait_for(lambda: bridge.messages == expected, 'the parent goes on')


def test_what_waits_is_sent_when_python_ends(tmp_path):
    script = """
import sys
import numpy as np
from vla_feature_bridge.wire import StepSender
sender = StepSender(sys.argv[1], source='arm', feature_name='f', exec_horizon=1)
sender.start(episode_id='a')
for _ in range(20):
    sender.publish(np.zeros(1 << 16))
sender.end(success=True)
"""
    address = f'unix:{tmp_path / "s"}'
    with ReceiverProcess(address) as bridge:
        subprocess.run([sys.executable, '-c', script, address], timeout=PATIENCE, check=True)
        wait_for(lambda: bridge.messages and bridge.messages[-1] == ['arm', 'a', 'end'])
        assert len(bridge.messages) == 22


def test_the_reason_of_a_refusal_in_mid_stream_is_heard(tmp_path, impatient):
    with bare_bridge(tmp_path / 's') as accept:
        sender = make_sender(f'unix:{tmp_path / "s"}')
        with accept() as connection:
            read_frame(connection)
            connection.sendall(encode_status(BridgeStatus(True)))
            wait_for(lambda: sender.state == 'connected')
            connection.sendall(encode_refusal('too many teapots'))
        wait_for(lambda: 'too many teapots' in sender.last_error)
        sender.close(timeout=0)


def test_another_program_at_the_address_is_no_bridge(tmp_path, impatient):
    with bare_bridge(tmp_path / 's') as accept:
        sender = make_sender(f'unix:{tmp_path / "s"}')
        with accept() as connection:
            read_frame(connection)
            connection.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
        wait_for(lambda: "expected the first bytes b'SAFT', found b'HTTP'" in sender.last_error)
        sender.close(timeout=0)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'address': 'here'}, 'address of the bridge'),
        ({'source': 'a\nb'}, 'source: expected a name of 1 to 128 characters'),
        ({'feature_name': ''}, 'expected a feature_name'),
        ({'queue_depth': 0}, 'expected queue_depth from 1'),
        ({'queue_bytes': 1.5}, 'expected queue_bytes from 1'),
        ({'wait_for_monitor': -1}, 'expected wait_for_monitor as a number of seconds'),
        ({'wait_for_monitor': 'long'}, 'expected wait_for_monitor as a number of seconds'),
    ],
)
def test_wrong_settings_are_refused_when_a_sender_is_made(address, settings, message):
    threads = threading.active_count()
    with pytest.raises(SafeError, match=message):
        make_sender(**{'address': address, **settings})
    assert threading.active_count() == threads


def test_a_sender_without_a_source_is_the_source_without_a_name(address):
    heard = []
    with StepReceiver([address], lambda source, message: heard.append(source)) as receiver:
        sender = make_sender(address)
        sender.start()
        wait_for(lambda: heard == [''])
        receiver.set_status(True, source='another')
        receiver.set_status(True, source='')
        wait_for(lambda: sender.monitor_listens)
        receiver.set_status(False, source='')
        wait_for(lambda: not sender.monitor_listens)
        receiver.set_status(True)
        wait_for(lambda: sender.monitor_listens)
        sender.close(timeout=0)


def test_a_log_that_asks_for_counters_does_not_stop_the_sender(tmp_path):
    """The thread that works for a tap may wait for the call in which the log asks."""
    sender = make_sender(f'unix:{tmp_path}/none.sock')
    asked, began = [], threading.Event()

    class Asks(logging.Handler):
        def emit(self, record):
            if threading.current_thread().name != 'wrong':
                return  # that no bridge listens
            began.set()
            time.sleep(0.1)  # until the other thread waits for this call
            asked.append((sender.refused, sender.published, sender.last_error))

    def publish_later():
        assert began.wait(PATIENCE)
        sender.deferred.put(Deferred(lambda: sender.publish(np.ones(3)), print, print))

    handler = Asks()
    logger = logging.getLogger('vla_feature_bridge')
    logger.addHandler(handler)
    try:
        sender.start()
        other = threading.Thread(target=publish_later)
        other.start()
        wrong = threading.Thread(
            target=lambda: sender.publish(np.array([np.nan])), daemon=True, name='wrong'
        )
        wrong.start()
        wrong.join(10)
        other.join(10)
        assert not wrong.is_alive()
        assert asked[-1][0] == 1
        assert sender.published == 1
    finally:
        logger.removeHandler(handler)
        sender.close(0)
