# SPDX-License-Identifier: Apache-2.0
"""What the openpi relay sends to the bridge, and that the client never notices it."""

import hashlib
import socket

import numpy as np
import pytest
from relay_processes import Bridge, free_port, run_relay, run_server

pytest.importorskip('relay_servers', reason='no clients of policy servers')
import msgpack
import websockets.sync.client
from openpi_client import msgpack_numpy
from relay_servers import chunk_for


@pytest.fixture(scope='module')
def server():
    port = free_port()
    with run_server('openpi', port) as process:
        process.port = port
        yield process


@pytest.fixture
def connect():
    """Connects as openpi's client does; closes the connections after the test."""
    connections = []

    def make(port):
        connection = websockets.sync.client.connect(
            f'ws://127.0.0.1:{port}', compression=None, max_size=None
        )
        connection.recv()  # metadata
        connections.append(connection)
        return connection

    yield make
    for connection in connections:
        connection.close()


def ask(connection, **request):
    """Send an observation; returns it as bytes, and the reply."""
    data = msgpack_numpy.packb({'prompt': 'fold', **request})
    connection.send(data)
    return data, connection.recv()


def relay_with(server, bridge, *options, horizon=5):
    return run_relay(
        'openpi', server.port, '--exec-horizon', horizon, *options, bridge=bridge.address
    )


def test_a_step_says_what_the_policy_did(tmp_path, server, connect):
    image = np.random.default_rng(0).integers(0, 256, (3, 24, 32), np.uint8)
    with (
        Bridge(tmp_path) as bridge,
        relay_with(server, bridge, '--episode', 'none', '--policy', 'pi0', '--images') as relay,
    ):
        connection = connect(relay.port)
        requests = [ask(connection, **{'observation/image': image})[0] for _ in range(3)]
        bridge.wait_for(steps=3, images=3)
    for number, (step, request) in enumerate(zip(bridge.steps, requests, strict=True)):
        assert step.step == number
        np.testing.assert_array_equal(step.actions, chunk_for(request)[None])
        assert step.inference_time == pytest.approx(0.0125)
    step = bridge.steps[0]
    assert (step.policy, step.instruction, step.action_space) == ('pi0', 'fold', 'robot')
    assert (step.feature_name, step.features.shape) == ('none', (0,))
    assert bridge.images[0].name == 'observation/image'
    np.testing.assert_array_equal(bridge.images[0].array, image.transpose(1, 2, 0))
    assert bridge.images[0].stamp == step.stamp


def test_features_of_the_reply_are_pooled(tmp_path, server, connect):
    options = ('--episode', 'none', '--feature-key', 'pre_logits', '--pooling', 'token=last')
    with Bridge(tmp_path) as bridge, relay_with(server, bridge, *options) as relay:
        request, _ = ask(connect(relay.port), features=True)
        bridge.wait_for(steps=1)
    (step,) = bridge.steps
    assert step.feature_name == 'pre_logits[token=last]'
    np.testing.assert_array_equal(step.features, chunk_for(request, (5, 16))[-1])


def test_an_inference_that_cannot_be_read_leaves_a_gap(tmp_path, server, connect):
    options = ('--episode', 'instruction', '--feature-key', 'pre_logits')
    with Bridge(tmp_path) as bridge, relay_with(server, bridge, *options) as relay:
        connection = connect(relay.port)
        for features in ({'features': True}, {}, {'features': True}):
            ask(connection, **features)
        ask(connection, features=True, prompt='another')
        bridge.wait_for(steps=3)
        relay.wait_for('expected features under the key pre_logits, found none')
    assert [step.step for step in bridge.steps] == [0, 2, 0]


def test_a_policy_that_raises_sends_no_step(tmp_path, server, connect):
    with (
        Bridge(tmp_path) as bridge,
        relay_with(server, bridge, '--episode', 'instruction') as relay,
    ):
        ask(connect(relay.port))
        assert isinstance(ask(connect(relay.port), do='raise')[1], str)
        ask(connect(relay.port))
        bridge.wait_for(steps=1)
        relay.interrupt()
    assert '1 error replies' in relay.lines[-1]


def test_episodes_by_connection(tmp_path, server, connect):
    with Bridge(tmp_path) as bridge, relay_with(server, bridge, '--episode', 'connection') as relay:
        for _ in range(2):
            connection = connect(relay.port)
            ask(connection)
            ask(connection)
            connection.close()
            bridge.wait_for(events=len(bridge.events) + 2)
    assert [event.kind for event in bridge.events] == ['start', 'end', 'start', 'end']
    assert bridge.events[1].reason == 'the client disconnected'
    bridge.wait_for(steps=4)
    assert [step.step for step in bridge.steps] == [0, 1, 0, 1]


def test_episodes_by_gaps_but_not_by_slow_inferences(tmp_path, server, connect):
    with (
        Bridge(tmp_path) as bridge,
        relay_with(server, bridge, '--episode', 'gap', '0.5') as relay,
    ):
        connection = connect(relay.port)
        ask(connection)
        ask(connection, seconds=1.5)
        # The end comes without another request.
        bridge.wait_for(events=2, steps=2)
        ask(connection)
        bridge.wait_for(events=3, steps=3)
    assert [step.step for step in bridge.steps] == [0, 1, 0]
    assert bridge.events[1].reason == 'no inference for 0.5 s'


ARRAY = {b'__ndarray__': True, b'data': b'12345678', b'dtype': '<f4', b'shape': [1, 2]}
HOSTILE_ARRAYS = {
    'an object array': ({b'dtype': '|O'}, "found '|O'"),
    'a structured dtype': ({b'dtype': [['a', '<f4']]}, 'expected a dtype of booleans'),
    'a negative shape': ({b'shape': [-1]}, 'integers of at least 0, found [-1]'),
    'a huge shape': ({b'shape': [1 << 62, 1 << 62]}, 'expected 8507059173'),
    'too few bytes': ({b'data': b'1234'}, 'expected 8 bytes for shape (1, 2) of float32, found 4'),
    'no bytes': ({b'data': None}, 'expected the bytes of an array, found None'),
}
HOSTILE = {
    name: (msgpack.packb({'actions': ARRAY | change}), text)
    for name, (change, text) in HOSTILE_ARRAYS.items()
} | {
    'deep nesting': (b'\x91' * 100_000 + b'\xc0', 'expected at most 32 levels'),
    'a huge count': (b'\xdd\xff\xff\xff\xff\x01', 'expected 4294967295 more values'),
    'bad UTF-8': (
        msgpack.packb({'prompt': 'x', 'actions': ARRAY}).replace(b'\xa1x', b'\xa1\xff'),
        'prompt: expected text as UTF-8',
    ),
    'half of a message': (msgpack.packb({'state': bytes(1000)})[:500], 'more bytes'),
    'nothing': (b'', 'expected 1 more bytes, found 0'),
    'a million lists': (
        b'\xdd\x00\x0f\x42\x40' + b'\x90' * 1_000_000,
        'expected at most 200000 values',
    ),
}


ECHO = """
import sys
from websockets.sync.server import serve
def handle(websocket):
    websocket.send(b'metadata')
    for message in websocket:
        websocket.send(message)
with serve(handle, '127.0.0.1', int(sys.argv[1]), compression=None, max_size=None) as server:
    print('ready', flush=True)
    server.serve_forever()
"""


@pytest.fixture(scope='module')
def echo():
    from relay_processes import Process

    port = free_port()
    with Process('-c', ECHO, port) as server:
        server.wait_for('ready')
        with run_relay('openpi', port, '--episode', 'none', '--exec-horizon', 1) as relay:
            yield relay


@pytest.mark.parametrize(('body', 'text'), HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_pass_unchanged_and_are_named(echo, connect, body, text):
    connection = connect(echo.port)
    connection.send(body)
    assert connection.recv() == body
    assert 'cannot be read' in echo.wait_for(text)
    good = msgpack_numpy.packb({'actions': np.zeros((1, 7))})
    connection.send(good)
    assert connection.recv() == good


def test_what_is_no_websocket_passes_unchanged(tmp_path):
    """A server and a client that speak something else."""
    listener = socket.create_server(('127.0.0.1', 0))
    with run_relay(
        'openpi', listener.getsockname()[1], '--episode', 'none', '--exec-horizon', 1
    ) as relay:
        probe, _ = listener.accept()
        probe.close()
        client = socket.create_connection(('127.0.0.1', relay.port))
        server, _ = listener.accept()
        for sender, receiver in ((client, server), (server, client)):
            data = np.random.default_rng(1).bytes(500_000)
            sender.sendall(data)
            received = b''
            while len(received) < len(data):
                received += receiver.recv(1 << 16)
            assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        relay.wait_for('not watched any longer')
        for end in (client, server, listener):
            end.close()


@pytest.mark.parametrize('bridge', ['absent', 'silent'])
def test_a_bridge_that_does_not_read_changes_nothing(tmp_path, server, connect, bridge):
    path = tmp_path / 'bridge.sock'
    listener = socket.socket(socket.AF_UNIX)
    if bridge == 'silent':
        listener.bind(str(path))
        listener.listen()
    options = ('--episode', 'none', '--exec-horizon', 1, '--images', '--wait-for-monitor', 1)
    image = np.zeros((480, 640, 3), np.uint8)
    with run_relay('openpi', server.port, *options, bridge=f'unix:{path}') as relay:
        connection = connect(relay.port)
        for number in range(150):  # more than the queue of the sender holds
            request, reply = ask(connection, image=image, number=number)
            assert msgpack_numpy.unpackb(reply)['sha256'] == hashlib.sha256(request).hexdigest()
        assert relay.interrupt() == 0
        assert relay.lines[-1].startswith('relay openpi: 150 inferences, 150 steps')
    listener.close()
