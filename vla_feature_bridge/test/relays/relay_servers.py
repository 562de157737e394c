# SPDX-License-Identifier: Apache-2.0
"""Small policy servers in processes of their own, built of the libraries that the real ones use.

``python relay_servers.py openpi|groot_npy|groot_nd|openvla PORT``; what a server does with a
request stands in the request.
"""

import asyncio
import hashlib
import http
import io
import json
import os
import sys
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import json_numpy
import msgpack
import numpy as np
import zmq
from openpi_client import msgpack_numpy
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


def chunk_for(data: bytes, shape=(10, 7)) -> np.ndarray:
    """Return actions that depend on every byte of a request."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], 'little')
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- openpi: websockets and the msgpack_numpy of openpi-client


def openpi_answer(data: bytes) -> bytes | None:
    request = msgpack_numpy.unpackb(data)
    do = request.get('do', '')
    if do == 'raise':
        raise RuntimeError('the policy failed')
    if do == 'die':
        os._exit(1)
    if do == 'close':
        return None
    time.sleep(request.get('seconds', 0.0))  # as openpi's server: blocks the event loop
    reply = {
        'actions': chunk_for(data),
        'sha256': hashlib.sha256(data).hexdigest(),
        'policy_timing': {'infer_ms': 12.5},
    }
    if 'features' in request:
        reply['pre_logits'] = chunk_for(data, (5, 16))
    return msgpack_numpy.packb(reply)


async def openpi_requests(websocket) -> None:
    await websocket.send(msgpack_numpy.packb({'robot': 'test'}))
    while True:
        data = await websocket.recv()
        try:
            reply = openpi_answer(data)
        except Exception:
            await websocket.send(traceback.format_exc())
            await websocket.close(
                code=1011,
                reason='Internal server error. Traceback included in previous frame.',
            )
            raise
        if reply is None:
            await websocket.close()
            return
        await websocket.send(reply)


async def openpi_connection(websocket) -> None:
    try:
        await openpi_requests(websocket)
    except ConnectionClosed as closed:
        print(f'closed {closed!r}', flush=True)


def openpi_plain(connection, request):
    if request.path == '/healthz':
        return connection.respond(http.HTTPStatus.OK, 'OK\n')
    if request.path == '/authorization':
        return connection.respond(http.HTTPStatus.OK, request.headers.get('Authorization', 'none'))
    return None


async def openpi(port: int, ping: float) -> None:
    async with serve(
        openpi_connection,
        '127.0.0.1',
        port,
        compression=None,
        max_size=None,
        process_request=openpi_plain,
        ping_interval=ping,
        ping_timeout=ping,
        close_timeout=1,
    ) as server:
        print('ready', flush=True)
        await server.serve_forever()


# --- GR00T: pyzmq, with the two encodings of arrays


def npy_encode(value):
    if isinstance(value, np.ndarray):
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {'__ndarray_class__': True, 'as_npy': file.getvalue()}
    raise TypeError(type(value))


def npy_decode(value):
    if '__ndarray_class__' in value:
        return np.load(io.BytesIO(value['as_npy']), allow_pickle=False)
    return value


def nd_encode(value):
    if isinstance(value, np.ndarray):
        return {
            b'nd': True,
            b'type': value.dtype.str,
            b'kind': b'',
            b'shape': value.shape,
            b'data': value.tobytes(),
        }
    raise TypeError(type(value))


def nd_decode(value):
    if b'nd' in value:
        return np.frombuffer(value[b'data'], value[b'type']).reshape(value[b'shape'])
    return value


ENCODINGS = {'groot_npy': (npy_encode, npy_decode), 'groot_nd': (nd_encode, nd_decode)}


def groot(port: int, encoding: str) -> None:
    encode, decode = ENCODINGS[encoding]
    socket = zmq.Context().socket(zmq.REP)
    socket.bind(f'tcp://127.0.0.1:{port}')
    print('ready', flush=True)
    while True:
        data = socket.recv()
        try:
            request = msgpack.unpackb(data, object_hook=decode)
        except Exception as error:
            socket.send(msgpack.packb({'error': str(error)}))
            continue
        endpoint = request.get('endpoint', 'get_action')
        print(f'{endpoint} {hashlib.sha256(data).hexdigest()}', flush=True)
        if endpoint == 'kill':
            socket.send(msgpack.packb(None))
            return
        reply = {'error': f'Unknown endpoint: {endpoint}'}
        if endpoint == 'ping':
            reply = {'status': 'ok', 'message': 'Server is running'}
        elif endpoint == 'reset':
            reply = {}
        elif endpoint == 'get_action':
            reply = groot_actions(data, request['data'])
        socket.send(msgpack.packb(reply, default=encode))


def groot_actions(data, observation):
    options = observation.get('options') or {}
    if options.get('do') == 'die':
        os._exit(1)
    if options.get('do') == 'raise':
        return {'error': 'the policy failed'}
    actions = chunk_for(data, (1, 16, 7))
    info = {'hidden_states': chunk_for(data, (4, 8))} if options.get('features') else {}
    return [{'arm': actions[..., :6], 'gripper': actions[..., 6:]}, info]


# --- OpenVLA: json-numpy and the HTTP server of the standard library


class OpenVla(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self._send(404, b'{"detail":"Not Found"}')

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if self.headers.get('Content-Type') != 'application/json':
            self._send(422, b'{"detail":"no JSON"}')
            return
        try:
            payload = json_numpy.loads(body)
        except json.JSONDecodeError:
            self._send(422, b'{"detail":"malformed"}')
            return
        except ValueError:
            self._send(200, b'"error"')
            return
        try:
            self._send(200, self._answer(body, payload))
        except Exception:
            self._send(200, b'"error"')

    def _answer(self, body, payload):
        double = 'encoded' in payload
        if double:
            payload = json_numpy.loads(payload['encoded'])
        if payload['instruction'] == 'die':
            os._exit(1)
        assert payload['image'].dtype == np.uint8
        action = json_numpy.dumps(chunk_for(body, (7,)).astype(np.float64))
        return json_numpy.dumps(action).encode() if double else action.encode()

    def _send(self, status, body):
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def openvla(port: int) -> None:
    server = ThreadingHTTPServer(('127.0.0.1', port), OpenVla)
    print('ready', flush=True)
    server.serve_forever()


if __name__ == '__main__':
    kind, number, *rest = sys.argv[1:]
    if kind == 'openpi':
        asyncio.run(openpi(int(number), float(rest[0]) if rest else 20.0))
    elif kind == 'openvla':
        openvla(int(number))
    else:
        groot(int(number), kind)
