# SPDX-License-Identifier: Apache-2.0
"""Streams are cut into the same messages wherever the network cuts them into pieces."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_feature_bridge.relays import byte_stream
from vla_feature_bridge.relays.byte_stream import StreamError
from vla_feature_bridge.relays.http_stream import ReplyCutter, RequestCutter
from vla_feature_bridge.relays.kill_gate import KillGate, _holds_kill, asks_to_kill
from vla_feature_bridge.relays.tcp_link import RefusedError
from vla_feature_bridge.relays.websocket_stream import WebsocketCutter
from vla_feature_bridge.relays.zmtp_stream import ZmtpCutter, frames_of

frames = pytest.importorskip('websockets.frames', reason='no websockets')
msgpack = pytest.importorskip('msgpack', reason='no msgpack')


def pieces_of(data, sizes):
    """Cut bytes into pieces of these sizes, again and again."""
    place, found = 0, []
    for size in (sizes or [len(data)]) * (len(data) + 1):
        if place >= len(data):
            break
        found.append(data[place : place + size])
        place += size
    return found


SIZES = st.lists(st.integers(1, 50), max_size=5)
MESSAGES = st.lists(
    st.tuples(st.booleans(), st.lists(st.binary(max_size=200), min_size=1, max_size=3)), max_size=4
)


@given(MESSAGES, st.booleans(), SIZES, st.booleans())
@settings(deadline=None)
def test_websocket_messages(messages, mask, sizes, with_pings):
    data = b''
    for is_text, parts in messages:
        for number, part in enumerate(parts):
            code = frames.Opcode.CONT if number else (1 if is_text else 2)
            final = number == len(parts) - 1
            data += frames.Frame(frames.Opcode(code), part, final).serialize(mask=mask)
            if with_pings:
                data += frames.Frame(frames.Opcode.PING, b'ping').serialize(mask=mask)
    data += frames.Frame(frames.Opcode.CLOSE, b'\x03\xe8bye').serialize(mask=mask)
    found = []
    cutter = WebsocketCutter(found.append)
    for piece in pieces_of(data, sizes):
        cutter.feed(piece)
    expected = [('text' if is_text else 'binary', b''.join(parts)) for is_text, parts in messages]
    assert [(m.kind, m.body.joined()) for m in found] == [*expected, ('close', b'\x03\xe8bye')]


def test_long_websocket_messages(monkeypatch):
    monkeypatch.setattr(byte_stream, 'LONGEST_MESSAGE', 70_000)
    found = []
    cutter = WebsocketCutter(found.append)
    for size in (65_535, 65_536, 70_001, 5):
        cutter.feed(frames.Frame(frames.Opcode.BINARY, bytes(size)).serialize(mask=True))
    assert [m.body.size for m in found] == [65_535, 65_536, 70_001, 5]
    assert [m.body.complete for m in found] == [True, True, False, True]
    assert found[1].body.joined() == bytes(65_536)


@pytest.mark.parametrize(
    ('data', 'text'),
    [
        (b'\xc2\x01x', 'permessage-deflate'),
        (b'\x80\x01x', 'starts or continues'),
        (b'\x02\x01x\x02\x01x', 'starts or continues'),
        (b'\x83\x01x', 'starts or continues'),
        (b'\x89\xfe\x00\xff' + bytes(4), 'control frame'),
    ],
)
def test_websocket_frames_that_break_the_protocol(data, text):
    with pytest.raises(StreamError, match=text):
        WebsocketCutter([].append).feed(data)


REQUESTS = (
    b'GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n'
    b'POST /act?x=1 HTTP/1.1\r\ncontent-LENGTH: 5\r\n\r\nhello'
    b'\r\nPOST /act HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n'
    b'5;name=value\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n'
    b'HEAD / HTTP/1.1\r\n\r\n'
    b'GET /last HTTP/1.0\r\n\r\n'
)
REPLIES = (
    b'HTTP/1.1 100 Continue\r\n\r\n'
    b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nOK\n'
    b'HTTP/1.1 422 Unprocessable\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n'
    b'HTTP/1.1 204 No Content\r\n\r\n'
    b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n'
    b'HTTP/1.0 200 OK\r\n\r\nuntil the end'
)


@given(SIZES, SIZES)
@settings(deadline=None)
def test_http_messages(sizes, reply_sizes):
    requests, replies, methods = [], [], deque()
    cutter = RequestCutter(requests.append, methods)
    for piece in pieces_of(REQUESTS, sizes):
        cutter.feed(piece)
    cutter = ReplyCutter(replies.append, methods)
    for piece in pieces_of(REPLIES, reply_sizes):
        cutter.feed(piece)
    cutter.end()
    assert [(m.method, m.path, m.body.joined()) for m in requests] == [
        ('GET', '/healthz', b''),
        ('POST', '/act', b'hello'),
        ('POST', '/act', b'hello0123456789'),
        ('HEAD', '/', b''),
        ('GET', '/last', b''),
    ]
    assert [(m.status, m.body.joined()) for m in replies] == [
        (200, b'OK\n'),
        (422, b'no'),
        (204, b''),
        (200, b''),
        (200, b'until the end'),
    ]


@pytest.mark.parametrize(
    'data',
    [
        b'\x16\x03\x01\x02\x00\x01\r\n\r\n',
        b'GET / HTTP/1.1\r\n' + b'a: b\r\n' * 20_000,
        b'a' * 100_000,
        b'POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n',
        b'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n',
        b'GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n' + bytes(100_000),
    ],
)
def test_what_is_not_http_is_refused(data):
    cutter = RequestCutter([].append, deque())
    with pytest.raises(StreamError):
        for piece in pieces_of(data, [1000]):
            cutter.feed(piece)


GREETING = b'\xff' + bytes(8) + b'\x7f\x03\x01NULL' + bytes(48)
READY = b'\x04\x05READY'


def request(endpoint, **data):
    return frames_of(b'', msgpack.packb({'endpoint': endpoint, 'data': data}))


CONTENTS = st.lists(
    st.sampled_from(['ping', 'kill', 'get_action', 'the longer word: kill']), max_size=6
)


@given(CONTENTS, SIZES, st.integers(0, 400))
@settings(deadline=None)
def test_the_gate_takes_out_exactly_the_requests_for_kill(endpoints, sizes, padding):
    seen = []
    gate = KillGate('peer', 1, seen.append, lambda: None)
    gate.from_server(GREETING + READY)
    requests = [request(name, image=bytes(padding)) + b'\x04\x04PING' for name in endpoints]
    data = GREETING + READY + b''.join(requests)
    passed, answered = b'', b''
    for piece in pieces_of(data, sizes):
        passed += b''.join(gate.from_client(piece))
        answered += b''.join(gate.for_client())
    expected = GREETING + READY
    for name in endpoints:
        expected += b'' if name == 'kill' else request(name, image=bytes(padding))
        expected += b'\x04\x04PING'
    assert passed == expected
    replies = []
    cutter = ZmtpCutter(replies.append)
    cutter.feed(GREETING + READY + answered)
    assert len(replies) == endpoints.count('kill')
    for reply in replies:
        assert reply.frames[0].size == 0
        assert '--allow-kill' in msgpack.unpackb(reply.frames[1].joined())['error']


@given(st.integers(4096, 9000), st.lists(st.integers(1, 5000), min_size=1, max_size=5))
@settings(deadline=None)
def test_a_long_request_passes_while_it_arrives_but_never_whole_if_it_is_kill(padding, sizes):
    for name in ('ping', 'kill'):
        gate = KillGate('peer', 1, [].append, lambda: None)
        data, passed = GREETING + READY + request(name, image=bytes(padding)), b''
        pieces = pieces_of(data, sizes)
        try:
            for piece in pieces:
                passed += b''.join(gate.from_client(piece))
                answered = b''.join(gate.for_client())
        except RefusedError:
            assert name == 'kill'
            assert len(GREETING + READY) < len(passed) < len(data)
            assert data.startswith(passed)
        else:
            assert passed == (data if name == 'ping' else GREETING + READY)
            assert bool(answered) == (name == 'kill')


@given(SIZES)
@settings(deadline=None)
def test_the_answer_to_kill_does_not_cut_a_message_of_the_server(sizes):
    gate = KillGate('peer', 1, [].append, lambda: None)
    gate.from_client(GREETING + READY)
    received = b''.join(gate.from_server(GREETING + READY))
    message = frames_of(b'', bytes(300))
    half = len(message) // 2
    received += b''.join(gate.from_server(message[:half]))
    assert b''.join(gate.from_client(request('kill'))) == b''
    assert gate.for_client() == ()
    for piece in pieces_of(message[half:] + message, sizes):
        received += b''.join(gate.from_server(piece))
    replies = []
    ZmtpCutter(replies.append).feed(received)
    assert [reply.frames[1].size for reply in replies if reply.frames[1].size == 300] == [300, 300]
    assert len(replies) == 3


@pytest.mark.parametrize(
    'body',
    [
        msgpack.packb({'endpoint': 'kill'}),
        msgpack.packb({'endpoint': b'kill'}),
        msgpack.packb({b'endpoint': 'kill'}),
        b'\x82\xa8endpoint\xa4ping\xa8endpoint\xa4kill',
        b'\x82\xa8endpoint\xdb\x00\x00\x00\x04kill\xc0\xc0',
        msgpack.packb({'endpoint': 'kill'}) + b'\xc0',
        b'\x91' * 100 + b'\xa4kill',
    ],
)
def test_every_way_to_write_kill_is_found(body):
    assert asks_to_kill(body)


@given(st.binary(max_size=9), st.sampled_from([b'kill', b'kil', b'']), st.binary(max_size=9))
def test_the_fast_search_is_a_search(before, word, after):
    body = before + word + after
    assert _holds_kill(body) == (b'kill' in body)


@pytest.mark.parametrize(
    'body',
    [
        b'',
        b'\xc1',
        msgpack.packb({'endpoint': 'ping'}),
        msgpack.packb({'endpoint': 'get_action', 'data': {'task': 'kill'}}),
        msgpack.packb({'endpoint': 'kill_not'}),
        msgpack.packb(['kill']),
    ],
)
def test_other_requests_pass(body):
    assert not asks_to_kill(body)


def test_what_the_gate_cannot_read_is_refused():
    curve = b'\xff' + bytes(8) + b'\x7f\x03\x01CURVE' + bytes(47)
    for data in (curve, b'\x01\x00' + bytes(70), GREETING + b'\xff' + bytes(10)):
        seen = []
        with pytest.raises(RefusedError):
            KillGate('peer', 1, seen.append, lambda: None).from_client(data)
        assert '--allow-kill' in seen[0].reason


def test_the_gate_refuses_what_is_too_long_to_hold(monkeypatch):
    monkeypatch.setattr(byte_stream, 'LONGEST_MESSAGE', 1000)
    gate = KillGate('peer', 1, [].append, lambda: None)
    with pytest.raises(RefusedError):
        gate.from_client(GREETING + READY + request('ping', image=bytes(2000)))
