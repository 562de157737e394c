# SPDX-License-Identifier: Apache-2.0
"""Draws the state, the curve and the band of a robot into a picture of its camera."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_monitor_node.looking.board import RobotView
from safe_monitor_node.looking.pixels import Picture
from safe_monitor_node.looking.words import Severity, number
from vla_feature_bridge.errors import SafeError

_COLOURS = {
    Severity.OK: (55, 127, 26),
    Severity.CAUTION: (61, 211, 255),
    Severity.DANGER: (46, 34, 207),
    Severity.UNKNOWN: (110, 99, 89),
}
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_SCORE, _ALARMED, _BAND = (233, 180, 86), (80, 140, 255), (115, 158, 0)
_SHADE = 0.45
_LEAST_STEPS = 20
_SMALLEST = 48


class OverlayError(SafeError):
    """Drawing is not possible. The text says what to install."""


def opencv() -> Any:
    """Return the module ``cv2``.

    Raises
    ------
    OverlayError
        OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise OverlayError(
            where='overlay',
            expected='OpenCV for Python',
            found=str(error),
            advice='install it: apt install python3-opencv, or pip install opencv-python-headless',
        ) from error
    return cv2


def draw(picture: Picture, view: RobotView) -> None:
    """Draw the state of a robot into a picture, in place.

    The state, the score and the threshold are texts at the top. The curve with the band is at the
    bottom, in a dark strip. If the state is not OK, the picture gets a border in the colour of the
    state. A picture that is smaller than 48 pixels gets only the border.
    """
    cv2 = opencv()
    height, width = picture.shape[:2]
    colour = _COLOURS[view.state.severity]
    unit = max(1.0, min(width, height) / 480.0)
    if min(width, height) >= _SMALLEST:
        _draw_curve(cv2, picture, view, unit)
        _draw_words(cv2, picture, view, unit)
    if view.state.severity != Severity.OK:
        border = max(2, round(6 * unit))
        half = border // 2
        cv2.rectangle(picture, (half, half), (width - 1 - half, height - 1 - half), colour, border)


def _draw_words(cv2: Any, picture: Picture, view: RobotView, unit: float) -> None:
    """Write the state on its colour, and the numbers beside it on a dark background."""
    width, height = picture.shape[1], picture.shape[0]
    numbers = 'no score yet'
    if view.step >= 0:
        numbers = f'{number(view.score)} / {number(view.threshold)}  step {view.step}'
    scale, thick = 0.6 * unit, max(1, round(1.3 * unit))
    pad = round(8 * unit)
    boxes = [_size(cv2, text, scale, thick) for text in (view.state.word, numbers)]
    needed = sum(box[0] for box in boxes) + 4 * pad
    if needed > width:
        scale *= (width - 4 * pad if width > 8 * pad else width / 2) / max(1, needed - 4 * pad)
        thick = 1
        boxes = [_size(cv2, text, scale, thick) for text in (view.state.word, numbers)]
    tall = min(height, max(box[1] for box in boxes) + 2 * pad)
    split = min(width, boxes[0][0] + 2 * pad)
    picture[:tall, :split] = _COLOURS[view.state.severity]
    end = min(width, split + boxes[1][0] + 2 * pad)
    picture[:tall, split:end] = (picture[:tall, split:end] * _SHADE).astype(np.uint8)
    base = tall - pad - max(1, round(2 * unit))
    dark = view.state.severity == Severity.CAUTION
    for text, left, ink in (
        (view.state.word, pad, _BLACK if dark else _WHITE),
        (numbers, split + pad, _WHITE),
    ):
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(picture, text, (left, base), font, scale, ink, thick, cv2.LINE_AA)


def _size(cv2: Any, text: str, scale: float, thick: int) -> tuple[int, int]:
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    return int(width), int(height + base)


def _draw_curve(cv2: Any, picture: Picture, view: RobotView, unit: float) -> None:
    """Draw the scores and the band into a dark strip at the bottom."""
    height, width = picture.shape[:2]
    tall = max(20, height // 5)
    strip = picture[height - tall :]
    strip[:] = (strip * _SHADE).astype(np.uint8)
    values = np.array([point[1:] for point in view.points], dtype=np.float64).reshape(-1, 2)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    margin = round(6 * unit)
    across = (width - 2 * margin) / max(_LEAST_STEPS, len(values) - 1)
    down = (tall - 2 * margin) / ((high - low) or 1.0)

    def pixels(column: int, stretch: NDArray[np.intp]) -> NDArray[np.int32]:
        x = margin + across * stretch
        y = tall - margin - down * (values[stretch, column] - low)
        return np.stack([x, y], axis=1).round().astype(np.int32)

    thin, thick = max(1, round(unit)), max(1, round(2 * unit))
    for stretch in _stretches(values[:, 1]):
        line = pixels(1, stretch)
        floor = np.array([[line[-1, 0], tall - margin], [line[0, 0], tall - margin]], np.int32)
        shade = strip.copy()
        cv2.fillPoly(shade, [np.vstack([line, floor])], _BAND)
        cv2.addWeighted(shade, 0.35, strip, 0.65, 0, dst=strip)
        cv2.polylines(strip, [line], False, _BAND, thick, cv2.LINE_AA)
    ink = _ALARMED if view.state.word == 'ALARM' else _SCORE
    for stretch in _stretches(values[:, 0]):
        line = pixels(0, stretch)
        cv2.polylines(strip, [line], False, ink, thick, cv2.LINE_AA)
        cv2.circle(strip, tuple(int(v) for v in line[-1]), thin + 2, ink, -1, cv2.LINE_AA)
    first = view.points[0][0]
    at = -1 if view.alarm_step is None else view.alarm_step - first
    if 0 <= at < len(values) and math.isfinite(values[at, 0]):
        x, y = (int(v) for v in pixels(0, np.array([at]))[0])
        place = (x, max(margin, y - margin))
        cv2.drawMarker(strip, place, _WHITE, cv2.MARKER_TRIANGLE_DOWN, 2 * margin, thick)


def _stretches(values: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Return the indices of each stretch of finite values."""
    finite = np.flatnonzero(np.isfinite(values))
    if not finite.size:
        return []
    return np.split(finite, np.flatnonzero(np.diff(finite) > 1) + 1)
