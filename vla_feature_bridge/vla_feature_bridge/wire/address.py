# SPDX-License-Identifier: Apache-2.0
"""Addresses of the bridge: ``unix:/path/of/socket`` and ``tcp://host:port``."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from vla_feature_bridge.errors import SafeError

#: Length of the path of a Unix socket on Linux [bytes], without the final zero.
_MAX_PATH = 107
_TCP = re.compile(r'tcp://(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_.-]+)):(?P<port>\d+)')
#: The first probe is sent after 5 s without data, then one every 3 s. Three probes without an
#: answer end the connection. The last option is the time-out for data that is not acknowledged
#: [ms].
_KEEP_ALIVE = {
    'TCP_KEEPIDLE': 5,
    'TCP_KEEPINTVL': 3,
    'TCP_KEEPCNT': 3,
    'TCP_USER_TIMEOUT': 15_000,
}
_LOOPBACK = ('localhost', '::1')


class AddressError(SafeError):
    """A text is not an address of the bridge."""


@dataclass(frozen=True)
class Address:
    """Where the bridge listens.

    Attributes
    ----------
    path : str
        Path of a Unix socket; empty for TCP.
    host : str
        Name or number of a host; empty for a Unix socket.
    port : int
        0 lets the system choose a free port when the bridge listens.
    """

    path: str = ''
    host: str = ''
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f'unix:{self.path}'
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'tcp://{host}:{self.port}'

    @property
    def is_local(self) -> bool:
        """True if only processes of this machine can connect."""
        return bool(self.path) or self.host in _LOOPBACK or self.host.startswith('127.')

    def new_socket(self) -> socket.socket:
        """Return a new stream socket of the family of the address."""
        if self.path:
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        family = socket.AF_INET6 if ':' in self.host else socket.AF_INET
        return socket.socket(family, socket.SOCK_STREAM)

    def connect(self, timeout: float) -> socket.socket:
        """Return a connected stream socket.

        Raises
        ------
        OSError
            No process listens on the address, or no answer comes within ``timeout`` seconds.
        """
        if not self.path:
            return socket.create_connection((self.host, self.port), timeout)
        connection = self.new_socket()
        try:
            connection.settimeout(timeout)
            connection.connect(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def keep_alive(self, connection: socket.socket) -> None:
        """Make the system detect within about 15 s that the other machine is gone."""
        if self.path:
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):  # Linux; other systems lack some.
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def default_address() -> str:
    """Return the address of a bridge of the same user on the same machine.

    The environment variable ``SAFE_BRIDGE`` replaces this address.
    """
    return os.environ.get('SAFE_BRIDGE') or f'unix:/tmp/safe_bridge_{os.getuid()}.sock'


def parse_address(text: str) -> Address:
    """Parse the text of an address.

    Raises
    ------
    AddressError
        The text is not an address, or its path or port is out of range.
    """
    if isinstance(text, str) and text.startswith('unix:'):
        path = text.removeprefix('unix:')
        length = len(os.fsencode(path)) if '\0' not in path else 0
        if not path.startswith('/') or not 1 < length <= _MAX_PATH:
            raise AddressError(
                where='address of the bridge',
                expected=f'unix: with an absolute path of at most {_MAX_PATH} bytes',
                found=repr(text[:300]),
                advice='use a short path, such as unix:/tmp/safe_bridge.sock',
            )
        return Address(path=path)
    match = _TCP.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match['port'][:6]) > 65535:
        raise AddressError(
            where='address of the bridge',
            expected='unix:/path or tcp://host:port',
            found=repr(text)[:300],
            advice='use for example unix:/tmp/safe_bridge.sock or tcp://127.0.0.1:7447',
        )
    return Address(host=match['v6'] or match['host'], port=int(match['port']))
