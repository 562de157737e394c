# SPDX-License-Identifier: Apache-2.0
"""Several detectors in one session: the rule, latch, reset, labels, another detector, failures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from signal_detectors import HIGH, LOW, RAISED, WARNING_ALPHA, save_signal_detector, signal_step

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_monitor_node.monitor.alarm import AlarmConfig, AlarmState, Latch
from safe_monitor_node.monitor.alarm_policy import Advice, AdviceError, AdviceTable
from safe_monitor_node.monitor.own_labels import EpisodeLabel
from safe_monitor_node.monitor.policy_rows import read_rows
from safe_monitor_node.monitor.rules import RuleError
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.steps import StepId
from safe_monitor_node.monitor.thresholds import MonitorError
from vla_feature_bridge.pooling import FeatureSpec

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState
WIDTH = 4
NAMES = ('unfamiliar', 'uncertain')


@pytest.fixture
def folders(tmp_path):
    return [str(save_signal_detector(tmp_path / name, name)) for name in NAMES]


def settings_of(folders, rule='any', **fields):
    return MonitorSettings(
        warning_alpha=WARNING_ALPHA,
        more_folders=tuple(folders[1:]),
        names=NAMES,
        rule=rule,
        **fields,
    )


class Live:
    """A session of two detectors whose scores are chosen, and a clock of one second a step."""

    def __init__(self, folders, rule='any', **fields):
        self.session = MonitorSession(folders[0], settings_of(folders, rule, **fields))
        self.now, self.index, self.episode = 100.0, 0, 'a'
        self.session.activate(self.now)

    def step(self, first, second, **changes):
        """Play a step; a score of None leaves the signal out, so that it cannot be scored."""
        scores = dict(zip(NAMES, (first, second), strict=True))
        step = signal_step(self.index, self.episode, scores)
        for name, value in changes.items():
            setattr(step, name, value)
        self.now += 1.0
        self.index = step.step + 1
        result = self.session.step(step, self.now)
        assert result is None or result.verdict == self.session.verdict
        return result

    def states(self, *scores):
        return [self.step(*pair).verdict.state for pair in scores]

    def begin(self, episode):
        self.episode, self.index = episode, 0

    def end(self):
        self.session.end(self.episode, self.now)
        self.session.finish_episode()

    @property
    def state(self):
        return self.session.verdict.state

    @property
    def reason(self):
        return self.session.verdict.reason


# --- rules


def test_any_alarms_with_the_first_detector_that_does(folders):
    live = Live(folders)
    assert live.states((LOW, LOW), (RAISED, LOW), (LOW, HIGH), (LOW, LOW)) == [
        NOMINAL,
        WARNING,
        ALARM,
        ALARM,
    ]
    assert live.session.ensemble.detector == 'uncertain'
    assert live.reason == 'uncertain: score 1.2 is above the threshold 0.9 at step 2'
    own = [result.verdict.state for result in live.session.ensemble.results]
    assert own == [NOMINAL, ALARM], 'each detector has a state of its own'


def test_all_needs_every_detector_at_any_step_of_the_episode(folders):
    live = Live(folders, 'all')
    assert live.states((HIGH, LOW), (LOW, LOW)) == [WARNING, WARNING]
    assert 'unfamiliar: score 1.2 is above' in live.reason
    assert "the rule 'all' needs more detectors" in live.reason
    assert live.states((LOW, HIGH)) == [ALARM]
    assert live.reason == (
        "rule 'all': unfamiliar: score 1.2 is above the threshold 0.9 at step 0; "
        'uncertain: score 1.2 is above the threshold 0.9 at step 2'
    )
    assert live.session.ensemble.detector == 'uncertain', 'the last one that was needed'


def test_warnings_need_as_many_detectors_as_alarms(folders):
    live = Live(folders, 'all')
    assert live.states((RAISED, LOW), (RAISED, RAISED), (LOW, RAISED)) == [
        NOMINAL,
        WARNING,
        NOMINAL,
    ]


def test_within_a_window_the_steps_above_must_be_near_each_other(folders):
    rule = 'unfamiliar and uncertain within 2 steps'
    live = Live(folders, rule)
    assert live.states((HIGH, LOW), (LOW, LOW), (LOW, HIGH)) == [WARNING] * 3
    assert live.states((HIGH, LOW)) == [ALARM], 'again above, though its own alarm is latched'
    assert live.reason == (
        f"rule '{rule}': unfamiliar was above its threshold at step 3; "
        'uncertain was above its threshold at step 2'
    )
    assert live.states((LOW, LOW), (LOW, LOW)) == [ALARM, ALARM], 'latched'


def test_the_score_of_a_step_is_that_of_the_first_detector(folders):
    live = Live(folders)
    result = live.step(LOW, HIGH)
    assert (result.score, result.threshold) == (pytest.approx(LOW), pytest.approx(0.9))
    assert result.verdict.state == ALARM
    assert live.session.verdict.score == pytest.approx(HIGH), 'that of the alarm'


# --- one that says nothing


@pytest.mark.parametrize('rule', ['any', 'all', 'all within 3 steps'])
def test_a_detector_that_cannot_score_makes_the_episode_invalid(folders, rule):
    live = Live(folders, rule)
    assert live.states((LOW, LOW), (LOW, None), (LOW, LOW)) == [NOMINAL, INVALID, INVALID]
    assert live.reason.startswith("uncertain: step 1: expected the signal 'uncertain'")
    assert live.session.first_problem == live.reason
    assert live.session.ensemble.detector == 'uncertain'
    live.begin('b')
    assert live.states((LOW, LOW)) == [NOMINAL]


def test_the_first_cause_stays_if_another_detector_fails_too(folders):
    live = Live(folders)
    live.states((LOW, None))
    reason = live.reason
    live.states((None, None))
    assert live.reason == live.session.first_problem == reason
    assert reason.startswith('uncertain: ')


def test_a_detector_that_is_well_can_still_alarm(folders):
    live = Live(folders, 'any')
    assert live.states((LOW, None), (HIGH, LOW)) == [INVALID, ALARM]
    live = Live(folders, 'all')
    assert live.states((LOW, None), (HIGH, LOW)) == [INVALID, INVALID]


def test_an_error_in_the_code_of_one_detector_is_invalid_and_named(folders, monkeypatch):
    live = Live(folders)
    live.states((LOW, LOW))
    stream = live.session.ensemble.slots[1].monitor._stream

    def fail(step):
        raise ZeroDivisionError('no good')

    monkeypatch.setattr(stream, 'step', fail)
    assert live.states((LOW, LOW)) == [INVALID]
    assert 'uncertain: step 1: detector signal failed with ZeroDivisionError' in live.reason


def test_what_all_detectors_say_has_no_name(folders):
    live = Live(folders)
    live.states((LOW, LOW))
    live.step(LOW, LOW, step=5)
    assert live.state == INVALID
    assert live.reason.startswith('4 steps of the episode are missing')
    live.session.refuse(StepId('b', 0, 0), 'unreadable', live.now)
    assert (live.state, live.reason) == (INVALID, 'unreadable')


def test_a_band_that_ends_makes_its_detector_invalid(tmp_path):
    folders = [
        str(save_signal_detector(tmp_path / 'long', NAMES[0])),
        str(save_signal_detector(tmp_path / 'short', NAMES[1], length=2)),
    ]
    live = Live(folders)
    assert live.states(*[(LOW, LOW)] * 3) == [NOMINAL, NOMINAL, INVALID]
    assert live.reason.startswith('uncertain: ')


def test_silence_is_stale_for_all(folders):
    live = Live(folders, 'all')
    live.states((HIGH, LOW))
    live.session.tick(live.now + 60)
    assert live.state == STALE, 'one alarm is not enough'
    assert live.states((LOW, HIGH)) == [ALARM]
    live.session.tick(live.now + 60)
    assert live.state == ALARM


def test_before_the_first_step_nothing_is_known(folders):
    live = Live(folders)
    assert live.state == UNKNOWN
    live.session.start('a', live.now, 'pour')
    assert (live.state, live.reason) == (UNKNOWN, 'the episode has no scored step yet')
    live.states((LOW, LOW))
    live.end()
    assert (live.state, live.reason) == (UNKNOWN, 'no episode is running')


# --- latch and reset


def test_an_alarm_ends_with_its_episode(folders):
    live = Live(folders)
    live.states((LOW, HIGH))
    live.end()
    assert live.state == UNKNOWN
    live.begin('b')
    assert live.states((LOW, LOW)) == [NOMINAL]


def test_with_latch_reset_only_a_reset_ends_the_alarm(folders):
    live = Live(folders, alarm=AlarmConfig(latch=Latch.RESET))
    live.states((LOW, HIGH))
    live.end()
    assert live.state == ALARM
    live.begin('b')
    assert live.states((LOW, LOW)) == [ALARM]
    assert live.reason == (
        "uncertain: score 1.2 is above the threshold 0.9 at step 0 of episode 'a'; the parameter "
        'latch is reset: call ~/reset (ros2 safe reset) to end the alarm'
    )
    live.session.deactivate()
    assert live.state == ALARM
    live.session.reset()
    live.begin('c')
    assert live.states((LOW, LOW)) == [NOMINAL]


def test_with_latch_reset_an_alarm_of_one_detector_does_not_meet_one_of_a_later_episode(folders):
    live = Live(folders, 'all', alarm=AlarmConfig(latch=Latch.RESET))
    assert live.states((HIGH, LOW)) == [WARNING]
    live.end()
    live.begin('b')
    assert live.states((LOW, HIGH)) == [WARNING]


@pytest.mark.parametrize('rule', ['any', 'all', 'all within 3 steps'])
def test_a_reset_clears_the_alarms_of_all_detectors(folders, rule):
    live = Live(folders, rule)
    assert live.states((HIGH, HIGH)) == [ALARM]
    live.session.reset()
    assert live.state == UNKNOWN
    assert 'reset' in live.reason
    assert live.states((LOW, LOW)) == [NOMINAL]
    assert live.states((HIGH, HIGH)) == [ALARM], 'it can come again'


def test_a_reset_does_not_repair_an_episode(folders):
    live = Live(folders)
    live.states((HIGH, None))
    assert live.state == ALARM
    live.session.reset()
    assert live.state == INVALID


# --- other settings


def test_the_rule_changes_with_the_next_episode(folders):
    live = Live(folders, 'any')
    live.states((LOW, LOW))
    other = settings_of(folders, 'all')
    live.session.check(other)
    live.session.change(other)
    assert live.states((HIGH, LOW)) == [ALARM], 'this episode is judged by one rule'
    live.begin('b')
    assert live.states((HIGH, LOW)) == [WARNING]


def test_settings_that_do_not_fit_the_detectors_are_refused(folders):
    live = Live(folders)
    table = AdviceTable(read_rows(['ALARM margin of unsure > 2: ASK']))
    for error, fields in (
        (RuleError, {'rule': '2 of 3'}),
        (AdviceError, {'rule': 'any', 'advice': table}),
        (MonitorError, {'rule': 'any', 'alpha': 0.3}),
    ):
        with pytest.raises(error):
            live.session.check(replace(settings_of(folders), **fields))
        with pytest.raises(error):
            MonitorSession(folders[0], replace(settings_of(folders), **fields))


def test_detectors_of_one_kind_need_names(folders):
    with pytest.raises(RuleError, match=r"found signal, signal; .*\['signal', 'signal_2'\]"):
        MonitorSession(folders[0], replace(settings_of(folders), names=()))


def reading(name, dim=WIDTH, axes=(), pooling=()):
    detector = make_detector('euclidean_knn')
    assert 'features' in detector.needs
    return CalibratedDetector(detector, FeatureSpec(name, dim, axes, pooling), None, 0.1)


def test_detectors_that_cannot_have_the_same_steps_are_refused():
    from safe_monitor_node.monitor.ensemble import check_features

    raw = {'axes': ('token',), 'pooling': (('token', 'last'),)}
    other_pooling = {'axes': ('token',), 'pooling': (('token', 'mean'),)}
    check_features({'a': reading('h'), 'b': reading('h')})
    check_features({'a': reading('h', **raw), 'b': reading('h', **other_pooling)})
    for one, another in (
        (reading('h'), reading('vision')),
        (reading('h'), reading('h', 5)),
        (reading('h'), reading('h', **raw)),
    ):
        with pytest.raises(MonitorError, match=r'detectors a and b: expected .* the same features'):
            check_features({'a': one, 'b': another})


def test_a_warning_lasts_for_warning_steps(folders):
    live = Live(folders, alarm=AlarmConfig(warning_steps=3))
    assert live.states((LOW, RAISED), (LOW, LOW), (LOW, LOW), (LOW, LOW)) == [
        WARNING,
        WARNING,
        WARNING,
        NOMINAL,
    ]


# --- labels, adaptation, another detector


def test_labels_update_the_thresholds_of_each_detector_in_a_file_of_its_own(folders, tmp_path):
    file = tmp_path / 'updates.json'
    live = Live(folders, adaptation_step=0.05, adaptation_file=str(file))
    live.states((LOW, HIGH))
    live.end()
    live.session.label(EpisodeLabel('a', True, 1, ''))
    moving = [m.adaptation.of('') for m in live.session.ensemble.monitors]
    assert [(one.successes, one.false_alarms) for one in moving] == [(1, 0), (1, 1)]
    assert sorted(path.name for path in tmp_path.glob('updates*')) == [
        'updates.json',
        'updates.uncertain.json',
    ]
    again = Live(folders, adaptation_step=0.05, adaptation_file=str(file))
    moving = [m.adaptation.of('') for m in again.session.ensemble.monitors]
    assert [one.false_alarms for one in moving] == [0, 1]


def test_one_of_the_detectors_is_replaced_with_the_next_episode(folders, tmp_path):
    live = Live(folders)
    live.states((LOW, LOW))
    slot = live.session.ensemble.slots[1]
    folder = str(save_signal_detector(tmp_path / 'third', 'unfamiliar'))
    monitor = live.session.settings.monitor_of(folder)
    answer = live.session.replace(monitor, folder, slot)
    assert answer == 'signal on hidden_states is used from the next episode on'
    assert live.states((HIGH, LOW)) == [ALARM]
    assert live.session.ensemble.results[1].verdict.state == NOMINAL, 'still the old one'
    live.begin('b')
    assert live.states((HIGH, LOW)) == [ALARM]
    assert [r.verdict.state for r in live.session.ensemble.results] == [ALARM, ALARM]
    assert (slot.name, slot.folder) == ('uncertain', folder)
    assert live.session.folder == folders[0]


def test_a_replaced_detector_releases_no_held_alarm(folders, tmp_path):
    live = Live(folders, alarm=AlarmConfig(latch=Latch.RESET))
    live.states((LOW, HIGH))
    live.end()
    folder = str(save_signal_detector(tmp_path / 'third', 'uncertain'))
    slot = live.session.ensemble.slots[1]
    answer = live.session.replace(live.session.settings.monitor_of(folder), folder, slot)
    assert 'is in use' in answer
    assert live.state == ALARM


# --- advice


def test_advice_follows_state_persistence_margin_and_task(folders):
    rows = read_rows(
        [
            'WARNING: SLOW',
            'ALARM after 2 steps: ASK',
            'ALARM margin of uncertain > 1: BACKTRACK',
            'ALARM: NONE for task wipe',
        ]
    )
    live = Live(folders, advice=AdviceTable(rows))

    def advice(*scores):
        live.step(*scores)
        return live.session.advise(live.session.verdict, live.now, stepped=True)

    found = [advice(*pair) for pair in ((LOW, LOW), (LOW, RAISED), (HIGH, LOW), (5.0, LOW))]
    assert found == [Advice.NONE, Advice.SLOW, Advice.STOP, Advice.STOP]
    assert advice(LOW, LOW) == Advice.ASK
    assert advice(LOW, 2.0) == Advice.BACKTRACK
    assert advice(LOW, LOW) == Advice.BACKTRACK, 'the largest margin since the alarm began'
    live.end()
    live.session.start('b', live.now, 'wipe')
    live.begin('b')
    assert advice(HIGH, HIGH) == Advice.NONE


@pytest.mark.parametrize('rule', ['any', 'all', 'all within 1 step'])
@pytest.mark.parametrize('latch', Latch)
def test_two_equal_detectors_are_one_detector(tmp_path, rule, latch):
    """Random episodes with alarms, unreadable and missing steps, resets, silence and ends."""
    folder = str(save_signal_detector(tmp_path / 'one', NAMES[0]))
    alarm = AlarmConfig(k=2, n=3, warning_steps=2, latch=latch)
    two = MonitorSession(folder, settings_of([folder, folder], rule, alarm=alarm))
    one = MonitorSession(folder, MonitorSettings(warning_alpha=WARNING_ALPHA, alarm=alarm))
    rng = np.random.default_rng(0)
    seen, now = set(), 100.0
    for session in (one, two):
        session.activate(now)
    for episode in map(str, range(60)):
        index = 0
        for _ in range(rng.integers(1, 12)):
            now += 1.0
            happens = rng.choice(
                ['step', 'unreadable', 'missing', 'reset', 'silence'],
                p=[0.82, 0.04, 0.02, 0.06, 0.06],
            )
            score = rng.choice([LOW, RAISED, HIGH], p=[0.6, 0.2, 0.2])
            index += happens == 'missing'
            for session in (one, two):
                if happens == 'reset':
                    session.reset()
                elif happens == 'silence':
                    session.tick(now + 40.0)
                elif happens == 'unreadable':
                    session.refuse(StepId(episode, index, 0), 'unreadable', now)
                else:
                    session.step(signal_step(index, episode, {NAMES[0]: score}), now)
            index += happens not in ('reset', 'silence')
            assert two.verdict.state == one.verdict.state, (episode, index, happens)
            seen.add(one.verdict.state)
        if rng.random() < 0.7:
            for session in (one, two):
                session.end(episode, now)
                session.finish_episode()
        assert two.verdict.state == one.verdict.state
    assert seen == set(AlarmState)


def test_an_episode_from_before_the_monitor_was_active_is_invalid_until_its_step_0(folders):
    live = Live(folders)
    live.session.began_earlier('a', live.now, 'pour')
    live.session.tick(live.now)
    assert live.state == INVALID
    assert live.reason.startswith("episode 'a' was running before the monitor was active")
    assert live.states((LOW, LOW)) == [NOMINAL]
    assert [monitor.task for monitor in live.session.ensemble.monitors] == ['pour', 'pour']
    live.session.deactivate()
    live.session.activate(live.now)
    live.session.tick(live.now)
    assert live.state == INVALID, 'the episode still runs'
    assert live.states((LOW, HIGH)) == [INVALID], 'step 0 is missing for both'


def test_a_recording_that_is_played_in_a_loop_begins_anew_for_all_detectors(folders):
    live = Live(folders)
    live.step(LOW, HIGH, stamp=5)
    assert live.state == ALARM
    live.session.clock_ran_back()
    live.step(LOW, LOW, step=0, stamp=1)
    assert live.state == NOMINAL
    assert {monitor.counts.episodes for monitor in live.session.ensemble.monitors} == {2}
