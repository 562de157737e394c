# SPDX-License-Identifier: Apache-2.0
"""A receiver over real sockets: who may connect, what it counts, and peers that misbehave."""

import os
import re
import signal
import socket
import stat
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from test_wire_frame import HOSTILE, STEP_HEADER, frame_of
from wire_processes import (
    PATIENCE,
    SENDER,
    Inbox,
    Lines,
    ReceiverProcess,
    bare_connection,
    read_frame,
    wait_for,
)

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.step import PolicyStep
from vla_feature_bridge.wire import StepReceiver, StepSender, connection
from vla_feature_bridge.wire.frame import MAX_PAYLOAD, PREFIX, encode_frame
from vla_feature_bridge.wire.messages import (
    BridgeStatus,
    Hello,
    decode_refusal,
    decode_status,
    encode_event,
    encode_hello,
    encode_status,
    encode_step,
)

HELLO = encode_hello(Hello('arm', 'one'))
STEP = encode_step(PolicyStep(np.zeros(4, np.float32), episode_id='a'))


@pytest.fixture
def inbox():
    return Inbox()


@pytest.fixture
def address(tmp_path):
    return f'unix:{tmp_path / "s"}'


@pytest.fixture
def receiver(address, inbox):
    with StepReceiver([address, 'tcp://127.0.0.1:0'], inbox) as receiver:
        yield receiver


def make_sender(address, source='arm', **settings):
    return StepSender(
        address,
        **{
            'source': source,
            'feature_name': 'f',
            'exec_horizon': 1,
            'wait_for_monitor': 0,
            **settings,
        },
    )


def refusal_of(address, *parts):
    """Return why the receiver closes a connection over which these bytes come."""
    with bare_connection(address) as peer:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                peer.sendall(part)
        while (frame := read_frame(peer)) is not None:
            if frame.kind == 'refused':
                assert read_frame(peer) is None
                return decode_refusal(frame)
    raise AssertionError('the connection was closed without a reason')


def works(receiver, inbox, source='good'):
    """Return True if a new sender can still send."""
    before = len(inbox.messages)
    sender = make_sender(receiver.addresses[0], source)
    sender.start()
    sender.publish(np.zeros(4))
    sender.close(timeout=PATIENCE)
    wait_for(lambda: len(inbox.messages) == before + 2)
    return True


def test_several_sources_over_several_addresses(receiver, inbox):
    senders = [make_sender(a, f'arm{n}') for n in range(3) for a in receiver.addresses[n % 2 :][:1]]
    for sender in senders:
        sender.start(episode_id=sender.source)
    for _ in range(20):
        for sender in senders:
            sender.publish(np.zeros(64))
    for sender in senders:
        sender.close(timeout=PATIENCE)
    wait_for(lambda: len(inbox.messages) == 63)
    for sender in senders:
        expected = [[sender.source, 'start'], *[[sender.source, n] for n in range(20)]]
        assert inbox.short(sender.source) == expected
    found = receiver.statistics()
    assert sorted(found) == ['arm0', 'arm1', 'arm2']
    wait_for(lambda: not any(s.connected for s in receiver.statistics().values()))
    for n, name in enumerate(sorted(found)):
        assert (found[name].frames, found[name].steps, found[name].missing) == (21, 20, 0)
        assert found[name].address == receiver.addresses[n % 2]
        assert found[name].hello.pid == os.getpid()
        assert found[name].bytes > 20 * 64 * 8
        assert time.monotonic() - found[name].last_frame < PATIENCE


def test_a_killed_sender_is_gone_and_its_name_is_free(address, inbox):
    connected = []
    with StepReceiver([address], inbox, lambda hello, is_on: connected.append(is_on)) as receiver:
        receiver.set_status(True)
        for episode in ('a', 'b'):
            with Lines(SENDER, address, 'arm', episode) as sender:
                wait_for(lambda name=episode: [name, 20] in inbox.short())
                assert receiver.statistics()['arm'].connected
                sender.kill()
            wait_for(lambda: not receiver.statistics()['arm'].connected)
        assert connected == [True, False, True, False]
        found = inbox.short('arm')
        first = found.index(['b', 'start'])
        assert found[:first] == [['a', 'start'], *[['a', n] for n in range(first - 1)]]
        assert found[first + 1 :] == [['b', n] for n in range(len(found) - first - 1)]
        assert receiver.statistics()['arm'].connections == 2


def test_a_stopped_sender_keeps_its_name(address, inbox):
    with StepReceiver([address], inbox) as receiver, Lines(SENDER, address, 'arm', 'a') as sender:
        wait_for(lambda: inbox.messages)
        sender.signal(signal.SIGSTOP)
        reason = refusal_of(address, HELLO)
        assert f'found one that process {sender.process.pid} has' in reason
        wait_for(lambda: "source 'arm'" in receiver.last_refusal)


def test_a_dead_connection_gives_way_after_it_was_read(address):
    """Its frames come before the frames of the new connection, although the callback is slow."""
    going = threading.Event()
    numbers = []

    def slow(source, message):
        going.wait(PATIENCE)
        numbers.append(message.step)

    with StepReceiver([address], slow) as receiver:
        with bare_connection(address) as peer:
            peer.sendall(HELLO)
            for n in range(3):
                peer.sendall(encode_step(PolicyStep(np.zeros(4), step=n, episode_id='a')))
            wait_for(lambda: 'arm' in receiver.statistics())
        with bare_connection(address) as peer:
            threading.Timer(0.2, going.set).start()
            peer.sendall(encode_hello(Hello('arm', 'two')))
            peer.sendall(encode_step(PolicyStep(np.zeros(4), step=3, episode_id='a')))
            assert read_frame(peer).kind == 'status'
            wait_for(lambda: len(numbers) == 4)
        assert numbers == [0, 1, 2, 3]


def test_a_callback_that_never_returns_blocks_its_source_only(address):
    stuck, others = threading.Event(), []

    def take(source, message):
        if source == 'arm':
            stuck.wait(PATIENCE)
        else:
            others.append(message)

    with StepReceiver([address], take) as receiver:
        first, second = make_sender(address, 'arm'), make_sender(address, 'base')
        first.start()
        second.start()
        wait_for(lambda: others)
        first.close()
        second.close()
        stuck.set()
        assert receiver.statistics()['arm'].frames == 1


def test_an_error_of_the_bridge_ends_no_connection(address):
    seen, said = [], []

    def take(source, message):
        seen.append(message)
        raise RuntimeError('no publisher')

    with StepReceiver([address], take, log=said.append) as receiver:
        sender = make_sender(address)
        sender.start()
        for _ in range(20):
            sender.publish(np.zeros(4))
        sender.close()
        wait_for(lambda: len(seen) == 21)
        wait_for(lambda: not receiver.statistics()['arm'].connected)
        assert "RuntimeError('no publisher')" in receiver.statistics()['arm'].last_error
        assert len(said) == 1


@pytest.mark.parametrize(('data', 'message'), HOSTILE, ids=range(len(HOSTILE)))
def test_a_wrong_frame_ends_its_connection_with_a_reason(receiver, inbox, data, message):
    assert re.search(message, refusal_of(receiver.addresses[1], HELLO, data, STEP))
    wait_for(lambda: re.search(message, receiver.last_refusal))
    wait_for(lambda: re.search(message, receiver.statistics()['arm'].last_error))
    assert not inbox.messages
    assert works(receiver, inbox)


STRANGERS = [
    (encode_event(EpisodeEventRecord('start', 'a')), 'first frame: expected hello, found event'),
    (STEP, 'payload of a frame: expected at most 0 bytes'),
    (b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', "first bytes b'SAFT', found b'GET '"),
    (frame_of({'kind': 'hello'}, version=7), 'version 1 of the protocol, found version 7'),
    (frame_of({'kind': 'hello'}), 'instance'),
    (encode_hello(Hello('x' * 129, 'x')), 'source: expected a name of 1 to 128 characters'),
    (encode_hello(Hello('a\nb', 'x')), 'source: expected a name of 1 to 128 characters'),
    (encode_hello(Hello('a', 'x', pid=-1)), 'pid: expected an integer'),
    (frame_of({'kind': 'hello'}, lengths=(1 << 19, 0)), 'at most 262144 bytes'),
    (frame_of({'kind': 'hello'}, bytes(9)), 'payload of a frame: expected at most 0 bytes'),
]


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize(('first', 'message'), STRANGERS, ids=range(len(STRANGERS)))
def test_who_does_not_introduce_itself_is_refused(receiver, inbox, number, first, message):
    assert message in refusal_of(receiver.addresses[number], first)
    assert not receiver.statistics()
    wait_for(lambda: receiver.refusals == 1)
    assert works(receiver, inbox)


@pytest.mark.parametrize(
    'frame', [HELLO, encode_status(BridgeStatus(True)), encode_frame('refused', {'reason': 'x'})]
)
def test_a_source_sends_no_frames_of_the_bridge_and_no_second_hello(receiver, frame):
    assert 'kind of a frame: expected step, event, image' in refusal_of(
        receiver.addresses[0], HELLO, frame
    )


def test_random_changes_of_a_stream_end_its_connection_only(receiver, inbox):
    random = np.random.default_rng(0)
    stream = HELLO + STEP * 3
    for _ in range(150):
        data = bytearray(stream)
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        with bare_connection(receiver.addresses[0]) as peer:
            with suppress(OSError):  # a lying length in front lets the rest be refused
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
            while read_frame(peer) is not None:
                pass
    assert receiver._budget.used == 0
    assert receiver.refusals > 0
    assert works(receiver, inbox)


def test_silence_is_not_waited_for(receiver, inbox, monkeypatch):
    monkeypatch.setattr(connection, 'HELLO_TIMEOUT', 0.2)
    with bare_connection(receiver.addresses[0]) as silent:
        assert silent.recv(1) == b''
    gone = pytest.raises((BrokenPipeError, ConnectionResetError))
    with bare_connection(receiver.addresses[0]) as slow, gone:
        for n in range(10_000):
            slow.sendall(HELLO[n % len(HELLO) :][:1])
            time.sleep(0.02)
    assert works(receiver, inbox)


def test_half_a_frame_is_no_frame(receiver, inbox):
    with bare_connection(receiver.addresses[0]) as peer:
        peer.sendall(HELLO + STEP + STEP[:-3])
    wait_for(lambda: receiver.statistics())
    wait_for(lambda: 'in the middle of a frame' in receiver.statistics()['arm'].last_error)
    assert len(inbox.messages) == 1
    assert works(receiver, inbox)


def resident():
    with open('/proc/self/statm') as numbers:
        return int(numbers.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def test_a_length_without_bytes_costs_no_memory(receiver, inbox):
    table = [['features', 'uint8', [MAX_PAYLOAD]]]
    header = frame_of({**STEP_HEADER, 'arrays': table}, lengths=(1, MAX_PAYLOAD))[PREFIX.size :]
    begin = PREFIX.pack(b'SAFT', 1, 0, len(header), MAX_PAYLOAD) + header
    before = resident()
    peers = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for n, peer in enumerate(peers):
        peer.connect(receiver.addresses[0].removeprefix('unix:'))
        peer.sendall(encode_hello(Hello(f'arm{n}', 'x')) + begin)
    wait_for(lambda: receiver._budget.used == 4 * MAX_PAYLOAD)
    assert resident() - before < MAX_PAYLOAD / 4
    # The fifth finds the memory of all connections used up, small frames too.
    assert 'other frames are being read' in refusal_of(
        receiver.addresses[0], encode_hello(Hello('fifth', 'x')), begin
    )
    for peer in peers:
        peer.close()
    wait_for(lambda: receiver._budget.used == 0)
    assert works(receiver, inbox)


def test_the_number_of_connections_is_bounded(receiver, inbox):
    peers = []
    for _ in range(40):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(receiver.addresses[0].removeprefix('unix:'))
        peers.append(peer)
    wait_for(lambda: receiver.refusals == 8)
    assert 'more than 32 connections' in receiver.last_refusal
    for peer in peers:
        peer.close()
    wait_for(lambda: not receiver._connections)
    assert works(receiver, inbox)


def test_the_number_of_remembered_sources_is_bounded(receiver, inbox):
    for n in range(80):
        with bare_connection(receiver.addresses[0]) as peer:
            peer.sendall(encode_hello(Hello(f'arm{n}', 'x')))
            assert read_frame(peer).kind == 'status'
        wait_for(lambda: not receiver._connections)
    assert len(receiver.statistics()) <= 65
    assert 'arm79' in receiver.statistics()


def test_a_peer_that_does_not_read_its_status_is_cut_off(receiver, inbox):
    with bare_connection(receiver.addresses[0]) as peer:
        peer.sendall(HELLO)
        wait_for(lambda: 'arm' in receiver.statistics())
        for n in range(20_000):
            receiver.set_status(n % 2 == 0, 'x' * 1000)
            if not receiver.statistics()['arm'].connected:
                break
        wait_for(lambda: not receiver.statistics()['arm'].connected)
    assert works(receiver, inbox)


def test_every_sender_is_told_the_status_when_it_connects_and_when_it_changes(receiver):
    receiver.set_status(True, 'monitor')
    with bare_connection(receiver.addresses[1]) as peer:
        peer.sendall(HELLO)
        assert decode_status(read_frame(peer)) == BridgeStatus(True, 'monitor')
        receiver.set_status(True, 'monitor')  # no change
        receiver.set_status(False)
        assert decode_status(read_frame(peer)) == BridgeStatus(False)


def test_each_source_is_told_its_own_status(receiver):
    with (
        bare_connection(receiver.addresses[0]) as left,
        bare_connection(receiver.addresses[0]) as right,
    ):
        for name, peer in (('left', left), ('right', right)):
            peer.sendall(encode_hello(Hello(name, 'x')))
            assert decode_status(read_frame(peer)) == BridgeStatus(False)
        receiver.set_status(True, 'one', source='left')
        receiver.set_status(True, 'all')
        receiver.set_status(False, 'one', source='left')
        assert [decode_status(read_frame(left)).detail for _ in range(3)] == ['one', 'all', 'one']
        assert decode_status(read_frame(right)) == BridgeStatus(True, 'all')


def test_missing_and_dropped_steps_are_counted(receiver):
    with bare_connection(receiver.addresses[0]) as peer:
        peer.sendall(HELLO)
        for episode, step, dropped in (
            ('a', 0, 0),
            ('a', 1, 0),
            ('a', 4, 2),
            ('b', 2, 5),
            ('b', 3, 5),
        ):
            peer.sendall(
                encode_step(PolicyStep(np.zeros(2), episode_id=episode, step=step), dropped)
            )
        wait_for(lambda: 'arm' in receiver.statistics())
        wait_for(lambda: receiver.statistics()['arm'].steps == 5)
        found = receiver.statistics()['arm']
        assert (found.missing, found.dropped, found.connected) == (4, 5, True)


# -- where it listens


def test_the_socket_belongs_to_this_user_and_is_removed(address, inbox):
    path = address.removeprefix('unix:')
    with StepReceiver([address], inbox) as receiver:
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert receiver.addresses == [address]
    assert not os.path.exists(path)


def test_a_socket_that_a_killed_bridge_left_is_taken_over(address, inbox):
    with ReceiverProcess(address) as killed:
        killed.kill()
    assert os.path.exists(address.removeprefix('unix:'))
    with StepReceiver([address], inbox) as receiver:
        assert works(receiver, inbox)


def test_the_socket_of_a_living_bridge_is_left_alone(address, inbox):
    with StepReceiver([address], inbox) as receiver:
        with pytest.raises(
            SafeError, match='on which no process listens, found another bridge; end'
        ):
            StepReceiver([address], inbox)
        assert works(receiver, inbox)


def test_a_stopped_bridge_is_a_living_bridge(address, inbox):
    with ReceiverProcess(address) as stopped:
        stopped.signal(signal.SIGSTOP)
        with pytest.raises(SafeError, match='found another bridge'):
            StepReceiver([address], inbox)


def test_another_file_is_not_removed(tmp_path, inbox):
    path = tmp_path / 'notes'
    path.write_text('mine')
    with pytest.raises(SafeError, match='found a file of another kind; choose another path'):
        StepReceiver([f'unix:{path}'], inbox)
    assert path.read_text() == 'mine'


def test_a_link_is_another_file(tmp_path, inbox):
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(SafeError, match='found a file of another kind'):
        StepReceiver([f'unix:{tmp_path / "link"}'], inbox)


def test_a_socket_that_was_replaced_is_not_removed(address, inbox):
    path = address.removeprefix('unix:')
    receiver = StepReceiver([address], inbox)
    os.unlink(path)
    with StepReceiver([address], inbox) as second:
        receiver.close()
        assert os.path.exists(path)
        assert works(second, inbox)


def test_a_missing_folder_and_a_used_port_are_named(tmp_path, inbox):
    with pytest.raises(SafeError, match=r'nowhere/s: expected an address .* found No such file'):
        StepReceiver([f'unix:{tmp_path}/nowhere/s'], inbox)
    used = pytest.raises(SafeError, match='found Address already in use')
    with StepReceiver(['tcp://127.0.0.1:0'], inbox) as receiver, used:
        StepReceiver([f'unix:{tmp_path}/s', receiver.addresses[0]], inbox)
    assert not os.path.exists(tmp_path / 's')  # the first address was given back


def test_a_receiver_that_others_can_reach_says_so(inbox):
    said = []
    with StepReceiver(['tcp://0.0.0.0:0'], inbox, log=said.append):
        assert len(said) == 1
        assert 'every machine that reaches this address can send steps' in said[0]


def test_closing_ends_connections_and_threads(address, inbox):
    threads = threading.active_count()
    receiver = StepReceiver([address], inbox)
    with bare_connection(address) as peer:
        peer.sendall(HELLO)
        assert read_frame(peer).kind == 'status'
        receiver.close()
        assert read_frame(peer) is None
    assert threading.active_count() == threads
    receiver.close()
