# SPDX-License-Identifier: Apache-2.0
"""Draws the score, the band and the alarm of a rollout below its video."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_training.metrics.scored import ScoredRollout
from safe_training.reporting.figures import style as figures
from safe_training.reporting.video.frames import (
    FrameSteps,
    VideoError,
    frame_steps,
    open_video,
    opencv,
    video_facts,
)
from vla_feature_bridge.atomic import replaced_file

Image = NDArray[np.uint8]

# VP9 can be played in browsers and is included in the FFmpeg of OpenCV. The second codec is used if
# VP9 is not available.
_CODECS = ('vp09', 'mp4v')
_LEAST_WIDTH = 480
_PANEL_SHARE = 0.42
_BORDER = 6
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 52, 12, 26, 30
_INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)


def write_overlay(entry: ScoredRollout, source: Path, target: Path) -> FrameSteps:
    """Write a video with a panel of the score below it, completely or not at all.

    Parameters
    ----------
    entry : ScoredRollout
        With its threshold and its recording.
    source, target : Path
        The recorded video, and the file to write.

    Returns
    -------
    FrameSteps
        The policy step of each frame.

    Raises
    ------
    VideoError
        The source cannot be read, or no video can be written.
    """
    cv2 = opencv()
    facts = video_facts(source)
    rollout = entry.required_rollout
    frames = frame_steps(
        facts.frames, len(rollout), rollout.exec_horizon, rollout.stamps, facts.rate
    )
    scale = max(1, math.ceil(_LEAST_WIDTH / facts.width))
    width, height = _even(facts.width * scale), _even(facts.height * scale)
    panel = Panel(entry, width, _even(max(150, int(width * _PANEL_SHARE * 0.75))))
    size = (width, height + panel.height)
    with replaced_file(target) as aside:
        writer = _writer(cv2, aside, facts.rate, size)
        try:
            with open_video(source) as capture:
                for step in frames.steps:
                    good, picture = capture.read()
                    if not good:
                        raise VideoError(
                            where=str(source),
                            expected=f'{len(frames.steps)} frames',
                            found='fewer, because the file changed during the command',
                            advice='run the command again',
                        )
                    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
                    if entry.alarm_step is not None and step >= entry.alarm_step:
                        _draw_border(cv2, picture)
                    writer.write(np.vstack([picture, panel.at(int(step))]))
        finally:
            writer.release()
        _check_written(cv2, aside, target, len(frames.steps))
    return frames


def _check_written(cv2: Any, aside: Path, target: Path, frames: int) -> None:
    """Raise VideoError for an incomplete file: OpenCV raises no error if the disk becomes full."""
    found = 0
    with suppress(VideoError), open_video(aside) as capture:
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if found != frames:
        raise VideoError(
            where=str(target),
            expected=f'{frames} frames after writing',
            found=f'{found} frames' if found else 'an incomplete file',
            advice='free space on this disk, or give another folder with --out',
        )


def _writer(cv2: Any, path: Path, rate: float, size: tuple[int, int]) -> Any:
    for codec in _CODECS:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
        if writer.isOpened():
            return writer
        writer.release()
    raise VideoError(
        where=str(path.parent),
        expected=f'OpenCV with one of the video codecs {", ".join(_CODECS)}',
        found='none',
        advice='run `pip install -r requirements/vision.txt`',
    )


class Panel:
    """Draws the score of a rollout up to a step, against its band, as an image."""

    def __init__(self, entry: ScoredRollout, width: int, height: int) -> None:
        self.entry, self.width, self.height = entry, width, height
        self.cv2 = opencv()
        edge = entry.required_threshold.upper[: len(entry.scores)]
        values = np.concatenate([entry.scores, edge[np.isfinite(edge)], [0.0]])
        low, high = float(values.min()), float(values.max())
        room = 0.08 * (high - low) or 1.0
        self.low, self.high = low - (room if low < 0 else 0.0), high + room
        self._points = self._pixels(np.arange(len(entry.scores)), entry.scores)
        self._ground = self._draw_ground(edge)

    def at(self, step: int) -> Image:
        """Return the panel with the curve up to ``step`` (BGR)."""
        cv2, entry = self.cv2, self.entry
        image = self._ground.copy()
        alarmed = entry.alarm_step is not None and step >= entry.alarm_step
        colour = _bgr(figures.FAILURE if alarmed else figures.SUCCESS)
        points = self._points[: step + 1]
        cv2.polylines(image, [points], False, colour, 2, cv2.LINE_AA)
        cv2.circle(image, tuple(int(v) for v in points[-1]), 4, colour, -1, cv2.LINE_AA)
        if alarmed:
            at = self._points[entry.alarm_step]
            cv2.drawMarker(
                image, (int(at[0]), int(at[1])), _INK, cv2.MARKER_TRIANGLE_DOWN, 12, 2, cv2.LINE_AA
            )
        words = f'step {step}  score {entry.scores[step]:.3g}'
        threshold = entry.required_threshold.upper[step]
        words += f'  band {threshold:.3g}' if math.isfinite(threshold) else '  no band'
        self._write(image, words, (_MARGIN_LEFT, 17), _INK)
        if alarmed:
            self._write(
                image,
                f'ALARM since step {entry.alarm_step}',
                (self.width - 165, 17),
                _bgr(figures.FAILURE),
                bold=True,
            )
        return image

    def _draw_ground(self, edge: NDArray[np.float64]) -> Image:
        cv2 = self.cv2
        image = np.full((self.height, self.width, 3), _PAPER, np.uint8)
        bottom = self.height - _MARGIN_BOTTOM
        for value in _ticks(self.low, self.high):
            y = int(self._pixels(np.zeros(1), np.array([value]))[0, 1])
            cv2.line(image, (_MARGIN_LEFT, y), (self.width - _MARGIN_RIGHT, y), _GRID, 1)
            self._write(image, f'{value:.3g}', (4, y + 4), _INK)
        finite = np.flatnonzero(np.isfinite(edge))
        if finite.size:
            # The band can be infinite at some steps. Each interval with finite values is drawn
            # separately.
            for stretch in np.split(finite, np.flatnonzero(np.diff(finite) > 1) + 1):
                line = self._pixels(stretch, edge[stretch])
                floor = self._pixels(stretch[[-1, 0]], np.full(2, max(self.low, 0.0)))
                shade = image.copy()
                cv2.fillPoly(shade, [np.vstack([line, floor])], _bgr(figures.BAND))
                cv2.addWeighted(shade, 0.15, image, 0.85, 0, dst=image)
                cv2.polylines(image, [line], False, _bgr(figures.BAND), 1, cv2.LINE_AA)
        cv2.line(image, (_MARGIN_LEFT, bottom), (self.width - _MARGIN_RIGHT, bottom), _INK, 1)
        cv2.line(image, (_MARGIN_LEFT, _MARGIN_TOP), (_MARGIN_LEFT, bottom), _INK, 1)
        last = len(self.entry.scores) - 1
        for step in sorted({int(s) for s in _ticks(0, last) if float(s).is_integer()} | {last}):
            if step != last and last - step < 0.08 * last:
                continue
            x = int(self._pixels(np.array([step]), np.zeros(1))[0, 0])
            self._write(image, str(step), (x - 4 * len(str(step)), bottom + 13), _INK)
        self._write(
            image,
            'failure score over policy steps; green: band',
            (_MARGIN_LEFT, self.height - 4),
            _INK,
        )
        return image

    def _pixels(self, steps: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int32]:
        across = self.width - _MARGIN_LEFT - _MARGIN_RIGHT
        down = self.height - _MARGIN_TOP - _MARGIN_BOTTOM
        x = _MARGIN_LEFT + across * steps / max(1, len(self.entry.scores) - 1)
        share = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        return np.stack([x, _MARGIN_TOP + down * (1 - share)], axis=1).round().astype(np.int32)

    def _write(
        self, image: Image, text: str, at: tuple[int, int], colour: tuple[int, int, int],
        *, bold: bool = False,
    ) -> None:  # fmt: skip
        cv2 = self.cv2
        cv2.putText(
            image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45 if bold else 0.4, colour, 1, cv2.LINE_AA
        )


def _draw_border(cv2: Any, picture: Image) -> None:
    height, width = picture.shape[:2]
    half = _BORDER // 2
    cv2.rectangle(
        picture, (half, half), (width - 1 - half, height - 1 - half), _bgr(figures.FAILURE), _BORDER
    )


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _bgr(colour: str) -> tuple[int, int, int]:
    return int(colour[5:7], 16), int(colour[3:5], 16), int(colour[1:3], 16)


def _even(size: int) -> int:
    return size + size % 2
