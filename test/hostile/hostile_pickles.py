# SPDX-License-Identifier: Apache-2.0
"""Hostile pickles, as an episode of a dump, and hostile archives of NumPy."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_cases import CANARY, CANARY_MODULE, COMMAND, Bad, Good, case, cases

# -- pickles, as an episode of a dump


class Calls:
    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def named(module: str, name: str) -> bytes:
    return b'c' + module.encode() + b'\n' + name.encode() + b'\n'


def call(module: str, name: str, argument: str) -> bytes:
    text = argument.encode()
    return named(module, name) + b'(X' + struct.pack('<I', len(text)) + text + b'tR.'


def torch_archive(program: bytes, **members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        archive.writestr('archive/data.pkl', program)
        for name, data in members.items():
            archive.writestr(f'archive/data/{name}', data)
    return stream.getvalue()


def zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(300 << 20))
    return stream.getvalue()


def object_array() -> bytes:
    array = np.empty(1, object)
    array[0] = Calls(os.system, COMMAND)
    return pickle.dumps({'hidden_states': array})


PICKLES: dict[str, Callable[[], bytes]] = {
    'system_0': lambda: pickle.dumps(Calls(os.system, COMMAND), 0),
    'system_2': lambda: pickle.dumps({'hidden_states': Calls(os.system, COMMAND)}, 2),
    'system_5': lambda: pickle.dumps([np.zeros(3), Calls(os.system, COMMAND)], 5),
    'eval': lambda: call('builtins', 'eval', f'open({str(CANARY)!r}, "w")'),
    'exec': lambda: call('builtins', 'exec', f'open({str(CANARY)!r}, "w")'),
    'old_builtins': lambda: call('__builtin__', 'eval', f'open({str(CANARY)!r}, "w")'),
    'import_module': lambda: call('importlib', 'import_module', CANARY_MODULE),
    'imports_on_lookup': lambda: named(CANARY_MODULE, 'anything') + b'.',
    'dotted_name': lambda: b'\x80\x04\x8c\x05numpy\x8c\x0ff2py.os.system  \x93.',
    'instance': lambda: b'(S"' + COMMAND.encode() + b'"\nios\nsystem\n.',
    'new_object': lambda: b'\x80\x02' + named('subprocess', 'Popen') + b')\x81.',
    'build_state': lambda: b'\x80\x02' + named('numpy', 'ndarray') + b'}X\x01\x00\x00\x00ax\x01b.',
    'extension': lambda: b'\x80\x02\x82\x01.',
    'persistent': lambda: b'Pfile\n.',
    'object_array': object_array,
    'torch_zip': lambda: torch_archive(call('os', 'system', COMMAND)),
    'torch_storage': lambda: (
        named('torch.storage', '_load_from_bytes')
        + b'(B'
        + struct.pack('<I', len(call('os', 'system', COMMAND)))
        + call('os', 'system', COMMAND)
        + b'tR.'
    ),
    'torch_zip_bomb': zip_bomb,
    'nested_lists': lambda: b'\x80\x04' + b']' * 200_000 + b'.',
    'doubled_lists': lambda: b'\x80\x04]' + b'q\x010](h\x01h\x01e' * 60 + b'.',
    'bytes_of_100_TB': lambda: b'\x80\x04\x8e' + struct.pack('<Q', 10**14) + b'x.',
    'frame_of_100_TB': lambda: b'\x80\x04\x95' + struct.pack('<Q', 10**14) + b'N.',
    'empty': lambda: b'',
    'text': lambda: b'hello world\n',
    'zeros': lambda: bytes(1 << 16),
    'packed': lambda: gzip.compress(pickle.dumps({'hidden_states': 1})),
    'parquet': lambda: b'PAR1' + bytes(100) + b'PAR1',
}


def pickled(folder: Path, good: Good, make: Callable[[], bytes]) -> Bad:
    shutil.copytree(good.dump, folder / 'dump')
    name = sorted(f.name for f in good.dump.glob('*.pkl'))[0]
    (folder / 'dump' / name).write_bytes(make())
    return Bad(folder / 'dump', name)


cases(pickled, **PICKLES)


@case
def pickle_cut(folder: Path, good: Good) -> Bad:
    data = sorted(good.dump.glob('*.pkl'))[0].read_bytes()
    return pickled(folder, good, lambda: data[: len(data) // 2])


def table(folder: Path, good: Good, data: bytes) -> Bad:
    shutil.copytree(good.dump, folder / 'dump')
    name = sorted(f.name for f in good.dump.glob('*.csv'))[0]
    (folder / 'dump' / name).write_bytes(data)
    return Bad(folder / 'dump', name)


cases(
    table,
    empty=b'',
    binary=bytes(range(256)) * 40,
    long_field=b'a,b\n' + b'1' * 5_000_000 + b',2\n',
    many_columns=b','.join(b'c%d' % n for n in range(100_000)) + b'\n',
    not_utf8=b'action/dx\n\xff\xfe\n',
)


# -- archives


def npz(folder: Path, good: Good, data: bytes) -> Bad:
    (folder / 'pooled.npz').write_bytes(data)
    return Bad(folder / 'pooled.npz', 'pooled.npz')


def npy(header: str, data: bytes = b'') -> bytes:
    text = header.encode() + b' ' * (-(len(header) + 11) % 64) + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


def archive(**arrays: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as made:
        for name, data in arrays.items():
            made.writestr(f'{name}.npy', data)
    return stream.getvalue()


def dumped(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


_OFFSETS = dumped(np.array([0, 3]))
_SUCCESS = dumped(np.array([1]))
_EVIL_ARRAY = np.array([Calls(os.system, COMMAND)], object)
cases(
    npz,
    empty=b'',
    text=b'not an archive',
    objects=archive(offsets=_OFFSETS, success=_SUCCESS, task=dumped(_EVIL_ARRAY)),
    huge_shape=archive(
        offsets=npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        success=_SUCCESS,
        task_id=_SUCCESS,
    ),
    code_in_header=archive(
        offsets=npy(f"{{'descr': __import__('os').system({COMMAND!r}), 'shape': ()}}"),
        success=_SUCCESS,
        task_id=_SUCCESS,
    ),
    deep_header=archive(offsets=npy('(' * 9000 + ')' * 9000), success=_SUCCESS, task_id=_SUCCESS),
    zeros_of_1_GB=archive(
        offsets=dumped(np.array([0, 1])),
        success=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}", bytes(400 << 20)),
        task_id=_SUCCESS,
    ),
)


@case
def npz_cut(folder: Path, good: Good) -> Bad:
    data = good.archive.read_bytes()
    return npz(folder, good, data[: len(data) // 2])
