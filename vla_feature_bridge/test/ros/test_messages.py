# SPDX-License-Identifier: Apache-2.0
"""Steps and tensors in ROS messages: every bit is kept, and nothing is copied twice."""

import struct

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from rclpy.serialization import deserialize_message, serialize_message

from safe_msgs.msg import PolicyStep as PolicyStepMessage
from safe_msgs.msg import Tensor as TensorMessage
from vla_feature_bridge.ros.messages import (
    MessageError,
    step_from_message,
    step_to_message,
    tensor_from_message,
    tensor_to_message,
    time_from_message,
    time_to_message,
)
from vla_feature_bridge.step import STEP_FIELDS, PolicyStep
from vla_feature_bridge.tensors import DTYPES

every_dtype = pytest.mark.parametrize('name', sorted(DTYPES))


def over_the_wire(message):
    """Return the message as a subscriber gets it: out of its serialised bytes."""
    return deserialize_message(serialize_message(message), type(message))


def assert_same_bits(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def some_array(dtype, shape=(2, 3, 4)):
    return (np.arange(np.prod(shape)) - 5).reshape(shape).astype(dtype)


# --- tensors


@every_dtype
@pytest.mark.parametrize('shape', [(), (1,), (7,), (2, 3, 4), (0,), (3, 0, 2)], ids=str)
def test_every_dtype_and_shape_comes_back_bit_for_bit(name, shape):
    array = some_array(DTYPES[name], shape)
    message = tensor_to_message(array, 'hidden_states')
    assert (message.name, message.dtype) == ('hidden_states', name)
    assert list(message.shape) == list(shape)
    assert len(message.data) == array.nbytes
    assert_same_bits(tensor_from_message(message), array)
    assert_same_bits(tensor_from_message(over_the_wire(message)), array)


@given(
    array=hnp.arrays(
        st.sampled_from(['<f2', '<f4', '<f8', '<i8', 'u1']),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_numbers_come_back_bit_for_bit(array):
    assert_same_bits(tensor_from_message(over_the_wire(tensor_to_message(array))), array)


def test_nan_infinity_and_minus_zero_are_numbers_like_others():
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        array = np.array([np.nan, np.inf, -np.inf, -0.0], dtype)
        assert_same_bits(tensor_from_message(tensor_to_message(array)), array)


def test_the_bytes_are_little_endian_and_row_major():
    message = tensor_to_message(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).T)
    assert bytes(message.data) == struct.pack('<4f', 1.0, 3.0, 2.0, 4.0)
    message = tensor_to_message(np.array([1.0, -2.0], ml_dtypes.bfloat16))
    assert bytes(message.data) == b'\x80\x3f\x00\xc0'


@pytest.mark.parametrize('name', sorted(set(DTYPES) - {'bfloat16'}))  # which is native only
def test_big_endian_arrays_are_turned_round(name):
    native = some_array(DTYPES[name])
    big = native.astype(native.dtype.newbyteorder('>'))
    message = tensor_to_message(big)
    assert message.dtype == name
    assert_same_bits(tensor_from_message(message), native)


@every_dtype
@pytest.mark.parametrize(
    'view',
    [
        lambda a: a[:, ::2],
        lambda a: a[::-1, :, ::-1],
        lambda a: a.transpose(2, 0, 1),
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[0, 0, :1], (3, 4)),
        lambda a: a[1:, 1:, 1:],
    ],
    ids=['strided', 'reversed', 'transposed', 'Fortran', 'broadcast', 'cut'],
)
def test_arrays_that_are_not_contiguous_come_back_contiguous(name, view):
    array = view(some_array(DTYPES[name]))
    found = tensor_from_message(tensor_to_message(array))
    assert found.flags.c_contiguous
    assert_same_bits(found, np.ascontiguousarray(array))


def test_a_read_only_array_can_be_sent():
    array = np.frombuffer(bytes(16), np.float32)
    assert_same_bits(tensor_from_message(tensor_to_message(array)), array)


def test_no_array_is_the_empty_tensor_and_back():
    message = tensor_to_message(None, 'actions')
    assert (message.name, message.dtype, len(message.shape), len(message.data)) == (
        'actions',
        '',
        0,
        0,
    )
    assert tensor_from_message(message) is None
    assert tensor_from_message(over_the_wire(TensorMessage())) is None


def test_reading_copies_nothing_and_sending_copies_once():
    array = some_array(np.float32)
    message = tensor_to_message(array)
    read = tensor_from_message(message)
    assert np.shares_memory(read, np.frombuffer(message.data, np.uint8))
    assert not np.shares_memory(read, array), 'what was sent is not changed any more'
    array[...] = 0
    assert read.any()


@pytest.mark.parametrize('dtype', ['complex64', 'bool', 'uint32', 'object', 'U3', 'M8[ns]', 'V4'])
def test_a_dtype_that_has_no_name_on_the_wire_is_refused(dtype):
    array = np.zeros(3, dtype)
    with pytest.raises(
        MessageError, match=r"tensor 'hidden': expected one of .*, found .* before sending"
    ):
        tensor_to_message(array, 'hidden')


@pytest.mark.parametrize(
    'dtype', ['float128', 'object', 'O', '<f4', '>f4', 'f4', 'float32,float32', 'Float32', 'bool']
)
def test_an_unknown_dtype_is_refused(dtype):
    message = TensorMessage(name='hidden', dtype=dtype, shape=[1], data=bytes(4))
    with pytest.raises(MessageError, match=r"tensor 'hidden': expected one of .*unknown"):
        tensor_from_message(message)


@pytest.mark.parametrize(
    ('shape', 'size'),
    [
        ([4], 15),
        ([4], 17),
        ([4], 0),
        ([], 0),
        ([], 8),
        ([0], 4),
        ([2, 2], 12),
        ([2**32 - 1, 2**32 - 1], 4),
        ([2**16, 2**16, 2**16, 2**16], 0),
        ([2**32 - 1, 2**32 - 1, 0], 4),
    ],
    ids=str,
)
def test_a_shape_that_does_not_fit_its_bytes_is_refused(shape, size):
    message = TensorMessage(name='hidden', dtype='float32', shape=shape, data=bytes(size))
    with pytest.raises(MessageError, match=rf"tensor 'hidden': .*, found {size} bytes"):
        tensor_from_message(message)


@pytest.mark.parametrize(
    ('shape', 'size'), [([1] * 100, 4), ([1] * 100 + [0], 0), ([2**32 - 1, 2**32 - 1, 0], 0)]
)
def test_a_shape_that_no_array_has_is_refused(shape, size):
    message = TensorMessage(name='hidden', dtype='float32', shape=shape, data=bytes(size))
    with pytest.raises(
        MessageError, match=r"tensor 'hidden': expected (at most 32|a shape that NumPy allows)"
    ):
        tensor_from_message(message)


def test_bytes_without_a_dtype_are_refused():
    with pytest.raises(MessageError, match=r"tensor 'hidden': expected a dtype, .* has 3 bytes"):
        tensor_from_message(TensorMessage(name='hidden', data=bytes(3)))


# --- time


@pytest.mark.parametrize(
    'stamp', [0, 1, 999_999_999, 10**9, 1_700_000_000_123_456_789, -1, -(10**9)]
)
def test_times_come_back_to_the_nanosecond(stamp):
    message = time_to_message(stamp)
    assert 0 <= message.nanosec < 10**9
    assert time_from_message(over_the_wire(message)) == stamp


# --- steps


def full_step():
    rng = np.random.default_rng(0)
    return PolicyStep(
        features=rng.normal(size=5).astype(ml_dtypes.bfloat16),
        feature_name='hidden_states[token=last]',
        stamp=1_700_000_000_123_456_789,
        episode_id='Küche/7',
        step=3,
        policy='openvla',
        instruction='lege die Tasse ab',
        actions=rng.normal(size=(4, 2, 7)),
        exec_horizon=2,
        token_probability=np.array([0.5, 0.25], np.float32),
        token_entropy=np.array([1.0, np.nan], np.float32),
        signals={'chunk_mse': 0.5, 'action_norm': float('nan')},
        inference_time=0.125,
        action_space='robot',
    )


def assert_same_step(found, expected):
    assert_same_bits(found.features, expected.features)
    for name in ('actions', 'token_probability', 'token_entropy'):
        given = getattr(expected, name)
        if given is None:
            assert getattr(found, name) is None
        else:
            assert_same_bits(getattr(found, name), given)
    for name in (
        'feature_name', 'stamp', 'episode_id', 'step', 'policy', 'instruction', 'exec_horizon',
        'action_space',
    ):  # fmt: skip
        assert getattr(found, name) == getattr(expected, name), name
    assert found.inference_time == expected.inference_time
    assert list(found.signals) == list(expected.signals)
    np.testing.assert_array_equal(list(found.signals.values()), list(expected.signals.values()))


def test_every_field_of_the_message_is_converted():
    own = {
        'header', 'episode_id', 'step', 'policy', 'instruction', 'exec_horizon', 'action_space',
    }  # fmt: skip
    special = {'features', 'signal_names', 'signals'}
    table = {field.name for field in STEP_FIELDS if field.kind != 'stamp'}
    fields = set(PolicyStepMessage.get_fields_and_field_types())
    assert own | special | table == fields


def test_a_whole_step_comes_back():
    assert_same_step(step_from_message(step_to_message(full_step())), full_step())
    assert_same_step(step_from_message(over_the_wire(step_to_message(full_step()))), full_step())


def test_a_step_of_features_only_comes_back():
    step = PolicyStep(features=np.zeros((2, 3), np.float32))
    assert_same_step(step_from_message(over_the_wire(step_to_message(step))), step)


def test_a_step_is_read_without_a_copy():
    message = over_the_wire(step_to_message(full_step()))
    step = step_from_message(message)
    assert np.shares_memory(step.features, np.frombuffer(message.features.data, np.uint8))
    assert np.shares_memory(step.actions, np.frombuffer(message.actions.data, np.uint8))


def test_tokens_of_double_precision_are_sent_as_single():
    step = full_step()
    step.token_probability = np.array([0.1, 0.9], np.float64)
    found = step_from_message(step_to_message(step)).token_probability
    np.testing.assert_array_equal(found, np.array([0.1, 0.9], np.float32))


def test_a_step_without_features_is_refused():
    message = PolicyStepMessage(step=4, episode_id='a')
    with pytest.raises(MessageError, match="step 4 of episode 'a': expected features, found none"):
        step_from_message(message)


def test_an_error_does_not_contain_an_id_of_a_million_characters():
    with pytest.raises(MessageError, match=r"episode 'x{60}'\.\.\. \(1000000 characters\)") as info:
        step_from_message(PolicyStepMessage(episode_id='x' * 1_000_000))
    assert len(str(info.value)) < 200


def test_names_and_signals_must_pair_up():
    message = step_to_message(full_step())
    message.signals.append(1.0)
    with pytest.raises(MessageError, match='2 names for 3 signals'):
        step_from_message(message)


@pytest.mark.parametrize('field', ['features', 'actions'])
def test_a_tensor_that_lies_makes_the_step_unreadable(field):
    message = step_to_message(full_step())
    getattr(message, field).data.pop()
    with pytest.raises(MessageError, match=r'found \d+ bytes'):
        step_from_message(message)


@given(data=st.binary(max_size=40), shape=st.lists(st.integers(0, 2**32 - 1), max_size=4))
@settings(max_examples=200, deadline=None)
def test_whatever_a_tensor_says_it_is_read_or_refused(data, shape):
    for dtype in ('float32', 'bfloat16', 'uint8', '', 'int63'):
        message = TensorMessage(dtype=dtype, shape=shape, data=data)
        try:
            array = tensor_from_message(message)
        except MessageError:
            continue
        assert array is None or array.tobytes() == data
