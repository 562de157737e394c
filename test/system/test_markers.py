# SPDX-License-Identifier: Apache-2.0
"""The markers for RViz: geometry and words by hand, and the node beside a real monitor."""

from __future__ import annotations

import math

import pytest
from probe import RELIABLE
from std_msgs.msg import Float32
from visualization_msgs.msg import Marker, MarkerArray

from safe_bringup.live import Process
from safe_monitor_node.looking.board import AlarmSample, RobotBoard, ScoreSample
from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.nodes.marker_messages import NAMES, MarkerPlace, robot_markers

PLACE = MarkerPlace('base_link', 1.0, 2.0, 3.0, 0.5, 1.5)


def markers_of(scores, threshold=0.8, state=AlarmState.NOMINAL):
    board = RobotBoard()
    board.add('/r')
    for k, score in enumerate(scores):
        board.take_score('/r', ScoreSample('e', k, score, threshold, math.nan, int(state)), 0.0)
    board.take_alarm('/r', AlarmSample('e', 0, int(state), 0, ''))
    markers = robot_markers(board.view('/r', 0.0), PLACE).markers
    assert tuple(marker.ns for marker in markers) == NAMES
    return dict(zip(('background', 'bar', 'threshold', 'state'), markers, strict=True))


def ends(marker):
    """Return where a box begins and ends, as parts of the bar from 0 to 1."""
    middle = (marker.pose.position.x - PLACE.x) / PLACE.size + 0.5
    half = marker.scale.x / PLACE.size / 2
    return middle - half, middle + half


def test_the_bar_and_the_threshold_have_one_scale():
    made = markers_of([0.2, 0.4])
    assert ends(made['background']) == pytest.approx((0, 1))
    # From 0 to the largest number, the threshold 0.8, and a tenth more.
    assert ends(made['bar']) == pytest.approx((0, 0.4 / 0.88))
    assert sum(ends(made['threshold'])) / 2 == pytest.approx(0.8 / 0.88)


def test_a_score_below_zero_begins_at_the_lowest():
    made = markers_of([-2.0, -1.0], threshold=-0.5)
    assert ends(made['bar']) == pytest.approx((0, 1.0 / 2.2))
    assert sum(ends(made['threshold'])) / 2 == pytest.approx(1.5 / 2.2)


@pytest.mark.parametrize('state', AlarmState)
def test_each_state_is_said_in_words(state):
    made = markers_of([0.2], state=state)
    assert made['state'].text == f'{state.name}\n0.2 / 0.8  step 0'
    assert made['state'].type == Marker.TEXT_VIEW_FACING
    assert made['state'].pose.position.z > PLACE.z


@pytest.mark.parametrize(
    ('score', 'threshold', 'deleted'),
    [(math.nan, 0.8, {'bar'}), (0.2, math.inf, {'threshold'}), (0.2, math.nan, {'threshold'})],
)
def test_what_has_no_value_is_removed_from_the_screen(score, threshold, deleted):
    made = markers_of([score], threshold)
    assert {name for name, m in made.items() if m.action == Marker.DELETE} == deleted


@pytest.mark.parametrize('scores', [[], [0.0], [math.nan], [1e30], [-1e30, 1e30], [math.inf]])
def test_every_marker_can_be_drawn(scores):
    for marker in markers_of(scores).values():
        assert marker.header.frame_id == 'base_link'
        assert marker.lifetime.sec == 1
        assert marker.lifetime.nanosec == 500_000_000
        position, scale = marker.pose.position, marker.scale
        assert all(map(math.isfinite, (position.x, position.y, position.z)))
        if marker.action == Marker.ADD and marker.type == Marker.CUBE:
            assert min(scale.x, scale.y, scale.z) > 0


def test_the_node_shows_its_monitor_and_says_when_it_is_gone(
    probe, run_monitor, mlp_folder, quiet, tmp_path
):
    arrays: list[MarkerArray] = []
    probe.node.create_subscription(MarkerArray, 'safe/markers', arrays.append, RELIABLE)
    monitor = run_monitor(detector_folder=mlp_folder)
    parameters = {'frame_id': 'world', 'period': 0.05}
    with Process('safe_monitor_node.nodes.markers', parameters, tmp_path / 'log') as markers:
        probe.spin_until(lambda: arrays, 'markers arrive')
        probe.wait_until_active()
        score = probe.step(quiet(0))

        def text():
            return arrays[-1].markers[3].text

        probe.spin_until(lambda: text().startswith('NOMINAL'), 'the state arrives')
        assert text().endswith('step 0')
        assert float(text().split()[1]) == pytest.approx(score.score, rel=1e-2)
        assert arrays[-1].markers[0].header.frame_id == 'world'
        assert monitor.stop() == 0
        probe.spin_until(lambda: text().startswith('GONE'), 'the monitor is gone', timeout=6)
        assert markers.stop() == 0, markers.log()
        assert 'Traceback' not in markers.log()


def test_the_numbers_are_published_only_if_wanted(probe, run_monitor, mlp_folder, quiet, tmp_path):
    numbers: list[tuple[str, float]] = []
    for name in ('score', 'threshold'):
        probe.node.create_subscription(
            Float32,
            f'safe/{name}_value',
            lambda message, name=name: numbers.append((name, message.data)),
            RELIABLE,
        )
    run_monitor(detector_folder=mlp_folder)
    with Process('safe_monitor_node.nodes.markers', {'numbers': 'true'}, tmp_path / 'log'):
        probe.wait_until_active()
        probe.spin_until(
            lambda: (
                probe.node.count_publishers('safe/score_value')
                and probe.node.count_subscribers('safe/score') >= 3
            ),
            'the node listens',
        )
        score = probe.step(quiet(0))
        probe.spin_until(lambda: len(numbers) == 2, 'both numbers arrive')
        assert dict(numbers) == {'score': score.score, 'threshold': score.threshold}
    with Process('safe_monitor_node.nodes.markers', {}, tmp_path / 'log'):
        probe.spin_until(lambda: probe.node.count_publishers('safe/markers'), 'the node runs')
        assert not probe.node.count_publishers('safe/score_value')
