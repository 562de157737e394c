# SPDX-License-Identifier: Apache-2.0
"""What is drawn into a camera image: the state, the curve and the band, at any size."""

import math

import numpy as np
import pytest

from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_monitor_node.looking.camera_panel import draw
from safe_monitor_node.monitor.alarm import AlarmState

pytest.importorskip('cv2')


def view_of(state=AlarmState.NOMINAL, scores=(0.1, 0.2, 0.9), threshold=0.8):
    board = RobotBoard()
    board.add('/r')
    for k, score in enumerate(scores):
        board.take_score('/r', ScoreSample('e', k, score, threshold, math.nan, int(state)), 0.0)
    board.take_alarm('/r', AlarmSample('e', 2, int(state), 0, ''))
    return board.view('/r', 0.0)


def drawn(view, height=480, width=640, level=128):
    picture = np.full((height, width, 3), level, np.uint8)
    draw(picture, view)
    return picture


def test_the_middle_of_the_image_is_not_touched():
    picture = drawn(view_of(AlarmState.ALARM))
    assert (picture[100:350, 20:-20] == 128).all()
    assert (picture[-90:] != 128).any()


@pytest.mark.parametrize(
    ('state', 'channel'), [(AlarmState.ALARM, 2), (AlarmState.INVALID, 2), (AlarmState.NOMINAL, 1)]
)
def test_the_ground_of_the_word_has_the_colour_of_the_state(state, channel):
    blue, green, red = (int(v) for v in drawn(view_of(state))[9, 9])
    levels = (blue, green, red)
    assert levels[channel] == max(levels)
    assert levels[channel] > 1.5 * sorted(levels)[1]


@pytest.mark.parametrize('state', AlarmState)
def test_a_border_warns_unless_all_is_well(state):
    edge = drawn(view_of(state))[200, 2]
    assert (edge == 128).all() == (state == AlarmState.NOMINAL)


def test_a_score_above_the_band_is_drawn_above_it():
    picture = drawn(view_of(scores=[0.1] * 10 + [1.6] * 10)).astype(int)
    strip = picture[-90:]
    # The band is green; the score is light blue.
    band = np.argwhere((strip[..., 1] > 140) & (strip[..., 0] > 90) & (strip[..., 2] < 30))
    score = np.argwhere((strip[..., 0] > 210) & (strip[..., 1] > 150))
    left, right = score[score[:, 1] < 200], score[score[:, 1] > 420]
    assert left[:, 0].min() > band[:, 0].max()
    assert right[:, 0].max() < band[:, 0].min()


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (48, 48), (64, 1000), (1080, 1920), (240, 50)])
@pytest.mark.parametrize(
    'view',
    [
        view_of(scores=()),
        view_of(scores=(0.5,)),
        view_of(AlarmState.ALARM),
        view_of(scores=(math.nan, 0.2, math.nan, 0.4), threshold=math.inf),
        view_of(AlarmState.STALE, scores=(1e30, -1e30), threshold=math.nan),
        view_of(AlarmState.INVALID, scores=range(600)),
    ],
)
def test_every_size_and_every_curve_can_be_drawn(size, view):
    assert drawn(view, *size).shape == (*size, 3)
