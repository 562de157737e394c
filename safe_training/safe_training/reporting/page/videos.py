# SPDX-License-Identifier: Apache-2.0
"""Finds the videos of the rollouts of a report page, and the begin of each policy step."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.video.frames import VideoError, find_videos, frame_steps, video_facts
from vla_feature_bridge.rollout import Rollout

_log = logging.getLogger(__name__)
_MEDIA_TYPES = {'.mp4': 'video/mp4', '.webm': 'video/webm'}


@dataclass(frozen=True)
class PageVideo:
    """The video of one rollout, either embedded in the page or linked.

    Attributes
    ----------
    path : str
        URL of the file, relative to the page.
    media_type : str
    content : bytes or None
        Content of the file if it is embedded in the page; None if it is linked.
    times : tuple of float or None
        Start time of each policy step [s]; None if the steps are spread evenly over the video.
    note : str
        Note for the user about the video; empty if there is no note.
    """

    path: str
    media_type: str
    content: bytes | None
    times: tuple[float, ...] | None
    note: str = ''


def page_videos(
    scored: Sequence[ScoredRollout],
    folder: Path,
    page: Path,
    embed_bytes: int,
    listed: Sequence[ScoredRollout] | None = None,
) -> dict[str, PageVideo]:
    """Return the rollouts' videos by episode id; rollouts without one are left out.

    A video that matches two rollouts is left out and logged as a warning.
    Videos are embedded in order until ``embed_bytes`` is reached.

    Parameters
    ----------
    folder : Path
        Holds the videos.
    page : Path
        Path of the page that will be written.
    listed : sequence of ScoredRollout, optional
        The rollouts whose videos are wanted; all by default. A video that matches two rollouts of
        ``scored`` is left out in either case.
    """
    videos = {}
    left = embed_bytes
    files, unclear = find_videos([entry.required_rollout for entry in scored], folder)
    for error in unclear.values():
        _log.warning('video left out: %s', error)
    for entry in scored if listed is None else listed:
        found = files.get(entry.episode_id)
        if found is None:
            continue
        size = found.stat().st_size
        content = found.read_bytes() if size <= left else None
        left -= 0 if content is None else size
        times, note = _step_times(entry.required_rollout, found)
        videos[entry.episode_id] = PageVideo(
            path=quote(Path(os.path.relpath(found, page.resolve().parent)).as_posix()),
            media_type=_MEDIA_TYPES[found.suffix.lower()],
            content=content,
            times=times,
            note=note,
        )
    return videos


def _step_times(rollout: Rollout, path: Path) -> tuple[tuple[float, ...] | None, str]:
    """Return the time at which each step begins in the video [s], and a note for the reader.

    The times are None if they are not known: the page then spreads the steps evenly.
    """
    try:
        facts = video_facts(path)
        frames = frame_steps(
            facts.frames, len(rollout), rollout.exec_horizon, rollout.stamps, facts.rate
        )
    except VideoError as error:
        return (
            None,
            f'The steps are spread evenly over the video, because it cannot be read: {error}.',
        )
    first = frames.first_frames(len(rollout)) / facts.rate
    note = ''
    if frames.rule == 'stretched':
        note = (
            f'The {facts.frames} frames match neither the steps nor the time stamps. The steps are '
            'spread evenly over the video.'
        )
    return tuple(round(float(t), 4) for t in first), note
