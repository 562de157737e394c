# SPDX-License-Identifier: Apache-2.0
"""Makes markers for RViz of the state of a robot: a bar of the score, the threshold, and words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Vector3
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from safe_monitor_node.looking.board import RobotView
from safe_monitor_node.looking.words import Severity, number

NAMES = ('bar background', 'bar', 'threshold', 'state')
"""Namespaces of the markers, in the order of the message; RViz can hide each of them."""

COLOURS = {
    Severity.OK: (0.10, 0.60, 0.25),
    Severity.CAUTION: (1.0, 0.80, 0.20),
    Severity.DANGER: (0.85, 0.13, 0.15),
    Severity.UNKNOWN: (0.55, 0.58, 0.62),
}
_THICKNESS = 0.1
_ROOM = 1.1


@dataclass(frozen=True)
class MarkerPlace:
    """Where the markers are.

    Attributes
    ----------
    frame_id : str
    x, y, z : float
        Centre of the bar in the frame [m].
    size : float
        Length of the bar [m].
    lifetime : float
        Time after which RViz removes the markers if no others come [s].
    """

    frame_id: str
    x: float
    y: float
    z: float
    size: float
    lifetime: float


def robot_markers(view: RobotView, place: MarkerPlace) -> MarkerArray:
    """Return the markers of a robot; their stamp is 0, so that RViz uses the latest transform.

    The bar goes from the smallest to the largest number of the episode, with some space above, and
    includes 0. If there is no score or no finite threshold, the marker of the bar or of the
    threshold is deleted, so that no old value is shown.
    """
    low, high = _range(view)
    size = place.size
    thick = _THICKNESS * size
    background = _box(place, 0, 0.0, Vector3(x=size, y=thick, z=thick), (0.2, 0.2, 0.2), 0.35)
    length = max(1e-3, (min(view.score, high) - low) / (high - low)) if _finite(view.score) else 0.0
    # A little thicker than the background, so that the markers do not flicker.
    bar = _box(
        place,
        1,
        (length - 1.0) * size / 2.0,
        Vector3(x=length * size, y=1.1 * thick, z=1.1 * thick),
        COLOURS[view.state.severity],
        0.9,
    )
    if not length:
        bar.action = Marker.DELETE
        bar.scale = Vector3()
    across = (view.threshold - low) / (high - low) if _finite(view.threshold) else math.nan
    threshold = _box(
        place,
        2,
        0.0 if math.isnan(across) else (across - 0.5) * size,
        Vector3(x=0.02 * size, y=1.8 * thick, z=1.8 * thick),
        (1.0, 1.0, 1.0),
        1.0,
    )
    if math.isnan(across):
        threshold.action = Marker.DELETE
        threshold.scale = Vector3()
    return MarkerArray(markers=[background, bar, threshold, _text(view, place)])


def _range(view: RobotView) -> tuple[float, float]:
    numbers = [value for _, *pair in view.points for value in pair if math.isfinite(value)]
    low, high = min(0.0, *numbers, 0.0), max(0.0, *numbers, 0.0)
    return low, low + ((high - low) * _ROOM or 1.0)


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _marker(place: MarkerPlace, index: int) -> Marker:
    marker = Marker(ns=NAMES[index], id=0, action=Marker.ADD)
    marker.header.frame_id = place.frame_id
    marker.frame_locked = True
    marker.pose.orientation.w = 1.0
    seconds = int(place.lifetime)
    marker.lifetime = Duration(sec=seconds, nanosec=int((place.lifetime - seconds) * 1e9))
    return marker


def _box(
    place: MarkerPlace,
    index: int,
    along: float,
    scale: Vector3,
    colour: tuple[float, float, float],
    opacity: float,
) -> Marker:
    marker = _marker(place, index)
    marker.type = Marker.CUBE
    marker.pose.position = Point(x=place.x + along, y=place.y, z=place.z)
    marker.scale = scale
    red, green, blue = colour
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=opacity)
    return marker


def _text(view: RobotView, place: MarkerPlace) -> Marker:
    marker = _marker(place, 3)
    marker.type = Marker.TEXT_VIEW_FACING
    height = 0.16 * place.size
    marker.pose.position = Point(x=place.x, y=place.y, z=place.z + 0.3 * place.size)
    marker.scale = Vector3(z=height)
    red, green, blue = COLOURS[view.state.severity]
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    lines = [view.state.word]
    if view.step >= 0:
        lines.append(f'{number(view.score)} / {number(view.threshold)}  step {view.step}')
    # The fonts of RViz have no other characters.
    marker.text = '\n'.join(lines).encode('ascii', 'replace').decode('ascii')
    return marker
