# SPDX-License-Identifier: Apache-2.0
"""The listening sockets of the bridge."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.wire.address import Address

#: How long to wait for another bridge that starts at the same time [s].
_LOCK_TIMEOUT = 2.0
_BACKLOG = 16


class ListenError(SafeError):
    """The bridge cannot listen on an address."""


class Listener:
    """A listening socket.

    Only this user can use the file of a Unix socket (mode 0600). A socket file of a killed bridge
    is removed if no process answers on it. Any other file is kept.

    Parameters
    ----------
    address : Address

    Attributes
    ----------
    address : Address
        With the port that the system chose.
    socket : socket.socket

    Raises
    ------
    ListenError
        Another process listens on the address, the path is a file of another kind, or the system
        refuses the address.
    """

    def __init__(self, address: Address) -> None:
        self._identity: tuple[int, int] | None = None
        self.socket = address.new_socket()
        try:
            self._bind(address)
        except OSError as error:
            self.socket.close()
            raise ListenError(
                where=str(address),
                expected='an address on which this process may listen',
                found=error.strerror or str(error),
                advice='end the process that uses it, or choose another address',
            ) from None
        except ListenError:
            self.socket.close()
            raise
        port = 0 if address.path else self.socket.getsockname()[1]
        self.address = Address(address.path, address.host, port)

    def _bind(self, address: Address) -> None:
        if address.path:
            with _alone_in(Path(address.path).parent):
                _remove_stale(address)
                self.socket.bind(address.path)
                # No process can connect before listen(). Therefore chmod here is early enough.
                os.chmod(address.path, 0o600)
                self._identity = _identity(address.path)
                self.socket.listen(_BACKLOG)
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((address.host, address.port))
        self.socket.listen(_BACKLOG)

    def close(self) -> None:
        """Close the socket and remove its file, unless another process has replaced it."""
        self.socket.close()
        if self._identity is not None:
            with suppress(OSError):
                if _identity(self.address.path) == self._identity:
                    os.unlink(self.address.path)


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Prevent two bridges from removing each other's socket file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(address: Address) -> None:
    """Remove the socket file of a process that has ended."""
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            where=str(address),
            expected='no file, or a socket on which no process listens',
            found='a file of another kind',
            advice='choose another path; the file was not changed',
        )
    with address.new_socket() as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise ListenError(
        where=str(address),
        expected='an address on which no process listens',
        found='another bridge',
        advice='end the other bridge, or give this bridge another address',
    )
