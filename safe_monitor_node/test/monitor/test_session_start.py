# SPDX-License-Identifier: Apache-2.0
"""A session that becomes active: what it knows about episodes that began before."""

from dataclasses import replace

import numpy as np
import pytest
from band_factory import constant_band
from scripted_episodes import HIGH, LOW, make_step, scripted

from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.session import MonitorSession
from safe_monitor_node.monitor.settings import MonitorSettings
from safe_monitor_node.monitor.start_of_watch import LISTENING
from safe_monitor_node.monitor.steps import Publication, StepId

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return str(scripted().save(tmp_path_factory.mktemp('start') / 'detector'))


class Active:
    """A session with a steady clock that begins at 100 s."""

    def __init__(self, folder, settings=None):
        self.session = MonitorSession(folder, settings or MonitorSettings())
        self.now = 100.0

    def activate(self):
        self.session.activate(self.now)
        return self

    def wait(self, seconds):
        self.now += seconds
        self.session.tick(self.now)
        return self.session.verdict.state

    def step(self, index, score=LOW, episode='a', age=None):
        self.now += 0.1
        return self.session.step(make_step(index, score, episode), self.now, age)

    def state(self, *args, **changes):
        return self.step(*args, **changes).verdict.state

    @property
    def verdict(self):
        return self.session.verdict


@pytest.fixture
def active(folder):
    return Active(folder).activate()


def test_nothing_is_known_until_the_listening_is_over(active):
    assert not active.session.watch.knows
    assert active.verdict.state == UNKNOWN
    assert 'not known whether an episode is running' in active.verdict.reason
    active.wait(LISTENING - 0.1)
    assert not active.session.watch.knows
    active.wait(0.2)
    assert active.session.watch.knows
    assert active.verdict.reason == 'no episode is running'


def test_a_step_tells_that_an_episode_is_running(active):
    assert active.state(0) == NOMINAL
    assert active.session.watch.knows


def test_an_unreadable_step_a_start_and_an_end_tell_it_too(folder):
    for tell in (
        lambda session: session.refuse(StepId('a', 0, 0), 'unreadable', 100.0),
        lambda session: session.start('a', 100.0, ''),
        lambda session: session.end('a'),
    ):
        session = Active(folder).activate().session
        tell(session)
        assert session.watch.knows


def test_a_start_from_before_is_invalid_until_the_next_step(active):
    active.session.began_earlier('a', active.now, 'pour')
    assert not active.session.watch.knows, 'an END may follow at once'
    assert active.wait(0.1) == INVALID
    assert "'a' was running before the monitor was active" in active.verdict.reason
    assert active.session.monitor.task == 'pour'
    assert active.state(7) == INVALID
    assert 'missing' in active.verdict.reason


def test_a_start_from_before_and_step_0_is_an_episode_as_any_other(active):
    active.session.began_earlier('a', active.now, 'pour')
    active.wait(0.1)
    assert [active.state(0), active.state(1), active.state(2, HIGH)] == [NOMINAL, NOMINAL, ALARM]
    assert active.session.monitor.counts.episodes == 1


def test_silence_after_a_start_from_before_is_stale(active):
    active.session.began_earlier('a', active.now)
    assert active.wait(0.1) == INVALID
    assert active.wait(2.5) == STALE


def test_episodes_that_ended_before_leave_nothing(active):
    for episode in ('a', 'b'):
        active.session.began_earlier(episode, active.now)
        active.session.end(episode)
    assert active.wait(0.1) == UNKNOWN
    assert active.session.running_id is None
    assert active.session.monitor.counts.episodes == 0


def test_an_end_from_before_without_a_start_tells_nothing(active):
    """The policy sends no START: its next episode may run, and its next step may take a while."""
    active.session.end('a', earlier=True)
    assert active.wait(0.1) == UNKNOWN
    assert not active.session.watch.knows
    active.session.began_earlier('b', active.now)
    active.session.end('b', earlier=True)
    assert active.session.watch.knows, 'the policy sends START, and none came after this END'


def test_the_last_start_from_before_counts(active):
    active.session.began_earlier('a', active.now)
    active.session.end('a')
    active.session.began_earlier('b', active.now, 'wipe')
    active.wait(0.1)
    assert active.session.running_id == 'b'


def test_a_step_that_comes_first_gets_the_task_of_the_start_from_before(active):
    active.session.began_earlier('a', active.now, 'pour')
    assert active.state(0) == NOMINAL
    assert active.session.monitor.task == 'pour'
    assert active.wait(0.1) == NOMINAL
    assert active.session.monitor.counts.episodes == 1


def test_a_start_from_before_that_comes_after_a_step_sets_the_task(active):
    active.step(0)
    active.session.began_earlier('a', active.now, 'pour')
    assert active.session.monitor.task == 'pour'
    assert active.session.monitor.counts.episodes == 1
    assert active.wait(0.1) == NOMINAL


def test_another_start_from_before_does_not_end_the_episode_that_runs(active):
    active.step(0, episode='b')
    active.session.began_earlier('a', active.now)
    assert active.wait(0.1) == NOMINAL
    assert active.session.running_id == 'b'


def test_a_new_start_forgets_the_one_from_before(active):
    active.session.began_earlier('a', active.now)
    active.session.start('b', active.now, '')
    assert active.wait(0.1) == UNKNOWN
    assert active.session.running_id == 'b'
    active.session.end('b')
    active.session.finish_episode()
    assert active.wait(10.0) == UNKNOWN
    assert active.session.running_id is None


def test_an_episode_that_runs_through_an_inactive_time_is_invalid(active):
    active.session.start('a', active.now, 'pour')
    active.state(0, HIGH)
    active.session.deactivate()
    assert active.session.running_id is None
    active.now += 60.0
    active.activate()
    assert active.wait(0.1) == INVALID
    assert (active.session.running_id, active.session.monitor.task) == ('a', 'pour')


def test_steps_of_an_inactive_time_tell_that_an_episode_runs(folder):
    inactive = Active(folder)
    inactive.session.watch.stepped('a')
    assert inactive.activate().wait(0.1) == INVALID


def test_a_step_that_comes_after_its_end_in_an_inactive_time_tells_nothing(folder):
    inactive = Active(folder)
    inactive.session.watch.stepped('a')
    inactive.session.end('a')
    inactive.session.watch.stepped('a')
    assert inactive.activate().wait(0.1) == UNKNOWN
    assert inactive.session.running_id is None


# --- the age of steps, and the clock


def test_an_old_step_is_scored_but_not_nominal(folder):
    active = Active(folder, MonitorSettings(max_age=5.0)).activate()
    result = active.step(0, age=8.0)
    assert result.score == pytest.approx(LOW)
    assert result.verdict.state == STALE
    assert active.verdict.state == STALE
    assert active.state(1, age=4.0) == NOMINAL, 'nothing is missing'


def test_an_old_step_raises_an_alarm(folder):
    active = Active(folder, MonitorSettings(max_age=5.0)).activate()
    assert active.state(0, HIGH, age=8.0) == ALARM
    assert active.state(1, age=8.0) == ALARM


def test_the_age_ends_with_the_episode(folder):
    active = Active(folder, MonitorSettings(max_age=5.0)).activate()
    active.step(0, age=8.0)
    active.session.end('a')
    active.session.finish_episode()
    assert active.verdict.state == UNKNOWN
    active.step(0, age=8.0, episode='b')
    active.session.start('c', active.now, '')
    assert active.verdict.state == UNKNOWN


def test_a_repetition_has_no_age(folder):
    active = Active(folder, MonitorSettings(max_age=5.0)).activate()
    active.step(0, age=1.0)
    assert active.step(0, age=8.0) is None
    assert active.verdict.state == NOMINAL


def test_an_episode_goes_on_when_the_clock_runs_back(active):
    session = active.session
    session.step(make_step(0, stamp=70), 100.0)
    assert session.step(make_step(1, HIGH, stamp=71), 101.0).verdict.state == ALARM
    session.clock_ran_back()
    assert session.step(make_step(2, stamp=11), 102.0).verdict.state == ALARM
    assert session.monitor.counts.episodes == 1


def test_an_episode_with_the_same_id_begins_again_when_the_clock_ran_back(active):
    session = active.session
    session.step(make_step(0, stamp=70), 100.0)
    session.step(make_step(1, HIGH, stamp=71), 101.0)
    assert session.step(make_step(0, stamp=10), 102.0) is None, 'a repetition, as far as is known'
    session.clock_ran_back()
    assert session.step(make_step(0, stamp=10), 102.0).verdict.state == NOMINAL
    assert session.monitor.counts.episodes == 2


# --- settings that change


def alarm(settings=None, **changes):
    settings = settings or MonitorSettings()
    return replace(settings, alarm=replace(settings.alarm, **changes))


def test_k_and_n_change_with_the_next_episode(active):
    active.step(0)
    active.session.change(alarm(k=2, n=3))
    assert active.session.monitor.alarms.config.k == 1
    assert active.state(1, HIGH) == ALARM
    assert active.state(0, HIGH, episode='b') == WARNING
    assert active.state(1, LOW, episode='b') == NOMINAL
    assert active.state(2, HIGH, episode='b') == ALARM


def test_stale_after_changes_at_once(active):
    active.step(0)
    assert active.wait(1.0) == NOMINAL
    active.session.change(alarm(stale_after=0.5))
    assert active.wait(0.1) == STALE


def test_max_age_changes_at_once(active):
    active.step(0, age=8.0)
    assert active.verdict.state == NOMINAL
    active.session.change(MonitorSettings(max_age=5.0))
    assert active.verdict.state == STALE


def test_rates_change_with_the_next_episode_also_of_a_waiting_detector(active, folder):
    session = active.session
    active.step(0)
    session.replace(session.settings.monitor_of(folder), folder)
    session.check(MonitorSettings(alpha=0.2))
    session.change(MonitorSettings(alpha=0.2))
    assert active.step(1).threshold == 1.0
    assert session.monitor.next_thresholds.alarm.alpha == 0.2
    assert active.step(0, episode='b').threshold == 0.5
    assert session.monitor.next_thresholds is None
    session.change(MonitorSettings(alpha=0.1))
    assert active.step(0, episode='c').threshold == 1.0


def test_rates_change_at_once_while_no_episode_runs(active):
    active.session.change(MonitorSettings(alpha=0.2))
    assert active.session.monitor.threshold.alpha == 0.2


def test_rates_that_the_band_lacks_are_refused(active):
    with pytest.raises(ValueError, match=r'calibrated alphas 0\.1, 0\.2, found alpha 0\.3'):
        active.session.check(MonitorSettings(alpha=0.3))
    assert active.session.monitor.threshold.alpha == 0.1


def test_rates_do_not_change_while_labels_move_the_thresholds(tmp_path):
    band = constant_band((np.arange(39) + 1) / 39, (0.1, 0.2), 20)
    folder = str(scripted(band).save(tmp_path / 'detector'))
    session = Active(folder, MonitorSettings(adaptation_step=0.05)).session
    with pytest.raises(ValueError, match=r'expected no change while adaptation_step is above 0'):
        session.check(MonitorSettings(adaptation_step=0.05, alpha=0.2))
    session.check(alarm(MonitorSettings(adaptation_step=0.05), k=2, n=2))


# --- a recording that is played again


class Player:
    """Plays steps with old stamps to a session; each player numbers its messages from 1."""

    def __init__(self, active):
        self.active, self.number = active, 0

    def step(self, index, score=LOW, *, pause=0.1, stamp=None, content=None):
        self.number += 1
        self.active.now += pause
        step = make_step(index, score, stamp=10 + index if stamp is None else stamp)
        if content is not None:
            step.features = np.full_like(step.features, content)
        published = Publication(self.number, int(self.active.now * 1e9))
        return self.active.session.step(step, self.active.now, None, published)


@pytest.fixture
def played(active):
    """Return a session to which an episode without events was played, with an alarm."""
    first = Player(active)
    assert first.step(0).verdict.state == NOMINAL
    assert first.step(1, HIGH).verdict.state == ALARM
    return active


def test_an_episode_that_is_played_again_is_scored_again(played):
    second = Player(played)
    assert second.step(0, pause=3.0).verdict.state == NOMINAL
    assert second.step(1, HIGH).verdict.state == ALARM
    assert played.session.monitor.counts.episodes == 2
    assert Player(played).step(0, pause=3.0).verdict.state == NOMINAL
    assert played.session.monitor.counts.episodes == 3


def test_an_episode_whose_end_was_recorded_is_played_again(played):
    played.session.end('a', played.now)
    played.session.finish_episode()
    assert Player(played).step(0, pause=3.0).verdict.state == NOMINAL
    assert played.session.monitor.counts.episodes == 2


@pytest.mark.parametrize(
    ('changes', 'begins'),
    [
        ({'pause': 1.9}, False),  # a middleware or a bridge that sends a step twice
        ({'pause': 3.0, 'content': 7.0}, False),  # another node with the same id
        ({'pause': 3.0, 'stamp': 99}, True),  # a policy that gives real stamps
    ],
)
def test_other_steps_0_end_no_alarm(played, changes, begins):
    Player(played).step(0, **changes)
    assert (played.session.monitor.counts.episodes == 2) == begins
    assert (played.verdict.state == ALARM) != begins


def test_the_same_publisher_does_not_play_again(active):
    player = Player(active)
    player.step(0)
    player.step(1, HIGH)
    assert player.step(0, pause=3.0) is None
    assert active.verdict.state == ALARM
