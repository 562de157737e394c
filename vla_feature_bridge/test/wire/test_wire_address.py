# SPDX-License-Identifier: Apache-2.0
"""Addresses of the bridge are read, printed, and refused if they are wrong."""

import os

import pytest

from vla_feature_bridge.wire.address import (
    Address,
    AddressError,
    default_address,
    parse_address,
)


@pytest.mark.parametrize(
    ('text', 'address', 'is_local'),
    [
        ('unix:/tmp/a.sock', Address(path='/tmp/a.sock'), True),
        ('tcp://127.0.0.1:7447', Address(host='127.0.0.1', port=7447), True),
        ('tcp://localhost:0', Address(host='localhost'), True),
        ('tcp://robot-7.lan:65535', Address(host='robot-7.lan', port=65535), False),
        ('tcp://0.0.0.0:1', Address(host='0.0.0.0', port=1), False),
        ('tcp://[::1]:7447', Address(host='::1', port=7447), True),
        ('tcp://[fe80::2]:7447', Address(host='fe80::2', port=7447), False),
    ],
)
def test_an_address_is_read_and_printed(text, address, is_local):
    assert parse_address(text) == address
    assert str(address) == text
    assert address.is_local == is_local


@pytest.mark.parametrize(
    'text',
    [
        '',
        'unix:',
        'unix:relative',
        'unix:/',
        f'unix:/tmp/{"x" * 200}',
        'unix:/tmp/\0',
        'tcp://',
        'tcp://host',
        'tcp://host:port',
        'tcp://host:70000',
        'tcp://host:99999999999999999999',
        'tcp://host:-1',
        'tcp://ho st:1',
        'tcp://::1:7447',
        'http://host:1',
        '/tmp/a.sock',
        None,
        7447,
    ],
)
def test_another_text_is_refused_with_examples(text):
    with pytest.raises(AddressError, match=r'address of the bridge: expected unix:.* use '):
        parse_address(text)


def test_every_user_has_a_default_address(monkeypatch):
    monkeypatch.delenv('SAFE_BRIDGE', raising=False)
    assert default_address() == f'unix:/tmp/safe_bridge_{os.getuid()}.sock'
    assert str(parse_address(default_address())) == default_address()
    monkeypatch.setenv('SAFE_BRIDGE', 'tcp://127.0.0.1:7447')
    assert default_address() == 'tcp://127.0.0.1:7447'
