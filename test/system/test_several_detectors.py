# SPDX-License-Identifier: Apache-2.0
"""A monitor process with several detectors, and with a table of advice, over DDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from probe import RELIABLE, Probe
from signal_detectors import (
    HIGH,
    LOW,
    RAISED,
    WARNING_ALPHA,
    save_signal_detector,
    signal_step,
)

from safe_bringup.live import Process
from safe_monitor_node.monitor.rules import Rule
from safe_monitor_node.nodes.monitor_parameters import PARAMETERS
from safe_msgs.msg import EpisodeEvent, FailureAlarm, FailureScore

NAMES = ('unfamiliar', 'uncertain')
PAGE = Path(__file__).parents[2] / 'docs/how-to/alarm_policy.md'
NOMINAL, WARNING, ALARM = (
    FailureAlarm.STATE_NOMINAL,
    FailureAlarm.STATE_WARNING,
    FailureAlarm.STATE_ALARM,
)
Run = Callable[..., Process]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [str(save_signal_detector(tmp_path / name, name)) for name in NAMES]


class Pair:
    """A probe that also has the scores of each of two detectors."""

    def __init__(self, probe: Probe, run: Run, folders: Sequence[str], **parameters: object):
        self.probe = probe
        self.scores: dict[str, list[FailureScore]] = {name: [] for name in NAMES}
        for name, scores in self.scores.items():
            probe.node.create_subscription(
                FailureScore, f'safe/{name}/score', scores.append, RELIABLE
            )
        self.process = run(
            detector_folder=folders[0],
            more_detectors=list(folders[1:]),
            detector_names=list(NAMES),
            warning_alpha=WARNING_ALPHA,
            diagnostics_period=0.2,
            **parameters,
        )
        probe.wait_until_active()
        probe.spin_until(
            lambda: all(probe.node.count_publishers(f'safe/{name}/score') for name in NAMES),
            'each detector has a topic',
        )

    def step(self, index: int, *scores: float | None, episode: str = 'a') -> dict[str, int]:
        """Publish a step; return the state on safe/score, and on the topic of each detector."""
        made = signal_step(index, episode, dict(zip(NAMES, scores, strict=True)))
        before = {name: len(found) for name, found in self.scores.items()}
        answer = self.probe.step(made)
        self.probe.spin_until(
            lambda: all(len(self.scores[name]) == before[name] + 1 for name in NAMES),
            'each detector has answered',
        )
        assert answer.latency > 0
        of_detectors = {name: found[-1].state for name, found in self.scores.items()}
        return {'': answer.state, **of_detectors}

    def until(self, state: int, stop: bool) -> FailureAlarm:
        """Wait until the alarm and safe/stop say so; return the alarm."""
        probe = self.probe
        probe.spin_until(
            lambda: probe.alarms and probe.alarms[-1].state == state and probe.stops[-1] == stop,
            f'the state is {state} and safe/stop is {stop}',
        )
        return probe.alarms[-1]


def test_any_detector_can_alarm_and_each_has_its_own_scores(
    probe: Probe, run_monitor: Run, folders: list[str]
) -> None:
    pair = Pair(probe, run_monitor, folders)
    assert pair.step(0, LOW, LOW) == {'': NOMINAL, 'unfamiliar': NOMINAL, 'uncertain': NOMINAL}
    assert pair.step(1, LOW, HIGH) == {'': ALARM, 'unfamiliar': NOMINAL, 'uncertain': ALARM}
    alarm = pair.until(ALARM, True)
    assert (alarm.detector, alarm.step, alarm.advice) == ('uncertain', 1, FailureAlarm.ADVICE_STOP)
    assert alarm.score == pytest.approx(HIGH)
    assert alarm.reason == 'uncertain: score 1.2 is above the threshold 0.9 at step 1'
    first, second = (pair.scores[name][-1] for name in NAMES)
    lead = probe.scores[-1]
    assert (lead.detector, lead.score, lead.alarm) == ('unfamiliar', pytest.approx(LOW), True)
    assert (first.detector, first.score, first.alarm) == ('unfamiliar', pytest.approx(LOW), False)
    assert (second.detector, second.margin) == ('uncertain', pytest.approx(HIGH - 0.9, abs=1e-5))
    assert first.header == second.header == lead.header
    probe.spin_until(
        lambda: probe.facts().get('detector uncertain', '').startswith('ALARM, score 1.2'),
        'diagnostics name each detector',
    )
    facts = probe.facts()
    assert facts['detector unfamiliar'].startswith('NOMINAL, score 0.2, threshold 0.9; signal on')
    assert facts['detector_rule'] == 'any'
    probe.end('a')
    pair.until(FailureAlarm.STATE_UNKNOWN, False)


def test_with_one_detector_there_is_only_one_topic_of_scores(
    probe: Probe, run_monitor: Run, folders: list[str]
) -> None:
    run_monitor(detector_folder=folders[0])
    probe.wait_until_active()
    assert probe.step(signal_step(0, 'a', {'unfamiliar': LOW})).detector == 'signal'
    topics = [name for name, _ in probe.node.get_topic_names_and_types()]
    assert [name for name in topics if name.endswith('/score')] == ['/safe/score']


def test_all_detectors_must_alarm_and_the_rule_changes_at_run_time(
    probe: Probe, run_monitor: Run, folders: list[str]
) -> None:
    pair = Pair(probe, run_monitor, folders, detector_rule='all')
    assert pair.step(0, HIGH, LOW) == {'': WARNING, 'unfamiliar': ALARM, 'uncertain': NOMINAL}
    pair.until(WARNING, False)
    assert pair.step(1, LOW, HIGH)[''] == ALARM
    pair.until(ALARM, True)
    assert 'the state before was ALARM' in probe.reset().message
    pair.until(FailureAlarm.STATE_UNKNOWN, False)

    for rule, words in (('al', 'the nearest name is all'), ('2 of 3', 'detectors are unfamiliar')):
        refused = probe.set_parameters(detector_rule=rule)
        assert not refused.successful and words in refused.reason
    assert probe.set_parameters(detector_rule='any').successful
    assert pair.step(2, HIGH, LOW)[''] == WARNING, 'this episode is judged by one rule'
    probe.end('a')
    assert pair.step(0, HIGH, LOW, episode='b')[''] == ALARM


def test_detectors_must_alarm_near_each_other(
    probe: Probe, run_monitor: Run, folders: list[str]
) -> None:
    rule = 'unfamiliar and uncertain within 2 steps'
    pair = Pair(probe, run_monitor, folders, detector_rule=rule)
    states = [pair.step(i, *s)[''] for i, s in enumerate([(HIGH, LOW), (LOW, LOW), (LOW, HIGH)])]
    assert states == [WARNING] * 3
    assert pair.step(3, HIGH, LOW)[''] == ALARM
    assert 'uncertain was above its threshold at step 2' in pair.until(ALARM, True).reason


@pytest.mark.parametrize('rule', ['any', 'all'])
def test_a_detector_that_fails_is_never_nominal(
    probe: Probe, run_monitor: Run, folders: list[str], rule: str
) -> None:
    pair = Pair(probe, run_monitor, folders, detector_rule=rule)
    pair.step(0, LOW, LOW)
    invalid = FailureAlarm.STATE_INVALID
    assert pair.step(1, LOW, None) == {'': invalid, 'unfamiliar': NOMINAL, 'uncertain': invalid}
    assert np.isnan(pair.scores['uncertain'][-1].score)
    alarm = pair.until(invalid, True)
    assert alarm.detector == 'uncertain'
    assert alarm.reason.startswith("uncertain: step 1: expected the signal 'uncertain'")
    assert pair.step(2, LOW, LOW)[''] == invalid, 'until the episode ends'
    probe.spin_until(
        lambda: probe.facts().get('first problem') == alarm.reason, 'the cause is diagnosed'
    )
    assert probe.status is not None and probe.status.level == DiagnosticStatus.ERROR
    probe.end('a')
    assert pair.step(0, LOW, LOW, episode='b')[''] == NOMINAL


def test_one_of_the_detectors_is_replaced_and_labels_reach_both(
    probe: Probe, run_monitor: Run, folders: list[str], tmp_path: Path
) -> None:
    updates = tmp_path / 'updates.json'
    pair = Pair(probe, run_monitor, folders, adaptation_step=0.05, adaptation_file=updates)
    pair.step(0, LOW, HIGH)
    probe.end('a')
    answer = probe.label_episode('a', EpisodeEvent.OUTCOME_SUCCESS)
    assert 'the thresholds are updated from the next episode on' in answer.message
    assert updates.exists() and (tmp_path / 'updates.uncertain.json').exists()
    pair.step(0, LOW, LOW, episode='b')
    assert pair.scores['uncertain'][-1].threshold > 1.0, 'it has had a false alarm'
    assert probe.scores[-1].threshold <= 0.9 + 1e-6, 'the other detector has not'
    probe.spin_until(
        lambda: (
            'false alarms 1 of 1' in probe.facts()['uncertain: adaptation of the band of all tasks']
        ),
        'the adaptation of each is diagnosed',
    )
    assert 'false alarms 0 of 1' in probe.facts()['adaptation of the band of all tasks']

    third = save_signal_detector(tmp_path / 'third', 'unfamiliar')
    refused = probe.load_detector(Path(f'certain={third}'))
    assert not refused.success and 'certain=' in refused.message
    answer = probe.load_detector(Path(f'uncertain={third}'))
    assert answer.success and 'from the next episode on' in answer.message
    assert pair.step(1, LOW, LOW, episode='b')['uncertain'] == NOMINAL
    probe.end('b')
    assert pair.step(0, HIGH, LOW, episode='c')['uncertain'] == ALARM, 'it reads the other signal'
    probe.spin_until(lambda: str(third) in probe.facts()['detector uncertain'], 'it is diagnosed')
    assert probe.facts()['detector_folder'] == folders[0]


def test_detectors_that_do_not_fit_are_not_configured(
    probe: Probe, run_monitor: Run, folders: list[str]
) -> None:
    run_monitor(detector_folder=folders[0], more_detectors=[folders[1]], diagnostics_period=0.2)
    words = 'expected a different name for each detector, found signal, signal; set detector_names'
    probe.spin_until(lambda: probe.status and words in probe.status.message, 'the reason is said')
    assert probe.status is not None and probe.status.level == DiagnosticStatus.ERROR
    assert not probe.stops


# --- the table of advice


def test_the_table_of_the_page_gives_its_advice_and_changes_at_run_time(
    probe: Probe, run_monitor: Run, folders: list[str], tmp_path: Path
) -> None:
    table, _ = re.findall(r'^```yaml\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert yaml.safe_load(table)['/**/monitor']['ros__parameters']['alarm_policy'][0] == (
        'WARNING: SLOW'
    )
    params = tmp_path / 'params.yaml'
    params.write_text(table)
    run_monitor(
        ['--params-file', str(params)],
        detector_folder=folders[0],
        warning_alpha=WARNING_ALPHA,
        diagnostics_period=0.2,
    )
    probe.wait_until_active()

    def step(index: int, score: float) -> None:
        probe.step(signal_step(index, 'a', {'unfamiliar': score}))

    def until(advice: int, stop: bool) -> FailureAlarm:
        probe.spin_until(
            lambda: probe.alarms[-1].advice == advice and probe.stops[-1] == stop,
            f'the advice is {advice}',
        )
        return probe.alarms[-1]

    step(0, LOW)
    until(FailureAlarm.ADVICE_NONE, False)
    step(1, RAISED)
    assert until(FailureAlarm.ADVICE_SLOW, False).state == WARNING
    step(2, HIGH)
    assert until(FailureAlarm.ADVICE_STOP, True).state == ALARM
    for index in range(3, 14):
        step(index, LOW)
    assert until(FailureAlarm.ADVICE_ASK, True).step == 12, '10 steps after the step that alarmed'
    step(14, 3.5)
    until(FailureAlarm.ADVICE_BACKTRACK, True)

    refused = probe.set_parameters(alarm_policy=['ALRM: STOP', 'ALARM: HALT'])
    assert not refused.successful
    assert "found 'ALRM'; the nearest name is ALARM" in refused.reason
    assert "row 'ALARM: HALT'" in refused.reason
    step(15, LOW)
    probe.spin_until(lambda: probe.facts().get('steps scored') == '16', 'diagnostics come')
    assert probe.facts()['advice'] == 'BACKTRACK', 'nothing has changed'
    assert probe.facts()['alarm_policy'].startswith('WARNING: SLOW; ALARM: STOP; ALARM after 10')
    assert probe.set_parameters(alarm_policy=['ALARM: SLOW']).successful
    until(FailureAlarm.ADVICE_SLOW, False)
    assert probe.set_parameters(alarm_policy=['']).successful
    until(FailureAlarm.ADVICE_STOP, True)


def test_the_detectors_of_the_page_have_a_rule() -> None:
    _, several = re.findall(r'^```yaml\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE)
    given = yaml.safe_load(several)['/**/monitor']['ros__parameters']
    assert set(given) <= {parameter.name for parameter in PARAMETERS}
    rule = Rule.parse(given['detector_rule'], given['detector_names'])
    assert (rule.needed, rule.window) == (1 + len(given['more_detectors']), 5)


def test_advice_comes_with_time_and_task(
    probe: Probe, run_monitor: Run, folders: list[str]
) -> None:
    run_monitor(
        detector_folder=folders[0],
        stale_after=0.5,
        alarm_policy=['STALE after 0.5 s: ASK', 'ALARM: SLOW for task wipe the table'],
    )
    probe.wait_until_active()
    probe.step(signal_step(0, 'a', {'unfamiliar': LOW}))
    probe.spin_until(lambda: probe.alarms[-1].advice == FailureAlarm.ADVICE_ASK, 'time passes')
    advices = [alarm.advice for alarm in probe.alarms[-2:]]
    assert advices == [FailureAlarm.ADVICE_STOP, FailureAlarm.ADVICE_ASK]
    assert [alarm.state for alarm in probe.alarms[-2:]] == [FailureAlarm.STATE_STALE] * 2
    for episode, task, advice in (
        ('b', 'wipe the table', FailureAlarm.ADVICE_SLOW),
        ('c', 'pour', FailureAlarm.ADVICE_STOP),
    ):
        probe.start(episode, task=task)
        probe.spin_until(lambda e=episode: probe.alarms[-1].episode_id == e, 'START has come')
        assert probe.step(signal_step(0, episode, {'unfamiliar': HIGH})).alarm
        probe.spin_until(lambda: probe.alarms[-1].state == ALARM, 'the alarm comes')
        assert probe.alarms[-1].advice == advice


def test_a_wrong_table_ends_the_start_with_the_reason(
    probe: Probe, run_monitor: Run, folders: list[str]
) -> None:
    run_monitor(detector_folder=folders[0], alarm_policy=['WARNIG: SLOW'], diagnostics_period=0.2)
    words = "row 'WARNIG: SLOW': expected a state"
    probe.spin_until(lambda: probe.status and words in probe.status.message, 'the reason is said')
    assert 'the nearest name is WARNING' in probe.status.message
    assert probe.status.level == DiagnosticStatus.ERROR
    assert not probe.stops
