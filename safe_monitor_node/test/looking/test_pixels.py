# SPDX-License-Identifier: Apache-2.0
"""Camera images of every encoding: the right colours, padding, byte order, and wrong sizes."""

import numpy as np
import pytest

from safe_monitor_node.looking.pixels import KNOWN, PixelsError, RawImage, from_picture, to_picture

BLUE, GREEN, RED, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (7, 7, 7)
ROW = [BLUE, GREEN, RED, GREY]


def image_of(encoding, channels, padding=0):
    row = bytes(v for pixel in ROW for v in channels(pixel)) + b'\xee' * padding
    return RawImage(encoding, 2, 4, len(row), row * 2)


@pytest.mark.parametrize('padding', [0, 1, 5])
@pytest.mark.parametrize(
    ('encoding', 'channels'),
    [
        ('bgr8', lambda p: p),
        ('8UC3', lambda p: p),
        ('rgb8', lambda p: p[::-1]),
        ('bgra8', lambda p: (*p, 9)),
        ('rgba8', lambda p: (*p[::-1], 9)),
    ],
)
def test_colours_are_blue_green_red(encoding, channels, padding):
    picture = to_picture(image_of(encoding, channels, padding))
    assert picture.tolist() == [[list(pixel) for pixel in ROW]] * 2
    picture[:] = 0  # may be drawn into


@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
def test_grey_has_three_equal_channels(encoding):
    picture = to_picture(RawImage(encoding, 2, 2, 3, bytes([1, 2, 99, 3, 4, 99])))
    assert picture.tolist() == [[[1] * 3, [2] * 3], [[3] * 3, [4] * 3]]


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
def test_depth_goes_from_near_to_far_and_what_was_not_measured_is_black(encoding, big_endian):
    depth = np.array([[0, 1000], [1500, 2000]], '>u2' if big_endian else '<u2')
    picture = to_picture(RawImage(encoding, 2, 2, 4, depth.tobytes(), big_endian))
    levels = picture[..., 0]
    assert levels[0, 0] == 0
    assert 0 < levels[0, 1] < levels[1, 0] < levels[1, 1] == 255


@pytest.mark.parametrize('depth', [0, 500])
def test_a_depth_image_of_one_value_is_read(depth):
    data = np.full((2, 2), depth, '<u2').tobytes()
    assert (to_picture(RawImage('16UC1', 2, 2, 4, data)) > 0).all() == (depth > 0)


@pytest.mark.parametrize(
    'image',
    [
        RawImage('rgb8', 2, 2, 6, b'\0' * 11),
        RawImage('rgb8', 2, 2, 5, b'\0' * 12),
        RawImage('rgb8', 0, 2, 6, b''),
        RawImage('rgb8', 2, 0, 6, b'\0' * 12),
        RawImage('16UC1', 1, 2, 3, b'\0' * 4),
        RawImage('rgb8', 2**32 - 1, 2**32 - 1, 2**32 - 1, b'\0' * 12),
    ],
)
def test_bytes_that_do_not_fit_the_size_are_refused(image):
    with pytest.raises(PixelsError, match='expected height x step bytes'):
        to_picture(image)


def test_an_unknown_encoding_is_refused_with_those_that_are_known():
    with pytest.raises(PixelsError, match='yuv422') as caught:
        to_picture(RawImage('yuv422', 2, 2, 4, b'\0' * 8))
    assert all(encoding in str(caught.value) for encoding in KNOWN)


@pytest.mark.parametrize(
    ('encoding', 'sent'), [('rgb8', 'rgb8'), ('bgr8', 'bgr8'), ('mono8', 'bgr8')]
)
def test_a_picture_that_is_sent_is_read_as_the_same(encoding, sent):
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    found, data = from_picture(picture, encoding)
    assert found == sent
    assert (to_picture(RawImage(found, 2, 4, 12, data)) == picture).all()
