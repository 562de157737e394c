# SPDX-License-Identifier: Apache-2.0
"""What a person reads in ``/diagnostics``, made without ROS."""

import dataclasses

import numpy as np
import pytest
from band_factory import constant_band

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.monitor.alarm_policy import AdviceTable
from safe_monitor_node.monitor.own_labels import EpisodeLabel
from safe_monitor_node.monitor.policy_rows import read_rows
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.nodes.diagnosis import diagnose, facts_of, introduce
from vla_feature_bridge.nodes.levels import Finding, Level
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import PolicyStep

WIDTH = 4
SPEC = FeatureSpec('hidden_states', WIDTH, ('token',), (('token', 'last'),))


@pytest.fixture
def folder(tmp_path):
    detector = make_detector('action_norm')
    detector.load_state({}, WIDTH)
    levels = (np.arange(39) + 1) / 39
    own = constant_band(levels, (0.1, 0.2), 20)
    band = dataclasses.replace(own, tasks={'pour': own, 'wipe': own})
    return str(CalibratedDetector(detector, SPEC, band, 0.1).save(tmp_path / 'detector'))


@pytest.fixture
def session(folder, tmp_path):
    settings = MonitorSettings(adaptation_step=0.05, adaptation_file=str(tmp_path / 'updates.json'))
    return MonitorSession(folder, settings)


def play(session, index, score):
    step = PolicyStep(
        features=np.zeros(WIDTH, np.float32),
        episode_id='a',
        step=index,
        signals={'action_norm': score},
    )
    return session.step(step, 10.0)


def test_the_level_before_and_after_configure(session):
    assert diagnose(None, False, '') == (Level.STALE, 'not configured')
    assert diagnose(None, False, 'weights: damaged') == (Level.ERROR, 'weights: damaged')
    assert diagnose(session, False, '') == (Level.STALE, 'not active')
    assert diagnose(session, True, '') == (Level.STALE, 'UNKNOWN: no episode is running')


def test_the_level_follows_the_state(session):
    for index, (score, level, state) in enumerate(
        [
            (0.1, Level.OK, 'NOMINAL'),
            (0.9, Level.WARN, 'WARNING'),
            (2.0, Level.ERROR, 'ALARM'),
        ]
    ):
        verdict = play(session, index, score).verdict
        assert diagnose(session, True, '') == (level, f'{state}: {verdict.reason}')
    session.start('b', 0.0, '')
    play(session, 5, 0.1)
    assert diagnose(session, True, '')[0] == Level.ERROR, 'INVALID'
    session.tick(100.0)
    assert diagnose(session, True, '')[0] == Level.STALE


def test_a_file_that_cannot_be_written_is_a_warning_while_all_else_is_well(session):
    play(session, 0, 0.1)
    session.ensemble.slots[0].file_problem = 'updates.json: no more room'
    assert diagnose(session, True, '') == (
        Level.WARN,
        'NOMINAL, but updates.json: no more room',
    )
    assert facts_of(session)['adaptation file'] == 'updates.json: no more room'
    play(session, 1, 2.0)
    assert diagnose(session, True, '')[0] == Level.ERROR


def test_what_is_around_the_monitor_raises_the_level_and_is_said_after_the_state(session):
    two = Finding(Level.ERROR, '/safe/stop has 2 publishers')
    none = Finding(Level.WARN, 'no node publishes /vla/policy_step')
    assert diagnose(session, True, '', [none]) == (
        Level.STALE,
        'UNKNOWN: no episode is running; no node publishes /vla/policy_step',
    )
    assert diagnose(session, True, '', [none, two]) == (
        Level.ERROR,
        'UNKNOWN: no episode is running; /safe/stop has 2 publishers; no node publishes '
        '/vla/policy_step',
    )
    assert diagnose(session, False, '', [two])[0] == Level.ERROR
    play(session, 0, 0.1)
    assert diagnose(session, True, '', [none]) == (
        Level.WARN,
        'NOMINAL, but no node publishes /vla/policy_step',
    )
    assert diagnose(session, True, '', [two])[0] == Level.ERROR
    play(session, 0, 0.1)
    level, message = diagnose(session, True, '')
    assert level == Level.WARN
    assert message.startswith('NOMINAL, but 1 step was ignored, because of repetition')
    assert facts_of(session)['steps repeated'] == 1


def test_the_first_cause_stays_in_message_and_facts(session):
    play(session, 0, 0.1)
    play(session, 0, 0.7)
    for index in (1, 2):
        play(session, index, 0.1)
        level, message = diagnose(session, True, '')
        assert level == Level.ERROR
        assert message.startswith("INVALID: step 0 of episode 'a' arrived twice")
        assert 'arrived twice' in str(facts_of(session)['first problem'])
    assert facts_of(session)['steps misplaced'] == 1


def test_the_facts_without_adaptation(folder):
    session = MonitorSession(folder, MonitorSettings(warning_alpha=0.2))
    play(session, 0, 0.1)
    session.latencies.append(0.002)
    assert facts_of(session) == {
        'detector': 'action_norm',
        'features': 'hidden_states[token=last] (width 4)',
        'alpha (promised false-alarm rate)': '0.1',
        'calibration rollouts': 39,
        'band length [steps]': 20,
        'episode': 'a',
        'task': '',
        'band': 'the band of all tasks',
        'reason': 'the score is not above the threshold',
        'state': 'NOMINAL',
        'episodes': 1,
        'steps scored': 1,
        'steps invalid': 0,
        'steps missing': 0,
        'steps repeated': 0,
        'steps misplaced': 0,
        'first problem': '',
        'last problem': '',
        'alarm_k of alarm_n': '1 of 1',
        'warning_steps': 1,
        'latch': 'episode',
        'stale after [s]': '2 (learned: no period is known yet)',
        'max_age [s]': '0',
        'age of the last step [s]': 'unknown',
        'good runs': 'off: the parameter good_runs is 0',
        'latency p50 [ms]': '2.000',
        'latency p99 [ms]': '2.000',
    }


def test_the_facts_of_the_adaptation_are_of_the_band_in_use_and_of_moved_ones(session, tmp_path):
    session.start('a', 0.0, 'pour')
    play(session, 0, 2.0)
    session.end('a')
    session.finish_episode()
    session.label(EpisodeLabel('a', True))
    facts = facts_of(session)
    assert facts['adaptation step'] == '0.05'
    assert facts["adaptation of the band of task 'pour'"] == (
        'level 0.055; false alarms 1 of 1 labelled successes, realised 1, promised 0.1'
    )
    assert 'adaptation of the band of all tasks' not in facts
    assert "adaptation of the band of task 'wipe'" not in facts
    session.start('b', 0.0, 'wipe')
    assert facts_of(session)["adaptation of the band of task 'wipe'"] == (
        'level 0.1; false alarms 0 of 0 labelled successes, realised unknown, promised 0.1'
    )
    assert facts_of(session)['adaptation file'] == str(tmp_path / 'updates.json')


def test_adaptation_without_a_file_is_said_to_be_in_memory(folder):
    session = MonitorSession(folder, MonitorSettings(adaptation_step=0.05))
    assert facts_of(session)['adaptation file'] == 'none: updates are only in memory'


def test_a_new_session_says_what_it_uses(session, folder, tmp_path):
    detector = 'detector action_norm on hidden_states[token=last] (width 4), alpha 0.1, from '
    assert introduce(session) == [
        detector + folder,
        'labelled episodes update the thresholds with adaptation_step 0.05: level 0.1 after 0 '
        f'successes, stored in {tmp_path / "updates.json"}',
    ]
    assert introduce(MonitorSession(folder, MonitorSettings())) == [detector + folder]


def test_a_detector_without_features_is_said_to_read_signals(tmp_path):
    detector = make_detector('action_norm')
    detector.load_state({}, 0)
    band = constant_band((np.arange(39) + 1) / 39, (0.1, 0.2), 20)
    made = CalibratedDetector(detector, FeatureSpec('none', 0), band, 0.1)
    folder = str(made.save(tmp_path / 'detector'))
    assert introduce(MonitorSession(folder, MonitorSettings())) == [
        f'detector action_norm on action signals (no features), alpha 0.1, from {folder}'
    ]


def test_a_task_of_the_table_that_has_no_episode_is_shown(folder):
    rows = read_rows(['ALARM: ASK for task pour', 'ALARM: SLOW for task wipe  it'])
    session = MonitorSession(folder, MonitorSettings(advice=AdviceTable(rows)))
    key = 'tasks of alarm_policy without an episode'
    assert facts_of(session)[key] == 'pour, wipe it'
    session.start('a', 0.0, 'wipe it')
    session.advise(session.verdict, 0.0)
    assert facts_of(session)[key] == 'pour'
    session.start('b', 0.0, 'pour')
    session.advise(session.verdict, 0.0)
    assert key not in facts_of(session)
