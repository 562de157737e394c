# SPDX-License-Identifier: Apache-2.0
"""Network addresses on the command line of the relays."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from vla_feature_bridge.errors import SafeError

#: The clients of the three servers write addresses in these forms.
_SCHEMES = ('tcp://', 'ws://', 'http://')
_ENCRYPTED = ('wss://', 'https://')


class AddressError(SafeError):
    """An address is not HOST:PORT, or cannot be used."""


@dataclass(frozen=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}'

    @property
    def is_loopback(self) -> bool:
        """True if only programs of the same machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == 'localhost'


def parse_address(text: str, option: str) -> Address:
    """Return the address that an option gives as HOST:PORT, also with tcp://, ws:// or http://.

    The host ``*`` means every network interface of the machine.

    Raises
    ------
    AddressError
        The text has another form, or is the address of an encrypted server.
    """
    rest = text
    for scheme in (*_SCHEMES, *_ENCRYPTED):
        if text.startswith(scheme):
            rest = text[len(scheme) :].rstrip('/')
    if text.startswith(_ENCRYPTED):
        raise AddressError(
            where=option,
            expected='a server without encryption',
            found=repr(text),
            advice='give the address behind the TLS proxy, or a local tunnel to the server',
        )
    host, colon, port = rest.rpartition(':')
    bracketed = host.startswith('[') and host.endswith(']')
    host = host[1:-1] if bracketed else host
    good = colon and host and (bracketed or ':' not in host)
    if not good or not port.isdecimal() or not 0 < int(port) < 65536:
        raise AddressError(
            where=option, expected='HOST:PORT such as 127.0.0.1:8000', found=repr(text)
        )
    return Address('0.0.0.0' if host == '*' else host, int(port))
