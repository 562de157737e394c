# SPDX-License-Identifier: Apache-2.0
"""A monitor that learns the threshold of a new task from labelled successes."""

import dataclasses
import re

import numpy as np
import pytest
from band_factory import constant_band
from scripted_episodes import ALARM, NOMINAL, WARNING, make_step, scripted

from safe_monitor_node.bands.good_runs import GoodRun, SeenScores, good_runs_band
from safe_monitor_node.monitor.alarm import AlarmState, Verdict
from safe_monitor_node.monitor.alarm_policy import Advice, AdviceTable
from safe_monitor_node.monitor.good_runs import while_learning, why_no_good_runs
from safe_monitor_node.monitor.label_feedback import LabelEffect
from safe_monitor_node.monitor.own_labels import EpisodeLabel
from safe_monitor_node.monitor.policy_rows import read_rows
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.thresholds import MonitorError
from safe_monitor_node.nodes.diagnosis import introduce

BAND = constant_band((np.arange(39) + 1) / 39, (0.1, 0.2), 20)
SEEN = SeenScores({t: np.linspace(0.1, 0.5, 9) + i / 5 for i, t in enumerate(('pour', 'stack'))})
ORDINARY = BAND.at(0.1).at(0)
QUIET, GOOD, LOUD = 0.3, 2.0, 9.0
WARNED = (BAND.at(0.2).at(0) + ORDINARY) / 2


def detector(seen=SEEN, **fields):
    made = dataclasses.replace(
        scripted(BAND), provenance={'seen_tasks': ['pour', 'stack', 'wipe']}, seen_scores=seen
    )
    return dataclasses.replace(made, **fields)


def learned(values):
    runs = [GoodRun(str(index), value) for index, value in enumerate(values)]
    return good_runs_band(SEEN, runs, BAND).at(0.1).at(0)


class Robot:
    """A session in memory and a clock; plays episodes with chosen scores."""

    def __init__(self, tmp_path, made=None, **settings):
        self.folder = str(tmp_path / 'detector')
        (made or detector()).save(self.folder, overwrite=True)
        self.settings = MonitorSettings(**{'good_runs': 3, **settings})
        self.restart()

    def restart(self):
        self.session, self.now = MonitorSession(self.folder, self.settings), 50.0

    @property
    def threshold(self):
        return self.session.monitor.threshold.at(0)

    def step(self, index, score, episode, **changes):
        self.now += 1.0
        return self.session.step(make_step(index, score, episode, **changes), self.now)

    def play(self, episode, scores=(QUIET, GOOD), success=True, task='new'):
        """Play an episode, label it, and return the states of its steps."""
        self.session.start(episode, self.now, task)
        states = [self.step(i, s, episode).verdict.state for i, s in enumerate(scores)]
        self.session.end(episode, self.now)
        self.session.finish_episode()
        if success is not None:
            self.label(episode, success)
        return states

    def label(self, episode, success):
        return self.session.label(EpisodeLabel(episode, success))

    def begin(self, task='new', episode='next'):
        self.session.start(episode, self.now, task)
        return self.threshold


@pytest.fixture
def robot(tmp_path):
    return Robot(tmp_path)


def test_after_k_labelled_successes_the_task_has_its_own_threshold(robot):
    for number in range(3):
        assert robot.begin(episode=f'e{number}') == ORDINARY
        assert f'learning, {number} of 3 good runs' in robot.session.learning
        robot.play(f'e{number}', (QUIET, GOOD + number))
    assert robot.begin() == learned([2.0, 3.0, 4.0])
    assert robot.session.learning == ''
    assert robot.session.monitor.band_name == "the band of task 'new'"
    assert robot.begin('another', 'x') == ORDINARY
    assert 'learning, 0 of 3' in robot.session.learning


def test_while_learning_nothing_is_nominal_and_an_alarm_stays_an_alarm(robot):
    robot.session.start('e', robot.now, 'new')
    quiet = robot.step(0, QUIET, 'e').verdict
    assert quiet.state == WARNING
    assert (
        'the score is not above the threshold; learning, 0 of 3 good runs of task' in quiet.reason
    )
    assert robot.session.verdict.state == WARNING
    loud = robot.step(1, LOUD, 'e').verdict
    assert loud.state == ALARM
    assert 'is above the threshold' in loud.reason
    assert 'learning, 0 of 3' in loud.reason
    assert robot.session.verdict == loud
    # The alarm is of the ordinary band, and latched as always.
    assert robot.step(2, QUIET, 'e').verdict.state == ALARM


@pytest.mark.parametrize('task', ['pour', 'wipe', ''])
def test_a_task_that_the_detector_knows_is_judged_as_before(robot, task):
    for number in range(4):
        assert robot.play(f'e{number}', task=task)[0] == NOMINAL
    assert robot.begin(task) == ORDINARY
    assert robot.session.learning == ''
    assert robot.session.monitor.thresholds.good_runs.tasks == ()


@pytest.mark.parametrize(
    ('made', 'settings', 'why'),
    [
        (detector(seen=None), {}, 'off: .*expected the largest scores .* found none; fit the'),
        (detector(), {'good_runs': 0}, 'off: the parameter good_runs is 0'),
        (detector(), {'good_runs': 9}, 'off: .*use at most 8 good runs'),
    ],
)
def test_a_detector_without_the_scores_works_as_before(tmp_path, made, settings, why):
    robot = Robot(tmp_path, made, **settings)
    for number in range(10):
        assert robot.play(f'e{number}')[0] == NOMINAL
    assert robot.begin() == ORDINARY
    assert robot.session.take_news() == []
    assert re.match(why, why_no_good_runs(made, robot.settings.good_runs))


def test_a_run_that_is_relabelled_a_failure_is_taken_out(robot):
    for number in range(3):
        robot.play(f'e{number}')
    assert robot.begin('new', 'running') != ORDINARY
    assert robot.label('e1', False) is LabelEffect.OFF
    assert 'no good run of task' in robot.session.take_news()[-1]
    assert robot.threshold != ORDINARY, 'a label does not change the running episode'
    assert robot.begin() == ORDINARY
    assert 'learning, 2 of 3' in robot.session.learning
    robot.play('e3', (7.0,))
    assert robot.begin('new', 'after') == learned([GOOD, GOOD, 7.0])


def test_a_fourth_run_takes_the_place_of_one_that_is_withdrawn(robot):
    for number in range(4):
        robot.play(f'e{number}', (1.0 + number,))
    assert robot.begin() == learned([1.0, 2.0, 3.0])
    robot.label('e0', None)
    assert robot.begin(episode='x') == learned([2.0, 3.0, 4.0])


def test_failures_unlabelled_and_broken_episodes_do_not_count(robot):
    robot.play('failed', success=False)
    robot.play('unlabelled', success=None)
    robot.session.start('broken', robot.now, 'new')
    robot.step(0, QUIET, 'broken')
    robot.step(2, QUIET, 'broken')
    robot.session.end('broken')
    robot.session.finish_episode()
    robot.label('broken', True)
    assert 'not all of its steps were scored; 0 of 3' in robot.session.take_news()[-1]
    robot.begin()
    assert 'learning, 0 of 3' in robot.session.learning


def test_a_label_that_comes_while_the_episode_runs_counts_when_it_ends(robot):
    robot.session.start('e', robot.now, 'new')
    robot.step(0, QUIET, 'e')
    robot.label('e', True)
    assert robot.session.monitor.thresholds.good_runs.count('new') == 0
    robot.step(1, GOOD, 'e')
    robot.session.end('e')
    robot.session.finish_episode()
    runs = robot.session.monitor.thresholds.good_runs.state()[0]['runs']
    assert runs == [{'episode': 'e', 'largest': GOOD}]
    robot.session.start('e', robot.now, 'new')
    robot.step(0, QUIET, 'e', stamp=9)
    robot.label('e', False)
    robot.session.end('e')
    robot.session.finish_episode()
    assert robot.session.monitor.thresholds.good_runs.count('new') == 0


def test_the_same_episode_played_again_is_one_run(robot):
    for _ in range(5):
        robot.play('e')
    robot.begin()
    assert 'learning, 1 of 3' in robot.session.learning


def test_the_task_is_the_one_at_the_end_of_the_episode(robot):
    robot.session.start('e', robot.now, '')
    assert robot.step(0, QUIET, 'e').verdict.state == NOMINAL
    robot.session.start('e', robot.now, 'new')
    assert robot.step(1, QUIET, 'e').verdict.state == WARNING
    robot.session.end('e')
    robot.session.finish_episode()
    robot.label('e', True)
    assert robot.session.monitor.thresholds.good_runs.count('new') == 1


def test_other_rates_keep_the_good_runs(robot):
    for number in range(3):
        robot.play(f'e{number}')
    settings = dataclasses.replace(robot.settings, alpha=0.2)
    robot.session.check(settings)
    robot.session.change(settings)
    runs = [GoodRun(str(index), GOOD) for index in range(3)]
    assert robot.begin() == good_runs_band(SEEN, runs, BAND).at(0.2).at(0)


@pytest.mark.parametrize('first', [0, 2])
def test_a_success_in_a_running_episode_is_announced_only_if_it_can_still_count(robot, first):
    robot.session.start('e', robot.now, 'new')
    robot.step(first, QUIET, 'e')
    robot.label('e', True)
    news = robot.session.monitor.thresholds.take_news()
    assert [text for text in news if 'when it ends, if all' in text] == news
    assert len(news) == (first == 0)


# --- beside adaptation, and over restarts


def test_labels_adapt_a_learned_task(tmp_path):
    robot = Robot(tmp_path, adaptation_step=0.05)
    for number in range(3):
        robot.play(f'e{number}')
    first = robot.begin()
    assert first == learned([GOOD] * 3)
    robot.play('loud', (LOUD,))
    assert robot.begin(episode='x') > first
    assert robot.session.monitor.adaptation.of('new').false_alarms == 1
    # The band of the task changes: its updates go, and the label of its episode has none to undo.
    robot.label('e0', False)
    robot.begin(episode='y')
    assert robot.label('loud', False) is LabelEffect.FAILURE


def test_good_runs_survive_a_restart_with_and_without_adaptation(tmp_path):
    for step in (0.0, 0.05):
        file = tmp_path / f'kept{step}.json'
        robot = Robot(tmp_path, adaptation_step=step, adaptation_file=str(file))
        for number in range(3):
            robot.play(f'e{number}', (1.0 + number,))
            robot.restart()
        assert robot.begin() == learned([1.0, 2.0, 3.0])
        robot.play('next', (LOUD,))
        expected = robot.begin(episode='x')
        robot.restart()
        assert robot.begin(episode='x') == expected
        robot.label('e1', False)
        robot.restart()
        assert robot.begin(episode='z') == learned([1.0, 3.0, LOUD])


def test_labels_that_arrive_again_after_a_restart_leave_the_good_runs_as_they_were(tmp_path):
    robot = Robot(tmp_path, adaptation_file=str(tmp_path / 'kept.json'))
    for number in range(4):
        robot.play(f'e{number}', (1.0 + number,))
    robot.restart()
    for success in (False, True, True):
        robot.label('e1', success)
    assert robot.begin() == learned([1.0, 2.0, 3.0])
    robot.label('never scored', True)
    assert robot.session.monitor.thresholds.good_runs.count('new') == 4


def test_updates_of_a_band_from_other_good_runs_are_not_restored(tmp_path):
    file = str(tmp_path / 'kept.json')
    robot = Robot(tmp_path, adaptation_step=0.05, adaptation_file=file)
    robot.play('f', task='a task as long as a message ' * 1000)
    (*_, told) = introduce(robot.session)
    assert 'from 3 good runs; good runs so far:' in told
    assert len(told) < 1000
    for number in range(5):
        robot.play(f'e{number}')
    robot.begin()
    robot.settings = dataclasses.replace(robot.settings, good_runs=4)
    robot.restart()
    assert robot.begin() == learned([GOOD] * 4)
    assert robot.session.monitor.adaptation.of('new').successes == 0
    robot.settings = dataclasses.replace(robot.settings, good_runs=0)
    robot.restart()
    robot.play('e9', task='other')
    robot.settings = dataclasses.replace(robot.settings, good_runs=5)
    robot.restart()
    assert robot.begin() == learned([GOOD] * 5), 'good_runs 0 keeps them in the file'


def test_a_file_is_refused_if_nothing_can_be_learned(tmp_path):
    with pytest.raises(MonitorError, match=r'adaptation_step is 0.*good runs are off: '):
        Robot(tmp_path, detector(seen=None), adaptation_file=str(tmp_path / 'kept.json'))


def test_the_same_detector_loaded_again_keeps_the_good_runs(robot):
    for number in range(3):
        robot.play(f'e{number}')
    robot.session.replace(robot.settings.monitor_of(robot.folder), robot.folder)
    assert robot.begin() == learned([GOOD] * 3)


@pytest.mark.parametrize(
    ('rows', 'learning', 'known'),
    [
        ([], Advice.STOP, Advice.NONE),
        (['WARNING: SLOW'], Advice.STOP, Advice.SLOW),
        (['WARNING: ASK'], Advice.ASK, Advice.ASK),
    ],
)
def test_while_learning_the_advice_is_the_stronger_one(tmp_path, rows, learning, known):
    table = AdviceTable(read_rows(rows))
    robot = Robot(tmp_path, advice=table, learning_advice=Advice.STOP, warning_alpha=0.2)
    robot.session.activate(0.0)
    robot.session.start('new', robot.now, 'new')
    verdict = robot.step(0, QUIET, 'new').verdict
    assert robot.session.advise(verdict, robot.now) is learning
    robot.session.start('known', robot.now, 'pour')
    verdict = robot.step(0, WARNED, 'known').verdict
    assert verdict.state == WARNING
    assert robot.session.advise(verdict, robot.now) is known


def test_a_task_whose_good_runs_give_no_finite_threshold_is_still_learned(tmp_path):
    band = constant_band((np.arange(99) + 1) / 99, (0.02, 0.1), 20)
    few = SeenScores({task: np.array([0.1, 0.2]) for task in ('pour', 'stack')})
    own = good_runs_band(few, [GoodRun('a', 1.0)], band)
    assert not own.at(0.02).can_alarm
    made = detector(seen=few, band=dataclasses.replace(band, tasks={'new': own}), alpha=0.02)
    robot = Robot(tmp_path, made, good_runs=1)
    assert robot.begin() == band.at(0.02).at(0), 'the band of all tasks'
    assert robot.step(0, QUIET, 'next').verdict.state == WARNING
    assert 'learning, 0 of 1 good runs' in robot.session.learning
    finite = Robot(tmp_path, dataclasses.replace(made, alpha=0.1), good_runs=1)
    assert finite.begin() == own.at(0.1).at(0)
    assert finite.session.learning == ''


def other_detector(tmp_path, **fields):
    """Save a detector in another folder, and return this folder."""
    folder = str(tmp_path / 'other')
    detector(**fields).save(folder)
    return folder


def test_good_runs_in_the_file_survive_another_detector_in_between(tmp_path):
    path = tmp_path / 'good_runs.json'
    robot = Robot(tmp_path, adaptation_file=str(path))
    for number in range(3):
        robot.play(f'e{number}')
    other = other_detector(tmp_path, band=constant_band(np.arange(39) / 39, (0.1, 0.2), 20))
    for folder in (other, robot.folder):
        robot.session.replace(robot.settings.monitor_of(folder), folder)
        robot.session.keep_adaptation()
    assert robot.begin() == learned([GOOD] * 3)
    assert robot.session.adaptation_kept_in == str(path)
    robot.restart()
    assert robot.begin() == learned([GOOD] * 3), 'the file still has them'


def test_a_task_that_the_detector_knows_now_is_not_taken_from_the_earlier_one(tmp_path):
    robot = Robot(tmp_path)
    for number in range(3):
        robot.play(f'e{number}')
    folder = other_detector(tmp_path, provenance={'seen_tasks': ['pour', 'stack', 'new']})
    robot.session.replace(robot.settings.monitor_of(folder), folder)
    assert robot.begin() == ORDINARY
    assert robot.session.learning == ''


@pytest.mark.parametrize('state', [AlarmState.UNKNOWN, AlarmState.STALE, AlarmState.INVALID])
def test_states_without_a_judgement_are_not_changed(state):
    verdict = Verdict(state, 'why', 3, 1.0, 2.0)
    assert while_learning(verdict, 'learning') is verdict
    assert while_learning(dataclasses.replace(verdict, state=NOMINAL), '').state == NOMINAL
