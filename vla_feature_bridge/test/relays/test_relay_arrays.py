# SPDX-License-Identifier: Apache-2.0
"""Decoding of arrays and messages: equal to the libraries of the servers, and bounded."""

import base64
import io
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_feature_bridge.relays.arrays import (
    ArrayError,
    Unreadable,
    array_of,
    array_of_npy,
    dtype_of,
)
from vla_feature_bridge.relays.bounded_json import load
from vla_feature_bridge.relays.bounded_msgpack import MAX_DEPTH, MAX_VALUES, DecodeError, unpack

msgpack = pytest.importorskip('msgpack', reason='no msgpack')

DTYPES = ('|b1', '|i1', '|u1', '<i2', '>i2', '<u4', '<i8', '<f2', '<f4', '>f4', '<f8')
ARRAYS = [np.arange(12).reshape(3, 4)[:, ::2].astype(dtype) % 2 for dtype in DTYPES] + [
    np.zeros((0, 7), '<f4'),
    np.array(3.5),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
]
every_array = pytest.mark.parametrize('array', ARRAYS, ids=lambda a: f'{a.dtype.str}{a.shape}')


def assert_same(found, expected):
    assert isinstance(found, np.ndarray), found
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert not found.flags.writeable


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


@every_array
def test_arrays_of_openpi(array):
    openpi = pytest.importorskip('openpi_client.msgpack_numpy', reason='no openpi-client')
    found = unpack(openpi.packb({'a': [array], b'scalar': array.dtype.type(1)}))
    assert_same(found['a'][0], array)
    assert found[b'scalar'] == 1


@every_array
def test_arrays_of_groot(array):
    form = {'__ndarray_class__': True, 'as_npy': npy(array)}
    assert_same(unpack(msgpack.packb(form)), array)
    form = {
        b'nd': True,
        b'type': array.dtype.str,
        b'kind': b'',
        b'shape': array.shape,
        b'data': array.tobytes(),
    }
    assert_same(unpack(msgpack.packb(form)), array)


@every_array
def test_arrays_of_json_numpy(array):
    json_numpy = pytest.importorskip('json_numpy', reason='no json-numpy')
    text = json_numpy.dumps({'image': array})
    assert_same(load(text.encode())['image'], array)
    assert_same(load(json.dumps({'encoded': text}).encode())['image'], array)
    assert_same(load(json.dumps(json_numpy.dumps(array)).encode()), array)


def test_a_scalar_of_msgpack_numpy():
    form = {b'nd': False, b'type': '<f4', b'data': np.float32(2.5).tobytes()}
    assert unpack(msgpack.packb(form)) == np.float32(2.5)


def test_bfloat16_in_each_form_that_numpy_gives_it():
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    assert_same(array_of('bfloat16', [2], array.tobytes()), array)
    assert_same(array_of_npy(npy(array)), array)


WRONG_DTYPES = ['|O', 'O', '<U4', '|S3', '<c8', '<M8[s]', '|V8', '>V2', '<f16', 'f3', '', 'i', None]


@pytest.mark.parametrize('dtype', [*WRONG_DTYPES, 7, ['f4'], '<f4,<f4', '(2,)f4'])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ArrayError, match='expected a dtype of booleans, integers or floats'):
        dtype_of(dtype)


@pytest.mark.parametrize(
    ('shape', 'data', 'text'),
    [
        ([3], b'1234', 'expected 12 bytes'),
        ([1], b'12345678', 'found 8 bytes'),
        ([-1], b'1234', 'at least 0'),
        ([1.0], b'1234', 'at least 0'),
        ([True], b'1234', 'at least 0'),
        ('1', b'1234', 'list of integers'),
        (None, b'1234', 'list of integers'),
        ([1] * 33, b'1234', 'at most 32 axes'),
        ([0, 1 << 63], b'', 'expected the shape of an array'),
        ([1 << 40] * 4, b'1234', 'bytes for shape'),
        ([1], '1234', 'expected the bytes'),
        ([1], None, 'expected the bytes'),
    ],
)
def test_shapes_and_sizes_that_lie_are_refused(shape, data, text):
    with pytest.raises(ArrayError, match=text):
        array_of('<f4', shape, data)


def test_bytes_that_are_no_booleans_are_refused():
    with pytest.raises(ArrayError, match='bytes 0 and 1'):
        array_of('|b1', [2], b'\x01\x02')


OBJECTS = npy(np.zeros(2)).replace(b"'<f8',", b"'|O',").replace(b' \n', b'  \n')


@pytest.mark.parametrize(
    ('data', 'text'),
    [
        (b'', 'first bytes'),
        (b'PK\x03\x04' + bytes(20), 'first bytes'),
        (b'\x93NUMPY\x04\x00' + bytes(20), 'first bytes'),
        (OBJECTS, 'dtype of booleans'),
        (npy(np.zeros(2, [('a', '<f4')])), 'header of an array of numbers'),
        (npy(np.zeros(2))[:-1], 'expected 16 bytes'),
        (npy(np.zeros(2)) + b'x', 'expected 16 bytes'),
        (b'\x93NUMPY\x02\x00\xff\xff\xff\xff', 'at most 10000 bytes'),
        (b'\x93NUMPY\x01\x00\x20\x00' + b'__import__("os").system("true")\n', 'header'),
    ],
)
def test_npy_bytes_that_lie_are_refused(data, text):
    with pytest.raises(ArrayError, match=text):
        array_of_npy(data)
    found = unpack(msgpack.packb({'__ndarray_class__': True, 'as_npy': data}))
    assert isinstance(found, Unreadable)


def test_pickles_of_msgpack_numpy_are_refused():
    form = {b'nd': True, b'type': '|O', b'kind': b'O', b'shape': [1], b'data': b'\x80\x04N.'}
    assert 'another kind' in unpack(msgpack.packb(form)).reason


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)


def plain(value):
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [plain(v) for v in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


@given(PLAIN)
@settings(max_examples=100, deadline=None)
def test_plain_values_are_decoded_as_msgpack_does(value):
    data = msgpack.packb(value)
    assert plain(unpack(data)) == msgpack.unpackb(data, strict_map_key=False)


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_decoded_as_msgpack_does_or_refused(data):
    try:
        found = unpack(data)
    except DecodeError:
        return
    try:
        expected = msgpack.unpackb(data, strict_map_key=False)
    except Exception:
        # A leaf that we replace, such as text that is not UTF-8, or an array that lies.
        assert 'Unreadable' in repr(found) or b'nd' in data
        return
    if 'Unreadable' not in repr(found) and not isinstance(expected, msgpack.ExtType):
        assert repr(plain(found)) == repr(expected)


@pytest.mark.parametrize(
    ('data', 'text'),
    [
        (b'', 'expected 1 more bytes, found 0'),
        (b'\xc1', 'expected the code of a type'),
        (b'\xc0\xc0', 'expected the end of the message'),
        (b'\xc6\xff\xff\xff\xff', 'expected 4294967295 more bytes'),
        (b'\xdf\xff\xff\xff\xff\x01', 'expected 8589934590 more values'),
        (b'\x91' * (MAX_DEPTH + 1) + b'\xc0', f'at most {MAX_DEPTH} levels'),
        (b'\xdd' + MAX_VALUES.to_bytes(4, 'big') + b'\xc0' * MAX_VALUES, 'at most 200000 values'),
        (msgpack.packb({'a': 1})[:1] + b'\x90\xc0', 'expected a key'),
        (b'\x82\xa1a\x01\xa1a\x02', 'different from the other keys'),
        (b'\x81\xc3\x01', 'expected a key'),
    ],
)
def test_broken_messages_are_refused(data, text):
    with pytest.raises(DecodeError, match=text):
        unpack(data)


@pytest.mark.parametrize(
    ('body', 'text'),
    [
        (b'', 'valid JSON'),
        (b'{"a": [', 'valid JSON'),
        (b'\xff\xfe\xff', 'valid JSON'),
        (b'{"a": "\xff"}', 'valid JSON'),
        (b'[' * 100_000 + b']' * 100_000, 'levels'),
        (b'[' * 40 + b']' * 40, f'at most {MAX_DEPTH} levels'),
        (b'[' + b'[],' * MAX_VALUES + b'[]]', f'fewer than {MAX_VALUES} values'),
        (b'{"a": 1, "a": 2}', 'each key only once'),
        (b'9' * 10_000, 'valid JSON'),
        (json.dumps({'encoded': '{"a": ['}).encode(), 'valid JSON'),
    ],
)
def test_broken_json_is_refused(body, text):
    with pytest.raises(DecodeError, match=text):
        load(body)


GOOD = {'__numpy__': base64.b64encode(bytes(8)).decode(), 'dtype': '<f4', 'shape': [2]}


@pytest.mark.parametrize(
    'change',
    [
        {'dtype': '|O'},
        {'shape': [3]},
        {'shape': None},
        {'__numpy__': '???'},
        {'__numpy__': 7},
        {'__numpy__': 'ÄÄÄÄ'},
        {'__numpy__': None},
    ],
)
def test_arrays_of_json_that_lie_are_named(change):
    assert isinstance(load(json.dumps(GOOD).encode()), np.ndarray)
    found = load(json.dumps({'action': GOOD | change}).encode())
    assert isinstance(found['action'], Unreadable)
