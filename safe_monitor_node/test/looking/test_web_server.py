# SPDX-License-Identifier: Apache-2.0
"""The web server of the dashboard, over real sockets: what it answers, and to whom."""

import http.client
import json
import math
import socket
import threading
import time

import pytest

from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_monitor_node.looking.web_access import COOKIE, DashboardError, WebAccess
from safe_monitor_node.looking.web_server import DashboardServer
from safe_monitor_node.monitor.alarm import AlarmState

TOKEN = 'a-long-token_0123456789'
JSON = {'Content-Type': 'application/json'}


@pytest.fixture
def serve():
    servers = []

    def start(board=None, label=None, token='', **kwargs):
        server = DashboardServer(
            board or RobotBoard(),
            label,
            ('127.0.0.1', 0),
            WebAccess('127.0.0.1', token),
            period=0.05,
            **kwargs,
        )
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


class Stream:
    """A browser that reads events."""

    def __init__(self, server, headers=None):
        self._connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
        self._connection.request('GET', '/events', headers=headers or {})
        self.response = self._connection.getresponse()

    def next(self):
        while line := self.response.readline():
            if line.startswith(b'data: '):
                return json.loads(line[6:])
        return None

    def until(self, condition):
        """Return the first row that meets a condition, of a stream of one robot."""
        for _ in range(100):
            (row,) = self.next()['robots']
            if condition(row):
                return row
        raise AssertionError(f'never came true: {row}')

    def close(self):
        self.response.close()
        self._connection.close()


def with_robot(name='/r', steps=3, history=600):
    board = RobotBoard(history)
    board.add(name)
    for k in range(steps):
        board.take_score(
            name, ScoreSample('e', k, 0.1 * k, math.inf, math.nan, 1), time.monotonic()
        )
    return board


def test_the_page_and_its_files_are_served_and_need_nothing_else(serve):
    server = serve()
    response, page = ask(server, 'GET', '/')
    assert response.status == 200
    assert "default-src 'none'" in response.headers['Content-Security-Policy']
    for name in ('curve.js', 'curve.css', 'dashboard.js', 'dashboard.css'):
        assert name.encode() in page
        response, content = ask(server, 'GET', f'/{name}')
        assert response.status == 200
        assert content
        # The namespace of SVG is a name, not an address that is loaded.
        assert b'http' not in content.replace(b'http://www.w3.org/2000/svg', b'')
    assert ask(server, 'GET', '/../board.py')[0].status == 404
    assert ask(server, 'GET', '/secret')[0].status == 404
    assert ask(server, 'GET', '//[')[0].status == 404
    assert ask(server, 'DELETE', '/')[0].status == 501


def test_a_stream_gives_everything_first_and_then_what_is_new(serve):
    board = with_robot()
    stream = Stream(serve(board))
    (row,) = stream.next()['robots']
    assert row['restart']
    assert row['points'] == [[0, 0.0, None], [1, 0.1, None], [2, 0.2, None]]
    assert row['facts']['word'] == 'NOMINAL'
    assert row['threshold'] == 'none'
    (row,) = stream.next()['robots']
    assert row['points'] == []
    assert 'facts' not in row
    board.take_score('/r', ScoreSample('e', 3, math.nan, 0.5, math.nan, 5), time.monotonic())
    row = stream.until(lambda row: row['points'])
    assert row['points'] == [[3, None, 0.5]]
    assert not row['restart']
    assert row['facts']['word'] == 'INVALID'
    board.take_score('/r', ScoreSample('f', 0, 0.3, 0.5, math.nan, 1), time.monotonic())
    row = stream.until(lambda row: row['restart'])
    assert row['points'] == [[0, 0.3, 0.5]]
    assert row['facts']['previous']['id'] == 'e'
    stream.close()


def test_a_stream_that_is_slower_than_the_history_gets_what_is_kept(serve):
    board = with_robot(history=5)
    stream = Stream(serve(board))
    stream.next()
    for k in range(3, 50):
        board.take_score('/r', ScoreSample('e', k, 0.0, 0.5, math.nan, 1), time.monotonic())
    points = [point for _ in range(4) for point in stream.next()['robots'][0]['points']]
    assert [step for step, *_ in points] == [45, 46, 47, 48, 49]
    stream.close()


def test_two_streams_are_independent_and_end_with_the_server(serve):
    server = serve(with_robot())
    first, second = Stream(server), Stream(server)
    assert len(first.next()['robots'][0]['points']) == 3
    assert len(second.next()['robots'][0]['points']) == 3
    began = time.monotonic()
    server.close()
    assert first.next() is None or first.next() is None or first.next() is None
    assert time.monotonic() - began < 3


@pytest.mark.parametrize('path', ['/', '/events', '/nothing', '/?token=wrong', '/?token='])
def test_without_the_token_nothing_is_shown(serve, path):
    response, page = ask(serve(with_robot(), token=TOKEN), 'GET', path)
    assert response.status == 401
    assert b'Token needed' in page
    assert 'Set-Cookie' not in response.headers
    assert TOKEN.encode() not in page


def test_the_token_becomes_a_cookie_and_leaves_the_address(serve):
    server = serve(with_robot(), token=TOKEN)
    response, _ = ask(server, 'GET', f'/?token={TOKEN}')
    assert (response.status, response.headers['Location']) == (303, '/')
    cookie = response.headers['Set-Cookie']
    assert 'HttpOnly' in cookie
    assert 'SameSite=Strict' in cookie
    sent = {'Cookie': cookie.partition(';')[0]}
    assert sent['Cookie'].startswith(COOKIE)
    assert ask(server, 'GET', '/', headers=sent)[0].status == 200
    stream = Stream(server, sent)
    assert stream.next()['robots'][0]['name'] == '/r'
    stream.close()
    assert ask(server, 'GET', '/', headers={'Authorization': f'Bearer {TOKEN}'})[0].status == 200


def test_the_form_of_the_refusal_takes_the_token(serve):
    server = serve(token=TOKEN)
    form = {'Content-Type': 'application/x-www-form-urlencoded'}
    assert ask(server, 'POST', '/token', 'token=wrong', form)[0].status == 401
    response, _ = ask(server, 'POST', '/token', f'token={TOKEN}', form)
    assert response.status == 303
    assert TOKEN in response.headers['Set-Cookie']


def test_a_label_reaches_the_robot_with_its_answer(serve):
    labels = []

    def label(*asked):
        labels.append(asked)
        return len(labels) == 1, f'label {len(labels)}'

    server = serve(label=label)
    body = json.dumps({'robot': '/r', 'episode': 'épisode "1"', 'outcome': 2})
    response, answer = ask(server, 'POST', '/label', body, JSON)
    assert response.status == 200
    assert json.loads(answer) == {'success': True, 'message': 'label 1'}
    assert labels == [('/r', 'épisode "1"', 2)]
    answer = json.loads(ask(server, 'POST', '/label', body, JSON)[1])
    assert answer == {'success': False, 'message': 'label 2'}


GOOD = {'robot': '/r', 'episode': 'e', 'outcome': 1}


@pytest.mark.parametrize(
    ('body', 'headers', 'status'),
    [
        (b'{', JSON, 400),
        (b'[' * 10000, JSON, 400),
        (b'[]', JSON, 400),
        (b'null', JSON, 400),
        (json.dumps({**GOOD, 'outcome': 3}), JSON, 400),
        (json.dumps({**GOOD, 'outcome': True}), JSON, 400),
        (json.dumps({**GOOD, 'outcome': '1'}), JSON, 400),
        (json.dumps({**GOOD, 'episode': ''}), JSON, 400),
        (json.dumps({**GOOD, 'episode': 'e1\0x'}), JSON, 400),
        (json.dumps({**GOOD, 'episode': '\ud800'}), JSON, 400),
        (json.dumps({**GOOD, 'robot': 7}), JSON, 400),
        (b'x' * 20000, JSON, 413),
        (json.dumps(GOOD), {'Content-Type': 'text/plain'}, 415),
        (json.dumps(GOOD), {**JSON, 'Origin': 'http://evil.example'}, 403),
        (json.dumps(GOOD), {**JSON, 'Origin': 'null'}, 403),
        (json.dumps(GOOD), {**JSON, 'Host': 'evil.example'}, 403),
        (json.dumps(GOOD), {**JSON, 'Content-Length': '-1'}, 413),
    ],
)
def test_anything_else_is_no_label(serve, body, headers, status):
    labels = []
    server = serve(label=lambda *asked: labels.append(asked) or (True, ''))
    assert ask(server, 'POST', '/label', body, headers)[0].status == status
    assert labels == []
    assert ask(server, 'GET', '/')[0].status == 200, 'the server lives'


def test_labels_need_the_token_and_the_parameter(serve):
    labels = []
    server = serve(token=TOKEN, label=lambda *asked: labels.append(asked) or (True, ''))
    assert ask(server, 'POST', '/label', json.dumps(GOOD), JSON)[0].status == 401
    assert labels == []
    _, answer = ask(serve(), 'POST', '/label', json.dumps(GOOD), JSON)
    assert not json.loads(answer)['success']


def test_a_page_of_another_name_cannot_read_the_stream(serve):
    response, content = ask(serve(with_robot()), 'GET', '/events', headers={'Host': 'evil.example'})
    assert response.status == 403
    assert b'/r' not in content.replace(b'//', b'')


def test_too_many_connections_are_closed_and_their_places_come_back(serve):
    server = serve(with_robot(), most_connections=2)
    streams = [Stream(server), Stream(server)]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(server, 'GET', '/')
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert ask(server, 'GET', '/')[0].status == 200
            break
        except (http.client.RemoteDisconnected, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def keep_sending(connection, stop):
    """Send a request whose headers never end."""
    try:
        connection.sendall(b'GET / HTTP/1.1\r\n')
        while not stop.wait(0.05):
            connection.sendall(b'X')
    except OSError:  # the server has closed the connection
        pass


@pytest.mark.parametrize('slow', ['reads nothing', 'asks nothing', 'asks without end'])
def test_a_slow_client_does_not_keep_its_place(serve, slow):
    errors = []
    server = serve(with_robot(), most_connections=1, on_error=errors.append)
    server.patience = server.longest_stream = 0.3
    stop = threading.Event()
    with socket.create_connection(server.server_address[:2], timeout=5) as connection:
        if slow == 'reads nothing':
            connection.sendall(b'GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n')
        elif slow == 'asks without end':
            sending = threading.Thread(target=keep_sending, args=(connection, stop))
            sending.start()
        time.sleep(0.1)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            ask(server, 'GET', '/')
        time.sleep(0.6)
        assert ask(server, 'GET', '/')[0].status == 200
        stop.set()
        if slow == 'asks without end':
            sending.join()
    assert errors == []


def test_a_stream_that_was_ended_can_be_opened_again(serve):
    server = serve(with_robot())
    server.longest_stream = 0.2
    for _ in range(2):
        stream = Stream(server)
        assert stream.next()['robots'][0]['restart']
        while stream.next() is not None:
            pass
        stream.close()


def test_browsers_that_come_and_go_leave_no_thread(serve):
    server = serve(with_robot())
    before = threading.active_count()
    for _ in range(30):
        stream = Stream(server)
        stream.next()
        stream.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)


def test_garbage_is_not_an_error_of_the_server(serve):
    errors = []
    server = serve(on_error=errors.append)
    for garbage in (b'\x00\xff' * 100 + b'\r\n\r\n', b'GET\r\n\r\n', b'GET / HTTP/9.9\r\n\r\n'):
        with socket.create_connection(server.server_address[:2], timeout=5) as connection:
            connection.sendall(garbage)
            connection.recv(1000)
    assert errors == []
    assert ask(server, 'GET', '/')[0].status == 200


def test_a_port_that_is_taken_is_said(serve):
    taken = serve().server_address
    with pytest.raises(DashboardError, match=f'port {taken[1]}') as caught:
        DashboardServer(RobotBoard(), None, taken, WebAccess('127.0.0.1', ''))
    assert 'choose another port' in str(caught.value)
    with pytest.raises(DashboardError, match=r'192\.0\.2\.1'):
        DashboardServer(RobotBoard(), None, ('192.0.2.1', 0), WebAccess('127.0.0.1', ''))


def test_an_id_that_is_too_long_is_shown_but_not_labelled(serve):
    board = RobotBoard()
    board.add('/r')
    board.take_score('/r', ScoreSample('x' * 10**6, 0, 0.1, 0.2, math.nan, 1), 0.0)
    board.take_alarm('/r', AlarmSample('x', 0, AlarmState.ALARM, 2, 'y' * 10**6))
    stream = Stream(serve(board))
    event = stream.next()
    facts = event['robots'][0]['facts']
    assert facts['episode'] == {'id': '', 'shown': 'x' * 79 + '…', 'whole': False}
    assert len(json.dumps(event)) < 2000
    stream.close()
