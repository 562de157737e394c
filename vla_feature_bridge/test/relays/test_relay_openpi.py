# SPDX-License-Identifier: Apache-2.0
"""The openpi relay between openpi's own client and a server of websockets."""

import functools
import hashlib
import http.client
import signal

import numpy as np
import pytest
from relay_processes import Process, free_port, run_relay, run_server

pytest.importorskip('relay_servers', reason='no clients of policy servers')
import websockets.sync.client
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed


class Client(WebsocketClientPolicy):
    """openpi's client, which keeps the bytes of each message that it receives."""

    def __init__(self, port, **options):
        self.received = []
        super().__init__('127.0.0.1', port, **options)
        receive = self._ws.recv

        def record(*arguments, **more):
            data = receive(*arguments, **more)
            self.received.append(data)
            return data

        self._ws.recv = record

    def close(self):
        self._ws.close()


@pytest.fixture(scope='module')
def server():
    port = free_port()
    with run_server('openpi', port) as process:
        process.port = port
        yield process


@pytest.fixture(scope='module')
def relay(server):
    with run_relay('openpi', server.port, '--episode', 'none', '--exec-horizon', 5) as process:
        yield process


def observation(rng):
    height, width = rng.integers(1, 40, 2)
    found = {
        'observation/image': rng.integers(0, 256, (height, width, 3), np.uint8),
        'observation/state': rng.normal(size=rng.integers(0, 9)),
        'prompt': 'fold the towel ✓'[: rng.integers(1, 16)],
        'mask': rng.random(3) > 0.5,
        'big_endian': rng.normal(size=2).astype('>f4'),
        'scalar': np.float32(rng.normal()),
        'nothing': None,
    }
    return {key: found[key] for key in found if rng.random() > 0.1}


@pytest.mark.slow
def test_a_thousand_observations_and_replies_are_the_same_with_and_without(server, relay):
    rng = np.random.default_rng(0)
    direct, relayed = Client(server.port), Client(relay.port)
    assert relayed.get_server_metadata() == direct.get_server_metadata() == {'robot': 'test'}
    for _ in range(1000):
        request = observation(rng)
        sent = hashlib.sha256(msgpack_numpy.packb(request)).hexdigest()
        assert direct.infer(request)['sha256'] == relayed.infer(request)['sha256'] == sent
        assert direct.received[-1] == relayed.received[-1]
    direct.close()
    relayed.close()


def outcome_of(call) -> str:
    """Return what a call raises, with the close code and the reason, or its result."""
    try:
        return repr(call())
    except ConnectionClosed as closed:
        return f'{type(closed).__name__} {closed.rcvd} {closed.sent} {closed}'
    except Exception as error:
        return f'{type(error).__name__} {error}'


def both_ways(ask, *server_options):
    """Return what a client meets without and with a relay, each with a server of its own."""
    found = []
    for with_relay in (False, True):
        port = free_port()
        with run_server('openpi', port, *server_options) as server:
            if not with_relay:
                found.append(ask(port, server))
                continue
            options = ('--episode', 'none', '--exec-horizon', 5)
            with run_relay('openpi', port, *options) as relay:
                found.append(ask(relay.port, server))
    return found


def test_a_policy_that_raises_looks_the_same():
    def ask(port, server):
        client = Client(port)
        return [outcome_of(lambda: client.infer({'do': 'raise'})) for _ in range(3)]

    direct, relayed = both_ways(ask)
    assert 'RuntimeError: the policy failed' in direct[0]
    assert 'ConnectionClosedError 1011' in direct[1]
    assert relayed == direct


def test_a_normal_close_looks_the_same():
    def ask(port, server):
        client = Client(port)
        return [outcome_of(lambda: client.infer({'do': 'close'})) for _ in range(2)]

    direct, relayed = both_ways(ask)
    assert direct[0].startswith('ConnectionClosedOK 1000')
    assert relayed == direct


@pytest.mark.parametrize('how', ['exits', 'is killed'])
def test_a_server_that_dies_in_a_request_looks_the_same(how):
    def ask(port, server):
        client = Client(port)
        if how == 'exits':
            found = [outcome_of(lambda: client.infer({'do': 'die'}))]
        else:
            client.infer({})
            client._ws.send(msgpack_numpy.packb({'seconds': 60}))
            server.kill()
            found = [outcome_of(client._ws.recv)]
        server.wait()
        # The client and a new client: nobody listens.
        found += [outcome_of(lambda: client.infer({})), outcome_of(lambda: Client(port))]
        return found

    direct, relayed = both_ways(ask)
    assert direct[0].startswith('ConnectionClosedError None')
    assert direct[2].startswith('ConnectionRefusedError')
    assert relayed == direct


def test_the_keepalive_of_the_client_ends_a_long_inference_as_without(monkeypatch):
    # With the defaults of websockets, 20 s and 20 s, a first inference of 50 s does this.
    impatient = functools.partial(
        websockets.sync.client.connect, ping_interval=0.5, ping_timeout=0.5
    )
    monkeypatch.setattr(websockets.sync.client, 'connect', impatient)

    def ask(port, server):
        client = Client(port)
        return [outcome_of(lambda: client.infer({'seconds': 4.0})) for _ in range(2)]

    direct, relayed = both_ways(ask)
    assert 'keepalive ping timeout' in direct[0]
    assert relayed == direct


CLIENT = """
import sys
from openpi_client.websocket_client_policy import WebsocketClientPolicy
client = WebsocketClientPolicy('127.0.0.1', int(sys.argv[1]))
print('connected', flush=True)
sys.stdin.read()
"""


def test_the_keepalive_of_the_server_finds_a_dead_client():
    def ask(port, server):
        with Process('-c', CLIENT, port) as client:
            client.wait_for('connected')
            client.send(signal.SIGSTOP)
            return server.wait_for('closed ')

    direct, relayed = both_ways(ask, 0.5)
    assert 'keepalive ping timeout' in direct
    assert relayed == direct


def test_headers_and_plain_requests_reach_the_server(server, relay):
    for port in (server.port, relay.port):
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
        connection.request('GET', '/healthz')
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b'OK\n')
        connection.close()
        connection.request('GET', '/authorization', headers={'Authorization': 'Api-Key secret'})
        assert connection.getresponse().read() == b'Api-Key secret'
        connection.close()
    assert not any('secret' in line for line in relay.lines)


def test_a_relay_that_starts_before_its_server_refuses_clients_until_it_answers():
    port = free_port()
    with run_relay('openpi', port, '--episode', 'none', '--exec-horizon', 5) as relay:
        assert 'cannot be reached (Connection refused)' in relay.lines[-1]
        with pytest.raises(ConnectionRefusedError):
            Client(relay.port)
        with run_server('openpi', port) as server:
            relay.wait_for('answers;')
            client = Client(relay.port)
            client.infer({})
            server.kill()
            relay.wait_for('cannot be reached', count=2)
            with pytest.raises(ConnectionRefusedError):
                Client(relay.port)
        with run_server('openpi', port):
            relay.wait_for('answers;', count=2)
            assert Client(relay.port).infer({})['actions'].shape == (10, 7)
        assert relay.interrupt() == 0
