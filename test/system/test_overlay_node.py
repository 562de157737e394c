# SPDX-License-Identifier: Apache-2.0
"""The overlay node beside a real monitor and a camera: what it draws, what it drops, its end."""

from __future__ import annotations

import time

import numpy as np
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from safe_bringup.live import Process

cv2 = pytest.importorskip('cv2')

OVERLAY = 'safe_monitor_node.nodes.overlay'
LATEST = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
CAMERA = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
HEIGHT, WIDTH = 120, 160


def image(encoding='rgb8', seconds=1, nanosec=0):
    depth = {'mono8': 1, '16UC1': 2, 'bayer_rggb8': 1}.get(encoding, 3)
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=depth * WIDTH)
    message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanosec
    message.header.frame_id = 'camera'
    message.data.frombytes(b'\x40' * (depth * WIDTH * HEIGHT))
    return message


@pytest.fixture
def overlay(probe, tmp_path):
    """Start the node; it must end with 0 on interrupt, without a traceback."""
    started = []

    def start(**parameters):
        started.append(Process(OVERLAY, parameters, tmp_path / 'overlay.log'))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0, process.log()
        assert 'Traceback' not in process.log(), process.log()


class Camera:
    """Publishes images and keeps what is drawn of them."""

    def __init__(self, probe, kind, topic, output):
        self.probe, self.found = probe, []
        self.publisher = probe.node.create_publisher(kind, topic, CAMERA)
        probe.node.create_subscription(kind, output, self.found.append, LATEST)

    def connect(self):
        self.probe.spin_until(
            lambda: (
                self.publisher.get_subscription_count()
                and self.probe.node.count_publishers('safe/overlay')
            ),
            'the overlay listens',
        )

    def show(self, message, timeout=15.0):
        """Publish an image until something is drawn, with a later stamp each time."""
        self.found.clear()
        deadline = time.monotonic() + timeout
        while not self.found and time.monotonic() < deadline:
            message.header.stamp.sec += 1
            self.publisher.publish(message)
            self.probe.executor.spin_once(timeout_sec=0.1)
        return self.found[-1] if self.found else None


def as_array(message):
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


@pytest.mark.parametrize(
    ('encoding', 'drawn'),
    [('rgb8', 'rgb8'), ('bgr8', 'bgr8'), ('mono8', 'bgr8'), ('16UC1', 'bgr8')],
)
def test_the_state_is_drawn_into_an_image_of_each_encoding(probe, overlay, encoding, drawn):
    camera = Camera(probe, Image, 'image', 'safe/overlay')
    overlay()
    camera.connect()
    made = camera.show(image(encoding))
    assert (made.encoding, made.height, made.width) == (drawn, HEIGHT, WIDTH)
    assert (made.step, made.header.frame_id) == (3 * WIDTH, 'camera')
    picture = as_array(made)
    assert len(np.unique(picture[60:80, 30:130])) == 1, 'the middle is as it was'
    assert len(np.unique(picture[:20].reshape(-1, 3), axis=0)) > 3, 'words at the top'


def test_the_colour_of_the_words_follows_the_monitor(
    probe, overlay, run_monitor, mlp_folder, quiet
):
    camera = Camera(probe, Image, 'camera/color', 'safe/overlay')
    overlay(image_topic='camera/color')
    monitor = run_monitor(detector_folder=mlp_folder)
    probe.wait_until_active()
    camera.connect()
    probe.step(quiet(0))

    def ground():
        picture = as_array(camera.show(image()))
        return ('red', 'green', 'blue')[int(np.argmax(picture[3, 3]))]

    deadline = time.monotonic() + 10
    while ground() != 'green':
        assert time.monotonic() < deadline
    assert monitor.stop() == 0
    deadline = time.monotonic() + 10
    while ground() != 'red':
        assert time.monotonic() < deadline, 'a monitor that is gone is never green'


def test_a_compressed_image_stays_compressed(probe, overlay):
    camera = Camera(probe, CompressedImage, 'image/compressed', 'safe/overlay/compressed')
    overlay(image_topic='image/compressed')
    camera.connect()
    message = CompressedImage(format='jpeg')
    picture = np.full((HEIGHT, WIDTH, 3), 64, np.uint8)
    message.data.frombytes(cv2.imencode('.jpg', picture)[1].tobytes())
    made = camera.show(message)
    assert 'jpeg' in made.format
    shown = cv2.imdecode(np.frombuffer(made.data, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == picture.shape
    assert abs(int(shown[70, 80, 0]) - 64) < 8
    assert shown[:20].std() > 20


def test_images_that_cannot_be_read_are_said_and_the_next_one_is_drawn(probe, overlay):
    camera = Camera(probe, Image, 'image', 'safe/overlay')
    process = overlay()
    camera.connect()
    broken = image()
    broken.height = 1000
    assert camera.show(broken, timeout=2.0) is None
    probe.spin_until(lambda: 'expected height x step bytes' in process.log(), 'it is said')
    assert camera.show(image()) is not None


def test_an_image_older_than_the_last_is_dropped_and_a_new_beginning_is_not(probe, overlay):
    camera = Camera(probe, Image, 'image', 'safe/overlay')
    overlay(max_frequency=1000.0)
    camera.connect()
    last = camera.show(image(seconds=100)).header.stamp.sec
    for _ in range(5):
        camera.publisher.publish(image(seconds=last - 1, nanosec=500_000_000))
        probe.executor.spin_once(timeout_sec=0.1)
    camera.found.clear()
    # The sentinel: what arrives first is not an old image.
    assert camera.show(image(seconds=last)).header.stamp.sec > last
    assert all(m.header.stamp.sec > last for m in camera.found)
    assert camera.show(image(seconds=1)).header.stamp.sec < 90, 'the recording began again'


def test_a_topic_of_another_type_is_said(probe, overlay):
    publisher = probe.node.create_publisher(String, 'image', 1)
    process = overlay()
    probe.spin_until(lambda: 'found std_msgs/msg/String' in process.log(), 'it is said')
    assert 'set the parameter image_topic' in process.log()
    probe.node.destroy_publisher(publisher)


def test_cv_bridge_reads_the_other_encodings_if_it_can_be_imported(probe, overlay):
    pytest.importorskip('cv_bridge')
    camera = Camera(probe, Image, 'image', 'safe/overlay')
    overlay()
    camera.connect()
    assert camera.show(image('bayer_rggb8')).encoding == 'bgr8'
