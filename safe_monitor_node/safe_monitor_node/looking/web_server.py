# SPDX-License-Identifier: Apache-2.0
"""The web server of the dashboard: one page, one stream of events, and labels.

It needs only the standard library. Data of the network never becomes markup: the files of the page
are fixed, and all other data is JSON, which the script of the page inserts as text.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from safe_monitor_node.looking.board import RobotBoard
from safe_monitor_node.looking.stream import BoardStream, event_text
from safe_monitor_node.looking.web_access import (
    COOKIE,
    DashboardError,
    WebAccess,
    parts_of,
    same_origin,
)

Label = Callable[[str, str, int], tuple[bool, str]]
"""Labels an episode: name of the robot, episode id, outcome; returns success and a sentence."""

_FILES = {
    'curve.css': 'text/css',
    'curve.js': 'text/javascript',
    'dashboard.css': 'text/css',
    'dashboard.js': 'text/javascript',
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_LONGEST_BODY = 16384
_OUTCOMES = (0, 1, 2)


class DashboardServer(ThreadingHTTPServer):
    """Serves the dashboard in its own threads until it is closed.

    Parameters
    ----------
    board : RobotBoard
    label : callable or None
        None: episodes cannot be labelled in the browser.
    address : str
    port : int
        0 takes a free port.
    access : WebAccess
    period : float
        Time between two events of a stream [s].
    most_connections : int
        Largest number of connections at the same time; further connections are closed at once.
    on_error : callable
        Called with the text of an error in the server.

    Attributes
    ----------
    patience : float
        Longest time for a whole request, and for sending one answer or one event [s].
    longest_stream : float
        Longest time of a stream [s]; the browser then opens another stream.

    Raises
    ------
    DashboardError
        The server cannot listen on the address and port.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    patience = 10.0
    # The server cannot notice that a browser does not read, because the operating system accepts
    # the bytes. The script of the page opens a new stream more often than this.
    longest_stream = 150.0

    def __init__(
        self,
        board: RobotBoard,
        label: Label | None,
        where: tuple[str, int],
        access: WebAccess,
        *,
        period: float = 0.25,
        most_connections: int = 64,
        on_error: Callable[[str], None] = print,
    ) -> None:
        self.board, self.label, self.access = board, label, access
        self.period, self._on_error = period, on_error
        self.closing = threading.Event()
        self._slots = threading.BoundedSemaphore(most_connections)
        folder = resources.files('safe_monitor_node.looking') / 'web'
        self.page = (folder / 'page.html').read_bytes()
        self.refusal = (folder / 'token.html').read_bytes()
        self.files = {name: (folder / name).read_bytes() for name in _FILES}
        if ':' in where[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(where, _Handler)
        except (OSError, OverflowError) as error:
            raise DashboardError(
                where='parameters address and port',
                expected='an address of this computer and a free port',
                found=f'{where[0]} port {where[1]}: {error}',
                advice='choose another port; 0 chooses a free port',
            ) from error
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)

    def server_bind(self) -> None:
        """Bind the socket.

        The base class would also look up the host name, which can take seconds.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Address of the page, without token."""
        host = str(self.server_address[0])
        return f'http://{f"[{host}]" if ":" in host else host}:{self.server_address[1]}/'

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def close(self) -> None:
        """End all streams and stop listening."""
        self.closing.set()
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join(5)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread, unless there are too many connections."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error; a closed browser is not an error."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self._on_error(f'dashboard: {type(error).__name__}: {error}')


class _Request(io.RawIOBase):
    """Reads a request until a deadline, so that a slow client cannot keep a connection open."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._connection, self._deadline = connection, time.monotonic() + patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError('the request took too long')
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: DashboardServer
    server_version, sys_version = 'SAFE', ''

    def setup(self) -> None:
        """Make the two streams of the connection."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Request(self.connection, self.server.patience))

    def log_message(self, *args: Any) -> None:
        """Log no requests, because the log of a node is about robots."""

    def do_GET(self) -> None:
        """Answer with the page, a file of it, or the stream."""
        if not self._is_known_host():
            return
        address = parts_of(self.path)
        name = address.path.removeprefix('/')
        given = parse_qs(address.query).get('token')
        if name in self.server.files:
            self._send(HTTPStatus.OK, self.server.files[name], _FILES[name])
        elif name == '' and given and self.server.access.is_token(given[0]):
            self._welcome(given[0])
        elif not self._is_admitted():
            self._send(HTTPStatus.UNAUTHORIZED, self.server.refusal)
        elif name == '':
            self._send(HTTPStatus.OK, self.server.page)
        elif name == 'events':
            self._stream()
        else:
            self._say(HTTPStatus.NOT_FOUND, 'there is no such page; the dashboard is at /')

    def do_POST(self) -> None:
        """Handle a token or a label."""
        if not self._is_known_host():
            return
        if not same_origin(self.headers.get('Origin', ''), self.headers.get('Host', '')):
            self._say(HTTPStatus.FORBIDDEN, 'a page of another site may not label episodes')
            return
        body = self._body()
        if body is None:
            return
        if self.path == '/token':
            given = parse_qs(body.decode('utf-8', 'replace')).get('token', [''])[0].strip()
            if self.server.access.needs_token and self.server.access.is_token(given):
                self._welcome(given)
            else:
                self._send(HTTPStatus.UNAUTHORIZED, self.server.refusal)
        elif not self._is_admitted():
            self._send(HTTPStatus.UNAUTHORIZED, self.server.refusal)
        elif self.path == '/label':
            self._label(body)
        else:
            self._say(HTTPStatus.NOT_FOUND, 'labels are posted to /label')

    # --- who asks

    def _is_known_host(self) -> bool:
        if self.server.access.is_known_host(self.headers.get('Host', '')):
            return True
        self._say(
            HTTPStatus.FORBIDDEN,
            f'open {self.server.url}: without a token the dashboard answers only on this computer',
        )
        return False

    def _is_admitted(self) -> bool:
        headers = self.headers
        return self.server.access.admits(
            headers.get('Cookie', ''), headers.get('Authorization', '')
        )

    def _welcome(self, token: str) -> None:
        """Store the token in a cookie, so that it is not kept in the address or the history."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header('Set-Cookie', f'{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/')
        self.send_header('Location', '/')
        self._end_headers(0)

    # --- what is answered

    def _stream(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header('Content-Type', 'text/event-stream')
        self._end_headers(None)
        stream, labels = BoardStream(self.server.board), self.server.label is not None
        self.wfile.write(b'retry: 1000\n\n')
        end = time.monotonic() + self.server.longest_stream
        while not self.server.closing.is_set() and time.monotonic() < end:
            self.wfile.write(event_text({**stream.next(time.monotonic()), 'labels': labels}))
            self.server.closing.wait(self.server.period)

    def _label(self, body: bytes) -> None:
        label = self.server.label
        if label is None:
            self._answer(False, 'labels are off: the parameter labels of the dashboard is false')
            return
        if self.headers.get_content_type() != 'application/json':
            self._say(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, 'a label is application/json')
            return
        try:
            asked = json.loads(body)
            robot, episode, outcome = (asked[key] for key in ('robot', 'episode', 'outcome'))
            if not (isinstance(robot, str) and isinstance(episode, str) and episode):
                raise ValueError
            # ROS ends a text at a zero character, so another episode would be labelled. A lone
            # surrogate cannot be encoded in UTF-8, which is also a ValueError.
            if b'\0' in episode.encode():
                raise ValueError
            if type(outcome) is not int or outcome not in _OUTCOMES:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            self._say(
                HTTPStatus.BAD_REQUEST,
                'a label is {"robot": NAME, "episode": ID, "outcome": 0, 1 or 2}',
            )
            return
        self._answer(*label(robot, episode, outcome))

    def _answer(self, success: bool, message: str) -> None:
        content = json.dumps({'success': success, 'message': message}).encode()
        self._send(HTTPStatus.OK, content, 'application/json')

    def _body(self) -> bytes | None:
        """Return the body of a request; None if it is refused. The refusal is already answered."""
        try:
            length = int(self.headers.get('Content-Length', ''))
        except ValueError:
            length = -1
        if not 0 <= length <= _LONGEST_BODY:
            self._say(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f'a body has at most {_LONGEST_BODY} bytes'
            )
            return None
        return self.rfile.read(length)

    def _say(self, status: HTTPStatus, text: str) -> None:
        self._send(status, f'{text}\n'.encode(), 'text/plain')

    def _send(self, status: HTTPStatus, content: bytes, kind: str = 'text/html') -> None:
        self.send_response(status)
        self.send_header('Content-Type', f'{kind}; charset=utf-8')
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header('WWW-Authenticate', 'Bearer realm="SAFE dashboard"')
        self._end_headers(len(content))
        self.wfile.write(content)

    def _end_headers(self, length: int | None) -> None:
        self.connection.settimeout(self.server.patience)
        if length is not None:
            self.send_header('Content-Length', str(length))
        self.send_header('Cache-Control', 'no-store')
        self.send_header('Content-Security-Policy', _POLICY)
        self.send_header('X-Content-Type-Options', 'nosniff')
        self.send_header('Referrer-Policy', 'same-origin')
        self.end_headers()
