# SPDX-License-Identifier: Apache-2.0
"""Files that were made to harm whoever reads them; generated, so that none lies in the repository.

``python test/hostile/hostile_corpus.py FOLDER`` writes them all, to be tried on other readers too.
Each case is a function of a folder of its own and of good files to damage; it returns what to read
and which file must be named in the refusal.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import sqlite3
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lz4.frame
import numpy as np
from backports import zstd
from rollout_factory import make_rollout
from shared_files import DATA

#: Touched by every program that a hostile file holds; never there unless one was executed.
CANARY = Path(os.environ.get('TMPDIR', '/tmp')) / f'safe_training_was_executed_{os.getpid()}'
COMMAND = f'touch {CANARY}'
#: A module that no hostile file may get imported; the test puts it on the path.
CANARY_MODULE = 'safe_training_canary'


class Bad(NamedTuple):
    """What to read, and the name that a refusal must contain."""

    path: Path
    names: str
    verb: str = 'convert'


class Good(NamedTuple):
    """Good files, to be copied and damaged."""

    dump: Path
    archive: Path
    set: Path
    mcap: Path
    bag: Path
    db3: Path
    detector: Path


Case = Callable[[Path, Good], Bad]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__.replace('_', '-')] = function
    return function


def cases(make: Callable[[Path, Good, object], Bad], **variants: object) -> None:
    for name, variant in variants.items():

        def one(folder: Path, good: Good, variant: object = variant) -> Bad:
            return make(folder, good, variant)

        CASES[f'{make.__name__}-{name}'.replace('_', '-')] = one


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


# -- rollout sets


def changed_set(folder: Path, good: Good, change: Callable[[Path], str]) -> Bad:
    shutil.copytree(good.set, folder / 'set')
    return Bad(folder / 'set', change(folder / 'set'))


def _replace(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    def apply(path: Path) -> str:
        file = path / name
        data = change(file.read_bytes())
        file.unlink()
        file.write_bytes(data)
        return Path(name).name

    return apply


def _column(name: str, value: object) -> Callable[[Path], str]:
    def apply(path: Path) -> str:
        import pyarrow
        import pyarrow.parquet

        file = path / 'rollouts.parquet'
        table = pyarrow.parquet.read_table(file)
        values = [value, *table.column(name).to_pylist()[1:]]
        place = table.column_names.index(name)
        pyarrow.parquet.write_table(table.set_column(place, name, pyarrow.array(values)), file)
        return 'arrays' if name == 'arrays_bytes' else 'rollouts.parquet'

    return apply


def _header(**changes: object) -> Callable[[Path], str]:
    """Rewrite the header of a safetensors file, and the index so that it fits."""

    def apply(path: Path) -> str:
        import zlib

        file = path / 'arrays' / '000000.safetensors'
        data = file.read_bytes()
        length = int.from_bytes(data[:8], 'little')
        header = json.loads(data[8 : 8 + length])
        header['features'] |= changes
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length :])
        _column('arrays_bytes', file.stat().st_size)(path)
        _column('arrays_header_crc32', zlib.crc32(text))(path)
        return '000000.safetensors'

    return apply


_MANIFEST, _INDEX, _ARRAYS = 'rollout_set.json', 'rollouts.parquet', 'arrays/000000.safetensors'
cases(
    changed_set,
    manifest_empty=_replace(_MANIFEST, lambda data: b''),
    manifest_cut=_replace(_MANIFEST, lambda data: data[: len(data) // 2]),
    manifest_deep=_replace(_MANIFEST, lambda data: b'[' * 100_000),
    manifest_pickle=_replace(_MANIFEST, lambda data: PICKLES['system_0']()),
    manifest_long_number=_replace(_MANIFEST, lambda data: b'1' * 100_000),
    index_empty=_replace(_INDEX, lambda data: b''),
    index_cut=_replace(_INDEX, lambda data: data[: len(data) // 2]),
    index_pickle=_replace(_INDEX, lambda data: PICKLES['system_5']()),
    index_footer_lies=_replace(_INDEX, lambda data: data[:-8] + b'\xff\xff\xff\x7fPAR1'),
    path_leads_out=_column('arrays', '../../../etc/passwd'),
    path_is_absolute=_column('arrays', '/etc/passwd'),
    arrays_empty=_replace(_ARRAYS, lambda data: b''),
    arrays_cut=_replace(_ARRAYS, lambda data: data[: len(data) // 2]),
    header_length_lies=_replace(_ARRAYS, lambda data: b'\xff' * 7 + b'\x7f' + data[8:]),
    shape_lies=_header(shape=[10**12, 4]),
    shape_negative=_header(shape=[-1, -4]),
    offsets_lead_out=_header(data_offsets=[0, 10**15]),
    offsets_negative=_header(data_offsets=[-64, 0]),
    dtype_object=_header(dtype='O'),
)


# -- recordings


def changed_mcap(folder: Path, good: Good, change: Callable[[bytes], bytes]) -> Bad:
    (folder / 'run.mcap').write_bytes(change(good.mcap.read_bytes()))
    return Bad(folder / 'run.mcap', 'run.mcap')


MAGIC = b'\x89MCAP0\r\n'


def record(code: int, *parts: bytes, length: int | None = None) -> bytes:
    data = b''.join(parts)
    size = len(data) if length is None else length
    return bytes([code]) + size.to_bytes(8, 'little') + data


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(4, 'little') + data


def mcap(*records: bytes) -> bytes:
    head = record(0x01, text('ros2'), text('x'))
    return MAGIC + head + b''.join(records) + record(0x02, bytes(20)) + MAGIC


def chunk(data: bytes, packed: bytes, compression: str, size: int | None = None) -> bytes:
    unpacked = (len(data) if size is None else size).to_bytes(8, 'little')
    length = len(packed).to_bytes(8, 'little')
    return record(0x06, bytes(16), unpacked, bytes(4), text(compression), length, packed)


def topic(
    message: bytes, kind: str = 'safe_msgs/msg/PolicyStep', definition: str | bytes = ''
) -> bytes:
    """One message on the topic of the policy steps, of any type and bytes."""
    schema = record(0x03, b'\1\0', text(kind), text('ros2msg'), text(definition))
    channel = record(0x04, b'\1\0', b'\1\0', text('/vla/policy_step'), text('cdr'), text(b''))
    return schema + channel + record(0x05, b'\1\0', bytes(20), message)


def step_bytes(**changes: bytes) -> bytes:
    """The bytes of a PolicyStep, field by field, so that each can lie."""

    def word(value: int) -> bytes:
        return value.to_bytes(4, 'little')

    def string(value: bytes) -> bytes:
        return word(len(value) + 1) + value + b'\0'

    parts = {
        'stamp': bytes(8),
        'frame_id': string(b''),
        'episode_id': string(b'e00'),
        'step': word(0),
        'policy': string(b'abc'),
        'instruction': string(b'abc'),
        'name': string(b'fea'),
        'dtype': string(b'float32'),
        'shape': word(1) + word(4),
        'data': word(16) + bytes(16),
        'action_name': string(b'act'),
        'action_dtype': string(b''),
        'action_shape': word(0),
        'action_data': word(0),
        'exec_horizon': word(1),
        'token_probability': word(0),
        'token_entropy': word(0),
        'signal_names': word(0),
        'signals': word(0),
        'inference_time': word(0),
    }
    assert set(changes) <= set(parts)
    data = b''
    for value in (parts | changes).values():
        data += bytes(-len(data) % 4) + value
    return b'\0\1\0\0' + data


def _zeros(packed: Callable[[bytes], bytes], compression: str) -> bytes:
    bomb = packed(bytes(512 << 20))
    return mcap(chunk(b'', bomb, compression, 512 << 20))


_WORD = struct.Struct('<I').pack
_INJECTED = f'uint8 x\nuint8 Y=1\nstring z "{COMMAND}"\n' + (
    f"uint8 a = __import__('os').system({COMMAND!r})\n"
)
MCAPS: dict[str, Callable[[bytes], bytes]] = {
    'empty': lambda data: b'',
    'magic_alone': lambda data: MAGIC,
    'cut_in_half': lambda data: data[: len(data) // 2],
    'cut_by_a_byte': lambda data: data[:-1],
    'cut_in_the_middle_and_closed': lambda data: data[: len(data) // 2] + data[-37:],
    'without_its_middle': lambda data: data[: len(data) // 3] + data[len(data) // 2 :],
    'pickle': lambda data: PICKLES['system_5'](),
    'other_magic': lambda data: b'\x89HDF\r\n\x1a\n' + data[8:],
    'record_of_8_EB': lambda data: mcap(record(0x05, b'x', length=2**63 - 1)),
    'text_of_4_GB': lambda data: mcap(record(0x03, b'\1\0', b'\xff' * 4)),
    'attachment_of_1_TB': lambda data: mcap(record(0x09, b'x', length=10**12)),
    'chunk_size_lies': lambda data: mcap(chunk(b'abc', b'abc', '', 10**12)),
    'zstd_bomb': lambda data: _zeros(zstd.compress, 'zstd'),
    'zstd_bombs': lambda data: mcap(
        *[chunk(b'', zstd.compress(bytes(48 << 20)), 'zstd', 48 << 20)] * 400
    ),
    'lz4_bomb': lambda data: _zeros(lz4.frame.compress, 'lz4'),
    'zstd_of_nothing': lambda data: mcap(chunk(b'', b'\x28\xb5\x2f\xfd', 'zstd', 10)),
    'other_compression': lambda data: mcap(chunk(b'abc', b'abc', '../evil')),
    'checksum': lambda data: mcap(
        record(
            0x06, bytes(16), (3).to_bytes(8, 'little'), b'abcd', text(''), b'\3' + bytes(7), b'abc'
        )
    ),
    'chunk_in_chunk': lambda data: mcap(
        chunk(b'', (inner := chunk(b'', b'', '')), '', len(inner)), record(0x05, b'\1\0', bytes(20))
    ),
    'unknown_channel': lambda data: mcap(record(0x05, b'\7\0', bytes(20))),
    'not_utf8': lambda data: mcap(record(0x03, b'\1\0', text(b'\xff\xfe'), text(''), text(''))),
    'wrong_type': lambda data: mcap(topic(bytes(8), 'std_msgs/msg/String')),
    'wrong_bytes': lambda data: mcap(topic(b'\0\1\0\0' + bytes(range(200)))),
    'no_bytes': lambda data: mcap(topic(b'')),
    'big_endian_claim': lambda data: mcap(topic(b'\0\7\0\0' + step_bytes()[4:])),
    'text_lies': lambda data: mcap(topic(step_bytes(episode_id=b'\xff\xff\xff\xffabc\0'))),
    'many_names': lambda data: mcap(topic(step_bytes(signal_names=_WORD(2**32 - 1)))),
    'many_bytes': lambda data: mcap(topic(step_bytes(data=_WORD(2**31)))),
    'many_axes': lambda data: mcap(topic(step_bytes(shape=_WORD(40) + _WORD(1) * 40))),
    'shape_lies': lambda data: mcap(topic(step_bytes(shape=_WORD(2) + _WORD(2**31) * 2))),
    'shape_of_nothing': lambda data: mcap(
        topic(step_bytes(shape=_WORD(3) + _WORD(2**32 - 1) * 2 + _WORD(0), data=_WORD(0)))
    ),
    'dtype_object': lambda data: mcap(topic(step_bytes(dtype=_WORD(7) + b'object\0\0'))),
    'step_of_the_future': lambda data: mcap(topic(step_bytes(step=b'\xff' * 4))),
    'program_in_definition': lambda data: mcap(topic(step_bytes(), definition=_INJECTED)),
    'other_definition': lambda data: mcap(topic(step_bytes(), definition='uint8 x\n')),
    'long_definition': lambda data: mcap(topic(step_bytes(), definition='uint8 x\n' * 100_000)),
    'deep_definition': lambda data: mcap(topic(step_bytes(), definition='a/' * 30_000)),
}
cases(changed_mcap, **MCAPS)


def changed_bag(folder: Path, good: Good, change: Callable[[str], str]) -> Bad:
    shutil.copytree(good.bag, folder / 'run.bag')
    file = folder / 'run.bag' / 'metadata.yaml'
    file.write_text(change(file.read_text()))
    return Bad(folder / 'run.bag', 'run.bag')


cases(
    changed_bag,
    empty=lambda t: '',
    cut=lambda t: t[: len(t) // 3],
    program=lambda t: f'rosbag2_bagfile_information: !!python/object/apply:os.system ["{COMMAND}"]',
    deep=lambda t: t.split('\n')[0] + '[' * 50_000,
    laughs=lambda t: (
        'rosbag2_bagfile_information:\n  a0: &a0 x\n'
        + ''.join(f'  a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]\n' for n in range(1, 40))
    ),
    leads_out=lambda t: t.replace('- run.mcap', '- ../../../../etc/passwd'),
    other_storage=lambda t: t.replace('storage_identifier: mcap', 'storage_identifier: evil'),
    other_compression=lambda t: t.replace(
        "compression_mode: ''", 'compression_mode: message'
    ).replace("compression_format: ''", 'compression_format: evil'),
    more_messages=lambda t: t.replace('message_count: 4', 'message_count: 5'),
    lists_for_numbers=lambda t: t.replace('message_count: 4', 'message_count: [4]'),
    custom_program=lambda t: t.replace('"version": 1', '"version": __import__("os")'),
    custom_types=lambda t: t.replace('"task_id": 0', '"task_id": [0]'),
    custom_step=lambda t: t.replace('"task_id": 0', '"failure_step": 99'),
    custom_feature=lambda t: t.replace('"dim": 8', '"dim": "x"'),
)


@case
def bag_without_metadata(folder: Path, good: Good) -> Bad:
    bad = changed_bag(folder, good, lambda t: t)
    (bad.path / 'metadata.yaml').unlink()
    return Bad(bad.path, 'metadata.yaml')


@case
def bag_with_hostile_labels(folder: Path, good: Good) -> Bad:
    bad = changed_bag(folder, good, lambda t: t)
    (folder / 'run.bag.labels.csv').write_bytes(b'episode_id,outcome\n\xff\xfe\x00')
    return Bad(bad.path, 'run.bag.labels.csv')


def changed_db3(folder: Path, good: Good, change: str | Callable[[bytes], bytes]) -> Bad:
    file = folder / 'run.db3'
    if callable(change):
        file.write_bytes(change(good.db3.read_bytes()))
    else:
        shutil.copy(good.db3, file)
        with sqlite3.connect(file) as database:
            database.executescript(change)
        database.close()
    return Bad(file, 'run.db3')


_COPY = 'ALTER TABLE messages RENAME TO kept;'
cases(
    changed_db3,
    empty=lambda data: b'',
    magic_alone=lambda data: data[:16],
    cut=lambda data: data[: len(data) // 2],
    cut_by_a_page=lambda data: data[:-4096],
    zeros_inside=lambda data: data[:4096] + bytes(len(data) - 4096),
    no_tables='DROP TABLE messages',
    view=_COPY + 'CREATE VIEW messages AS SELECT id, topic_id, timestamp, data FROM kept',
    endless_view=_COPY
    + 'CREATE VIEW messages AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) '
    'SELECT x AS id, 1 AS topic_id, x AS timestamp, zeroblob(1000000) AS data FROM n',
    computed_column=_COPY + 'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, '
    'timestamp INTEGER, data BLOB AS (zeroblob(900000000)));'
    'INSERT INTO messages(topic_id, timestamp) VALUES (1, 1)',
    text_for_bytes="UPDATE messages SET data = 'hello'",
    text_for_time="UPDATE messages SET timestamp = 'now'",
    other_type="UPDATE topics SET type = 'std_msgs/msg/String'",
    other_bytes="UPDATE messages SET data = x'00010000ffffffff'",
    program_in_definition="UPDATE message_definitions SET encoded_message_definition = 'uint8 x = "
    + f'__import__("os").system("{COMMAND}")\'',
)


# -- detector folders


def changed_detector(folder: Path, good: Good, change: Callable[[Path], str]) -> Bad:
    shutil.copytree(good.detector, folder / 'detector')
    return Bad(folder / 'detector', change(folder / 'detector'), 'info')


_WEIGHTS = 'weights.safetensors'
cases(
    changed_detector,
    json_cut=_replace('detector.json', lambda data: data[: len(data) // 2]),
    json_deep=_replace('detector.json', lambda data: b'{"a":' * 100_000),
    json_pickle=_replace('detector.json', lambda data: PICKLES['system_0']()),
    weights_pickle=_replace(_WEIGHTS, lambda data: PICKLES['system_5']()),
    weights_cut=_replace(_WEIGHTS, lambda data: data[: len(data) // 2]),
    weights_length=_replace(_WEIGHTS, lambda data: b'\xff' * 7 + b'\x7f' + data[8:]),
)


# -- places


@case
def empty_folder(folder: Path, good: Good) -> Bad:
    (folder / 'nothing').mkdir()
    return Bad(folder / 'nothing', 'nothing')


@case
def pipe(folder: Path, good: Good) -> Bad:
    os.mkfifo(folder / 'run.mcap')
    return Bad(folder / 'run.mcap', 'run.mcap')


@case
def picture_renamed_to_db3(folder: Path, good: Good) -> Bad:
    return changed_db3(folder, good, lambda data: b'\x89PNG\r\n\x1a\n' + bytes(500))


@case
def dump_renamed_to_npz(folder: Path, good: Good) -> Bad:
    return npz(folder, good, sorted(good.dump.glob('*.pkl'))[0].read_bytes())


# -- good files


def make_good(folder: Path) -> Good:
    """Make one small good source of each kind."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    from safe_monitor_node.bands.band import Band
    from safe_monitor_node.calibrated_detector import CalibratedDetector
    from safe_monitor_node.detectors import make_detector
    from safe_training.recordings.untrusted.cdr import STEP, full_definition, step_to_cdr, type_hash
    from safe_training.recordings.write_bag import write_bag
    from vla_feature_bridge.pooling import FeatureSpec
    from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

    dump = folder / 'dump'
    dump.mkdir(parents=True)
    for name in ('task0--ep0--succ0', 'task0--ep1--succ1'):
        for suffix in ('csv', 'pkl'):
            shutil.copy(DATA / 'openvla_dump' / f'{name}.{suffix}', dump)
    spec = FeatureSpec('fea', 8)
    rng = np.random.default_rng(0)
    rollouts = [
        make_rollout(
            n,
            features=rng.normal(size=(2, 8)).astype(np.float32),
            task='task',
            success=bool(n % 2),
            episode_id=f'e{n}',
            feature_name='fea',
            actions=rng.normal(size=(2, 1, 2, 3)).astype(np.float32),
            stamps=np.arange(2) * 10**8 + 10**18 + n * 10**10,
        )
        for n in range(2)
    ]
    with RolloutSetWriter(folder / 'set', feature=spec) as writer:
        for rollout in rollouts:
            writer.add(rollout)
    write_bag(folder / 'run.mcap', rollouts, spec)
    write_bag(folder / 'run.bag', rollouts, spec)
    with Writer(folder / 'db3', version=9, storage_plugin=StoragePlugin.SQLITE3) as bag:
        connection = bag.add_connection(
            '/vla/policy_step', STEP, msgdef=full_definition(STEP), rihs01=type_hash(STEP)
        )
        for rollout in rollouts:
            for t in range(2):
                bag.write(connection, t, step_to_cdr(rollout.step(t)))
    band = Band(np.array([0.1]), np.full((1, 2), 1.0), 'functional_constant', 20)
    detector = make_detector('clock').fit(rollouts)
    CalibratedDetector(detector, spec, band, 0.1).save(folder / 'detector')
    return Good(
        dump,
        DATA / 'miniature_flow.npz',
        folder / 'set',
        folder / 'run.mcap',
        folder / 'run.bag',
        folder / 'db3' / 'db3.db3',
        folder / 'detector',
    )


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: hostile_corpus.py FOLDER')
    target = Path(sys.argv[1])
    examples = make_good(target / 'good')
    for title, make in CASES.items():
        (target / title).mkdir()
        print(title, make(target / title, examples).path)
