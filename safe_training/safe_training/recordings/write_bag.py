# SPDX-License-Identifier: Apache-2.0
"""Writes rollouts as a rosbag2 recording (mcap) that ``ros2 bag play`` plays and ``convert`` reads.

Steps keep their stamps to the nanosecond. The recording time of a step is equal to its stamp.
Exception: if an episode begins before the previous episode has ended, or in the first seconds of
the time scale, the recording times of the whole episode are shifted to later times. A recording in
a folder starts some seconds before its first message, so that ``ros2 bag play`` finds its
subscribers before the first message. Data that messages cannot contain (task and episode numbers,
failure step, video, pooling of the features) is stored in the ``custom_data`` of the metadata.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from safe_training.recordings.errors import DumpError
from safe_training.recordings.label_files import label_files
from safe_training.recordings.readers.base import EpisodeProgress, EpisodeSource, Source
from safe_training.recordings.readers.rosbag2_episodes import CONVERTED, CUSTOM_KEY, CUSTOM_VERSION
from safe_training.recordings.sources import no_rollouts, read_rollouts
from safe_training.recordings.untrusted.bag import METADATA, detect_bag
from safe_training.recordings.untrusted.bag_budget import MCAP_MAGIC
from safe_training.recordings.untrusted.cdr import (
    EVENT,
    KIND_END,
    KIND_START,
    STEP,
    BagMessageError,
    Event,
    event_to_cdr,
    full_definition,
    step_to_cdr,
    type_hash,
)
from vla_feature_bridge.atomic import replaced_file, replaced_folder
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout
from vla_feature_bridge.step import STEP_FIELDS

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Writer


STEP_TOPIC = '/vla/policy_step'
EVENT_TOPIC = '/vla/episode'

#: Depths of the topics, as in vla_feature_bridge.ros.qos.
STEP_DEPTH, EVENT_DEPTH = 100, 100

_SECOND = 1_000_000_000
LEAD = 3 * _SECOND
"""Time from the start of a recording to its first message [ns]."""

#: Time zero means "no time" to a ROS 2 clock, and the recording starts before its first message.
_FIRST_TIME = _SECOND + LEAD
_BETWEEN_EPISODES = _SECOND
_BEFORE_FIRST_STEP = 1_000_000
#: Value that rosbag2 writes for a duration that is not set.
_FOREVER = (9223372036, 854775807)


class NothingToWrite(DumpError):
    """There is no rollout to write."""


def is_bag_destination(path: str | os.PathLike[str]) -> bool:
    """Return True if the name ends in ``.mcap`` (file) or ``.bag`` (folder)."""
    return Path(path).suffix in ('.mcap', '.bag')


def convert_to_bag(
    source: Source,
    destination: str | os.PathLike[str],
    frequency: float,
    compression: Literal['none', 'zstd'],
    overwrite: bool,
    progress: EpisodeProgress | None,
) -> tuple[int, int]:
    """Write all rollouts of a source and return the result of :func:`write_bag`."""
    if isinstance(source, EpisodeSource):
        source.refuse_early()
    try:
        return write_bag(
            destination,
            read_rollouts(source, progress),
            source.feature,
            frequency,
            compression,
            overwrite,
        )
    except NothingToWrite as error:
        raise no_rollouts(source) from error


def write_bag(
    destination: str | os.PathLike[str],
    rollouts: Iterable[Rollout],
    feature: FeatureSpec,
    frequency: float = 10.0,
    compression: Literal['none', 'zstd'] = 'none',
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write a recording, one rollout in memory at a time.

    Parameters
    ----------
    destination : path
        One file if it ends in ``.mcap``, otherwise a folder with ``metadata.yaml``.
    frequency : float
        Inferences per second of rollouts without stamps [Hz].
    compression : 'none' or 'zstd'
        Compression of the chunks of the file.
    overwrite : bool
        Replace an existing recording with this name. Other files and folders are never replaced.

    Returns
    -------
    rollouts, steps : int
        Numbers of rollouts and of steps written.

    Raises
    ------
    DumpError
        The destination exists, there is no rollout, or a rollout cannot be stored in messages. No
        files remain on disk.
    """
    if not (math.isfinite(frequency) and 1e-3 <= frequency <= 1e6):
        raise DumpError(
            where='frequency',
            expected='a value from 0.001 to 1000000 Hz',
            found=f'{frequency:g} Hz',
            advice='give another --frequency',
        )
    place = Path(destination)
    _check_destination(place, overwrite)
    is_file = place.suffix == '.mcap'
    with ExitStack() as stack:
        aside = stack.enter_context(
            replaced_file(place) if is_file else replaced_folder(place, overwrite=overwrite)
        )
        # rosbags names the file by its folder, so that the folder needs the name of the recording.
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix='.', dir=aside.parent))
        whole = Path(scratch) / place.stem
        counts = _write(whole, rollouts, feature, frequency, compression)
        if counts[0] == 0:
            raise NothingToWrite(
                where=str(place), expected='at least one rollout to write', found='no rollout'
            )
        _check_destination(place, overwrite)
        for file in whole.iterdir():
            if not is_file:
                file.rename(aside / file.name)
            elif file.suffix == '.mcap':
                file.rename(aside)
    return counts


def _check_destination(place: Path, overwrite: bool) -> None:
    if labels := label_files(place):
        raise DumpError(
            where=str(labels[0]),
            expected=f'no label file beside the new recording {place.name}',
            found='the label file of an earlier recording',
            advice='the old labels would be used for the new recording: move the label file to '
            'another folder',
        )
    if not place.exists() and not place.is_symlink():
        return
    if not overwrite:
        raise DumpError(
            where=str(place),
            expected='a name that is free',
            found='a file or folder with this name',
            advice='choose another name, or give --overwrite',
        )
    ours = not place.is_symlink() and detect_bag(place) is not None
    if place.is_dir():
        ours = ours and (place / METADATA).is_file()
    elif ours:
        with place.open('rb') as stream:
            ours = stream.read(8) == MCAP_MAGIC
    if not ours:
        raise DumpError(
            where=str(place),
            expected='a recording, because --overwrite replaces only recordings',
            found='another file or folder',
            advice='remove the file or folder yourself, or choose another name',
        )


def _write(
    folder: Path,
    rollouts: Iterable[Rollout],
    feature: FeatureSpec,
    frequency: float,
    compression: str,
) -> tuple[int, int]:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    count, steps, free = 0, 0, _FIRST_TIME
    extras: dict[str, Any] = {}
    writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
    if compression == 'zstd':
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        topics = _connect(writer)
        for rollout in rollouts:
            if rollout.episode_id in extras:
                raise DumpError(
                    where=folder.name,
                    expected='each episode_id once',
                    found=f'{rollout.episode_id!r} twice',
                    advice='give each rollout a different episode_id',
                )
            try:
                free = _write_rollout(writer, topics, rollout, feature, frequency, free)
            except BagMessageError as error:
                raise DumpError(f'episode {rollout.episode_id!r}: {error}') from error
            extras[rollout.episode_id] = _extra(rollout)
            count, steps = count + 1, steps + len(rollout)
        custom = {'version': CUSTOM_VERSION, 'feature': feature.to_dict(), 'episodes': extras}
        writer.set_custom_data(CUSTOM_KEY, json.dumps(custom))
        # A player starts its clock at the start time in the metadata, after it has made its
        # publishers. If a message is published before its subscribers are found, it is lost.
        writer.min_timestamp -= LEAD
    return count, steps


def _connect(writer: Writer) -> tuple[Connection, Connection]:
    topics = []
    for topic, kind, qos in (
        (STEP_TOPIC, STEP, _qos(STEP_DEPTH, latched=False)),
        (EVENT_TOPIC, EVENT, _qos(EVENT_DEPTH, latched=True)),
    ):
        topics.append(
            writer.add_connection(
                topic,
                kind,
                msgdef=full_definition(kind),
                rihs01=type_hash(kind),
                offered_qos_profiles=[qos],
            )
        )
    return topics[0], topics[1]


def _qos(depth: int, *, latched: bool) -> Qos:
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    forever = QosTime(*_FOREVER)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=depth,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=forever,
        lifespan=forever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=forever,
        avoid_ros_namespace_conventions=False,
    )


def _write_rollout(
    writer: Writer,
    topics: tuple[Connection, Connection],
    rollout: Rollout,
    feature: FeatureSpec,
    frequency: float,
    free: int,
) -> int:
    """Write one episode at or after the time ``free``.

    Returns the earliest time of the next episode [ns].
    """
    stamps, times = recorded_times(rollout.stamps, len(rollout), frequency, free)
    shift = int(times[0]) - int(stamps[0])
    period = int(np.median(np.diff(times))) if len(times) > 1 else int(_SECOND / frequency)
    begin, end = int(times[0]) - _BEFORE_FIRST_STEP, int(times[-1]) + max(period, 1)
    event = Event(
        episode_id=rollout.episode_id,
        kind=KIND_START,
        task=rollout.task,
        instruction=rollout.instruction,
        reason=CONVERTED,
        stamp=begin - shift,
    )
    unmeasured = [
        field.name
        for field in STEP_FIELDS
        if field.kind == 'number' and getattr(rollout, field.stacked) is None
    ]
    steps, events = topics
    writer.write(events, begin, event_to_cdr(event))
    for t, (stamp, time) in enumerate(zip(stamps, times, strict=True)):
        step = rollout.step(t)
        step.stamp = int(stamp)
        step.feature_name = str(feature)
        for name in unmeasured:
            setattr(step, name, math.nan)
        writer.write(steps, int(time), step_to_cdr(step))
    ended = Event(
        episode_id=rollout.episode_id,
        kind=KIND_END,
        success=rollout.success,
        task=rollout.task,
        instruction=rollout.instruction,
        reason=event.reason,
        stamp=end - shift,
    )
    writer.write(events, end, event_to_cdr(ended))
    return end + _BETWEEN_EPISODES


def recorded_times(
    stamps: np.ndarray | None, count: int, frequency: float, free: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the stamps of the steps and the times at which they are recorded.

    Parameters
    ----------
    stamps : ndarray of int64, shape (count,), or None
        [ns]
    frequency : float
        Steps per second without stamps [Hz].
    free : int
        Earliest time for recording [ns].

    Returns
    -------
    stamps, times : ndarray of int64, shape (count,)
        [ns]; the times never decrease. They are equal to the stamps if the stamps increase and
        begin after ``free``.
    """
    if stamps is None or not stamps.any():
        times = free + np.round(np.arange(count) * (_SECOND / frequency)).astype(np.int64)
        return times, times
    times = np.maximum.accumulate(stamps)
    return stamps, times + max(0, free - int(times[0]))


def _extra(rollout: Rollout) -> dict[str, Any]:
    extra: dict[str, Any] = {
        'task_id': int(rollout.task_id),
        'episode_index': int(rollout.episode_index),
    }
    if rollout.failure_step is not None:
        extra['failure_step'] = int(rollout.failure_step)
    if rollout.video:
        extra['video'] = rollout.video
    if rollout.stamps is None or not rollout.stamps.any():
        extra['stamps'] = False
    if rollout.unseen:
        extra['unseen'] = True
    return extra
