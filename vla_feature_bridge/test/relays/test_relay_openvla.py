# SPDX-License-Identifier: Apache-2.0
"""The OpenVLA relay between json-numpy over HTTP and a server of the standard library."""

import http.client
import json

import numpy as np
import pytest
from relay_processes import Bridge, free_port, run_relay, run_server

pytest.importorskip('relay_servers', reason='no clients of policy servers')
import json_numpy

OPTIONS = ('--episode', 'instruction')


class Client:
    """Posts JSON with a new connection for each request, as ``requests.post`` does."""

    def __init__(self, port):
        self.port = port

    def send(self, method='POST', path='/act', body=b'', **headers):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=20)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheader('Content-Type'), response.read()
        finally:
            connection.close()

    def post(self, body, **headers):
        return self.send(body=body, **{'Content-Type': 'application/json'} | headers)

    def act(self, image, instruction='pick up the mug', encoded=False):
        body = json_numpy.dumps({'image': image, 'instruction': instruction})
        if encoded:
            body = json.dumps({'encoded': body})
        status, _, reply = self.post(body.encode())
        assert status == 200
        found = json_numpy.loads(reply)
        return json_numpy.loads(found) if encoded else found


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)


@pytest.fixture(scope='module')
def server():
    port = free_port()
    with run_server('openvla', port) as process:
        process.port = port
        yield process


@pytest.fixture(scope='module')
def relay(server):
    with run_relay('openvla', server.port, *OPTIONS) as process:
        yield process


REQUESTS = {
    'no JSON': {'body': b'', 'Content-Type': 'text/plain'},
    'malformed': {'body': b'{"image": [', 'Content-Type': 'application/json'},
    'wrong keys': {'body': b'{"x": 1}', 'Content-Type': 'application/json'},
    'an object array': {
        'body': b'{"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}, "instruction": ""}',
        'Content-Type': 'application/json',
    },
    'another path': {'path': '/docs', 'method': 'GET'},
}


@pytest.mark.parametrize('request_', REQUESTS.values(), ids=REQUESTS)
def test_whatever_is_sent_gets_the_same_reply(server, relay, request_):
    request_ = dict(request_)
    assert Client(relay.port).send(**request_) == Client(server.port).send(**request_)


@pytest.mark.parametrize('encoded', [False, True], ids=['plain', 'encoded'])
def test_actions_are_the_same(server, relay, encoded):
    for seed in range(20):
        direct = Client(server.port).act(image(seed), encoded=encoded)
        relayed = Client(relay.port).act(image(seed), encoded=encoded)
        np.testing.assert_array_equal(relayed, direct)


@pytest.mark.parametrize('encoded', [False, True], ids=['plain', 'encoded'])
def test_steps_and_images_reach_the_bridge(tmp_path, server, encoded):
    with (
        Bridge(tmp_path) as bridge,
        run_relay(
            'openvla', server.port, *OPTIONS, '--images', 'image', bridge=bridge.address
        ) as relay,
    ):
        client = Client(relay.port)
        actions = [
            client.act(image(seed), text, encoded)
            for seed, text in enumerate(('one', 'one', 'two'))
        ]
        assert client.post(b'{"x": 1}')[2] == b'"error"'
        bridge.wait_for(steps=3, images=3, events=3)
        assert relay.interrupt() == 0
    assert [step.step for step in bridge.steps] == [0, 1, 0]
    assert [step.instruction for step in bridge.steps] == ['one', 'one', 'two']
    for step, action in zip(bridge.steps, actions, strict=True):
        np.testing.assert_array_equal(step.actions, action[None, None])
        assert (step.feature_name, step.exec_horizon) == ('none', 1)
        assert (step.policy, step.action_space) == ('openvla', 'robot')
        assert step.signals['action_norm'] > 0
        assert 0 < step.inference_time < 20
    np.testing.assert_array_equal(bridge.images[2].array, image(2))
    assert [(event.kind, event.reason) for event in bridge.events] == [
        ('start', ''),
        ('end', 'the instruction changed'),
        ('start', ''),
    ]
    assert '3 inferences, 3 steps, 3 images, 1 error replies' in relay.lines[-1]


def failure_of(call):
    try:
        return call()
    except OSError as error:
        return f'{type(error).__name__} {error}'


def test_a_server_that_dies_or_is_away_looks_the_same():
    def ask(port, server):
        client = Client(port)
        found = [failure_of(lambda: client.act(image(), 'die'))]
        server.wait()
        return [*found, failure_of(lambda: client.act(image()))]

    found = []
    for with_relay in (False, True):
        port = free_port()
        with run_server('openvla', port) as server:
            if with_relay:
                with run_relay('openvla', port, *OPTIONS) as relay:
                    found.append(ask(relay.port, server))
            else:
                found.append(ask(port, server))
    assert found[0][0].startswith('RemoteDisconnected')
    assert found[0][1].startswith('ConnectionRefusedError')
    assert found[1] == found[0]


def test_a_client_that_keeps_its_connection_is_watched(tmp_path, server):
    with (
        Bridge(tmp_path) as bridge,
        run_relay('openvla', server.port, *OPTIONS, bridge=bridge.address) as relay,
    ):
        connection = http.client.HTTPConnection('127.0.0.1', relay.port, timeout=20)
        body = json_numpy.dumps({'image': image(), 'instruction': 'one'})
        for _ in range(3):
            connection.request('POST', '/act', body, {'Content-Type': 'application/json'})
            connection.getresponse().read()
        bridge.wait_for(steps=3)
        connection.close()
