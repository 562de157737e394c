# SPDX-License-Identifier: Apache-2.0
"""Bytes, ends and resets of TCP connections pass a relay as they are."""

import contextlib
import socket
import struct
import threading
import time

import numpy as np
import pytest
from relay_processes import PATIENCE, free_port

from vla_feature_bridge.relays import tcp_link
from vla_feature_bridge.relays.addresses import Address, AddressError, parse_address
from vla_feature_bridge.relays.tcp_relay import TcpRelay


class NullWatch:
    """A watch that changes nothing, and takes every end of a server for its death."""

    def __init__(self, peer):
        self.peer = peer
        self.is_closed = threading.Event()

    def from_client(self, data):
        return (data,)

    def from_server(self, data):
        return (data,)

    def for_client(self):
        return ()

    def sent(self):
        pass

    def server_ended(self):
        return True

    def closed(self):
        self.is_closed.set()


class Relayed:
    """A relay in a thread, with a listening server behind it."""

    def __init__(self):
        self.lines, self.watches = [], []
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.listener.settimeout(PATIENCE)
        self.port = free_port()
        self.relay = TcpRelay(
            Address('127.0.0.1', self.port),
            Address('127.0.0.1', self.listener.getsockname()[1]),
            self._open_watch,
            self.lines.append,
        )
        self.thread = threading.Thread(target=self.relay.run)
        self.thread.start()
        self.listener.accept()[0].close()  # the relay looks whether the server is there
        self._ends = []

    def _open_watch(self, peer):
        self.watches.append(NullWatch(peer))
        return self.watches[-1]

    def connect(self):
        """Return both ends of a connection through the relay."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                client = socket.create_connection(('127.0.0.1', self.port), PATIENCE)
                break
            assert time.monotonic() < deadline
        server, _ = self.listener.accept()
        server.settimeout(PATIENCE)
        self._ends += [client, server]
        return client, server

    def close(self):
        self.relay.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        for end in (*self._ends, self.listener):
            end.close()


@pytest.fixture
def relayed():
    made = Relayed()
    yield made
    made.close()


def reset(end):
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    end.close()


def receive(end, size):
    found = bytearray()
    while len(found) < size and (data := end.recv(1 << 20)):
        found += data
    return bytes(found)


def test_megabytes_in_both_directions_at_once(relayed):
    client, server = relayed.connect()
    rng = np.random.default_rng(0)
    sent = {end: rng.bytes(20_000_000) for end in (client, server)}
    threads = [threading.Thread(target=end.sendall, args=(data,)) for end, data in sent.items()]
    received = {}
    threads += [
        threading.Thread(target=lambda e=end, d=data: received.update({e: receive(e, len(d))}))
        for end, data in ((client, sent[server]), (server, sent[client]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert received[client] == sent[server]
    assert received[server] == sent[client]


@pytest.mark.parametrize('first', ['client', 'server'])
def test_the_end_of_one_direction_leaves_the_other(relayed, first):
    ends = relayed.connect()
    one, other = ends if first == 'client' else ends[::-1]
    one.sendall(b'the last')
    one.shutdown(socket.SHUT_WR)
    assert receive(other, 100) == b'the last'
    other.sendall(b'the answer')
    other.close()
    assert receive(one, 100) == b'the answer'
    assert relayed.watches[0].is_closed.wait(PATIENCE)


@pytest.mark.parametrize('first', ['client', 'server'])
def test_a_reset_is_a_reset_on_the_other_side(relayed, first):
    ends = relayed.connect()
    one, other = ends if first == 'client' else ends[::-1]
    one.sendall(b'before')
    assert receive(other, 6) == b'before'
    reset(one)
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    assert relayed.watches[0].is_closed.wait(PATIENCE)


def test_a_client_that_sends_to_a_server_that_has_left_is_reset(relayed):
    client, server = relayed.connect()
    server.close()
    assert client.recv(1) == b''
    deadline = time.monotonic() + PATIENCE
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while time.monotonic() < deadline:
            client.sendall(b'x')
            time.sleep(0.01)


def test_a_client_that_stays_silent_after_the_server_has_left_is_given_up(monkeypatch, relayed):
    monkeypatch.setattr(tcp_link, '_SILENT_CLIENT', 0.2)
    client, server = relayed.connect()
    server.close()
    assert client.recv(1) == b''
    assert relayed.watches[0].is_closed.wait(PATIENCE)


def test_a_server_that_lives_is_still_offered_after_it_has_closed_a_connection(relayed):
    _, server = relayed.connect()
    server.close()
    for _ in range(3):  # the relay looks whether it lives
        relayed.listener.accept()[0].close()
    client, server = relayed.connect()
    client.sendall(b'x')
    assert server.recv(1) == b'x'
    assert len(relayed.lines) == 1


def test_a_relay_that_ends_closes_its_connections(relayed):
    client, server = relayed.connect()
    relayed.relay.close()
    assert client.recv(1) == b''
    assert server.recv(1) == b''
    relayed.thread.join(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', relayed.port))


def test_a_port_in_use_is_refused():
    with socket.create_server(('127.0.0.1', 0)) as other:
        listen = Address('127.0.0.1', other.getsockname()[1])
        with pytest.raises(AddressError, match='found Address already in use; end the other'):
            TcpRelay(listen, Address('127.0.0.1', 1), NullWatch, print)


def test_a_relay_to_itself_is_refused():
    same = Address('127.0.0.1', 9)
    with pytest.raises(AddressError, match='another address than --server'):
        TcpRelay(same, same, NullWatch, print)


@pytest.mark.parametrize(
    ('text', 'address'),
    [
        ('127.0.0.1:8000', Address('127.0.0.1', 8000)),
        ('tcp://*:5555', Address('0.0.0.0', 5555)),
        ('http://robot.local:8000/', Address('robot.local', 8000)),
        ('ws://localhost:1', Address('localhost', 1)),
        ('[::1]:8000', Address('::1', 8000)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text, '--server') == address
    assert str(Address('::1', 80)) == '[::1]:80'
    assert address.is_loopback == (address.host in ('127.0.0.1', 'localhost', '::1'))


@pytest.mark.parametrize(
    'text', ['', '8000', ':8000', 'host', 'host:', 'host:0', 'host:65536', 'host:x', '::1:80']
)
def test_addresses_that_are_none(text):
    with pytest.raises(AddressError, match='--listen: expected HOST:PORT'):
        parse_address(text, '--listen')


def test_an_encrypted_server_is_named():
    with pytest.raises(AddressError, match='without encryption'):
        parse_address('wss://policy.example:443', '--server')
