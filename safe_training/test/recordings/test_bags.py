# SPDX-License-Identifier: Apache-2.0
"""Recordings: what we write reads back identically, and what recorders write reads the same."""

import json
import os
import shutil
import sqlite3
import zlib
from pathlib import Path

import lz4.frame
import ml_dtypes
import numpy as np
import pytest
from backports import zstd
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import labels_file
from safe_training.recordings.sources import open_source
from safe_training.recordings.untrusted import cdr as bag_messages
from safe_training.recordings.untrusted.cdr import EVENT, STEP, Event
from safe_training.recordings.write_bag import recorded_times, write_bag
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter
from vla_feature_bridge.step import PolicyStep

ROOT = Path(__file__).parents[3]
DATA = ROOT / 'test' / 'data'
SPEC = FeatureSpec('hidden_states', 16, ('token',), (('token', 'last'),))
START, END, LABEL = bag_messages.KIND_START, bag_messages.KIND_END, bag_messages.KIND_LABEL

SCALARS = (
    'task',
    'success',
    'episode_id',
    'task_id',
    'episode_index',
    'instruction',
    'policy',
    'feature_name',
    'exec_horizon',
    'failure_step',
    'video',
)
ARRAYS = ('features', 'actions', 'token_probability', 'token_entropy', 'stamps', 'inference_time')


def assert_identical(found: Rollout, expected: Rollout):
    for name in SCALARS:
        assert getattr(found, name) == getattr(expected, name), name
    for name in ARRAYS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert (one.dtype, one.shape) == (other.dtype, other.shape), name
            assert one.tobytes() == other.tobytes(), name
    assert list(found.signals) == list(expected.signals)
    for name, values in expected.signals.items():
        assert found.signals[name].dtype == values.dtype
        np.testing.assert_array_equal(found.signals[name], values)


def make_rollout(number, dtype=np.float32, length=5, **changes):
    rng = np.random.default_rng(number)
    tokens = rng.random((length, 4), np.float32)
    tokens[1, 2:] = np.nan
    settings = {
        'features': rng.normal(size=(length, 16)).astype(dtype),
        'task': f'task {number % 2}',
        'success': [True, False, None][number % 3],
        'episode_id': f'lauf/ü{number}',
        'task_id': 7 + number % 2,
        'episode_index': 100 - number,
        'instruction': 'put the “mug” away',
        'policy': 'a-vla',
        'feature_name': str(SPEC),
        'actions': rng.normal(size=(length, 2, 3, 7)),
        'exec_horizon': 2,
        'token_probability': tokens,
        'token_entropy': tokens * 2,
        'signals': {'chunk_mse': np.r_[np.float32(np.nan), tokens[1:, 0]], 'b': tokens[:, 1]},
        'stamps': 1_700_000_000_123_456_789 + 10**10 * number + np.arange(length) * 100_000_007,
        'inference_time': rng.random(length, np.float32),
        'failure_step': 3 if number % 3 == 1 else None,
        'video': f'videos/{number}.mp4',
    }
    return Rollout(**settings | changes)


def write_set(path, rollouts, spec=SPEC):
    with RolloutSetWriter(path, feature=spec, policy='a-vla') as writer:
        for rollout in rollouts:
            writer.add(rollout)
    return RolloutSet.open(path)


def read(path, **options):
    return list(open_source(path, **options).rollouts())


# -- round trip


@pytest.mark.parametrize('name', ['run.mcap', 'run.bag'])
@pytest.mark.parametrize('compression', ['none', 'zstd'])
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'float64', 'bfloat16'])
def test_set_to_recording_to_set_is_identical(tmp_path, name, compression, dtype):
    kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype
    original = write_set(tmp_path / 'set', [make_rollout(n, kind) for n in range(6)])
    counts = write_bag(tmp_path / name, original, original.feature, compression=compression)
    assert counts == (6, 30)

    source = open_source(tmp_path / name)
    again = write_set(tmp_path / 'again', source.rollouts(), source.feature)

    assert source.feature == original.feature
    assert source.policy == 'a-vla'
    assert source.unlabelled == ['lauf/ü2', 'lauf/ü5']
    assert again.feature == original.feature
    for one, other in zip(again, original, strict=True):
        assert_identical(one, other)


def test_dump_to_recording_and_back_is_identical(tmp_path):
    source = open_source(DATA / 'openvla_dump')
    rollouts = list(source.rollouts())
    write_bag(tmp_path / 'dump.mcap', rollouts, source.feature)
    for one, other in zip(read(tmp_path / 'dump.mcap'), rollouts, strict=True):
        assert_identical(one, other)


def test_raw_features_keep_their_axes(tmp_path):
    spec = FeatureSpec('pre_velocity', 6, ('denoise', 'horizon'))
    raw = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float16)
    rollout = make_rollout(0, features=raw, feature_name=str(spec))
    write_bag(tmp_path / 'raw.mcap', [rollout], spec)

    (kept,) = read(tmp_path / 'raw.mcap', keep='raw')
    assert_identical(kept, rollout)
    pooling = (('horizon', 'mean'), ('denoise', 'last'))
    source = open_source(tmp_path / 'raw.mcap', pooling=pooling)
    assert source.raw_axes == ('denoise', 'horizon')
    (pooled,) = source.rollouts()
    expected = FeatureSpec('pre_velocity', 6, ('denoise', 'horizon'), pooling).apply(raw)
    np.testing.assert_array_equal(pooled.features, expected)
    assert str(source.feature) == 'pre_velocity[horizon=mean,denoise=last]'


def test_least_rollout(tmp_path):
    rollout = Rollout(np.ones((1, 16), np.float32), 'a task', feature_name=str(SPEC))
    write_bag(tmp_path / 'least.mcap', [rollout], SPEC)
    (found,) = read(tmp_path / 'least.mcap')
    assert_identical(found, rollout)


# -- what is written is a recording


def test_another_reader_finds_topics_qos_definitions_and_times(tmp_path):
    rollouts = [make_rollout(n) for n in range(3)]
    write_bag(tmp_path / 'run.bag', rollouts, SPEC)
    ours = get_typestore(Stores.ROS2_JAZZY)
    with Reader(tmp_path / 'run.bag') as reader:
        topics = {c.topic: c for c in reader.connections}
        assert {name: (c.msgtype, c.msgcount) for name, c in topics.items()} == {
            '/vla/policy_step': (STEP, 15),
            '/vla/episode': (EVENT, 6),
        }
        for connection in topics.values():
            types = get_types_from_msg(connection.msgdef.data, connection.msgtype)
            ours.register({k: v for k, v in types.items() if k not in ours.fielddefs})
            assert connection.digest == ours.hash_rihs01(connection.msgtype)
        times = [t for c, t, _ in reader.messages([topics['/vla/policy_step']])]
        messages = [
            ours.deserialize_cdr(data, c.msgtype)
            for c, _, data in reader.messages([topics['/vla/policy_step']])
        ]
        events = [
            (t, ours.deserialize_cdr(data, EVENT))
            for _, t, data in reader.messages([topics['/vla/episode']])
        ]
    assert times == [int(s) for r in rollouts for s in r.stamps]
    assert [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in messages] == times
    assert [e.kind for _, e in events] == [START, END] * 3
    assert [e.outcome for _, e in events] == [0, 1, 0, 2, 0, 0]
    assert [e.reason for _, e in events] == ['converted from a rollout set'] * 6
    for number in range(3):
        steps = times[5 * number : 5 * number + 5]
        assert events[2 * number][0] < steps[0] <= steps[-1] < events[2 * number + 1][0]


def test_offered_qos_is_that_of_the_nodes(tmp_path):
    nodes = pytest.importorskip('vla_feature_bridge.ros.qos')
    write_bag(tmp_path / 'run.bag', [make_rollout(0)], SPEC)
    with Reader(tmp_path / 'run.bag') as reader:
        offered = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
    for topic, profile in (
        ('/vla/policy_step', nodes.STEP_QOS),
        ('/vla/episode', nodes.EPISODE_QOS),
    ):
        assert offered[topic].depth == profile.depth
        for name in ('history', 'reliability', 'durability'):
            assert getattr(offered[topic], name).name == getattr(profile, name).name


def test_episodes_that_overlap_in_time_are_played_one_after_the_other():
    first = np.array([0, 100, 50, 300], np.int64)
    stamps, times = recorded_times(first, 4, 10.0, free=1_000_000_000)
    assert stamps is first
    assert times.tolist() == [1_000_000_000, 1_000_000_100, 1_000_000_100, 1_000_000_300]
    _, later = recorded_times(np.array([5, 6]), 2, 10.0, free=times[-1] + 10)
    assert later.tolist() == [times[-1] + 10, times[-1] + 11]


def test_rollouts_without_stamps_are_played_at_the_rate():
    stamps, times = recorded_times(None, 3, 4.0, free=5)
    assert times.tolist() == stamps.tolist() == [5, 250_000_005, 500_000_005]


def test_overlapping_stamps_read_back_exactly(tmp_path):
    rollouts = [make_rollout(n, stamps=np.arange(5) * 10**8 + 3) for n in range(3)]
    write_bag(tmp_path / 'run.mcap', rollouts, SPEC)
    for one, other in zip(read(tmp_path / 'run.mcap'), rollouts, strict=True):
        assert_identical(one, other)


# -- messages


def test_ros_reads_our_bytes_and_we_its():
    serialization = pytest.importorskip('rclpy.serialization')
    from safe_msgs.msg import EpisodeEvent, PolicyStep
    from vla_feature_bridge.ros.messages import step_to_message

    step = make_rollout(1, ml_dtypes.bfloat16).step(2)
    step.stamp = -1
    message = step_to_message(step)
    ours = bytes(bag_messages.step_to_cdr(step))
    theirs = serialization.serialize_message(message)
    assert serialization.deserialize_message(ours, PolicyStep) == message
    # Bytes between the fields mean nothing, and ROS 2 leaves in them what was there.
    assert len(ours) == len(theirs)
    assert bytes(bag_messages.step_to_cdr(bag_messages.step_from_cdr(theirs))) == ours

    event = Event('e', LABEL, False, 'täsk', 'do', 'why', 1_500_000_000)
    message = EpisodeEvent(
        episode_id='e', task='täsk', instruction='do', kind=LABEL, outcome=2, reason='why'
    )
    message.header.stamp.sec, message.header.stamp.nanosec = 1, 500_000_000
    ours = bytes(bag_messages.event_to_cdr(event))
    assert serialization.deserialize_message(ours, EpisodeEvent) == message
    assert bag_messages.event_from_cdr(serialization.serialize_message(message)) == event


@pytest.mark.parametrize('name', ['Tensor', 'PolicyStep', 'EpisodeEvent'])
def test_a_clone_without_a_build_has_definitions(name, monkeypatch):
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    folders = bag_messages._definition_folders()[1:]  # the first holds the copies of a build
    monkeypatch.setattr(bag_messages, '_definition_folders', lambda: folders)
    assert folders == [ROOT / 'safe_msgs' / 'msg']
    assert bag_messages.own_definition(f'safe_msgs/msg/{name}')


@pytest.mark.parametrize('name', ['Tensor', 'PolicyStep', 'EpisodeEvent'])
def test_definitions_are_those_of_safe_msgs(name):
    theirs = (ROOT / 'safe_msgs' / 'msg' / f'{name}.msg').read_text()
    assert bag_messages.own_definition(f'safe_msgs/msg/{name}') == theirs


@pytest.mark.parametrize('name', [STEP, EVENT])
def test_type_hashes_are_those_of_ros(name):
    ament = pytest.importorskip('ament_index_python')
    share = Path(ament.get_package_share_directory('safe_msgs'))
    described = json.loads((share / 'msg' / f'{name.rpartition("/")[2]}.json').read_text())
    hashes = {entry['type_name']: entry['hash_string'] for entry in described['type_hashes']}
    assert bag_messages.type_hash(name) == hashes[name]


# -- what recorders write

QOS = Qos(
    QosHistory.KEEP_LAST,
    10,
    QosReliability.RELIABLE,
    QosDurability.VOLATILE,
    *[QosTime(0, 0)] * 2,
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)


def record(
    folder,
    rollouts,
    storage=StoragePlugin.MCAP,
    compression=None,
    topics=('/vla/policy_step', '/vla/episode'),
    events=None,
    definitions=True,
    extra_steps=(),
    keep=lambda rollout, t: True,
):
    """Record as ros2 bag would: with other topics, and nothing that only our writer adds."""
    store = get_typestore(Stores.ROS2_JAZZY)
    writer = Writer(folder, version=9, storage_plugin=storage)
    if compression:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        text = {name: bag_messages.full_definition(name) for name in (STEP, EVENT)}
        other = writer.add_connection(
            '/chatter', 'std_msgs/msg/String', typestore=store, offered_qos_profiles=[QOS]
        )
        connections = [
            writer.add_connection(
                topic,
                name,
                msgdef=text[name] if definitions else '',
                rihs01=bag_messages.type_hash(name),
                offered_qos_profiles=[QOS],
            )
            for topic, name in zip(topics, (STEP, EVENT), strict=True)
        ]
        String = store.types['std_msgs/msg/String']
        for rollout in rollouts:
            for time, event in (events or default_events)(rollout):
                writer.write(connections[1], time, bag_messages.event_to_cdr(event))
            for t in range(len(rollout)):
                time = int(rollout.stamps[t])
                writer.write(other, time, store.serialize_cdr(String('hello'), String.__msgtype__))
                if keep(rollout, t):
                    data = bag_messages.step_to_cdr(rollout.step(t))
                    writer.write(connections[0], time + 5, data)
        for time, step in extra_steps:
            writer.write(connections[0], time, bag_messages.step_to_cdr(step))
    return folder


def default_events(rollout):
    about = {'task': rollout.task, 'instruction': rollout.instruction}
    begin, end = int(rollout.stamps[0]) - 9, int(rollout.stamps[-1]) + 9
    return [
        (begin, Event(rollout.episode_id, START, stamp=begin, **about)),
        (end, Event(rollout.episode_id, END, rollout.success, stamp=end, **about)),
    ]


def recorded(rollout, task_id, index):
    """What a recording can know of a rollout: no numbers, failure step or video."""
    rollout.task_id, rollout.episode_index = task_id, index
    rollout.failure_step, rollout.video = None, ''
    return rollout


def assert_recorded(path, **options):
    found = read(path, **options)
    assert len(found) == 6
    for number, rollout in enumerate(found):
        expected = recorded(make_rollout(number), number % 2, number // 2)
        assert_identical(rollout, expected)


@pytest.mark.parametrize('storage', list(StoragePlugin), ids=lambda s: s.name)
@pytest.mark.parametrize('definitions', [True, False])
def test_recording_with_other_topics(tmp_path, storage, definitions):
    rollouts = [make_rollout(n) for n in range(6)]
    assert_recorded(record(tmp_path / 'run', rollouts, storage, definitions=definitions))
    source = open_source(tmp_path / 'run')
    assert source.kind == 'rosbag2'
    assert source.why == 'holds metadata.yaml of rosbag2'
    assert source.feature == SPEC


@pytest.mark.parametrize(
    ('storage', 'mode'),
    [
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE),
        (StoragePlugin.MCAP, CompressionMode.FILE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
    ],
)
def test_compressed_recording(tmp_path, storage, mode):
    rollouts = [make_rollout(n) for n in range(6)]
    assert_recorded(record(tmp_path / 'run', rollouts, storage, mode))


def rebuilt(data, pack):
    """Write an mcap file anew without an index, its chunks packed by ``pack`` or (None) not."""
    out, at = data[:8], 8
    while data[at] != 0x0F:
        length = int.from_bytes(data[at + 1 : at + 9], 'little')
        body = data[at + 9 : at + 9 + length]
        if data[at] == 0x06:
            content = body[40:]
            if pack is None:
                out += content
            else:
                name, packed = pack(content)
                new = body[:24] + zlib.crc32(content).to_bytes(4, 'little')
                new += len(name).to_bytes(4, 'little') + name.encode()
                new += len(packed).to_bytes(8, 'little') + packed
                out += b'\x06' + len(new).to_bytes(8, 'little') + new
        elif data[at] != 0x07:
            out += data[at : at + 9 + length]
        at += 9 + length
    return out + b'\x02' + (20).to_bytes(8, 'little') + bytes(20) + data[:8]


@pytest.mark.parametrize(
    'pack',
    [
        None,
        lambda content: ('', content),
        lambda content: ('lz4', lz4.frame.compress(content)),
        lambda content: ('zstd', zstd.compress(content)),
    ],
    ids=['no chunks', 'plain', 'lz4', 'zstd'],
)
def test_mcap_without_an_index(tmp_path, pack):
    folder = record(tmp_path / 'run', [make_rollout(n) for n in range(6)])
    file = folder / 'run.mcap'
    file.write_bytes(rebuilt(file.read_bytes(), pack))
    assert_recorded(folder)
    assert_recorded(file)


def test_namespaced_topics(tmp_path):
    rollouts = [make_rollout(n) for n in range(6)]
    topics = ('/robot1/vla/policy_step', '/robot1/vla/episode')
    assert_recorded(record(tmp_path / 'run', rollouts, topics=topics))


@pytest.mark.parametrize('name', ['run.mcap', 'run.db3'])
def test_storage_file_alone(tmp_path, name):
    storage = StoragePlugin.MCAP if name.endswith('mcap') else StoragePlugin.SQLITE3
    rollouts = [make_rollout(n) for n in range(6)]
    folder = record(tmp_path / 'run', rollouts, storage)
    shutil.move(folder / name, tmp_path / name)
    assert_recorded(tmp_path / name)
    with pytest.raises(DumpError, match='this file of the recording, found none'):
        open_source(folder)
    shutil.move(tmp_path / name, tmp_path / 'without suffix')
    assert_recorded(tmp_path / 'without suffix')


def test_episode_across_the_files_of_a_split_recording(tmp_path):
    rollouts = [make_rollout(n) for n in range(6)]
    for part in (0, 1):
        record(
            tmp_path / f'run_{part}',
            rollouts,
            events=default_events if part else lambda r: [],
            keep=lambda r, t, part=part: (t < 3) == (part == 0),
        )
    whole = tmp_path / 'run'
    whole.mkdir()
    texts = []
    for part in (0, 1):
        shutil.move(tmp_path / f'run_{part}' / f'run_{part}.mcap', whole)
        texts.append((tmp_path / f'run_{part}' / 'metadata.yaml').read_text())
    joined = texts[1].replace('  - run_1.mcap', '  - run_0.mcap\n  - run_1.mcap')
    assert joined != texts[1]
    (whole / 'metadata.yaml').write_text(joined)
    assert_recorded(whole)


def test_interleaved_episodes(tmp_path):
    together = [make_rollout(n, stamps=10**18 + np.arange(5) * 10 + n) for n in range(4)]
    steps = [(int(r.stamps[t]), r.step(t)) for t in range(5) for r in together]
    record(tmp_path / 'run', together, keep=lambda r, t: False, extra_steps=steps)
    for one, other in zip(read(tmp_path / 'run'), together, strict=True):
        assert one.features.tobytes() == other.features.tobytes()
        assert one.episode_id == other.episode_id


def test_older_sqlite_tables(tmp_path):
    folder = record(tmp_path / 'run', [make_rollout(n) for n in range(6)], StoragePlugin.SQLITE3)
    with sqlite3.connect(folder / 'run.db3') as database:
        database.executescript(
            'DROP TABLE schema; DROP TABLE metadata; DROP TABLE message_definitions;'
            'ALTER TABLE topics DROP COLUMN type_description_hash;'
            'ALTER TABLE topics DROP COLUMN offered_qos_profiles;'
        )
    database.close()
    assert_recorded(folder)


# -- outcomes


def events_of(*said):
    def events(rollout):
        made = default_events(rollout)[:1]
        for number, (kind, success) in enumerate(said):
            made.append((int(rollout.stamps[-1]) + 10 + number, Event('e', kind, success)))
        return made

    return events


@pytest.mark.parametrize(
    ('said', 'expected'),
    [
        ([], None),
        ([(END, None)], None),
        ([(END, True)], True),
        ([(END, True), (LABEL, False)], False),
        ([(LABEL, False), (END, None)], False),
        ([(LABEL, False), (LABEL, True)], True),
        ([(END, True), (LABEL, None)], None),
        ([(START, True)], None),
    ],
)
def test_the_latest_outcome_counts(tmp_path, said, expected):
    rollout = make_rollout(0, episode_id='e')
    source = open_source(record(tmp_path / 'run', [rollout], events=events_of(*said)))
    assert [r.success for r in source.rollouts()] == [expected]
    assert source.unlabelled == (['e'] if expected is None else [])


def test_csv_beside_the_recording_counts_more(tmp_path):
    record(tmp_path / 'run', [make_rollout(n) for n in range(3)])
    labels_file(tmp_path / 'run').write_text(
        '\ufeffepisode_id,outcome,failure_step,who\n'
        'lauf/ü0,failure,4,me\nlauf/ü2,success,,me\nlauf/ü1,unknown,,me\n'
    )
    assert [(r.success, r.failure_step) for r in read(tmp_path / 'run')] == [
        (False, 4),
        (None, None),
        (True, None),
    ]


def test_events_of_episodes_that_were_not_recorded_are_normal(tmp_path):
    def events(rollout):
        return [(1, Event('an earlier one', END, True)), *default_events(rollout)]

    found = read(record(tmp_path / 'run', [make_rollout(0)], events=events))
    assert [r.episode_id for r in found] == ['lauf/ü0']


def test_without_events_the_instruction_is_the_task(tmp_path):
    (found,) = read(record(tmp_path / 'run', [make_rollout(0)], events=lambda r: []))
    assert (found.task, found.success) == ('put the “mug” away', None)


# -- what is refused


def refused(path, match, **options):
    with pytest.raises(DumpError, match=match) as caught:
        read(path, **options)
    assert Path(path).name in str(caught.value)


def test_late_beginning_and_lost_steps(tmp_path):
    rollouts = [make_rollout(n) for n in range(3)]
    record(tmp_path / 'late', rollouts, keep=lambda r, t: r is not rollouts[1] or t > 0)
    refused(tmp_path / 'late', 'all steps from 0 to 4, found 4, without 0')
    source = open_source(tmp_path / 'late', skip_bad=True)
    assert [r.episode_id for r in source.rollouts()] == ['lauf/ü0', 'lauf/ü2']
    assert len(source.skipped) == 1
    assert len(source) == 3


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({'features': np.full(16, np.nan, np.float32)}, 'finite features'),
        ({'features': np.zeros(16, np.float16)}, 'one float dtype'),
        ({'features': np.zeros(16, np.int32)}, 'one float dtype'),
        ({'features': np.zeros(17, np.float32)}, 'width 16 at every step'),
        ({'feature_name': 'other'}, "found 'other'"),
        ({'actions': None}, 'one shape and dtype'),
        ({'actions': np.full((2, 3, 7), np.inf)}, 'finite actions'),
        ({'exec_horizon': 3}, 'one exec_horizon'),
        ({'step': 1}, 'step 1 twice'),
        ({'episode_id': ''}, 'expected an episode_id'),
    ],
)
def test_one_bad_step(tmp_path, change, match):
    good = [make_rollout(n) for n in range(2)]
    bad = good[1].step(3)
    for name, value in change.items():
        setattr(bad, name, value)
    record(
        tmp_path / 'run',
        good,
        keep=lambda r, t: r is good[0] or t != 3,
        extra_steps=[(int(good[1].stamps[-1]), bad)],
    )
    refused(tmp_path / 'run', match)
    found = read(tmp_path / 'run', skip_bad=True)
    assert [r.episode_id for r in found] == ['lauf/ü0']


def test_steps_so_unlike_that_a_table_of_them_would_be_huge(tmp_path):
    rollout = make_rollout(0, length=40)
    odd = rollout.step(39)
    odd.token_entropy = np.zeros(200_000, np.float32)
    record(tmp_path / 'run', [rollout], keep=lambda r, t: t < 39, extra_steps=[(10**18, odd)])
    refused(tmp_path / 'run', 'similar number of tokens')


def test_another_version_of_the_messages(tmp_path, monkeypatch):
    text = bag_messages.full_definition(STEP)
    monkeypatch.setattr(
        bag_messages,
        'full_definition',
        lambda name: text.replace('uint32 step ', 'uint64 step ') if name == STEP else '',
    )
    record(tmp_path / 'run', [make_rollout(0)])
    refused(tmp_path / 'run', 'another definition of safe_msgs/msg/PolicyStep')


def test_definition_is_compared_and_never_made_into_code(tmp_path, monkeypatch):
    marker = tmp_path / 'executed'
    evil = f'uint8 x\nuint8 y = __import__("pathlib").Path({str(marker)!r}).touch()\n'
    monkeypatch.setattr(bag_messages, 'full_definition', lambda name: evil)
    record(tmp_path / 'run', [make_rollout(0)])
    refused(tmp_path / 'run', 'definition of safe_msgs/msg/')
    assert not marker.exists()


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('', 'an empty file'),
        ('episode_id\nlauf/ü0\n', 'expected a header with the columns'),
        ('episode_id,outcome\nlauf/ü0\n', 'line 2: expected 2 values'),
        ('episode_id,outcome\nlauf/ü0,good\n', "line 2.*found 'good'"),
        ('episode_id,outcome\nlauf/ü0,success\nlauf/ü0,failure\n', 'line 3.*two'),
        ('episode_id,outcome\nanother,success\n', "found 'another'"),
        ('episode_id,outcome,failure_step\nlauf/ü0,failure,5\n', 'from 0 to 4, found 5'),
        ('episode_id,outcome,failure_step\nlauf/ü0,failure,-1\n', "found '-1'"),
        (
            'episode_id,outcome,failure_step\nlauf/ü0,success,1\n',
            "no failure_step, because the outcome is 'success', found 1",
        ),
        ('episode_id,outcome\n"lauf/ü0,success\n', 'expected a csv'),
    ],
)
def test_bad_csv(tmp_path, text, match):
    record(tmp_path / 'run', [make_rollout(0)])
    labels_file(tmp_path / 'run').write_text(text)
    with pytest.raises(DumpError, match=match) as caught:
        read(tmp_path / 'run')
    assert 'run.labels.csv' in str(caught.value)


# -- the destination


def test_destination_is_never_half_written(tmp_path):
    def broken():
        yield make_rollout(0)
        raise RuntimeError('stop')

    for name in ('run.mcap', 'run.bag'):
        with pytest.raises(RuntimeError):
            write_bag(tmp_path / 'new' / name, broken(), SPEC)
        with pytest.raises(DumpError, match='at least one rollout'):
            write_bag(tmp_path / 'new' / name, [], SPEC)
        with pytest.raises(DumpError, match='32 bits of seconds'):
            far = make_rollout(0, stamps=np.arange(5) + 2**62)
            write_bag(tmp_path / 'new' / name, [far], SPEC)
        with pytest.raises(DumpError, match='twice'):
            write_bag(tmp_path / 'new' / name, [make_rollout(0)] * 2, SPEC)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['run.mcap', 'run.bag'])
def test_only_a_recording_is_overwritten(tmp_path, name):
    place = tmp_path / name
    write_bag(place, [make_rollout(0)], SPEC)
    with pytest.raises(DumpError, match='a name that is free'):
        write_bag(place, [make_rollout(1)], SPEC)
    write_bag(place, [make_rollout(1)], SPEC, overwrite=True)
    assert [r.episode_id for r in read(place)] == ['lauf/ü1']
    other = tmp_path / f'other{place.suffix}'
    other.write_text('my notes')
    with pytest.raises(DumpError, match='a recording to overwrite'):
        write_bag(other, [make_rollout(1)], SPEC, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted([name, other.name])


def test_labels_of_an_earlier_recording_are_not_taken_over(tmp_path):
    (tmp_path / 'run.mcap.labels.csv').write_text('episode_id,outcome\n')
    with pytest.raises(DumpError, match='no labels yet'):
        write_bag(tmp_path / 'run.mcap', [make_rollout(0)], SPEC)


def test_step_of_zero_width_is_refused_or_read(tmp_path):
    spec = FeatureSpec('none', 0)
    rollout = make_rollout(0, features=np.zeros((5, 0), np.float32), feature_name='none')
    write_bag(tmp_path / 'none.mcap', [rollout], spec)
    (found,) = read(tmp_path / 'none.mcap')
    assert_identical(found, rollout)


def test_policy_step_is_unchanged_by_packing():
    step = PolicyStep(np.arange(16, dtype=np.float32), 'f', 5, 'e', 3)
    found = bag_messages.step_from_cdr(bag_messages.step_to_cdr(step))
    assert (found.stamp, found.episode_id, found.step, found.actions) == (5, 'e', 3, None)
    np.testing.assert_array_equal(found.features, step.features)
