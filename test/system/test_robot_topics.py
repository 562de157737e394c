# SPDX-License-Identifier: Apache-2.0
"""How robots are found by their topics, and how it is known that their monitors are running."""

from __future__ import annotations

import time

import pytest
from probe import Probe

from safe_monitor_node.looking.board import RobotBoard
from safe_monitor_node.nodes.robot_topics import FIRST_WORD, AllRobots, robot_of
from safe_msgs.msg import FailureAlarm, FailureScore
from vla_feature_bridge.ros.qos import ALARM_QOS, SCORE_QOS, alive_qos


@pytest.mark.parametrize(
    ('topic', 'robot'),
    [('/safe/score', '/'), ('/r1/safe/score', '/r1'), ('/cell/r1/safe/score', '/cell/r1')],
)
def test_the_name_of_a_robot_is_its_namespace(topic, robot):
    assert robot_of(topic) == robot


class Robots:
    """What a node knows, and a second process-like context that publishes."""

    def __init__(self, probe, most_robots=200):
        self.probe, self.board = probe, RobotBoard(most_robots=most_robots)
        self.all = AllRobots(probe.node, self.board)

    def view(self, name):
        return self.board.view(name, time.monotonic())

    def wait(self, condition, what, timeout=15.0):
        def met():
            self.all.update()
            return condition()

        self.probe.spin_until(met, what, timeout)


@pytest.fixture
def other(own_domain):
    made = Probe()
    yield made.node
    made.close()


def publish(node, prefix, qos=ALARM_QOS):
    scores = node.create_publisher(FailureScore, f'{prefix}safe/score', SCORE_QOS)
    alarms = node.create_publisher(FailureAlarm, f'{prefix}safe/alarm', qos)
    alarms.publish(FailureAlarm(episode_id='e', state=FailureAlarm.STATE_NOMINAL, reason='fine'))
    return scores, alarms


@pytest.mark.parametrize('qos', [ALARM_QOS, alive_qos(ALARM_QOS)], ids=['recording', 'monitor'])
def test_a_robot_is_alive_with_and_without_liveliness_and_gone_afterwards(probe, other, qos):
    robots = Robots(probe)
    publishers = publish(other, '/r1/', qos)
    robots.wait(lambda: robots.board.names() == ['/r1'], 'the robot is found')
    robots.wait(lambda: robots.view('/r1').state.word == 'NOMINAL', 'its latched state arrives')
    for publisher in publishers:
        other.destroy_publisher(publisher)
    robots.wait(lambda: robots.view('/r1').state.word == 'GONE', 'it is gone')
    publish(other, '/r1/', qos)
    robots.wait(lambda: robots.view('/r1').state.word == 'NOMINAL', 'it is back')


def test_a_monitor_that_was_just_found_has_not_gone(probe, other):
    robots = Robots(probe)
    publish(other, '/r1/', alive_qos(ALARM_QOS))
    deadline = time.monotonic() + 15.0
    while not robots.board.names():  # nothing spins, so DDS cannot tell that the monitor is alive
        assert time.monotonic() < deadline, 'the robot is found'
        robots.all.update()
        time.sleep(0.05)
    robots.all.update()
    assert robots.view('/r1').state.word == 'UNKNOWN'
    time.sleep(FIRST_WORD)
    robots.all.update()
    assert robots.view('/r1').state.word == 'GONE'


def test_a_recording_of_scores_alone_is_a_robot(probe, other):
    robots = Robots(probe)
    scores = other.create_publisher(FailureScore, '/r1/safe/score', SCORE_QOS)
    robots.wait(
        lambda: robots.board.names() and scores.get_subscription_count(), 'the robot is found'
    )
    scores.publish(FailureScore(episode_id='e', score=0.5, threshold=0.8, state=2))
    robots.wait(lambda: robots.view('/r1').state.word == 'WARNING', 'the state of the score counts')


def test_topics_of_other_types_and_names_are_no_robots(probe, other):
    from std_msgs.msg import String

    robots = Robots(probe)
    for topic in ('/wrong/safe/score', '/r2/unsafe/score', '/safe/scores'):
        other.create_publisher(String, topic, 1)
    other.create_publisher(FailureScore, '/r2/unsafe/score2', SCORE_QOS)
    publish(other, '/sentinel/')
    robots.wait(robots.board.names, 'the sentinel is found')
    assert robots.board.names() == ['/sentinel']


def test_a_robot_too_many_takes_the_place_of_one_that_is_gone(probe, other):
    robots = Robots(probe, most_robots=1)
    publishers = publish(other, '/first/')
    robots.wait(lambda: robots.view('/first') and robots.view('/first').alive, 'the first is found')
    publish(other, '/second/')
    probe.spin_until(lambda: probe.node.count_publishers('/second/safe/score'), 'it is known')
    robots.all.update()
    assert robots.board.names() == ['/first']
    for publisher in publishers:
        other.destroy_publisher(publisher)
    robots.wait(lambda: robots.board.names() == ['/second'], 'the second is shown')
    assert robots.all.robot('/first') is None, 'its subscriptions are closed'
