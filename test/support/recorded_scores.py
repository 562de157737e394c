# SPDX-License-Identifier: Apache-2.0
"""Recordings of what a monitor published, written without ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer

from safe_training.recordings.untrusted.cdr import SCORE, _typestore, full_definition, type_hash
from safe_training.recordings.untrusted.score_cdr import RecordedScore


def make_score(
    episode: str,
    step: int,
    score: float = 0.5,
    *,
    threshold: float = 2.0,
    alarm: bool = False,
) -> RecordedScore:
    """Return a score whose numbers float32 holds exactly, unless others are given."""
    return RecordedScore(episode, step, 'd', score, threshold, alarm, 3 if alarm else 1)


def score_to_cdr(score: RecordedScore) -> bytes:
    """Return the bytes of a score, the same as in ROS 2."""
    types = _typestore().types
    header = types['std_msgs/msg/Header'](
        stamp=types['builtin_interfaces/msg/Time'](sec=1, nanosec=0), frame_id=''
    )
    message = types[SCORE](
        header=header,
        **score._asdict(),
        margin=score.score - score.threshold,
        probability=0.0,
        latency=0.0,
    )
    return bytes(_typestore().serialize_cdr(message, SCORE))


def write_scores(
    folder: Path, topics: Mapping[str, Sequence[RecordedScore]], definition: str = ''
) -> None:
    """Write a recording with the scores of some topics."""
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        now = 10**9
        for topic, scores in topics.items():
            connection = writer.add_connection(
                topic,
                SCORE,
                msgdef=definition or full_definition(SCORE),
                rihs01=type_hash(SCORE),
            )
            for score in scores:
                now += 1
                writer.write(connection, now, score_to_cdr(score))
