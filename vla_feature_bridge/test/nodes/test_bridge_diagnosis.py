# SPDX-License-Identifier: Apache-2.0
"""The diagnosis of a source: never silently OK, and the worst finding comes first."""

import time

import numpy as np
import pytest

from vla_feature_bridge.episode_steps import EpisodeEventRecord
from vla_feature_bridge.nodes.bridge_diagnosis import (
    Finding,
    Surroundings,
    diagnose_channel,
    summarise,
)
from vla_feature_bridge.nodes.bridge_episodes import GivenEpisodes, SenderEpisodes
from vla_feature_bridge.nodes.levels import Level
from vla_feature_bridge.step import PolicyStep


class Nowhere:
    def publish_step(self, step):
        pass

    def publish_event(self, event):
        pass


def running(kind=SenderEpisodes, steps=(0, 1), stamp=0):
    channel = kind('left', Nowhere(), time.time_ns)
    channel.take_event(EpisodeEventRecord(kind='start', episode_id='a'))
    for number in steps:
        channel.take_step(PolicyStep(features=np.ones(2), episode_id='a', step=number, stamp=stamp))
    return channel


def diagnose(channel, stale_after=60.0, max_step_age=5.0, **around):
    around = {'subscribers': 1, **around}
    return diagnose_channel(
        channel, Surroundings('/left/vla/policy_step', **around), stale_after, max_step_age
    )


def test_a_source_in_order_is_ok_with_its_facts():
    found = diagnose(running())
    assert (found.level, found.name) == (Level.OK, 'source left')
    assert found.message.startswith("episode 'a'")
    assert found.facts['steps received'] == found.facts['steps published'] == 2
    assert found.facts['step topic'] == '/left/vla/policy_step'


@pytest.mark.parametrize(
    ('around', 'level', 'text'),
    [
        ({'connected': False}, Level.STALE, 'not connected while an episode runs'),
        ({'subscribers': 0}, Level.WARN, 'no node subscribes to /left/vla/policy_step'),
        ({'other_publishers': ['/other']}, Level.WARN, 'another node publishes'),
        (
            {'problems': [Finding(Level.ERROR, 'wrong type')], 'connected': False},
            Level.ERROR,
            'wrong type; the source is not connected',
        ),
    ],
)
def test_what_is_wrong_around_a_source_is_said(around, level, text):
    found = diagnose(running(), **around)
    assert found.level == level
    assert text in found.message


def test_lost_steps_are_a_warning_until_the_episode_ends():
    found = diagnose(running(steps=(0, 3)))
    assert found.level == Level.WARN
    assert '2 steps are missing before step 3' in found.message
    assert found.facts['steps lost'] == 2


def test_silence_in_an_episode_is_stale_and_between_episodes_it_is_not():
    channel = running()
    time.sleep(0.02)
    found = diagnose(channel, stale_after=0.01)
    assert found.level == Level.STALE
    assert 'no step for' in found.message
    channel.take_event(EpisodeEventRecord(kind='end', episode_id='a'))
    assert diagnose(channel, stale_after=0.01).level == Level.OK


@pytest.mark.parametrize('seconds', [-60, 60])
def test_old_stamps_and_stamps_of_the_future_are_a_warning(seconds):
    channel = running(stamp=time.time_ns() - seconds * 10**9)
    found = diagnose(channel)
    assert found.level == Level.WARN
    assert 'the stamp of the last step' in found.message
    assert diagnose(channel, max_step_age=0.0).level == Level.OK


def test_steps_outside_an_episode_are_a_warning():
    found = diagnose(running(GivenEpisodes))
    assert found.level == Level.WARN
    assert '2 steps came while no episode ran' in found.message


def test_the_worst_finding_comes_first_and_nothing_is_said_twice():
    findings = [Finding(level, level.name) for level in (*Level, Level.WARN)]
    assert summarise(findings, 'fine') == (Level.ERROR, 'ERROR; STALE; WARN; OK')
    assert summarise([], 'fine') == (Level.OK, 'fine')
