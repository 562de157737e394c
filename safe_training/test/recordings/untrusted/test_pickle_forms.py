# SPDX-License-Identifier: Apache-2.0
"""Innocent forms of pickles that NumPy and torch have written, and files of another kind."""

import codecs
import io
import pickle
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from safe_training.recordings.errors import DumpError
from safe_training.recordings.untrusted.pickle_file import load_bytes

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7
TENSOR = torch.from_numpy(ARRAY.copy())


def saved(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def equal(found, expected):
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize(
    'array',
    [
        ARRAY,
        np.asfortranarray(ARRAY),
        ARRAY.transpose(2, 0, 1),
        ARRAY[::-1, 1:],
        ARRAY.astype('>f8'),
        ARRAY.astype(ml_dtypes.bfloat16),
        ARRAY.astype(np.complex64) * 1j,
        np.array(['open', 'schließen']),
        np.array([b'x', b'yz']),
        np.array(['a', 'bcd'], dtype='>U3'),
        np.zeros((0, 4), np.float16),
        np.array(True),
        np.arange(256, dtype=np.uint8),
    ],
    ids=lambda array: f'{array.dtype.str}{array.shape}',
)
def test_arrays_of_every_protocol(protocol, array):
    expected = pickle.loads(pickle.dumps(array, protocol))
    equal(
        load_bytes(pickle.dumps({'x': array}, protocol), 'x')['x'],
        expected.astype(
            expected.dtype.newbyteorder('=') if expected.dtype.itemsize > 1 else expected.dtype
        ),
    )


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_scalars_and_bytes_of_every_protocol(protocol):
    value = {
        'text': np.str_('öffnen'),
        'bytes': b'\x00\xff',
        'none': b'',
        'array': bytearray(b'\x80ab'),
        'true': np.bool_(True),
        'number': np.float64(0.5),
    }
    found = load_bytes(pickle.dumps(value, protocol), 'x')
    assert found['text'] == 'öffnen'
    assert type(found['text']) is str
    assert [bytes(found[k]) for k in ('bytes', 'none', 'array')] == [b'\x00\xff', b'', b'\x80ab']
    assert (found['true'], found['number']) == (True, 0.5)


def test_arrays_of_python_2():
    """Python 2 wrote text and bytes as byte strings (opcodes U and T), longs as text."""
    data = ARRAY.tobytes()
    program = (
        b'\x80\x02}(U\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b'
        b'\x87R(K\x01K\x02K\x03K\x04\x87cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ'
        b'\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T'
        + struct.pack('<I', len(data))
        + data
        + b'tbU\x01nI1099511627776\nu.'
    )
    expected = pickle.loads(program, encoding='latin1')
    found = load_bytes(program, 'x')
    equal(found['x'], expected['x'])
    assert found['n'] == expected['n'] == 1 << 40


@pytest.mark.filterwarnings('ignore:the matrix subclass')
def test_memory_maps_and_matrices(tmp_path):
    mapped = np.memmap(tmp_path / 'm', np.float32, 'w+', shape=(2, 3))
    mapped[:] = ARRAY[0, :2, :3]
    for protocol in (2, 4, 5):
        equal(load_bytes(pickle.dumps(mapped, protocol), 'x'), np.array(mapped))
        matrix = np.matrix([[1.0, 2.0]])
        equal(load_bytes(pickle.dumps(matrix, protocol), 'x'), np.asarray(matrix))


def test_an_array_with_the_order_of_its_axes():
    """NumPy 2.3 writes the order of the axes in memory as a fifth argument."""

    class Written:
        def __reduce__(self):
            moved = np.ascontiguousarray(ARRAY.transpose(2, 0, 1))
            arguments = (moved.tobytes(), moved.dtype, moved.shape, 'K', (1, 2, 0))
            from_buffer = np.zeros(1).__reduce_ex__(5)[0]  # NumPy 1.26 has it in another module
            return from_buffer, arguments

    equal(load_bytes(pickle.dumps(Written(), 5), 'x'), ARRAY)
    bad = pickle.dumps(Written(), 5).replace(b'K\x01K\x02K\x00\x87', b'K\x01K\x02K\x02\x87')
    with pytest.raises(DumpError, match='an order of 3 axes'):
        load_bytes(bad, 'x')


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    'tensor',
    [
        TENSOR,
        TENSOR.transpose(0, 2),
        TENSOR[1:, 1:],
        TENSOR.bfloat16(),
        TENSOR.bool(),
        torch.nn.Parameter(TENSOR),
        TENSOR.to(torch.complex64),
        (TENSOR + 2j).conj(),
        (TENSOR + 2j).conj().imag,
        torch.tensor([1, 65535], dtype=torch.uint16),
        torch.tensor([1, 2**32 - 1], dtype=torch.uint32),
        torch.tensor(True),
        torch.zeros(0, 3),
    ],
    ids=lambda t: f'{t.dtype}{tuple(t.shape)}{t.is_conj()}{t.is_neg()}',
)
def test_tensors_of_every_torch_save(legacy, tensor):
    data = saved(
        {'x': tensor, 'same': tensor, 'size': tensor.shape},
        _use_new_zipfile_serialization=not legacy,
    )
    found = load_bytes(data, 'x')
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype is torch.bfloat16:
        expected = plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        expected = plain.numpy()
    for name in ('x', 'same'):
        equal(found[name], expected)
    assert found['size'] == tuple(tensor.shape)


@pytest.mark.parametrize(
    'tensor', [torch.nn.Parameter(TENSOR), torch.tensor([7], dtype=torch.uint16), TENSOR[:, 1]]
)
def test_tensors_that_pickle_writes(tensor):
    for protocol in (2, 4, 5):
        equal(load_bytes(pickle.dumps(tensor, protocol), 'x'), tensor.detach().numpy())


def test_a_tensor_with_attributes():
    tensor = TENSOR.clone()
    tensor.layer = 7
    equal(load_bytes(saved(tensor), 'x'), TENSOR.numpy())


def test_a_storage_of_a_gpu_of_old_torch():
    legacy = saved(TENSOR, _use_new_zipfile_serialization=False)
    legacy = legacy.replace(b'ctorch\nFloatStorage', b'ctorch.cuda\nFloatStorage')
    assert b'torch.cuda' in legacy
    equal(load_bytes(legacy, 'x'), TENSOR.numpy())


@pytest.mark.parametrize(
    ('value', 'match'),
    [
        (np.array([{}], dtype=object), 'dtypes .* or text, found .O8.; .*astype'),
        (np.zeros(2, [('a', 'f4')]), 'dtypes .*V4.*astype'),
        (np.array(['2026-01-01'], 'M8[D]'), 'M8'),
    ],
)
def test_other_dtypes_are_refused_with_what_to_do(value, match):
    with pytest.raises(DumpError, match=match):
        load_bytes(pickle.dumps(value), 'x')


def test_sparse_tensors_are_refused_by_name():
    with pytest.raises(DumpError, match='_rebuild_sparse_tensor'):
        load_bytes(saved(TENSOR[0].to_sparse()), 'x')


def test_text_that_is_no_text():
    array = np.array(['abc'])
    with pytest.raises(DumpError, match='numbers that are not characters'):
        load_bytes(pickle.dumps(array).replace(b'a\x00\x00\x00', b'\x00\x00\x11\x00'), 'x')


FOREIGN = {
    'lfs': (b'version https://git-lfs.github.com/spec/v1\noid sha256:aa\n', 'git lfs pull'),
    'npy': (b'\x93NUMPY\x01\x00', r'NumPy array \(.npy\)'),
    'hdf5': (b'\x89HDF\r\n\x1a\n' + bytes(9), 'HDF5'),
    'gzip': (b'\x1f\x8b\x08\x00', 'gzip -d'),
    'zstd': (b'\x28\xb5\x2f\xfd\x00', 'zstd -d'),
    'page': (b'<!DOCTYPE html><html>', 'a web page'),
    'zeros': (bytes(4096), 'only zeros .* power'),
    'old': (pickle.dumps({'x': 1.5}, 0), 'protocol 0 or 1.*protocol=5'),
    'older': (pickle.dumps([1, 2], 1), 'protocol 0 or 1.*protocol=5'),
    'ros1': (b'#ROSBAG V2.0\n' + bytes(99), 'rosbags-convert'),
    'tar': (b'data'.ljust(257, b'\x00') + b'ustar\x00', 'tar -xf'),
    'safetensors': (struct.pack('<Q', 2) + b'{"a":1}' + bytes(9), 'safetensors'),
    'two': (pickle.dumps(1) + pickle.dumps(2), 'a second pickle'),
    'unknown': (b'hello', 'begins with'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_files_of_another_kind_are_named(name):
    data, match = FOREIGN[name]
    with pytest.raises(DumpError, match=match):
        load_bytes(data, 'x.pkl')


def test_archives_of_another_kind_are_named(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, x=ARRAY)
    with pytest.raises(DumpError, match='a NumPy archive'):
        load_bytes(stream.getvalue(), 'x.pkl')

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        archive.writestr('rollouts/task0--ep0--succ1.csv', 'x')
    with pytest.raises(DumpError, match=r'a zip archive that contains .*unzip'):
        load_bytes(stream.getvalue(), 'x.pkl')

    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(Twice(), torch.ones(1)), stream)
    with pytest.raises(DumpError, match='a TorchScript program'):
        load_bytes(stream.getvalue(), 'x.pkl')


def test_codecs_are_only_latin_1():
    class Other:
        def __reduce__(self):
            return codecs.encode, ('abc', 'rot13')

    with pytest.raises(DumpError, match='Latin-1'):
        load_bytes(pickle.dumps(Other(), 2), 'x')


def test_reading_imports_no_torch():
    code = (
        'import sys, pickle; from safe_training.recordings.untrusted.pickle_file import load_bytes;'
        'load_bytes(pickle.dumps({1: b"a"}, 2), "x"); assert "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
