# SPDX-License-Identifier: Apache-2.0
"""Publishes the camera image with the state and the curve drawn into it. ``overlay`` runs it."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from safe_monitor_node.looking.board import RobotBoard
from safe_monitor_node.looking.camera_panel import OverlayError, draw, opencv
from safe_monitor_node.looking.pixels import (
    KNOWN,
    Picture,
    PixelsError,
    RawImage,
    from_picture,
    to_picture,
)
from safe_monitor_node.nodes.robot_topics import RobotTopics, call_every
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.nodes.interrupt import ends_on_interrupt, run_node
from vla_feature_bridge.ros.messages import time_from_message
from vla_feature_bridge.ros.parameter_overrides import check_overrides
from vla_feature_bridge.ros.parameters import Parameter, declare_parameters
from vla_feature_bridge.ros.qos import OVERLAY_QOS, overridable

PARAMETERS = (
    Parameter(
        'image_topic',
        'image',
        'Topic of the camera: sensor_msgs/Image or sensor_msgs/CompressedImage.',
    ),
    Parameter(
        'max_frequency', 30.0, 'Largest number of drawn images per second [Hz].', 0.1, 1000.0
    ),
    Parameter('history', 600, 'Number of steps of the running episode that are drawn.', 2, 10000),
    Parameter('jpeg_quality', 80, 'Quality of compressed images [%].', 1, 100),
)

_TYPES = {
    'sensor_msgs/msg/Image': Image,
    'sensor_msgs/msg/CompressedImage': CompressedImage,
}
_LOOK_PERIOD = 0.5
_OUT_OF_ORDER = 10**9
# Only the newest image is drawn. The QoS is best effort, so that every camera matches.
_CAMERA_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class OverlayNode(Node):
    """Draws the state of the robot in its namespace into the images of a camera.

    ``Image`` becomes ``safe/overlay``, ``CompressedImage`` becomes ``safe/overlay/compressed``.
    Nothing is decoded while no node subscribes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('overlay', **kwargs)
        self._values = declare_parameters(self, PARAMETERS)
        if unknown := check_overrides(self):
            self.get_logger().warning(unknown)
        self._cv2 = opencv()
        self._name = self.get_namespace()
        self._board = RobotBoard(self._values.history)
        self._robot = RobotTopics(self, self._board, self._name)
        self._topic = self.resolve_topic_name(self._values.image_topic)
        self._outputs = {
            kind: self.create_publisher(kind, topic, **overridable(OVERLAY_QOS))
            for kind, topic in (
                (Image, 'safe/overlay'),
                (CompressedImage, 'safe/overlay/compressed'),
            )
        }
        self._camera: Any = None
        self._last_stamp, self._drawn_at = 0, 0.0
        call_every(self, _LOOK_PERIOD, self._look)
        self._look()

    def _look(self) -> None:
        """Check the monitor, and subscribe to the camera as soon as its type is known."""
        self._robot.update()
        if self._camera is not None:
            return
        types = {info.topic_type for info in self.get_publishers_info_by_topic(self._topic)}
        known = sorted(types & _TYPES.keys())
        if known:
            kind = _TYPES[known[0]]
            self._camera = self.create_subscription(kind, self._topic, self._on_image, _CAMERA_QOS)
        elif types:
            self.get_logger().warning(
                f'{self._topic}: expected {" or ".join(_TYPES)}, found {", ".join(sorted(types))}; '
                'set the parameter image_topic to a topic of a camera',
                throttle_duration_sec=10.0,
            )

    def _on_image(self, message: Any) -> None:
        output = self._outputs[type(message)]
        now = time.monotonic()
        # A little less than the period, so that a camera of this frequency loses no image.
        early = now - self._drawn_at < 0.9 / self._values.max_frequency
        if early or self._is_old(message) or not output.get_subscription_count():
            return
        try:
            made = self._drawn(message)
        except SafeError as error:
            self.get_logger().warning(f'{self._topic}: {error}', throttle_duration_sec=5.0)
            return
        except Exception as error:  # An image of another node must not end this node.
            text = f'{self._topic}: {type(error).__name__}: {error}'
            self.get_logger().error(text, throttle_duration_sec=5.0)
            return
        self._drawn_at = now
        output.publish(made)

    def _is_old(self, message: Any) -> bool:
        """Return whether a newer image was drawn; images of a restarted recording are not old."""
        stamp = time_from_message(message.header.stamp)
        if 0 < self._last_stamp - stamp < _OUT_OF_ORDER:
            return True
        self._last_stamp = stamp
        return False

    def _drawn(self, message: Any) -> Any:
        """Return a message with the state drawn into its image."""
        view = self._board.view(self._name, time.monotonic())
        if view is None:
            raise AssertionError(f'the robot {self._name} was added')
        if isinstance(message, CompressedImage):
            picture = self._decoded(message)
            draw(picture, view)
            quality = [self._cv2.IMWRITE_JPEG_QUALITY, self._values.jpeg_quality]
            jpeg = self._cv2.imencode('.jpg', picture, quality)[1]
            compressed = CompressedImage(header=message.header, format='bgr8; jpeg compressed bgr8')
            compressed.data.frombytes(jpeg.tobytes())
            return compressed
        picture = self._picture(message)
        draw(picture, view)
        height, width = picture.shape[:2]
        encoding, data = from_picture(picture, message.encoding)
        made = Image(
            header=message.header,
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=3 * width,
        )
        made.data.frombytes(data)
        return made

    def _picture(self, message: Image) -> Picture:
        if message.encoding not in KNOWN and (bridge := _cv_bridge()) is not None:
            return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, 'bgr8')).copy()
        raw = RawImage(
            message.encoding,
            message.height,
            message.width,
            message.step,
            message.data,
            bool(message.is_bigendian),
        )
        return to_picture(raw)

    def _decoded(self, message: CompressedImage) -> Picture:
        data = np.frombuffer(message.data, dtype=np.uint8)
        picture = None
        if data.size:
            picture = self._cv2.imdecode(data, self._cv2.IMREAD_COLOR)
        if picture is None:
            raise PixelsError(
                where='compressed image',
                expected='JPEG, PNG or another format of OpenCV',
                found=f'{data.size} bytes of format {message.format[:40]!r}',
                advice='for a depth image, set image_topic to the raw topic',
            )
        return np.ascontiguousarray(picture)


def _cv_bridge() -> Any:
    """Return a converter for the other encodings; None if cv_bridge cannot be imported."""
    try:
        from cv_bridge import CvBridge
    except Exception:  # If it was built for another NumPy, it fails with one of several errors.
        return None
    return CvBridge()


@ends_on_interrupt
def main(args: list[str] | None = None) -> int:
    """Run the node until it is shut down; returns 1 if drawing is not possible."""

    def work() -> int:
        try:
            node = OverlayNode()
        except OverlayError as error:
            print(f'overlay: {error}', file=sys.stderr)
            return 1
        try:
            rclpy.spin(node)
        finally:
            node.destroy_node()
        return 0

    return run_node('overlay', work, args)
