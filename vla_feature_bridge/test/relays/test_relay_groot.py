# SPDX-License-Identifier: Apache-2.0
"""The GR00T relay between REQ clients and REP servers of pyzmq, in both encodings of arrays."""

import hashlib

import numpy as np
import pytest
from relay_processes import Bridge, free_port, run_relay, run_server

pytest.importorskip('relay_servers', reason='no clients of policy servers')
import msgpack
import zmq
from relay_servers import ENCODINGS

OPTIONS = ('--exec-horizon', 8)

both_encodings = pytest.mark.parametrize('encoding', list(ENCODINGS))


class Client:
    """A client as GR00T's: REQ, one msgpack map per message."""

    def __init__(self, port, encoding='groot_npy', timeout=10_000, api_token=None):
        self._encode, self._decode = ENCODINGS[encoding]
        self._token = {'api_token': api_token} if api_token else {}
        self._context = zmq.Context.instance()
        self.socket = self._context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.RCVTIMEO, timeout)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f'tcp://127.0.0.1:{port}')

    def pack(self, endpoint, data=None):
        request = {'endpoint': endpoint} | ({} if data is None else {'data': data}) | self._token
        return msgpack.packb(request, default=self._encode)

    def call_bytes(self, body):
        self.socket.send(body)
        return self.socket.recv()

    def call(self, endpoint, data=None):
        reply = self.call_bytes(self.pack(endpoint, data))
        return msgpack.unpackb(reply, object_hook=self._decode)

    def close(self):
        self.socket.close()


@pytest.fixture
def client_of():
    """Makes clients, and closes them after the test."""
    clients = []

    def make(*arguments, **options):
        clients.append(Client(*arguments, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def observation(rng, text='pick up the mug', **options):
    return {
        'observation': {
            'video': {'ego': rng.integers(0, 256, (1, 2, 24, 32, 3), np.uint8)},
            'state': {'arm': rng.normal(size=(1, 1, 6)).astype(np.float32)},
            'language': {'task': [[text]]},
        },
        'options': options or None,
    }


@both_encodings
def test_requests_and_replies_pass_unchanged(client_of, encoding):
    port, rng = free_port(), np.random.default_rng(0)
    with run_server(encoding, port) as server, run_relay('groot', port, *OPTIONS) as relay:
        direct, relayed = client_of(port, encoding), client_of(relay.port, encoding)
        for number in range(1, 101):
            body = direct.pack('get_action', observation(rng))
            assert direct.call_bytes(body) == relayed.call_bytes(body)
            seen = hashlib.sha256(body).hexdigest()
            assert server.wait_for(f'get_action {seen}', count=2), number
        for endpoint in ('ping', 'reset', 'get_modality_config'):
            assert direct.call(endpoint) == relayed.call(endpoint)
        assert relayed.call('ping') == {'status': 'ok', 'message': 'Server is running'}
        assert relay.interrupt() == 0
        assert relay.lines[-1].startswith('relay groot: 100 inferences, 100 steps')


@both_encodings
def test_steps_reach_the_bridge(client_of, tmp_path, encoding):
    port, rng = free_port(), np.random.default_rng(0)
    with (
        Bridge(tmp_path) as bridge,
        run_server(encoding, port),
        run_relay('groot', port, *OPTIONS, '--images', bridge=bridge.address) as relay,
    ):
        client = client_of(relay.port, encoding)
        request = observation(rng, features=True)
        reply, info = client.call('get_action', request)
        client.call('reset')
        client.call('get_action', observation(rng, 'open the drawer', features=True))
        bridge.wait_for(steps=2, events=3, images=2)
    first, second = bridge.steps
    expected = np.concatenate([reply['arm'][0], reply['gripper'][0]], axis=1)
    np.testing.assert_array_equal(first.actions, expected[None])
    np.testing.assert_array_equal(first.features, info['hidden_states'])
    assert first.feature_name == 'hidden_states'
    assert (first.action_space, first.exec_horizon, first.policy) == ('robot', 8, 'groot')
    assert [(e.kind, e.reason) for e in bridge.events] == [
        ('start', ''),
        ('end', 'the client reset the policy'),
        ('start', ''),
    ]
    assert (first.instruction, second.instruction) == ('pick up the mug', 'open the drawer')
    assert (first.step, second.step) == (0, 0)
    assert first.episode_id != second.episode_id
    assert first.inference_time > 0
    image = bridge.images[0]
    assert image.name == 'video/ego'
    np.testing.assert_array_equal(image.array, request['observation']['video']['ego'][0, -1])


def test_kill_is_answered_by_the_relay(client_of):
    port = free_port()
    with run_server('groot_npy', port) as server, run_relay('groot', port, *OPTIONS) as relay:
        client = client_of(relay.port)
        answer = client.call('kill')
        assert answer.keys() == {'error'} and '--allow-kill' in answer['error']
        # Of the same socket, and with kill elsewhere in the message: the server lives.
        assert client.call('ping')['status'] == 'ok'
        hidden = client_of(relay.port, timeout=1000)
        body = msgpack.packb({'endpoint': 'ping', 'data': {'padding': bytes(300_000)}})
        hidden.socket.send(b'\x83' + body[1:] + msgpack.packb('endpoint') + msgpack.packb('kill'))
        relay.wait_for('expected kill as a short request')
        with pytest.raises(zmq.Again):
            hidden.socket.recv()
        text = observation(np.random.default_rng(0), 'kill the light')
        assert len(client.call('get_action', text)) == 2
        relay.wait_for('kill')
        assert not any('kill ' in line for line in server.lines)
        assert 'get_action' in server.lines[-1]
    with (
        run_server('groot_npy', port) as server,
        run_relay('groot', port, *OPTIONS, '--allow-kill') as relay,
    ):
        assert client_of(relay.port).call('kill') is None
        assert server.wait() == 0


def test_a_server_that_dies_in_a_request_leaves_the_client_as_without(client_of):
    def ask(port, server):
        client = client_of(port, timeout=700)
        client.socket.send(client.pack('get_action', {'options': {'do': 'die'}}))
        server.wait()
        with pytest.raises(zmq.Again):
            client.socket.recv()
        with pytest.raises(zmq.ZMQError) as wrong_state:
            client.socket.send(b'')
        client.close()
        # A new socket waits until a server is there again.
        client = client_of(port, timeout=20_000)
        client.socket.send(client.pack('ping'))
        with run_server('groot_npy', server.port) as again:
            reply = msgpack.unpackb(client.socket.recv())
            again.wait_for('ping')
            requests = [line.split()[0] for line in again.lines if line != 'ready']
        client.close()
        return wrong_state.value.errno, reply, requests

    found = []
    for with_relay in (False, True):
        port = free_port()
        with run_server('groot_npy', port) as server:
            server.port = port
            if with_relay:
                with run_relay('groot', port, *OPTIONS) as relay:
                    found.append(ask(relay.port, server))
            else:
                found.append(ask(port, server))
    assert found[0] == (zmq.EFSM, {'status': 'ok', 'message': 'Server is running'}, ['ping'])
    assert found[1] == found[0]


def test_the_token_passes_and_is_never_printed(client_of):
    port = free_port()
    with run_server('groot_npy', port) as server, run_relay('groot', port, *OPTIONS) as relay:
        client = client_of(relay.port, api_token='very-secret')
        body = client.pack('ping')
        client.call_bytes(body)
        server.wait_for(f'ping {hashlib.sha256(body).hexdigest()}')
        client.call('kill')
        client.call('get_action', {'options': {'do': 'raise'}})
        client.call_bytes(client.pack('reset')[:-3])
        relay.interrupt()
    assert not any('very-secret' in line for line in relay.lines)


@pytest.mark.skipif(not zmq.has('curve'), reason='no CURVE in this pyzmq')
def test_an_encrypted_connection_is_refused_unless_kill_is_allowed():
    port = free_port()
    public, secret = zmq.curve_keypair()
    server = zmq.Context.instance().socket(zmq.REP)
    server.setsockopt(zmq.LINGER, 0)
    server.curve_secretkey, server.curve_publickey, server.curve_server = secret, public, True
    server.bind(f'tcp://127.0.0.1:{port}')

    def encrypted(target):
        socket = zmq.Context.instance().socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.curve_serverkey = public
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(f'tcp://127.0.0.1:{target}')
        return socket

    with run_relay('groot', port, *OPTIONS) as relay:
        client = encrypted(relay.port)
        client.send(b'hello')
        relay.wait_for('expected a connection without encryption')
        client.close()
    with run_relay('groot', port, *OPTIONS, '--allow-kill') as relay:
        client = encrypted(relay.port)
        client.send(b'hello')
        assert server.recv() == b'hello'
        server.send(b'world')
        assert client.recv() == b'world'
        relay.wait_for('not watched any longer')
        client.close()
    server.close()


def test_two_clients_are_served_and_one_is_watched(client_of, tmp_path):
    port, rng = free_port(), np.random.default_rng(0)
    with (
        Bridge(tmp_path) as bridge,
        run_server('groot_npy', port),
        run_relay('groot', port, *OPTIONS, bridge=bridge.address) as relay,
    ):
        first, second = client_of(relay.port), client_of(relay.port)
        first.call('get_action', observation(rng, 'one'))
        assert len(second.call('get_action', observation(rng, 'two'))) == 2
        first.call('get_action', observation(rng, 'one'))
        relay.wait_for('a second client')
        first.close()
        bridge.wait_for(steps=2)
        while len(bridge.steps) < 3:  # as soon as the end of the first connection is seen
            second.call('get_action', observation(rng, 'two'))
            bridge.wait_for(steps=2)
            bridge.wait_briefly()
        assert [step.instruction for step in bridge.steps[:3]] == ['one', 'one', 'two']
        second.close()
