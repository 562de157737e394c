# SPDX-License-Identifier: Apache-2.0
"""Who may open the dashboard: this computer, or whoever knows the token."""

import pytest

from safe_monitor_node.looking.web_access import (
    COOKIE,
    DashboardError,
    WebAccess,
    is_loopback,
    same_origin,
)

TOKEN = 'a-long-token_0123456789'


@pytest.mark.parametrize('address', ['127.0.0.1', '127.1.2.3', '::1', 'localhost'])
def test_loopback_needs_no_token(address):
    assert is_loopback(address)
    assert not WebAccess(address, '').needs_token


@pytest.mark.parametrize('address', ['0.0.0.0', '192.168.0.7', '::', '', 'robot.local', '127.0.0'])
def test_every_other_address_needs_one(address):
    with pytest.raises(DashboardError, match='set the parameter token') as caught:
        WebAccess(address, '')
    assert repr(address) in str(caught.value)
    assert WebAccess(address, TOKEN).needs_token


@pytest.mark.parametrize('token', ['short', 'x' * 15, 'a token with spaces in it', 'x' * 20 + ';'])
def test_a_token_that_is_short_or_breaks_a_cookie_is_refused_without_being_printed(token):
    with pytest.raises(DashboardError, match='at least 16') as caught:
        WebAccess('127.0.0.1', token)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ('cookie', 'authorization', 'admitted'),
    [
        (f'{COOKIE}={TOKEN}', '', True),
        (f'other=1; {COOKIE}={TOKEN}', '', True),
        ('', f'Bearer {TOKEN}', True),
        ('', f'bearer {TOKEN} ', True),
        ('', '', False),
        (f'{COOKIE}={TOKEN[:-1]}', '', False),
        (f'{COOKIE}={TOKEN}x', '', False),
        (f'{COOKIE}=', '', False),
        (f'other={TOKEN}', '', False),
        ('', f'Basic {TOKEN}', False),
        ('', TOKEN, False),
        (f'{COOKIE}=ünïcode', 'Bearer ünï', False),
        ('\x00;=;;', '', False),
    ],
)
def test_only_the_whole_token_admits(cookie, authorization, admitted):
    assert WebAccess('0.0.0.0', TOKEN).admits(cookie, authorization) is admitted


def test_without_a_token_everybody_on_this_computer_is_admitted():
    assert WebAccess('127.0.0.1', '').admits('', '')


@pytest.mark.parametrize(
    ('host', 'known'),
    [
        ('localhost:8765', True),
        ('127.0.0.1:8765', True),
        ('[::1]:8765', True),
        ('evil.example:8765', False),
        ('127.0.0.1.evil.example', False),
        ('', False),
        ('[', False),
    ],
)
def test_a_name_that_points_to_this_computer_is_not_this_computer(host, known):
    assert WebAccess('127.0.0.1', '').is_known_host(host) is known
    assert WebAccess('127.0.0.1', TOKEN).is_known_host(host), 'the token decides'


@pytest.mark.parametrize(
    ('origin', 'same'),
    [
        ('', True),
        ('http://localhost:8765', True),
        ('http://evil.example', False),
        ('http://localhost:9000', False),
        ('null', False),
        ('http://[', False),
    ],
)
def test_a_page_of_another_site_is_told(origin, same):
    assert same_origin(origin, 'localhost:8765') is same
