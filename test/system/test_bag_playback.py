# SPDX-License-Identifier: Apache-2.0
"""Recordings over DDS: ours plays to a real monitor, and one made from topics reads the same.

``ros2 bag`` itself is not needed: playing is publishing the recorded bytes as they are, on the
topics, with the types and the QoS that the recording names; recording is writing down the bytes of
a raw subscription.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from probe import Probe
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Qos
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

import safe_msgs.msg
from safe_bringup.live import Process
from safe_monitor_node.storage.detector_folder import load_detector
from safe_training.recordings.sources import open_source
from safe_training.recordings.untrusted.cdr import EVENT, STEP, full_definition, type_hash
from safe_training.recordings.write_bag import write_bag
from vla_feature_bridge.rollout_set.reader import RolloutSet
from vla_feature_bridge.ros.qos import EPISODE_QOS, STEP_QOS

#: Steps per second while playing; the monitor needs far less than this for each.
PLAYED_RATE = 100.0


@pytest.fixture(scope='module')
def recording(rollouts: RolloutSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rollouts of both outcomes as a recording."""
    folder = tmp_path_factory.mktemp('played') / 'run.bag'
    chosen = [rollouts[i] for i in range(0, len(rollouts), len(rollouts) // 6)][:6]
    assert {r.failed for r in chosen} == {True, False}
    write_bag(folder, chosen, rollouts.feature, frequency=PLAYED_RATE, compression='zstd')
    return folder


def get_message(name: str) -> type:
    """Return the class of a message type of ours, such as ``safe_msgs/msg/PolicyStep``."""
    package, _, short = name.rpartition('/')
    assert package == 'safe_msgs/msg'
    return getattr(safe_msgs.msg, short)


def profile(offered: Qos) -> QoSProfile:
    return QoSProfile(
        depth=offered.depth,
        history=HistoryPolicy[offered.history.name],
        reliability=ReliabilityPolicy[offered.reliability.name],
        durability=DurabilityPolicy[offered.durability.name],
    )


def play(path: Path, probe: Probe, ready: Callable[[], bool]) -> None:
    """Publish a recording as ``ros2 bag play`` does: recorded bytes at recorded intervals."""
    with Reader(path) as reader:
        publishers = {
            connection.topic: probe.node.create_publisher(
                get_message(connection.msgtype),
                connection.topic,
                profile(connection.ext.offered_qos_profiles[0]),
            )
            for connection in reader.connections
        }
        probe.spin_until(
            lambda: ready() and all(p.get_subscription_count() >= 1 for p in publishers.values()),
            'somebody listens to every topic of the recording',
        )
        started, first = time.monotonic(), reader.start_time
        for connection, stamp, data in reader.messages():
            # Pauses between episodes are shortened; the order and the pace of steps are kept.
            due = started + (stamp - first) * 1e-9
            if due - time.monotonic() > 0.3:
                started -= due - time.monotonic() - 0.3
                due = started + (stamp - first) * 1e-9
            while (left := due - time.monotonic()) > 0:
                probe.executor.spin_once(timeout_sec=left)
            publishers[connection.topic].publish(bytes(data))


@pytest.mark.slow
def test_a_recording_plays_to_the_monitor_and_scores_as_offline(
    recording: Path, mlp_folder: Path, probe: Probe, run_monitor: Callable[..., Process]
) -> None:
    loaded = load_detector(mlp_folder)
    threshold = loaded.band.at(0.2)
    expected = list(open_source(recording).rollouts())
    run_monitor(detector_folder=mlp_folder)
    play(recording, probe, lambda: bool(probe.stops))
    total = sum(map(len, expected))
    probe.spin_until(lambda: len(probe.scores) >= total, 'every step is scored')

    assert len(probe.scores) == total
    alarms = 0
    for rollout in expected:
        answers = [m for m in probe.scores if m.episode_id == rollout.episode_id]
        assert [m.step for m in answers] == list(range(len(rollout)))
        offline = loaded.detector.score(rollout)
        np.testing.assert_allclose([m.score for m in answers], offline, rtol=0, atol=1e-5)
        first = next((m.step for m in answers if m.alarm), None)
        assert first == threshold.first_crossing(offline), rollout.episode_id
        alarms += first is not None
        stamps = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in answers]
        # Without stamps in the set, steps are stamped with the time at which they are played.
        assert np.diff(stamps).tolist() == [round(1e9 / PLAYED_RATE)] * (len(rollout) - 1)
    assert 0 < alarms < len(expected)


def test_recording_topics_gives_back_what_was_played(
    recording: Path, probe: Probe, tmp_path: Path
) -> None:
    """A recorder that writes down raw messages, as ``ros2 bag record`` does, loses nothing."""
    kept: list[tuple[str, int, bytes]] = []
    topics = {'/vla/policy_step': (STEP, STEP_QOS), '/vla/episode': (EVENT, EPISODE_QOS)}

    def keep(topic: str) -> Callable[[bytes], None]:
        return lambda data: kept.append((topic, time.time_ns(), bytes(data)))

    subscriptions = [
        probe.node.create_subscription(get_message(kind), topic, keep(topic), qos, raw=True)
        for topic, (kind, qos) in topics.items()
    ]
    with Reader(recording) as reader:
        total = reader.message_count
    play(recording, probe, lambda: True)
    probe.spin_until(lambda: len(kept) >= total, 'everything is recorded')
    for subscription in subscriptions:
        probe.node.destroy_subscription(subscription)

    with Writer(tmp_path / 'again', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            topic: writer.add_connection(
                topic, kind, msgdef=full_definition(kind), rihs01=type_hash(kind)
            )
            for topic, (kind, _) in topics.items()
        }
        for topic, now, data in kept:
            writer.write(connections[topic], now, data)
    found = {r.episode_id: r for r in open_source(tmp_path / 'again').rollouts()}
    expected = list(open_source(recording).rollouts())
    assert list(found) == [r.episode_id for r in expected]
    for rollout in expected:
        again = found[rollout.episode_id]
        assert (again.task, again.success) == (rollout.task, rollout.success)
        assert again.features.dtype == rollout.features.dtype
        assert again.features.tobytes() == rollout.features.tobytes()
        assert again.actions.tobytes() == rollout.actions.tobytes()
        assert again.stamps is not None
        assert np.diff(again.stamps).tolist() == [round(1e9 / PLAYED_RATE)] * (len(again) - 1)
