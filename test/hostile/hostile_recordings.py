# SPDX-License-Identifier: Apache-2.0
"""Hostile recordings of ROS 2: MCAP files, folders of rosbag2, its SQLite files."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.frame
from backports import zstd
from hostile_cases import COMMAND, Bad, Good, case, cases
from hostile_pickles import PICKLES


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
        'action_space': string(b''),
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
