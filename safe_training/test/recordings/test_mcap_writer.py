# SPDX-License-Identifier: Apache-2.0
"""The mcap files of ``vla_feature_bridge``: read by rosbags and by our own reader, and checked."""

import io
import struct
import zlib

import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from safe_training.recordings.untrusted.bag import open_bag
from safe_training.recordings.untrusted.cdr import EVENT, STEP, full_definition, step_to_cdr
from vla_feature_bridge.mcap_writer import Channel, McapWriter
from vla_feature_bridge.step import PolicyStep

QOS = '[]'


def channel(topic, kind):
    return Channel(topic, kind, full_definition(kind), {'offered_qos_profiles': QOS})


def written(messages, metadata=None):
    stream = io.BytesIO()
    writer = McapWriter(stream, 'test')
    numbers = {kind: writer.add_channel(channel(f'/{kind}', kind)) for kind in (STEP, EVENT)}
    for kind, time, data in messages:
        writer.write(numbers[kind], time, time - 5, data)
    writer.add_metadata('rosbag2', {'serialized_metadata': ''})
    writer.add_metadata('facts', metadata or {'a': 'b'})
    writer.close()
    return stream.getvalue()


def steps(count, width=3):
    return [
        bytes(step_to_cdr(PolicyStep(np.full(width, t, np.float32), episode_id='e', step=t)))
        for t in range(count)
    ]


@pytest.mark.parametrize('width', [3, 100_000], ids=['one chunk', 'many chunks'])
def test_what_is_written_is_read_by_rosbags_and_by_us(tmp_path, width):
    data = steps(20, width)
    times = [10**18 + 7 * t for t in range(20)]
    times[3], times[4] = times[4], times[3]
    path = tmp_path / 'run.mcap'
    path.write_bytes(written([(STEP, *pair) for pair in zip(times, data, strict=True)]))
    with Reader(path) as reader:
        assert reader.message_count == 20
        assert (reader.start_time, reader.end_time) == (10**18, 10**18 + 7 * 19 + 1)
        assert {c.topic: c.msgcount for c in reader.connections} == {f'/{STEP}': 20, f'/{EVENT}': 0}
        assert {c.msgtype for c in reader.connections} == {STEP, EVENT}
        found = [(stamp, bytes(raw)) for _, stamp, raw in reader.messages()]
    assert found == sorted(zip(times, data, strict=True), key=lambda pair: pair[0])
    bag = open_bag(path)
    ours = [(message.time, bytes(message.data)) for message in bag.messages((STEP, EVENT))]
    assert ours == list(zip(times, data, strict=True))
    assert {topic.type for topic in bag.topics} == {STEP, EVENT}
    assert {topic.definition for topic in bag.topics} == {full_definition(k) for k in (STEP, EVENT)}


def test_a_file_without_messages_is_a_recording(tmp_path):
    path = tmp_path / 'run.mcap'
    path.write_bytes(written([]))
    with Reader(path) as reader:
        assert reader.message_count == 0
        assert len(reader.connections) == 2
    assert list(open_bag(path).messages((STEP,))) == []


def records(data):
    at = 0
    while at < len(data):
        code, length = struct.unpack_from('<BQ', data, at)
        yield at, code, data[at + 9 : at + 9 + length]
        at += 9 + length


def test_every_checksum_and_every_place_is_right():
    data = written([(STEP, 10**18 + t, raw) for t, raw in enumerate(steps(9, 100_000))])
    magic = b'\x89MCAP0\r\n'
    assert data.startswith(magic)
    assert data.endswith(magic)
    found = [(at + 8, code, body) for at, code, body in records(data[8:-8])]
    place = {at: code for at, code, _ in found}
    codes = [code for _, code, _ in found]
    assert codes[0] == 1
    assert codes[-1] == 2
    (end,) = (at for at, code, _ in found if code == 15)
    assert struct.unpack_from('<I', data, end + 9) == (zlib.crc32(data[:end]),)
    start, offsets, crc = struct.unpack('<QQI', found[-1][2])
    assert place[start] == 3
    assert place[offsets] == 14
    assert crc == zlib.crc32(data[start : found[-1][0] + 9 + 16])
    for _, code, body in found:
        if code == 14:
            group, at, length = struct.unpack('<BQQ', body)
            assert place[at] == group
            assert at + length in place
        elif code == 8:
            first, last, at, length = struct.unpack_from('<QQQQ', body)
            assert first <= last
            assert place[at] == 6
            assert place[at + length] == 7
        elif code == 6:
            size, crc = struct.unpack_from('<QI', body, 16)
            assert crc == zlib.crc32(body[-size:])
        elif code == 13:
            at, length = struct.unpack_from('<QQ', body)
            assert place[at] == 12
            assert at + length in place
    assert codes.count(6) == codes.count(8) > 1


def test_text_that_is_not_unicode_is_written():
    data = written([], {'episode': 'a\udc80\0b'})
    assert b'a?\x00b' in data
