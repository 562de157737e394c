# SPDX-License-Identifier: Apache-2.0
"""Frames: every step comes back bit for bit, and wrong bytes are refused by name."""

import json
import math
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_feature_bridge.step import STEP_FIELDS, PolicyStep
from vla_feature_bridge.tensors import DTYPES
from vla_feature_bridge.wire.budget import Budget
from vla_feature_bridge.wire.frame import (
    MAX_HEADER,
    MAX_PAYLOAD,
    PREFIX,
    FrameError,
    FrameReader,
    VersionError,
    encode_frame,
)
from vla_feature_bridge.wire.messages import decode_step, dropped_before, encode_step


def read(data, portion=1 << 16, **limits):
    """Return the frames of a stream that arrives in portions."""
    reader, frames, rest = FrameReader(**limits), [], memoryview(data)
    while rest:
        space = reader.space()
        count = min(portion, len(space), len(rest))
        space[:count] = rest[:count]
        rest = rest[count:]
        if (frame := reader.filled(count)) is not None:
            frames.append(frame)
    assert reader.is_between_frames
    return frames


def frame_of(header, payload=b'', magic=b'SAFT', version=1, zero=0, lengths=None):
    """Return the bytes of a frame that may be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    lengths = lengths or (len(text), len(payload))
    return PREFIX.pack(magic, version, zero, *lengths) + text + payload


TEXTS = st.text(st.characters(exclude_categories=['Cs']), max_size=20)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
STEPS = st.builds(
    PolicyStep,
    features=st.sampled_from(['float16', 'float32', 'float64']).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=5))
    ),
    feature_name=TEXTS,
    stamp=st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1),
    episode_id=TEXTS,
    step=st.integers(0, 2**32 - 1),
    policy=TEXTS,
    instruction=TEXTS,
    actions=st.none() | arrays.arrays('float64', (2, 3, 4)),
    exec_horizon=st.integers(1, 2**32 - 1),
    token_probability=st.none() | arrays.arrays('float32', st.integers(0, 5)),
    token_entropy=st.none() | arrays.arrays('float32', st.integers(0, 5)),
    signals=st.dictionaries(TEXTS, FLOATS | st.just(math.nan), max_size=4),
    inference_time=FLOATS | st.just(math.nan),
    action_space=TEXTS,
)


@settings(deadline=None)
@given(step=STEPS, dropped=st.integers(0, 2**63 - 1), portion=st.integers(1, 500))
@example(step=PolicyStep(np.zeros(0, np.float32)), dropped=0, portion=1)
def test_a_step_comes_back_bit_for_bit(step, dropped, portion):
    (frame,) = read(encode_step(step, dropped), portion)
    found = decode_step(frame)
    assert dropped_before(frame) == dropped
    for name in ('features', *(f.name for f in STEP_FIELDS if f.kind in ('tensor', 'values'))):
        before, after = getattr(step, name), getattr(found, name)
        if before is None:
            assert after is None
            continue
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        assert after.tobytes() == before.tobytes()
    for name in ('feature_name', 'stamp', 'episode_id', 'step', 'policy', 'instruction'):
        assert getattr(found, name) == getattr(step, name)
    assert (found.exec_horizon, found.action_space) == (step.exec_horizon, step.action_space)
    assert same_numbers([found.inference_time], [step.inference_time])
    assert list(found.signals) == list(step.signals)
    assert same_numbers(found.signals.values(), step.signals.values())


def same_numbers(found, expected):
    pairs = zip(found, expected, strict=True)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


@pytest.mark.parametrize('dtype', DTYPES)
def test_every_dtype_comes_back_whatever_its_memory_order(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(DTYPES[dtype])
    data = encode_frame('step', {}, {'a': array.T, 'none': None, 'b': array[:, ::2]})
    (frame,) = read(data)
    np.testing.assert_array_equal(frame.arrays['a'], array.T)
    np.testing.assert_array_equal(frame.arrays['b'], array[:, ::2])
    assert [a.dtype for a in frame.arrays.values()] == [DTYPES[dtype]] * 2
    assert not frame.arrays['a'].flags.writeable
    assert (frame.size, frame.payload) == (len(data), array.nbytes + array[:, ::2].nbytes)


def test_big_endian_arrays_are_sent_little_endian():
    (frame,) = read(encode_frame('step', {}, {'a': np.array([1.5, 2], '>f4')}))
    assert frame.arrays['a'].dtype == '<f4'
    assert frame.arrays['a'].tolist() == [1.5, 2]


def test_bfloat16_is_sent_as_its_bits():
    array = np.array([1.5, -2, 3e38], ml_dtypes.bfloat16)
    data = encode_frame('step', {}, {'a': array})
    assert data.endswith(array.view(np.uint16).tobytes())
    assert b'["a","bfloat16",[3]]' in data


@pytest.mark.parametrize('dtype', [bool, np.uint32, np.complex64, object, 'U3', 'V2'])
def test_other_dtypes_are_not_sent(dtype):
    with pytest.raises(FrameError, match=r'expected one of the dtypes float16, .* found'):
        encode_frame('step', {}, {'a': np.zeros(2, dtype)})


@pytest.mark.parametrize('value', [math.nan, math.inf, b'x', object()])
def test_a_header_of_other_values_is_not_sent(value):
    with pytest.raises(FrameError, match='step frame: expected a header of JSON values'):
        encode_frame('step', {'x': value})


def test_what_is_too_long_is_not_sent():
    with pytest.raises(FrameError, match=r'header of a frame: expected at most 1048576 bytes'):
        encode_frame('step', {'x': 'x' * MAX_HEADER})
    large = np.broadcast_to(np.zeros(1, np.uint8), (MAX_PAYLOAD + 1,))
    with pytest.raises(FrameError, match=r'payload of a frame: expected at most 268435456 bytes'):
        encode_frame('step', {}, {'a': large})
    with pytest.raises(FrameError, match=r'instruction: expected at most 65536 characters'):
        encode_step(PolicyStep(np.zeros(1), instruction='x' * 65537))


F4 = ['a', 'float32', [2]]
HOSTILE = [
    (frame_of({'kind': 'step'}, magic=b'GET '), "the first bytes b'SAFT', found b'GET '"),
    (frame_of({'kind': 'step'}, version=2), 'version 1 of the protocol, found version 2'),
    (frame_of({'kind': 'step'}, zero=1), 'zero in bytes 6 and 7, found 1'),
    (frame_of(b''), 'expected a header, found 0 bytes'),
    (frame_of(b'{}', lengths=(MAX_HEADER + 1, 0)), 'at most 1048576 bytes, found 1048577'),
    (frame_of(b'{}', lengths=(2, MAX_PAYLOAD + 1)), 'at most 268435456 bytes, found 268435457'),
    (frame_of(b'\xff\xfe'), 'expected JSON'),
    (frame_of(b'{"kind": "step"'), 'expected JSON'),
    (frame_of(b'[1]'), 'expected an object with kind'),
    (frame_of(b'{"kind": 3}'), 'expected an object with kind'),
    (frame_of({'kind': 'shutdown'}), "kind of a frame: expected hello, .*, found 'shutdown'"),
    (frame_of(b'{"kind": "step", "x": NaN}'), 'expected finite numbers or null, found NaN'),
    (frame_of(b'{"kind": "step", "x": -Infinity}'), 'expected finite numbers or null'),
    (frame_of(b'{"kind": "step", "kind": "hello"}'), 'found one name twice'),
    (frame_of(b'[' * 100_000), 'expected JSON'),
    (frame_of(b'{"kind": "step", "x": ' + b'[' * 5 + b']' * 5 + b'}'), 'at most 4 levels'),
    (frame_of({'kind': 'step', 'x': [0] * 20_000}), 'at most 10000 values'),
    (frame_of(b'{"kind": "step", "x": 1' + b'0' * 5000 + b'}'), 'expected JSON'),
    (frame_of({'kind': 'step', 'arrays': {}}), 'a list of at most 16 arrays'),
    (frame_of({'kind': 'step', 'arrays': [F4] * 17}), 'a list of at most 16 arrays'),
    (frame_of({'kind': 'step', 'arrays': [F4, F4]}, bytes(16)), 'found one name twice'),
    (frame_of({'kind': 'step', 'arrays': [F4]}, bytes(7)), 'expected 7 bytes .*found .* 8 bytes'),
    (frame_of({'kind': 'step', 'arrays': [F4]}, bytes(9)), 'expected 9 bytes .*found .* 8 bytes'),
    (frame_of({'kind': 'step'}, bytes(9)), 'expected 9 bytes .*found .* 0 bytes'),
    (
        frame_of({'kind': 'step', 'arrays': [['a', 'uint8', [2**31] * 32]]}, bytes(8)),
        'found shapes of too many bytes',
    ),
    *[
        (frame_of({'kind': 'step', 'arrays': [entry]}, bytes(8)), r'\[name, dtype, shape\]')
        for entry in (
            'abc',
            ['a', 'float32'],
            [1, 'float32', [2]],
            ['a', 'object', [1]],
            ['a', '|O', [1]],
            ['a', 'bool', [8]],
            ['a', ['float32'], [2]],
            ['a', 'float32', 2],
            ['a', 'float32', [-2]],
            ['a', 'float32', [2.0]],
            ['a', 'float32', [True, 2]],
            ['a', 'float32', ['2']],
            ['a', 'float32', [2**32]],
            ['a', 'float32', [1] * 33],
        )
    ],
    (
        frame_of({'kind': 'step', 'arrays': [['a', 'uint8', [0, 2**31, 2**31, 2**31]]]}),
        "array 'a' of a frame: expected a shape that NumPy allows",
    ),
]


@pytest.mark.parametrize(('data', 'message'), HOSTILE, ids=range(len(HOSTILE)))
def test_a_wrong_frame_is_refused_with_its_reason(data, message):
    with pytest.raises(FrameError, match=message):
        read(data)


def test_another_version_has_an_error_of_its_own():
    with pytest.raises(VersionError, match='install the same version'):
        read(frame_of({'kind': 'step'}, version=2))


STEP_HEADER = {
    'kind': 'step',
    'episode_id': 'a',
    'step': 0,
    'stamp': 0,
    'policy': '',
    'instruction': '',
    'action_space': '',
    'feature_name': '',
    'exec_horizon': 1,
    'inference_time': None,
    'signals': {},
    'dropped': 0,
    'arrays': [['features', 'float32', [2]]],
}


def test_the_smallest_step_is_a_step():
    (frame,) = read(frame_of(STEP_HEADER, bytes(8)))
    assert decode_step(frame).features.tolist() == [0, 0]


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('episode_id', 3, 'a text of at most 65536 characters, found 3'),
        ('episode_id', None, 'a text'),
        ('instruction', 'x' * 65537, 'a text of at most 65536 characters'),
        ('instruction', '\ud800', 'valid Unicode'),
        ('step', -1, 'an integer from 0 to 4294967295, found -1'),
        ('step', 2**32, 'an integer from 0 to'),
        ('step', 1.0, 'an integer from 0 to'),
        ('step', True, 'an integer from 0 to'),
        ('stamp', 2**80, 'an integer from -2147483648000000000 to'),
        ('exec_horizon', 0, 'an integer from 1 to 4294967295'),
        ('inference_time', '1', 'null or a number that fits float32'),
        ('inference_time', 1e300, 'null or a number that fits float32'),
        ('signals', [], 'an object of at most 256 numbers'),
        ('signals', {str(n): 0 for n in range(257)}, 'an object of at most 256 numbers'),
        ('signals', {'x': 'y'}, 'null or a number'),
        ('dropped', -1, 'an integer from 0 to'),
        ('arrays', [['actions', 'float32', [2]]], r'features: expected an array of shape \(D,\)'),
        ('arrays', [['features', 'float32', []], ['x', 'float32', []]], 'features: expected an'),
        (
            'arrays',
            [['features', 'float32', [1]], ['actions', 'float32', [1]]],
            'actions: expected an array with 3 axes',
        ),
    ],
)
def test_a_wrong_field_of_a_step_is_refused_by_name(name, value, message):
    (frame,) = read(frame_of({**STEP_HEADER, name: value}, bytes(8)))
    with pytest.raises(FrameError, match=message):
        decode_step(frame)
        dropped_before(frame)


@pytest.mark.parametrize('name', sorted(set(STEP_HEADER) - {'kind', 'arrays', 'inference_time'}))
def test_a_missing_field_of_a_step_is_refused_by_name(name):
    header = {key: value for key, value in STEP_HEADER.items() if key != name}
    (frame,) = read(frame_of(header, bytes(8)))
    with pytest.raises(FrameError, match=name):
        decode_step(frame)
        dropped_before(frame)


def test_an_infinite_number_in_json_is_no_number():
    header = json.dumps({**STEP_HEADER, 'signals': {'x': 7}}).replace('7', '1e999').encode()
    (frame,) = read(frame_of(header, bytes(8)))
    with pytest.raises(FrameError, match=r'signals\.x'):
        decode_step(frame)


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_or_wait_for_more(data):
    reader, rest = FrameReader(), memoryview(data)
    try:
        while rest:
            space = reader.space()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            rest = rest[count:]
            reader.filled(count)
    except FrameError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(STEP_HEADER)), JSON, min_size=1),
    payload=st.binary(max_size=16),
)
def test_a_manipulated_step_is_a_step_or_refused(changes, payload):
    try:
        for frame in read(frame_of({**STEP_HEADER, **changes}, payload)):
            step = decode_step(frame)
            assert isinstance(step.features, np.ndarray)
            assert step.features.nbytes <= len(payload)
    except FrameError as error:
        assert 'expected' in str(error)


@settings(deadline=None)
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_step_with_one_wrong_byte_is_a_step_or_refused(position, byte):
    data = bytearray(encode_step(PolicyStep(np.ones(4, np.float32), signals={'x': 1.0})))
    data[position % len(data)] = byte
    reader, rest = FrameReader(), memoryview(bytes(data))
    try:
        while rest:
            space = reader.space()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            rest = rest[count:]
            if (frame := reader.filled(count)) is not None and frame.kind == 'step':
                decode_step(frame)
    except FrameError as error:
        assert len(str(error)) < 1000


def test_frames_follow_each_other():
    steps = [PolicyStep(np.full(3, n, np.float32), step=n) for n in range(5)]
    frames = read(b''.join(map(encode_step, steps)), portion=7)
    assert [decode_step(frame).step for frame in frames] == list(range(5))
    assert [decode_step(frame).features[0] for frame in frames] == list(range(5))


def test_the_budget_is_shared_and_given_back():
    budget = Budget(100)
    first, second = FrameReader(budget=budget), FrameReader(budget=budget)
    header = json.dumps({'kind': 'step', 'arrays': [['a', 'uint8', [60]]]}).encode()
    begin = PREFIX.pack(b'SAFT', 1, 0, len(header), 60) + header
    feed(first, begin)
    assert (first.reserved, budget.used) == (60, 60)
    with pytest.raises(FrameError, match='at most 40 bytes, because other frames are being read'):
        feed(second, begin)
    assert second.reserved == 0
    assert feed(first, bytes(60)).payload == 60
    assert (first.reserved, budget.used) == (0, 60)
    budget.give_back(60)
    feed(second, begin)


def feed(reader, data):
    rest = memoryview(data)
    frame = None
    while rest:
        space = reader.space()
        count = min(len(space), len(rest))
        space[:count] = rest[:count]
        rest = rest[count:]
        frame = reader.filled(count)
    return frame


def test_the_prefix_is_as_documented():
    data = encode_frame('status', {})
    assert data[:16] == struct.pack('<4sHHII', b'SAFT', 1, 0, len(data) - 16, 0)
