# SPDX-License-Identifier: Apache-2.0
"""The allow-list unpickler: reads what dumps hold, executes nothing, stays small."""

import collections
import importlib
import io
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from shared_files import DATA

from safe_training.recordings.errors import DumpError
from safe_training.recordings.untrusted.pickle_file import load_bytes, load_pickle

DUMP = DATA / 'openvla_dump'


def assert_same(found, expected):
    """Compare what we read with what pickle itself gives, tensors by their bits."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, np.ndarray)
        assert found.shape == tuple(expected.shape)
        if expected.dtype is torch.bfloat16:
            assert found.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(found.view(np.int16), expected.view(torch.int16).numpy())
        else:
            assert found.dtype == expected.numpy().dtype
            np.testing.assert_array_equal(found, expected.numpy())
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert type(found) is type(expected)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    else:
        assert type(found) is type(expected)
        assert found == expected


# -- what dumps hold


def test_every_shipped_pickle_reads_as_pickle_reads_it():
    files = sorted(DUMP.glob('*.pkl'))
    assert len(files) == 24
    for file in files:
        assert_same(load_pickle(file), pickle.loads(file.read_bytes()))


@pytest.mark.skipif('SAFE_SHARED' not in os.environ, reason='SAFE_SHARED is not set')
def test_every_published_format_reads_as_pickle_reads_it():
    files = sorted(Path(os.environ['SAFE_SHARED']).glob('rollouts/miniature/raw/**/*.pkl'))
    assert files
    for file in files:
        assert_same(load_pickle(file), pickle.loads(file.read_bytes()))


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_plain_values(protocol):
    value = {
        'text': 'grüße',
        'numbers': [0, -1, 255, 256, 65536, -(2**31), 2**40, -(2**70), 1.5, True, None],
        'tuples': ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        'nested': {'empty': {}, 3: []},
        'ordered': collections.OrderedDict(b=1, a=2),
        'long': 'x' * 300,
        'many': list(range(3000)),
    }
    assert load_bytes(pickle.dumps(value, protocol), 'x') == value


def test_byte_strings_come_out_as_views():
    value = load_bytes(pickle.dumps({'image': b'\x00\x01' * 200, 'short': b'ab'}), 'x')
    assert type(value['image']) is memoryview
    assert bytes(value['image']) == b'\x00\x01' * 200
    assert bytes(value['short']) == b'ab'


@pytest.mark.parametrize('protocol', [3, 4, 5])
@pytest.mark.parametrize(
    'array',
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype='>f8'),
        np.array([True, False]),
        np.arange(-3, 3, dtype=np.int8),
        np.arange(5, dtype=np.uint64),
        np.zeros((0, 7), np.float16),
        np.array(2.5),
        np.arange(6).astype(ml_dtypes.bfloat16),
    ],
    ids=lambda array: f'{array.dtype}{array.shape}',
)
def test_numpy_arrays(array, protocol):
    found = load_bytes(pickle.dumps(array, protocol), 'x')
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder('=')
    np.testing.assert_array_equal(found, array)
    assert not found.flags.writeable


def test_arrays_written_by_numpy_1_and_2():
    array = np.arange(5.0)
    data = pickle.dumps([array, np.float32(3)], protocol=3)
    old = data.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    new = old.replace(b'numpy.core.multiarray', b'numpy._core.multiarray')
    for variant in (old, new):
        found, scalar = load_bytes(variant, 'x')
        np.testing.assert_array_equal(found, array)
        assert scalar == 3
        assert type(scalar) is np.float32


def test_one_array_used_twice_is_one_array():
    array = np.arange(3.0)
    found = load_bytes(pickle.dumps({'a': array, 'b': [array, array.dtype.str]}), 'x')
    assert found['a'] is found['b'][0]


@pytest.mark.parametrize(
    'tensor',
    [
        torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4),
        torch.arange(6, dtype=torch.float16),
        torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
        torch.arange(20, dtype=torch.float64)[3:17:2],
        torch.arange(5),
        torch.tensor([True, False, True]),
        torch.tensor(4, dtype=torch.int16),
        torch.zeros(0, 7),
        torch.arange(4, dtype=torch.uint8),
        torch.arange(4, dtype=torch.int8),
        torch.arange(4, dtype=torch.int32),
    ],
    ids=lambda tensor: f'{tensor.dtype}{list(tensor.shape)}',
)
def test_torch_tensors_pickled_plainly_and_by_torch_save(tensor):
    record = {'hidden_states': [tensor, tensor.clone()], 'success': True}
    assert_same(load_bytes(pickle.dumps(record), 'x'), record)
    archive = io.BytesIO()
    torch.save(record, archive)
    assert_same(load_bytes(archive.getvalue(), 'x'), record)


def test_a_tensor_that_requires_gradients():
    tensor = torch.ones(2, 3, requires_grad=True)
    np.testing.assert_array_equal(load_bytes(pickle.dumps(tensor), 'x'), np.ones((2, 3)))


# -- what must never run


class Calls:
    """Pickles itself as a call of any function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def _text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def _named(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b'\x93'


def _storage_bytes(inner_part: int, evil: bytes) -> bytes:
    """A legacy torch stream in which one of its five pickles is another one."""
    good = io.BytesIO()
    torch.save(torch.arange(4.0), good, _use_new_zipfile_serialization=False)
    data = good.getvalue()
    parts, stream = [], io.BytesIO(data)
    for _ in range(5):
        start = stream.tell()
        collections.deque(pickletools.genops(stream), maxlen=0)
        parts.append(data[start : stream.tell()])
    parts[inner_part] = evil
    return b''.join(parts) + data[stream.tell() :]


def _torch_archive(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('x/data.pkl', program)
        archive.writestr('x/byteorder', 'little')
        archive.writestr('x/data/0', bytes(16))
    return buffer.getvalue()


def _load_from_bytes(data: bytes) -> bytes:
    return (
        b'\x80\x04'
        + _named('torch.storage', '_load_from_bytes')
        + b'B'
        + struct.pack('<I', len(data))
        + data
        + b'\x85R.'
    )


def _evil_pickles(command: str) -> dict[str, bytes]:
    system = pickle.dumps(Calls(os.system, command))
    argument = _text(command) + b'\x85'
    object_array = np.array([Calls(os.system, command), 1], dtype=object)
    evil = {f'system-{p}': pickle.dumps(Calls(os.system, command), p) for p in range(6)}
    evil |= {
        'eval': pickle.dumps(Calls(eval, f'__import__("os").system({command!r})')),
        'exec': pickle.dumps(Calls(exec, f'import os; os.system({command!r})')),
        'importlib': pickle.dumps(Calls(importlib.import_module, 'antigravity')),
        'getattr': pickle.dumps(Calls(getattr, 'x', 'upper')),
        'open': pickle.dumps(Calls(io.open, '/dev/null')),
        'torch.load': pickle.dumps(Calls(torch.load, '/dev/null')),
        'numpy.load': pickle.dumps(Calls(np.load, '/dev/null', None, True)),
        'in-a-dict': pickle.dumps({'hidden_states': [1, {'x': Calls(os.system, command)}]}),
        'as-a-key': pickle.dumps({(1, Calls(os.system, command)): 1}),
        'object-array': pickle.dumps(object_array),
        'object-array-5': pickle.dumps(object_array, protocol=5),
        'structured-array': pickle.dumps(np.zeros(2, [('a', 'O')])),
        'stack-global': b'\x80\x04' + _named('posix', 'system') + argument + b'R.',
        'dotted-name': b'\x80\x04' + _named('numpy', 'os.system') + argument + b'R.',
        'dotted-module': b'\x80\x04' + _named('numpy.core', 'multiarray._reconstruct') + b'.',
        'empty-names': b'\x80\x04' + _named('', '') + b'.',
        'inst': b'\x80\x02('
        + b'X'
        + struct.pack('<I', len(command))
        + command.encode()
        + b'iposix\nsystem\n.',
        'obj': b'\x80\x02(cposix\nsystem\n' + _text(command) + b'o.',
        'newobj': b'\x80\x02cposix\nsystem\n' + argument + b'\x81.',
        'newobj-ex': b'\x80\x04' + _named('posix', 'system') + argument + b'}\x92.',
        'newobj-allowed': b'\x80\x04' + _named('numpy', 'ndarray') + b'K\x05\x85\x81.',
        'reduce-ndarray': b'\x80\x04' + _named('numpy', 'ndarray') + b'K\x05\x85\x85R.',
        'reduce-text': b'\x80\x04' + _text('os.system') + argument + b'R.',
        'reduce-list-of-arguments': b'\x80\x04' + _named('numpy', 'dtype') + b']R.',
        'ext1': b'\x80\x02\x82\x01.',
        'ext2': b'\x80\x02\x83\x01\x00.',
        'ext4': b'\x80\x02\x84\x01\x00\x00\x00.',
        'persistent-id': b'\x80\x02' + _text('x') + b'Q.',
        'persistent-text': b'\x80\x02Px\n.',
        'build-on-text': b'\x80\x02' + _text('x') + b'}b.',
        'build-on-class': b'\x80\x04' + _named('numpy', 'ndarray') + b'}b.',
        'class-alone': b'\x80\x04' + _named('numpy', 'ndarray') + b'.',
        'dtype-object': b'\x80\x04' + _named('numpy', 'dtype') + _text('O') + b'\x85R.',
        'dtype-unfinished': b'\x80\x04' + _named('numpy', 'dtype') + _text('f4') + b'\x85R.',
        'dtype-of-class': b'\x80\x04'
        + _named('numpy', 'dtype')
        + _named('numpy', 'ndarray')
        + b'\x85R.',
        'module-not-text': b'\x80\x04K\x01K\x02\x93.',
        'ordered-dict-of': b'\x80\x04' + _named('collections', 'OrderedDict') + b']\x85R.',
        'out-of-band-buffer': b'\x80\x05\x97.',
        'torch-inner-module': _load_from_bytes(pickle.dumps(torch.nn.Linear(1, 1))),
        'torch-nested': _load_from_bytes(_load_from_bytes(_storage_bytes(0, b'\x80\x02I1\n.'))),
        'torch-archive': _torch_archive(system),
        'torch-archive-inner': _load_from_bytes(_torch_archive(system)),
        'torch-archive-in-archive': _torch_archive(_load_from_bytes(_torch_archive(system))),
    }
    for part in range(5):
        evil[f'torch-inner-{part}'] = _load_from_bytes(_storage_bytes(part, system))
    return evil


@pytest.mark.parametrize('name', sorted(_evil_pickles('true')))
def test_nothing_is_executed(name, tmp_path, monkeypatch):
    canary = tmp_path / 'executed'
    data = _evil_pickles(f'touch {canary}')[name]

    def run(*arguments, **keywords):
        raise AssertionError(f'{name} reached the interpreter')

    monkeypatch.setattr(pickle, 'loads', run)
    monkeypatch.setattr(pickle, 'load', run)
    monkeypatch.setattr(torch, 'load', run)
    monkeypatch.setattr(torch.storage, '_load_from_bytes', run)
    file = tmp_path / 'task0--ep0--succ1.pkl'
    file.write_bytes(data)
    with pytest.raises(DumpError, match=r'task0--ep0--succ1\.pkl: expected .*, found .*; '):
        load_pickle(file)
    assert sorted(tmp_path.iterdir()) == [file]


def test_the_corpus_would_have_worked(tmp_path):
    """The bytes of the test above are dangerous: ``pickle`` itself touches the file."""
    canary = tmp_path / 'executed'
    for name in ('system-2', 'eval', 'stack-global', 'object-array', 'torch-inner-2'):
        data = _evil_pickles(f'touch {canary}')[name]
        if name == 'torch-inner-2':
            stream = data[data.index(b'\x80\x02\x8a') :]
            torch.load(io.BytesIO(stream), weights_only=False)
        else:
            pickle.loads(data)
        assert canary.exists(), name
        canary.unlink()


def test_the_message_names_the_refused_reference():
    with pytest.raises(DumpError) as caught:
        load_bytes(pickle.dumps(Calls(os.system, 'true')), 'task0.pkl')
    assert str(caught.value).startswith('task0.pkl: expected only plain values, numpy arrays')
    assert "'posix.system'" in str(caught.value)
    assert 'nothing was executed' in str(caught.value)


# -- what would take more than the file is worth


def _array_state(shape: bytes, data: bytes, dtype: str = 'f8') -> bytes:
    """An array pickle whose shape is given as opcodes, so that it can lie."""
    return (
        b'\x80\x04'
        + _named('numpy._core.multiarray', '_reconstruct')
        + _named('numpy', 'ndarray')
        + b'K\x00\x85C\x01b\x87R(K\x01'
        + shape
        + _named('numpy', 'dtype')
        + _text(dtype)
        + b'\x89\x88\x87R(K\x03'
        + _text('<')
        + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89B'
        + struct.pack('<I', len(data))
        + data
        + b'tb.'
    )


def _tensor(offset: bytes, size: bytes, stride: bytes) -> bytes:
    storage = _float_storage()
    return (
        b'\x80\x04'
        + _named('torch._utils', '_rebuild_tensor_v2')
        + b'('
        + _named('torch.storage', '_load_from_bytes')
        + b'B'
        + struct.pack('<I', len(storage))
        + storage
        + b'\x85R'
        + offset
        + size
        + stride
        + b'\x89'
        + _named('collections', 'OrderedDict')
        + b')RtR.'
    )


def _float_storage() -> bytes:
    """The bytes in which a plain pickle keeps the storage of ``torch.arange(4.0)``."""
    for _, argument, _ in pickletools.genops(pickle.dumps(torch.arange(4.0))):
        if isinstance(argument, bytes):
            return argument
    raise AssertionError('torch pickles its storages in another way')


def _laughs(depth: int) -> bytes:
    """A list of two lists of two lists ..., each pair being one object: 2**depth values."""
    return b'\x80\x04]' + b''.join(b'q\x010](h\x01h\x01e' for _ in range(depth)) + b'.'


HUGE = b'\x8a\x05' + (2**36).to_bytes(5, 'little')
GREEDY = {
    'shape-too-large': _array_state(HUGE + b'\x85', bytes(8)),
    'shape-overflows': _array_state(HUGE + HUGE + HUGE + b'\x87', bytes(8)),
    'shape-negative': _array_state(b'J\xff\xff\xff\xffJ\xf8\xff\xff\xff\x86', bytes(64)),
    'shape-not-integers': _array_state(_text('a') + b'\x85', bytes(8)),
    'shape-boolean': _array_state(b'\x88\x85', bytes(8)),
    'shape-empty-yet-huge': _array_state(HUGE + HUGE + b'K\x00\x87', b''),
    'shape-too-small': _array_state(b'K\x01\x85', bytes(800)),
    'too-many-axes': _array_state(b'(' + b'K\x01' * 40 + b't', bytes(8)),
    'bytes-8': b'\x80\x04\x8e' + struct.pack('<Q', 10**14) + b'x.',
    'bytes-4': b'\x80\x04B' + struct.pack('<I', 2**32 - 1) + b'x.',
    'bytearray-8': b'\x80\x05\x96' + struct.pack('<Q', 10**14) + b'x.',
    'text-8': b'\x80\x04\x8d' + struct.pack('<Q', 10**14) + b'x.',
    'frame': b'\x80\x04\x95' + struct.pack('<Q', 10**14) + b'N.',
    'long-4': b'\x80\x04\x8b' + struct.pack('<I', 2**31 - 1) + b'x.',
    'unknown-memo-slot': b'\x80\x04Nj\xff\xff\xff\xff.',
    'two-to-the-sixty': _laughs(60),
    'two-to-the-ten-thousand': _laughs(10_000),
    'arrays-that-repeat': b'\x80\x04]('
    + _array_state(b'M\xe8\x03\x85', bytes(8000))[2:-1]
    + b'q\x05'
    + b'h\x05' * 100_000
    + b'e.',
    'contains-itself': b'\x80\x04]q\x00h\x00a.',
    'contains-itself-deeper': b'\x80\x04}q\x00' + _text('a') + b']q\x01h\x00as.',
    'nested-lists': b'\x80\x04' + b'](' * 3000 + b'N' + b'e' * 3000 + b'.',
    'nested-tuples': b'\x80\x04N' + b'\x85' * 50_000 + b'.',
    'tensor-beyond-storage': _tensor(b'K\x01', b'K\x04\x85', b'K\x01\x85'),
    'tensor-strided-out': _tensor(b'K\x00', b'K\x02\x85', HUGE + b'\x85'),
    'tensor-repeats-one-element': _tensor(b'K\x00', HUGE + b'\x85', b'K\x00\x85'),
    'tensor-negative-offset': _tensor(b'J\xff\xff\xff\xff', b'K\x04\x85', b'K\x01\x85'),
    'tensor-negative-stride': _tensor(b'K\x03', b'K\x04\x85', b'J\xff\xff\xff\xff\x85'),
    'tensor-without-strides': _tensor(b'K\x00', b'K\x04\x85', b')'),
    'storage-claims-more': _load_from_bytes(
        _float_storage().replace(b'K\x04N', b'M\xff\xffN').replace(b'K\x04t', b'M\xff\xfft')
    ),
}


@pytest.mark.parametrize('name', sorted(GREEDY))
def test_no_more_is_allocated_than_the_file_is_worth(name):
    data = GREEDY[name]
    tracemalloc.start()
    try:
        with pytest.raises(DumpError):
            load_bytes(data, 'x')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000 + 400 * len(data)


def test_too_many_opcodes(monkeypatch):
    monkeypatch.setattr('safe_training.recordings.untrusted.budget.MAX_OPCODES', 1000)
    with pytest.raises(DumpError, match='at most 1000 pickle opcodes'):
        load_bytes(b'\x80\x04' + b'N0' * 1000 + b'N.', 'x')


def test_a_slot_far_out_costs_nothing():
    assert load_bytes(b'\x80\x02](Nr\xff\xff\xff\xffe.', 'x') == [None]


def test_a_compressed_torch_archive_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x/data.pkl', pickle.dumps([1]))
        archive.writestr('x/data/0', bytes(10_000_000))
    with pytest.raises(DumpError, match=r"without compressed files, found .*'x/data.pkl'"):
        load_bytes(buffer.getvalue(), 'x')


# -- broken files


def test_every_truncation_is_refused():
    data = min(DUMP.glob('*.pkl'), key=lambda file: file.stat().st_size).read_bytes()
    for end in [*range(3000), *range(3000, len(data), 97), len(data) - 1]:
        with pytest.raises(DumpError):
            load_bytes(data[:end], 'x')


def test_messages_of_files_that_are_not_pickles(tmp_path):
    def message(content: bytes) -> str:
        file = tmp_path / 'task1--ep0--succ0.pkl'
        file.write_bytes(content)
        with pytest.raises(DumpError) as caught:
            load_pickle(file)
        assert str(caught.value).startswith(f'{file}: ')
        return str(caught.value)

    assert 'found an empty file; copy the file' in message(b'')
    assert "begins with b'action/t'" in message(b'action/timestep,action/dx\n0,1\n')
    assert 'expected pickle opcodes for plain values' in message(b'\x80\x02\x8f.')
    assert '3 more bytes' in message(pickle.dumps(1) + b'abc')
    assert 'a zip archive of torch.save' in message(b'PK\x03\x04' + bytes(40))
    assert 'before the end of the file; copy the file' in message(pickle.dumps(b'x' * 50)[:30])
    assert 'the end mark of a pickle' in message(pickle.dumps([1, 2], 3)[:-1])


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DumpError, match='expected a readable file, found No such file'):
        load_pickle(tmp_path / 'none.pkl')
    with pytest.raises(DumpError, match='expected a readable file'):
        load_pickle(tmp_path)


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr('safe_training.recordings.untrusted.pickle_file.MAX_FILE_BYTES', 100)
    file = tmp_path / 'x.pkl'
    file.write_bytes(bytes(101))
    with pytest.raises(DumpError, match=r'at most 100 bytes, .* found 101 bytes'):
        load_pickle(file)


SMALL = pickle.dumps(
    {
        'hidden_states': [torch.arange(6.0).reshape(2, 3).bfloat16(), torch.arange(3)],
        'actions': np.arange(4.0).reshape(2, 2),
        'half': np.arange(3).astype(ml_dtypes.bfloat16),
        'scalar': np.float32(2),
        'task': 'x',
    }
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_a_damaged_pickle_reads_or_is_refused_but_never_does_anything_else(changes):
    data = bytearray(SMALL)
    for position, value in changes:
        data[position] = value
    try:
        load_bytes(bytes(data), 'x')
    except DumpError as error:
        assert str(error).startswith('x: ')


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_plain(data):
    try:
        load_bytes(b'\x80\x04' + data, 'x')
    except DumpError as error:
        assert str(error).startswith('x: ')
