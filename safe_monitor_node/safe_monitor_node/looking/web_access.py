# SPDX-License-Identifier: Apache-2.0
"""Decides who may open the dashboard: this computer, or everyone who has the token."""

from __future__ import annotations

import hmac
import ipaddress
import re
from http.cookies import CookieError, SimpleCookie
from urllib.parse import SplitResult, urlsplit

from vla_feature_bridge.errors import SafeError

COOKIE = 'safe_dashboard_token'
SHORTEST_TOKEN = 16
_TOKEN = re.compile(r'[A-Za-z0-9._~-]*')


class DashboardError(SafeError):
    """The dashboard cannot be served with these parameters.

    The text says which parameter to change.
    """


class WebAccess:
    """Decides which requests are accepted.

    Without a token, the server must listen on a loopback address, and the host of a request must be
    this computer. Otherwise a page of another site could read the dashboard by a host name that
    resolves to this computer (DNS rebinding).

    Parameters
    ----------
    address : str
        Address that the server listens on.
    token : str
        Secret that every browser must give; empty for none.

    Raises
    ------
    DashboardError
        The token is too short or cannot be part of an address, or other computers can connect and
        there is no token.
    """

    def __init__(self, address: str, token: str) -> None:
        make = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        if token and (len(token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(token)):
            raise DashboardError(
                where='parameter token',
                expected=f'at least {SHORTEST_TOKEN} letters, digits or . _ ~ -',
                found=f'{len(token)} characters',
                advice=f'make a token with `{make}`',
            )
        if not token and not is_loopback(address):
            raise DashboardError(
                where='parameter address',
                expected='127.0.0.1 (only this computer), or a token',
                found=f'{address!r}, which other computers can reach, and no token',
                advice=f'set the parameter token, for example to the output of `{make}`, and open '
                'the address with ?token=TOKEN at its end',
            )
        self._token = token.encode()

    @property
    def needs_token(self) -> bool:
        """Whether a browser must give a token."""
        return bool(self._token)

    def is_token(self, given: str) -> bool:
        """Return whether a text is the token.

        The time does not depend on the content of the text.
        """
        return hmac.compare_digest(given.encode('utf-8', 'replace'), self._token)

    def admits(self, cookie: str, authorization: str) -> bool:
        """Return whether a request has the token, in its cookie or as a bearer token."""
        if not self._token:
            return True
        kind, _, given = authorization.partition(' ')
        if kind.lower() == 'bearer' and self.is_token(given.strip()):
            return True
        try:
            found = SimpleCookie(cookie).get(COOKIE)
        except CookieError:
            return False
        return found is not None and self.is_token(found.value)

    def is_known_host(self, host: str) -> bool:
        """Return whether the host of a request is this server and not the name of another site."""
        if self._token:
            return True
        name = parts_of(f'//{host}').hostname
        return name is not None and is_loopback(name)


def same_origin(origin: str, host: str) -> bool:
    """Return whether a request comes from a page of this server; True without an ``Origin``.

    Programs other than browsers send no ``Origin``.
    """
    return not origin or (parts_of(origin).netloc or None) == host


def parts_of(address: str) -> SplitResult:
    """Return the parts of an address; all parts are empty if the text is not an address."""
    try:
        return urlsplit(address)
    except ValueError:
        return SplitResult('', '', '', '', '')


def is_loopback(address: str) -> bool:
    """Return whether only this computer can connect to an address."""
    if address.lower() == 'localhost':
        return True
    try:
        return ipaddress.ip_address(address.strip('[]')).is_loopback
    except ValueError:
        return False
