# SPDX-License-Identifier: Apache-2.0
"""A session: detector, file and labels, between END and the next episode."""

from __future__ import annotations

import json

import numpy as np
import pytest
from band_factory import constant_band

from safe_monitor_node.bands.band import Band
from safe_monitor_node.bands.probability import ProbabilityMap
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmState, Latch
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.own_labels import EpisodeLabel, OwnLabels
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.steps import Publication, StepId
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.storage.adaptation_file import AdaptationFileError
from safe_monitor_node.storage.detector_folder import DetectorFolderError
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.step import PolicyStep

SAME_ID = 'use the same episode_id in vla/episode and in vla/policy_step'

WIDTH = 4
SPEC = FeatureSpec('hidden_states', WIDTH)
LOW, HIGH = 0.2, 1.2
ADAPTING = MonitorSettings(adaptation_step=0.05)


def save(folder, name='action_norm', scale=1.0):
    detector = make_detector(name)
    detector.load_state({}, WIDTH)
    band = constant_band(scale * (np.arange(39) + 1) / 39, (0.1, 0.2), 20)
    return str(CalibratedDetector(detector, SPEC, band, 0.1).save(folder))


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / 'detector')


@pytest.fixture
def other_folder(tmp_path):
    return save(tmp_path / 'other', scale=2.0)


def make_step(episode, index, score=LOW, stamp=0):
    return PolicyStep(
        features=np.full(WIDTH, 1 + index, np.float32),
        episode_id=episode,
        step=index,
        stamp=stamp,
        signals={'action_norm': score},
    )


class Live:
    """A session, and the state of the alarm after each episode."""

    def __init__(self, folder, settings=ADAPTING):
        self.at_end = []
        self.session = MonitorSession(folder, settings, self._on_end)

    def _on_end(self):
        monitor = self.session.monitor
        self.at_end.append((monitor.verdict.state, monitor.latest_id, self.session.running_id))

    def step(self, episode, index, score=LOW, stamp=0):
        return self.session.step(make_step(episode, index, score, stamp), 0.0)

    def play(self, episode, *scores):
        for index, score in enumerate(scores):
            self.step(episode, index, score)
        assert self.session.end(episode)
        self.session.finish_episode()


# --- END and the steps after it


def test_steps_after_end_are_scored_until_the_grace_is_over(folder):
    live = Live(folder)
    live.step('a', 0)
    assert live.session.end('a')
    assert live.step('a', 1, HIGH).verdict.state == AlarmState.ALARM
    assert live.session.running_id == 'a'
    assert live.at_end == []
    live.session.finish_episode()
    assert live.at_end == [(AlarmState.UNKNOWN, 'a', None)]
    assert live.step('a', 2).verdict.state == AlarmState.INVALID, 'the grace is over'
    live.session.finish_episode()
    assert len(live.at_end) == 1, 'the timer of the grace may fire once more'


def test_the_end_of_another_episode_begins_no_grace(folder):
    live = Live(folder)
    assert not live.session.end('a')
    live.step('a', 0)
    assert not live.session.end('b')
    assert live.session.running_id == 'a'


@pytest.mark.parametrize(
    ('ended', 'published', 'late'),
    [
        pytest.param(False, 1500, True, id='END of the last episode'),
        pytest.param(False, 2500, False, id='END of this episode'),
        pytest.param(False, 0, False, id='no time'),
        pytest.param(True, 1500, False, id='the last one had its END: a clock is wrong'),
    ],
)
def test_a_late_end_of_the_last_episode_does_not_end_one_of_the_same_id(
    folder, ended, published, late
):
    live = Live(folder)
    order = live.session.monitor.order
    for time in (1000, 2000):
        live.session.step(make_step('e', 0, stamp=time), 0.0, publication=Publication(1, time))
        assert time == 2000 or not order.take_end_of_last('e', 500), 'no episode was before'
        if ended and time == 1000:
            live.session.end('e')
            live.session.finish_episode()
    assert not order.take_end_of_last('other', published)
    assert order.take_end_of_last('e', published) == late
    assert not order.take_end_of_last('e', published), 'only one END is missing'


@pytest.mark.parametrize(
    'how', ['step', 'unreadable step', 'start and step', 'start and end', 'two starts']
)
def test_the_next_episode_ends_the_grace_of_the_last_one(folder, how):
    live = Live(folder)
    live.step('a', 0, HIGH)
    live.session.end('a')
    if how == 'step':
        live.step('b', 0)
    elif how == 'start and step':
        live.session.start('b', 0.0, 'pour')
        live.step('b', 0)
    elif how == 'start and end':
        live.session.start('b', 0.0, 'pour')
        live.session.end('b')
    elif how == 'two starts':
        live.session.start('b', 0.0, 'pour')
        live.session.start('c', 0.0, 'pour')
    else:
        live.session.refuse(StepId('b', 0, 0), 'unreadable', 0.0)
    assert live.at_end == [(AlarmState.UNKNOWN, 'a', None)], 'said before the next one begins'
    running, episodes = ('c', 3) if how == 'two starts' else ('b', 2)
    assert live.session.running_id == running
    assert live.session.monitor.counts.episodes == episodes


def test_a_start_that_overtakes_the_last_steps_loses_no_alarm(folder):
    live = Live(folder)
    live.step('a', 0)
    live.session.end('a')
    live.session.start('b', 0.0, 'pour')
    assert live.session.running_id == 'a'
    assert live.step('a', 1, HIGH).verdict.state == AlarmState.ALARM
    assert live.step('older', 3) is not None, 'a step of a third episode begins that one'
    assert live.session.running_id == 'older'


def test_a_start_after_end_starts_when_the_grace_is_over(folder):
    live = Live(folder)
    live.step('a', 0, HIGH)
    live.session.end('a')
    live.session.start('b', 0.0, 'pour')
    live.session.finish_episode()
    assert live.at_end == [(AlarmState.UNKNOWN, 'a', None)]
    assert (live.session.running_id, live.session.monitor.task) == ('b', 'pour')
    assert live.step('b', 0).verdict.state == AlarmState.NOMINAL
    live.session.finish_episode()
    assert live.session.running_id == 'b', 'no END of b has come'


def test_a_start_without_an_end_before_gives_the_last_steps_the_same_grace(folder):
    live = Live(folder)
    live.step('a', 0)
    assert live.session.start('b', 0.0, 'pour', 0.1, 1000)
    assert live.session.running_id == 'a'
    assert live.step('a', 1, HIGH).verdict.state == AlarmState.ALARM
    assert not live.session.start('b', 0.0, 'pour', 0.1), 'START of b again: a ends'
    assert live.at_end == [(AlarmState.UNKNOWN, 'a', None)]
    assert (live.session.running_id, live.session.monitor.task) == ('b', 'pour')
    late = make_step('a', 2)
    for published, place in ((999, None), (1001, AlarmState.INVALID)):
        result = live.session.step(late, 10.0, publication=Publication(None, published))
        assert (result and result.verdict.state) == place, 'only a step from before START is late'


def test_an_end_of_a_clock_that_is_ahead_does_not_hide_the_next_steps_for_long(folder):
    live = Live(folder)
    for index, now, state in ((0, 0.0, 'NOMINAL'), (1, 9.0, None), (2, 11.0, 'INVALID')):
        step, publication = make_step('a', index), Publication(None, 1000 + index)
        result = live.session.step(step, now, publication=publication)
        assert (result and result.verdict.state) == (state and AlarmState[state])
        if not index:
            live.session.end('a', now, 0.1, ended_at=10**9)
            live.session.finish_episode()


def test_a_start_without_an_end_before_starts_when_the_grace_is_over(folder):
    live = Live(folder)
    live.step('a', 0, HIGH)
    assert live.session.start('b', 5.0, 'pour', 0.1)
    live.session.finish_episode()
    assert live.at_end == [(AlarmState.UNKNOWN, 'a', None)]
    assert live.session.running_id == 'b'
    assert live.session.verdict.state == AlarmState.UNKNOWN
    assert live.step('b', 0).verdict.state == AlarmState.NOMINAL
    assert live.session.monitor.counts.episodes == 2


def test_a_label_of_an_episode_whose_start_waits_is_not_lost(folder):
    live = Live(folder)
    live.step('a', 0)
    live.session.start('b', 0.0, 'pour', 0.1)
    assert live.session.label(label('a')) is LabelEffect.PENDING
    assert live.session.running_id == 'a', 'a label of another episode starts nothing'
    assert live.session.label(label('b')) is LabelEffect.PENDING
    live.step('b', 0, HIGH)
    live.session.end('b')
    live.session.finish_episode()
    assert live.step('c', 0).threshold > 36 / 39, 'the label of b counts'


def test_the_first_start_and_a_start_of_the_running_episode_wait_for_nothing(folder):
    live = Live(folder)
    assert not live.session.start('a', 0.0, 'pour', 0.1)
    assert live.session.running_id == 'a'
    live.step('a', 0, HIGH)
    assert not live.session.start('a', 0.0, 'pour', 0.1)
    assert live.session.verdict.state == AlarmState.ALARM


def test_an_end_that_comes_after_the_next_start_is_no_second_end(folder):
    live = Live(folder)
    live.step('a', 0)
    assert live.session.start('b', 0.0, 'pour', 0.1)
    assert live.session.end('a', 0.0, 0.1), 'the grace begins again'
    assert live.step('a', 1, HIGH).verdict.state == AlarmState.ALARM
    live.step('b', 0)
    assert live.session.running_id == 'b'
    assert len(live.at_end) == 1


def test_a_start_after_the_end_begins_the_episode_anew(folder):
    live = Live(folder)
    live.step('a', 0)
    live.session.end('a')
    live.session.start('a', 0.0, '')
    assert (len(live.at_end), live.session.running_id) == (1, 'a')
    assert live.session.monitor.counts.episodes == 2


def test_silence_after_end_is_not_stale(folder):
    live = Live(folder, MonitorSettings(alarm=AlarmConfig(stale_after=1.0)))
    live.step('a', 0)
    live.session.end('a')
    live.session.tick(10.0)
    assert live.session.verdict.state == AlarmState.NOMINAL
    live.step('b', 0)
    live.session.tick(10.0)
    assert live.session.verdict.state == AlarmState.STALE


def test_an_episode_of_a_deactivated_monitor_is_not_ended_later(folder):
    live = Live(folder)
    live.step('a', 0)
    live.session.end('a')
    live.session.deactivate()
    live.session.finish_episode()
    assert live.at_end == []
    assert live.session.monitor.latest_id == ''


def test_whether_a_step_begins_an_episode_is_asked_once(folder, monkeypatch):
    live, asked = Live(folder), []
    begins = type(live.session.monitor).begins

    def count(monitor, step_id):
        asked.append(step_id)
        return begins(monitor, step_id)

    monkeypatch.setattr(type(live.session.monitor), 'begins', count)
    live.step('a', 0, stamp=3)
    live.session.refuse(StepId('a', 1, 4), 'unreadable', 0.0)
    live.step('b', 0, stamp=5)
    live.session.monitor.step(make_step('b', 1, stamp=6), 0.0)
    assert asked == [StepId('a', 0, 3), StepId('a', 1, 4), StepId('b', 0, 5), StepId('b', 1, 6)]


def test_the_first_and_the_last_problem_are_kept_until_the_next_episode(folder):
    live = Live(folder)
    live.session.refuse(StepId('a', 0, 0), 'step 0: NaN', 0.0)
    assert live.session.refuse(StepId('a', 0, 0), 'a repetition', 0.0) is None
    live.step('a', 1)
    live.session.refuse(StepId('a', 2, 0), 'step 2: the width is wrong', 0.0)
    live.step('a', 3)
    for _ in range(2):
        assert live.session.first_problem == 'step 0: NaN'
        assert live.session.problem == 'step 2: the width is wrong'
        live.session.end('a')
        live.session.finish_episode()
    live.step('b', 0)
    assert (live.session.first_problem, live.session.problem) == ('', '')
    live.step('b', 5)
    assert live.session.first_problem == '4 steps of the episode are missing (1 to 4)'
    live.session.start('c', 0.0, '')
    assert live.session.first_problem == ''


# --- remarks


def remarks(live):
    return ' | '.join(live.session.remarks.texts)


def test_repeated_steps_are_counted_and_said_for_a_while(folder):
    live = Live(folder)
    live.step('a', 0)
    assert remarks(live) == ''
    live.step('a', 0)
    assert remarks(live) == (
        '1 step was ignored, because of repetition or late arrival; the last ignored step is '
        "step 0 of episode 'a'"
    )
    live.step('a', 1)
    live.step('a', 1)
    assert remarks(live).startswith('2 steps were ignored, because of repetition')
    assert len(live.session.remarks.take_new()) == 1, 'logged once'
    live.session.tick(9.0)
    assert remarks(live)
    live.session.tick(11.0)
    assert remarks(live) == ''


def test_a_start_and_an_end_of_ids_that_no_step_has_are_remarked(folder):
    live = Live(folder)
    live.session.start('a', 0.0, '')
    live.step('run 7', 0)
    assert remarks(live) == (
        "START of episode 'a': expected a step of this episode next, found a step of episode "
        f"'run 7'; {SAME_ID}"
    )
    live.session.tick(20.0)
    live.session.end('b', 20.0)
    assert remarks(live) == (
        "END of episode 'b': expected START or a step with this id before END, found none; "
        f'{SAME_ID}'
    )
    live.session.tick(40.0)
    live.session.start('c', 40.0, '')
    live.session.end('c', 40.0)
    assert remarks(live) == (
        f"END of episode 'c': expected a step with this id before END, found none; {SAME_ID}"
    )
    live.session.tick(60.0)
    live.session.start('d', 60.0, '')
    live.session.start('e', 60.0, '')
    assert 'found START of episode' in remarks(live)


def test_a_publisher_that_takes_over_an_episode_is_remarked(folder):
    live = Live(folder)
    for index, sequence in ((0, 500), (1, 1), (2, 2)):
        result = live.session.step(make_step('a', index), 0.0, None, Publication(sequence))
        assert result.verdict.state == AlarmState.NOMINAL
    assert remarks(live) == "episode 'a': the publisher of the steps has changed at step 1"


def test_nothing_is_remarked_of_episodes_that_are_in_order(folder):
    live = Live(folder)
    for episode in ('a', 'b', 'a'):
        live.session.start(episode, 0.0, '')
        live.session.start(episode, 0.0, '')
        live.step(episode, 0, stamp=len(live.at_end) + 1)
        live.session.start(episode, 0.0, '')
        live.session.end(episode, 0.0)
        live.session.end(episode, 0.0)
        live.session.finish_episode()
        live.session.end(episode, 0.0)
    live.step('without START', 0)
    live.session.end('without START', 0.0)
    live.session.began_earlier('latched', 0.0)
    live.session.end('latched', 0.0)
    live.session.end('older', 0.0, earlier=True)
    assert remarks(live) == ''


def test_a_long_id_is_shortened_in_every_text(folder):
    live, long = Live(folder), 'x' * 100_000
    live.step(long, 0)
    live.step(long, 0)
    live.session.end(long + 'y', 0.0)
    live.session.end(long, 0.0)
    live.session.finish_episode()
    live.step(long, 5)
    texts = [*live.session.remarks.texts, live.session.problem, live.session.verdict.reason]
    assert len(texts) == 4
    assert all(0 < len(text) < 400 and '100000 characters' in text for text in texts[2:])
    assert all(len(text) < 400 for text in texts)


def test_a_label_of_an_unknown_id_is_known_to_be_one(folder):
    live = Live(folder)
    live.session.start('a', 0.0, '')
    live.step('b', 0)
    assert [live.session.remarks.knows(name) for name in ('a', 'b', 'c')] == [True, True, False]
    for number in range(1100):
        live.session.start(f'episode {number}', 0.0, '')
    assert not live.session.remarks.knows('a'), 'only so many are kept'


def test_a_latched_alarm_is_said_at_once_when_the_monitor_is_active_again(folder):
    live = Live(folder, MonitorSettings(alarm=AlarmConfig(latch=Latch.RESET)))
    live.session.activate(0.0)
    live.step('a', 0, HIGH)
    live.session.deactivate()
    live.session.activate(1.0)
    assert live.session.verdict.state == AlarmState.ALARM


# --- another detector


def test_another_detector_waits_for_the_next_episode(folder, other_folder):
    live = Live(folder)
    live.step('a', 0)
    other = ADAPTING.monitor_of(other_folder)
    answer = live.session.replace(other, other_folder)
    assert answer == (
        'action_norm on hidden_states is used from the next episode on; '
        'its adaptation starts from the calibrated thresholds'
    )
    assert live.session.folder == other_folder
    assert live.step('a', 1).threshold == pytest.approx(36 / 39)
    assert live.step('b', 0).threshold == pytest.approx(72 / 39)
    assert live.session.monitor is other
    assert other.counts.episodes == 2, 'the counts go on'
    assert live.step('a', 2) is not None, 'without END it may be an episode of its own'


def test_another_detector_is_in_use_at_once_while_no_episode_runs(folder, other_folder):
    live = Live(folder)
    live.play('a', LOW)
    other = ADAPTING.monitor_of(other_folder)
    assert 'is in use' in live.session.replace(other, other_folder)
    assert live.session.monitor is other
    late = live.step('a', 1)
    assert late.verdict.state == AlarmState.INVALID, 'the late step of an ended episode'
    assert live.session.running_id is None


def test_another_detector_takes_over_when_the_grace_is_over(folder, other_folder):
    live = Live(folder)
    live.step('a', 0)
    live.session.end('a')
    other = ADAPTING.monitor_of(other_folder)
    assert 'next episode' in live.session.replace(other, other_folder)
    live.session.finish_episode()
    assert live.session.monitor is other


def test_the_detector_that_was_loaded_last_is_used(folder, other_folder, tmp_path):
    live = Live(folder)
    live.step('a', 0)
    live.session.replace(ADAPTING.monitor_of(other_folder), other_folder)
    live.session.deactivate()
    last_folder = save(tmp_path / 'last', scale=3.0)
    last = ADAPTING.monitor_of(last_folder)
    assert 'is in use' in live.session.replace(last, last_folder)
    live.step('b', 0)
    assert live.session.monitor is last, 'the detector that waited for an episode is forgotten'


def test_a_start_of_the_running_episode_brings_no_other_detector(folder, other_folder):
    live = Live(folder)
    live.step('a', 0)
    live.session.replace(ADAPTING.monitor_of(other_folder), other_folder)
    live.session.start('a', 0.0, 'pour')
    assert live.step('a', 1).threshold == pytest.approx(36 / 39)
    live.session.start('b', 0.0, 'pour')
    assert live.step('b', 0).threshold == pytest.approx(72 / 39)


def test_a_folder_that_cannot_be_used_is_refused(folder, tmp_path):
    with pytest.raises(MonitorError, match=r'detector_folder: .*an empty text; give a folder'):
        MonitorSession('', MonitorSettings())
    with pytest.raises(DetectorFolderError, match='no such folder'):
        MonitorSession(str(tmp_path / 'absent'), MonitorSettings())
    with pytest.raises(MonitorError, match=r'found alpha 0\.3; choose a cal'):
        MonitorSession(folder, MonitorSettings(alpha=0.3))


# --- labels


def label(episode='a', success=True, stamp=0):
    return EpisodeLabel(episode, success, stamp, 'by hand')


def test_an_own_label_is_known_once():
    own = OwnLabels()
    own.expect(label(stamp=1))
    own.expect(label(stamp=2))
    assert not own.take(label(stamp=3))
    assert not own.take(label(success=False, stamp=1))
    assert own.take(label(stamp=2))
    assert own.take(label(stamp=1))
    assert not own.take(label(stamp=1)), 'played from a bag it is a label like any other'


def test_a_label_has_its_effect_from_the_next_episode_on(folder):
    live = Live(folder)
    live.play('a', HIGH)
    assert live.session.label(label()) is LabelEffect.UPDATED
    assert live.step('b', 0).threshold > 36 / 39
    assert live.session.label(label(success=None)) is LabelEffect.UNDONE


# --- the adaptation file


def in_file(path):
    (band,) = json.loads(path.read_text())['bands']
    return band['successes']


@pytest.fixture
def settings(tmp_path):
    return MonitorSettings(adaptation_step=0.05, adaptation_file=str(tmp_path / 'updates.json'))


def test_updates_are_on_disk_at_once_and_survive_the_session(folder, settings, tmp_path):
    live = Live(folder, settings)
    assert live.session.adaptation_kept_in == settings.adaptation_file
    live.play('a', HIGH)
    live.session.label(label())
    assert in_file(tmp_path / 'updates.json') == 1
    live.step('b', 0)
    live.session.label(label('b'))
    live.session.end('b')
    live.session.finish_episode()
    assert in_file(tmp_path / 'updates.json') == 2, 'a label before END has its effect at END'
    again = Live(folder, settings).session
    assert again.monitor.adaptation.of('').false_alarms == 1


def test_a_file_that_cannot_be_written_is_said_until_it_can(folder, settings, tmp_path):
    live, path = Live(folder, settings), tmp_path / 'updates.json'
    live.play('a', HIGH)
    path.unlink()
    path.mkdir()
    assert live.session.label(label()) is LabelEffect.UPDATED
    assert str(path) in live.session.file_problem
    assert 'cannot be written' in live.session.file_problem
    path.rmdir()
    live.session.tick(0.0)
    assert live.session.file_problem == ''
    assert in_file(path) == 1


def test_a_file_without_adaptation_is_refused(folder, tmp_path):
    with pytest.raises(MonitorError, match=r'adaptation_step is 0.*leave adaptation_file empty'):
        MonitorSession(folder, MonitorSettings(adaptation_file=str(tmp_path / 'updates.json')))
    assert not (tmp_path / 'updates.json').exists()


def test_a_damaged_file_is_refused_and_not_touched(folder, settings, tmp_path):
    (tmp_path / 'updates.json').write_text('damaged')
    with pytest.raises(AdaptationFileError, match=r'updates\.json: .*move the file away'):
        MonitorSession(folder, settings)
    assert (tmp_path / 'updates.json').read_text() == 'damaged'


def test_another_detector_leaves_the_file_alone(folder, other_folder, settings, tmp_path):
    live, path = Live(folder, settings), tmp_path / 'updates.json'
    live.play('a', HIGH)
    live.session.label(label())
    answer = live.session.replace(settings.monitor_of(other_folder), other_folder)
    assert f'only in memory: {path} belongs to the previous detector' in answer
    assert live.session.adaptation_kept_in == ''
    live.play('b', HIGH)
    assert live.session.label(label('b')) is LabelEffect.UPDATED
    assert in_file(path) == 1
    answer = live.session.replace(settings.monitor_of(folder), folder)
    assert answer.endswith('is in use; its adaptation starts from the calibrated thresholds')
    live.session.tick(0.0)
    assert in_file(path) == 0, 'the same detector starts its file anew'


def test_a_detector_without_adaptation_says_nothing_of_it(folder, other_folder):
    live = Live(folder, MonitorSettings())
    answer = live.session.replace(MonitorSettings().monitor_of(other_folder), other_folder)
    assert answer == 'action_norm on hidden_states is in use'
    live.play('a', HIGH)
    assert live.session.label(label()) is LabelEffect.OFF


# --- probabilities


def probability_map():
    return ProbabilityMap(
        quantiles=(0.0, 0.5, 1.0),
        intercept=-1.0,
        score_slopes=(2.0, 1.0, 0.0, 0.0),
        time_slopes=(0.5, 0.0, 0.0, 1.0, 0.0),
        clock_intercept=-1.0,
        clock_slopes=(0.5, 0.0, 0.0, 1.0, 0.0),
        base_rate=0.3,
        median_steps=2.0,
    )


def test_the_probability_is_that_of_the_map_at_the_step(tmp_path):
    detector = make_detector('safe_lstm', hidden=2)
    detector.set_network(detector.build(WIDTH), WIDTH)
    band = Band(np.array([0.1]), np.ones((1, 2)), 'any', 9)
    fitted = probability_map()
    made = CalibratedDetector(detector, SPEC, band, 0.1, probability=fitted)
    live = Live(
        str(made.save(tmp_path / 'lstm')), MonitorSettings(alarm=AlarmConfig(max_missing_steps=9))
    )
    results = [live.step('a', index) for index in (0, 1, 2)]
    offline = fitted.along([result.score for result in results])
    assert [result.probability for result in results] == offline.tolist()
    assert 'number of steps of the band' in results[2].problem, 'a probability needs no threshold'
    refused = live.session.refuse(StepId('a', 3, 0), 'unreadable', 0.0)
    assert np.isnan(refused.probability)


def test_a_folder_without_a_map_gives_no_probability(tmp_path):
    detector = make_detector('safe_lstm', hidden=2)
    detector.set_network(detector.build(WIDTH), WIDTH)
    band = Band(np.array([0.1]), np.ones((1, 2)), 'any', 9)
    folder = CalibratedDetector(detector, SPEC, band, 0.1).save(tmp_path / 'lstm')
    result = Live(str(folder), MonitorSettings()).step('a', 0)
    assert 0.0 < result.score < 1.0
    assert np.isnan(result.probability)


def test_a_start_that_is_older_than_the_running_episode_does_not_end_its_alarm(folder):
    session = MonitorSession(folder, MonitorSettings())
    session.step(make_step('new', 0, HIGH), 1.0, publication=Publication(7, 2000))
    assert session.verdict.state == AlarmState.ALARM
    assert not session.start('old', 1.1, 'a task', grace=0.5, started_at=1000)
    session.finish_episode()
    assert session.verdict.state == AlarmState.ALARM
    assert session.running_id == 'new'
    assert session.remarks.take_new() == [
        "START of episode 'old' was ignored: it was published before the first step of the running "
        "episode 'new', and arrived after it; if the clocks of two computers differ, synchronise "
        'them'
    ]
    assert session.start('next', 1.2, '', grace=0.5, started_at=3000)
    session.finish_episode()
    assert session.running_id == 'next'


def test_a_start_of_a_clock_that_is_behind_still_gives_the_task(folder):
    session = MonitorSession(folder, MonitorSettings())
    session.step(make_step('first', 0), 1.0, publication=Publication(7, 2000))
    assert not session.start('second', 1.1, 'pick a cup', grace=0.5, started_at=1000)
    session.step(make_step('second', 0), 1.2, publication=Publication(8, 3000))
    assert session.running_id == 'second'
    assert session.monitor.task == 'pick a cup'


def test_the_task_of_a_start_that_came_late_is_not_the_task_of_a_later_episode(folder):
    session = MonitorSession(folder, MonitorSettings())
    session.step(make_step('first', 0), 1.0, publication=Publication(7, 2000))
    assert not session.start('again', 1.1, 'pick a cup', grace=0.5, started_at=1000)
    session.step(make_step('second', 0), 1.2, publication=Publication(8, 3000))
    session.step(make_step('again', 0), 1.3, publication=Publication(9, 4000))
    assert session.running_id == 'again'
    assert session.monitor.task == ''
