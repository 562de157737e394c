# SPDX-License-Identifier: Apache-2.0
"""Finds the video of a rollout, and the policy step of each frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout import Rollout

SUFFIXES = ('.mp4', '.webm')

# Default frame rate if the file does not contain one.
_USUAL_RATE = 20.0


class VideoError(SafeError):
    """A video cannot be read, written or matched to its rollout; the message names the file."""


@dataclass(frozen=True, eq=False)
class FrameSteps:
    """The policy step that each frame shows.

    Attributes
    ----------
    steps : ndarray of int64, shape (frames,)
        Policy step of each frame, 0 to T - 1, non-decreasing.
    rule : {'chunks', 'steps', 'stamps', 'stretched'}
        How frames were assigned to steps. 'chunks': ``exec_horizon`` frames per step. 'steps': one
        frame per step. 'stamps': by the time stamps of the observations. 'stretched': the number of
        frames matches none of these rules, so the steps are spread evenly.
    """

    steps: NDArray[np.int64]
    rule: str

    def first_frames(self, length: int) -> NDArray[np.int64]:
        """Return the first frame of each of ``length`` steps, or of the next step with a frame."""
        return np.searchsorted(self.steps, np.arange(length)).astype(np.int64)


def frame_steps(
    frames: int,
    length: int,
    exec_horizon: int = 1,
    stamps: NDArray[np.int64] | None = None,
    rate: float = 0.0,
) -> FrameSteps:
    """Return the policy step of each frame of a video.

    Parameters
    ----------
    frames : int
        Frames that the video holds.
    length : int
        Policy steps T of the rollout.
    exec_horizon : int
        Number of actions between two inferences, which is equal to the number of frames. The last
        chunk may have fewer frames. Recorders often add a frame after the last action, which
        belongs to the last step.
    stamps : ndarray of int64, shape (T,), or None
        Time of each observation [ns].
    rate : float
        Frames a second; 0 if unknown.
    """
    if frames < 1 or length < 1:
        raise VideoError(
            where='video',
            expected='at least one frame and one policy step',
            found=f'{frames} frames and {length} steps',
        )
    frame = np.arange(frames, dtype=np.int64)
    horizon = max(1, exec_horizon)
    if (length - 1) * horizon < frames <= length * horizon + 1:
        return FrameSteps(np.minimum(frame // horizon, length - 1), 'chunks')
    if stamps is not None and rate > 0 and length > 1:
        seconds = (stamps - stamps[0]) / 1e9
        usual = float(np.median(np.diff(seconds)))
        if usual > 0 and seconds[-1] <= frames / rate <= seconds[-1] + 3 * usual:
            at = np.searchsorted(seconds, frame / rate + 1e-9, side='right') - 1
            return FrameSteps(np.maximum.accumulate(np.clip(at, 0, length - 1)), 'stamps')
    if frames in (length, length + 1):
        return FrameSteps(np.minimum(frame, length - 1), 'steps')
    return FrameSteps(frame * length // frames, 'stretched')


def find_videos(
    rollouts: Sequence[Rollout], folder: Path
) -> tuple[dict[str, Path], dict[str, VideoError]]:
    """Return the video of each rollout in a folder or its subfolders.

    Paths are tried in this order: the path stored in the recording; its file name; the episode id;
    the episode id with ``_`` instead of ``/``. The endings .mp4 and .webm are tried for ids. A path
    outside the folder is not used.

    A video belongs to one rollout. If several rollouts match a video, the rollout that matches by
    an earlier rule gets the video.

    Returns
    -------
    videos : dict of str to Path
        By episode id; rollouts without a video are left out.
    unclear : dict of str to VideoError
        By episode id; each of these rollouts matches the same video as another rollout.
    """
    root = folder.resolve()
    found = {r.episode_id: hit for r in rollouts if (hit := _find(r, root)) is not None}
    claims: dict[Path, list[str]] = {}
    for name, (path, _) in found.items():
        claims.setdefault(path, []).append(name)
    videos, unclear = {}, {}
    for path, names in claims.items():
        ranks = [found[name][1] for name in names]
        best = [name for name in names if found[name][1] == min(ranks)]
        if len(best) == 1:
            videos[best[0]] = path
            continue
        for name in best:
            other = next(text for text in best if text != name)
            unclear[name] = VideoError(
                where=str(path),
                expected='the video of one rollout',
                found=f'a video that matches {name!r} and {other!r}',
                advice='give the folder that the paths of the videos begin in, or name each video '
                'like its episode',
            )
    return {name: videos[name] for name in found if name in videos}, unclear


def _find(rollout: Rollout, root: Path) -> tuple[Path, int] | None:
    """Return the video of a rollout, and the number of the rule that found it."""
    names = [(rollout.video, 0), (Path(rollout.video).name, 1)] if rollout.video else []
    ids = (rollout.episode_id, rollout.episode_id.replace('/', '_'))
    names += [(stem + suffix, rule) for rule, stem in enumerate(ids, 2) for suffix in SUFFIXES]
    for name, rule in names:
        if '\0' in name:
            continue
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.suffix.lower() in SUFFIXES and path.is_file():
            return path, rule
    return None


@dataclass(frozen=True)
class VideoFacts:
    """Frames of a video that can be read, frames a second, and size [px]."""

    frames: int
    rate: float
    width: int
    height: int


def opencv() -> Any:
    """Return the module cv2; :class:`VideoError` says how to install it."""
    try:
        import cv2
    except ImportError as error:
        raise VideoError(
            where='videos',
            expected='OpenCV for Python',
            found='none',
            advice='with a ROS 2 distribution, install python3-opencv with apt; otherwise run '
            '`pip install -r requirements/vision.txt`',
        ) from error
    return cv2


@contextmanager
def open_video(path: Path) -> Iterator[Any]:
    """Yield the open video, an OpenCV capture, and close it after the block."""
    capture = opencv().VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise VideoError(
                where=str(path),
                expected='a video that OpenCV can read',
                found='a damaged or incomplete file, or an unknown format',
                advice='convert this video to mp4, or leave this video out',
            )
        yield capture
    finally:
        capture.release()


def video_facts(path: Path) -> VideoFacts:
    """Return the facts of a video.

    The frames are counted, because a header may be wrong or absent.
    """
    cv2 = opencv()
    with open_video(path) as capture:
        frames = 0
        while capture.grab():
            frames += 1
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if frames == 0 or width < 1 or height < 1:
        raise VideoError(
            where=str(path),
            expected='frames that can be read',
            found='none',
            advice='record this video again, or leave this video out',
        )
    # If the frame rate is missing, OpenCV returns 0, NaN or the time base of the container.
    known = 0.1 <= rate <= 1000
    return VideoFacts(frames, rate if known else _USUAL_RATE, width, height)
