# SPDX-License-Identifier: Apache-2.0
"""What we write reads back identically, and is a recording to others."""

import dataclasses
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from recorded_bags import (
    END,
    LABEL,
    SPEC,
    START,
    assert_identical,
    bag_rollout,
    read,
    write_set,
)
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from shared_files import DATA, TOP

from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import open_source
from safe_training.recordings.untrusted import cdr as bag_messages
from safe_training.recordings.untrusted.cdr import EVENT, STEP, Event
from safe_training.recordings.write_bag import LEAD, recorded_times, write_bag
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import PolicyStep


@pytest.mark.parametrize('name', ['run.mcap', 'run.bag'])
@pytest.mark.parametrize('compression', ['none', 'zstd'])
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'float64', 'bfloat16'])
def test_set_to_recording_to_set_is_identical(tmp_path, name, compression, dtype):
    kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype
    original = write_set(tmp_path / 'set', [bag_rollout(n, kind) for n in range(6)])
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
    rollout = bag_rollout(0, features=raw, feature_name=str(spec))
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


def test_another_reader_finds_topics_qos_definitions_and_times(tmp_path):
    rollouts = [bag_rollout(n) for n in range(3)]
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


@pytest.mark.ros
def test_offered_qos_is_that_of_the_nodes(tmp_path):
    from vla_feature_bridge.ros import qos as nodes

    write_bag(tmp_path / 'run.bag', [bag_rollout(0)], SPEC)
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
    rollouts = [bag_rollout(n, stamps=np.arange(5) * 10**8 + 3) for n in range(3)]
    write_bag(tmp_path / 'run.mcap', rollouts, SPEC)
    for one, other in zip(read(tmp_path / 'run.mcap'), rollouts, strict=True):
        assert_identical(one, other)


@pytest.mark.ros
def test_ros_reads_our_bytes_and_we_its():
    from rclpy import serialization

    from safe_msgs.msg import EpisodeEvent, PolicyStep
    from vla_feature_bridge.ros.messages import step_to_message

    step = bag_rollout(1, ml_dtypes.bfloat16).step(2)
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
def test_definitions_are_those_of_safe_msgs(name):
    theirs = (TOP / 'safe_msgs' / 'msg' / f'{name}.msg').read_text()
    assert bag_messages.own_definition(f'safe_msgs/msg/{name}') == theirs


@pytest.mark.ros
@pytest.mark.parametrize('name', [STEP, EVENT])
def test_type_hashes_are_those_of_ros(name):
    from ament_index_python import get_package_share_directory

    share = Path(get_package_share_directory('safe_msgs'))
    described = json.loads((share / 'msg' / f'{name.rpartition("/")[2]}.json').read_text())
    hashes = {entry['type_name']: entry['hash_string'] for entry in described['type_hashes']}
    assert bag_messages.type_hash(name) == hashes[name]


def test_destination_is_never_half_written(tmp_path):
    def broken():
        yield bag_rollout(0)
        raise RuntimeError('stop')

    for name in ('run.mcap', 'run.bag'):
        with pytest.raises(RuntimeError):
            write_bag(tmp_path / 'new' / name, broken(), SPEC)
        with pytest.raises(DumpError, match='at least one rollout'):
            write_bag(tmp_path / 'new' / name, [], SPEC)
        with pytest.raises(DumpError, match=r'whose seconds fit 32 bits, found 46.* ns'):
            far = bag_rollout(0, stamps=np.arange(5) + 2**62)
            write_bag(tmp_path / 'new' / name, [far], SPEC)
        with pytest.raises(DumpError, match='twice'):
            write_bag(tmp_path / 'new' / name, [bag_rollout(0)] * 2, SPEC)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['run.mcap', 'run.bag'])
def test_only_a_recording_is_overwritten(tmp_path, name):
    place = tmp_path / name
    write_bag(place, [bag_rollout(0)], SPEC)
    with pytest.raises(DumpError, match='a name that is free, found a file or folder'):
        write_bag(place, [bag_rollout(1)], SPEC)
    write_bag(place, [bag_rollout(1)], SPEC, overwrite=True)
    assert [r.episode_id for r in read(place)] == ['lauf/ü1']
    other = tmp_path / f'other{place.suffix}'
    other.write_text('my notes')
    with pytest.raises(DumpError, match='--overwrite replaces only recordings'):
        write_bag(other, [bag_rollout(1)], SPEC, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted([name, other.name])


def test_labels_of_an_earlier_recording_are_not_taken_over(tmp_path):
    (tmp_path / 'run.mcap.labels.csv').write_text('episode_id,outcome\n')
    with pytest.raises(DumpError, match=r'no label file beside the new recording run\.mcap'):
        write_bag(tmp_path / 'run.mcap', [bag_rollout(0)], SPEC)


def test_step_of_zero_width_is_refused_or_read(tmp_path):
    spec = FeatureSpec('none', 0)
    rollout = bag_rollout(0, features=np.zeros((5, 0), np.float32), feature_name='none')
    write_bag(tmp_path / 'none.mcap', [rollout], spec)
    (found,) = read(tmp_path / 'none.mcap')
    assert_identical(found, rollout)


def test_policy_step_is_unchanged_by_packing():
    step = PolicyStep(np.arange(16, dtype=np.float32), 'f', 5, 'e', 3)
    found = bag_messages.step_from_cdr(bag_messages.step_to_cdr(step))
    assert (found.stamp, found.episode_id, found.step, found.actions) == (5, 'e', 3, None)
    np.testing.assert_array_equal(found.features, step.features)


@pytest.mark.parametrize('stamped', [True, False])
def test_a_recording_starts_before_its_first_message(tmp_path, stamped):
    """A player starts its clock at the start and has its publishers before."""
    rollout = bag_rollout(0)
    if not stamped:
        rollout = dataclasses.replace(rollout, stamps=None)
    write_bag(tmp_path / 'run.bag', [rollout], SPEC)
    with Reader(tmp_path / 'run.bag') as reader:
        first = min(time for _, time, _ in reader.messages())
        last = max(time for _, time, _ in reader.messages())
        assert first - reader.start_time == LEAD
        assert reader.start_time > 0
        assert reader.duration == last - reader.start_time + 1
