# SPDX-License-Identifier: Apache-2.0
"""Writes rollouts as a rosbag2 recording (mcap) that ``ros2 bag play`` plays and ``convert`` reads.

Steps keep their stamps to the nanosecond; they are recorded at these times too, unless episodes
overlap or run backwards: then an episode is moved behind the one before it, as a whole. What no
message can carry (numbers of task and episode, failure step, video, how features were pooled) goes
into the ``custom_data`` of the metadata.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import labels_file
from safe_training.recordings.readers.base import EpisodeProgress, EpisodeSource, Source
from safe_training.recordings.readers.rosbag2 import CUSTOM_KEY, CUSTOM_VERSION
from safe_training.recordings.sources import no_rollouts
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
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Writer


STEP_TOPIC = '/vla/policy_step'
EVENT_TOPIC = '/vla/episode'

#: As the nodes offer them (vla_feature_bridge.ros.qos): depth, and whether late joiners get them.
STEP_DEPTH, EVENT_DEPTH = 100, 10

_SECOND = 1_000_000_000
#: Time zero means "no time" to a ROS 2 clock.
_FIRST_TIME = _SECOND
_BETWEEN_EPISODES = _SECOND
_BEFORE_FIRST_STEP = 1_000_000
#: The same that rosbag2 records for a duration that was not set.
_FOREVER = (9223372036, 854775807)


class NothingToWrite(DumpError):
    """There was no rollout to write."""


def is_bag_destination(path: str | os.PathLike[str]) -> bool:
    """Tell whether a name asks for a recording: ``*.mcap`` for one file, ``*.bag`` for a folder."""
    return Path(path).suffix in ('.mcap', '.bag')


def convert_to_bag(
    source: Source,
    destination: str | os.PathLike[str],
    rate: float,
    compression: Literal['none', 'zstd'],
    overwrite: bool,
    progress: EpisodeProgress | None,
) -> tuple[int, int]:
    """Write all rollouts of a source as a recording; as :func:`write_bag`."""
    if isinstance(source, EpisodeSource):
        source.refuse_early()
    try:
        return write_bag(
            destination, source.rollouts(progress), source.feature, rate, compression, overwrite
        )
    except NothingToWrite as error:
        raise DumpError(no_rollouts(source)) from error


def write_bag(
    destination: str | os.PathLike[str],
    rollouts: Iterable[Rollout],
    feature: FeatureSpec,
    rate: float = 10.0,
    compression: Literal['none', 'zstd'] = 'none',
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write a recording, one rollout in memory at a time.

    Parameters
    ----------
    destination : path
        One file if it ends in ``.mcap``, otherwise a folder with ``metadata.yaml``.
    rate : float
        Inferences per second where a rollout has no stamps [Hz].
    compression : 'none' or 'zstd'
        Of the chunks.
    overwrite : bool
        Replace a recording (never anything else) of this name.

    Returns
    -------
    rollouts, steps : int
        How many were written.

    Raises
    ------
    DumpError
        The name is taken, there is no rollout, or one cannot be put into messages. Nothing is left
        behind.
    """
    if not (math.isfinite(rate) and 1e-3 <= rate <= 1e6):
        raise DumpError(f'{destination}: expected a rate from 0.001 to 1000000 Hz, found {rate:g}')
    place = Path(destination)
    _check_destination(place, overwrite)
    made = [parent for parent in place.absolute().parents if not parent.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.absolute().with_name(f'.{place.name}.{uuid.uuid4().hex[:12]}.partial')
    try:
        counts = _write(aside / place.stem, rollouts, feature, rate, compression)
        if counts[0] == 0:
            raise NothingToWrite(f'{place}: expected at least one rollout to write, found none')
        whole = aside / place.stem
        if place.suffix == '.mcap':
            whole /= f'{place.stem}.mcap'
        _check_destination(place, overwrite)
        _put(whole, place, aside / 'old')
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if not place.exists():
            for parent in made:
                try:
                    parent.rmdir()
                except OSError:  # someone else uses it by now
                    break
    return counts


def _put(whole: Path, place: Path, old: Path) -> None:
    if not place.exists():
        os.rename(whole, place)
        return
    os.rename(place, old)
    try:
        os.rename(whole, place)
    except OSError:
        os.rename(old, place)
        raise


def _check_destination(place: Path, overwrite: bool) -> None:
    labels = labels_file(place)
    if labels.exists():
        raise DumpError(
            f'{labels}: expected no labels yet beside {place.name}, found some of an earlier '
            'recording, which would be taken for those of the new one; move them away'
        )
    if not place.exists() and not place.is_symlink():
        return
    if not overwrite:
        raise DumpError(
            f'{place}: expected a name that is free, found a file or folder; '
            'choose another name, or --overwrite'
        )
    ours = not place.is_symlink() and detect_bag(place) is not None
    if place.is_dir():
        ours = ours and (place / METADATA).is_file()
    elif ours:
        with place.open('rb') as stream:
            ours = stream.read(8) == MCAP_MAGIC
    if not ours:
        raise DumpError(
            f'{place}: expected a recording to overwrite, found something else; '
            'remove it yourself or choose another name'
        )


def _write(
    folder: Path,
    rollouts: Iterable[Rollout],
    feature: FeatureSpec,
    rate: float,
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
                    f'{folder.name}: expected each episode_id once, found '
                    f'{rollout.episode_id!r} twice'
                )
            try:
                free = _write_rollout(writer, topics, rollout, feature, rate, free)
            except BagMessageError as error:
                raise DumpError(f'episode {rollout.episode_id!r}: {error}') from error
            extras[rollout.episode_id] = _extra(rollout)
            count, steps = count + 1, steps + len(rollout)
        custom = {'version': CUSTOM_VERSION, 'feature': feature.to_dict(), 'episodes': extras}
        writer.set_custom_data(CUSTOM_KEY, json.dumps(custom))
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
    rate: float,
    free: int,
) -> int:
    """Write one episode at or after the time ``free``; returns when the next one may begin [ns]."""
    stamps, times = recorded_times(rollout.stamps, len(rollout), rate, free)
    shift = int(times[0]) - int(stamps[0])
    period = int(np.median(np.diff(times))) if len(times) > 1 else int(_SECOND / rate)
    begin, end = int(times[0]) - _BEFORE_FIRST_STEP, int(times[-1]) + max(period, 1)
    event = Event(
        episode_id=rollout.episode_id,
        kind=KIND_START,
        task=rollout.task,
        instruction=rollout.instruction,
        reason='converted from a rollout set',
        stamp=begin - shift,
    )
    steps, events = topics
    writer.write(events, begin, event_to_cdr(event))
    for t, (stamp, time) in enumerate(zip(stamps, times, strict=True)):
        step = rollout.step(t)
        step.stamp = int(stamp)
        step.feature_name = str(feature)
        if rollout.inference_time is None:
            step.inference_time = math.nan
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
    stamps: np.ndarray | None, count: int, rate: float, free: int
) -> tuple[np.ndarray, np.ndarray]:
    """Say when steps are stamped and when they are recorded.

    Parameters
    ----------
    stamps : ndarray of int64, shape (count,), or None
        [ns]
    rate : float
        Steps per second without stamps [Hz].
    free : int
        Earliest time that may be used for recording [ns].

    Returns
    -------
    stamps, times : ndarray of int64, shape (count,)
        Times never fall; they are the stamps themselves where these come late enough.
    """
    if stamps is None or not stamps.any():
        times = free + np.round(np.arange(count) * (_SECOND / rate)).astype(np.int64)
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
