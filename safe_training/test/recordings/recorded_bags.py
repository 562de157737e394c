# SPDX-License-Identifier: Apache-2.0
"""Recordings for tests: rollouts that hold everything, and bags as recorders write them."""

from pathlib import Path

import numpy as np
import pytest
from rollout_factory import make_rollout
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from safe_training.recordings.errors import DumpError
from safe_training.recordings.sources import open_source
from safe_training.recordings.untrusted import cdr as bag_messages
from safe_training.recordings.untrusted.cdr import EVENT, STEP, Event
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.rollout_set.writer import RolloutSetWriter

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
    'action_space',
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


def bag_rollout(number, dtype=np.float32, length=5, **changes):
    """Return a rollout with a value in every field that a recording can hold."""
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
        'action_space': 'robot',
    }
    return make_rollout(number, **settings | changes)


def write_set(path, rollouts, spec=SPEC):
    with RolloutSetWriter(path, feature=spec, policy='a-vla') as writer:
        for rollout in rollouts:
            writer.add(rollout)
    return RolloutSet.open(path)


def read(path, **options):
    return list(open_source(path, **options).rollouts())


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
            said = (events or default_events)(rollout)
            after = [pair for pair in said if pair[0] > int(rollout.stamps[-1])]
            for time, event in (pair for pair in said if pair not in after):
                writer.write(connections[1], time, bag_messages.event_to_cdr(event))
            for t in range(len(rollout)):
                time = int(rollout.stamps[t])
                writer.write(other, time, store.serialize_cdr(String('hello'), String.__msgtype__))
                if keep(rollout, t):
                    data = bag_messages.step_to_cdr(rollout.step(t))
                    writer.write(connections[0], time + 5, data)
            for time, event in after:
                writer.write(connections[1], time, bag_messages.event_to_cdr(event))
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


def refused(path, match, **options):
    with pytest.raises(DumpError, match=match) as caught:
        read(path, **options)
    assert Path(path).name in str(caught.value)
