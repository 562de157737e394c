# SPDX-License-Identifier: Apache-2.0
"""The alarm state machine: every transition, and properties of all sequences of events."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from safe_monitor_node.bands.threshold import Threshold
from safe_monitor_node.monitor.alarm import (
    NOTHING,
    AlarmConfig,
    AlarmError,
    AlarmState,
    AlarmStateMachine,
    Latch,
)

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState

# Scores for a threshold of 1.0 and a warning threshold of 0.5.
LOW, RAISED, HIGH = 0.2, 0.7, 1.2


class Episode:
    """An alarm alarms in a running episode, one second a step."""

    def __init__(self, **config):
        self.alarms = AlarmStateMachine(AlarmConfig(**config))
        self.now = 100.0
        self.step = 0
        self.alarms.start(self.now)

    @property
    def verdict(self):
        return self.alarms.verdict

    @property
    def state(self):
        return self.verdict.state

    def score(self, *scores, threshold=1.0, warning=0.5):
        states = []
        for score in scores:
            self.now += 1.0
            verdict = self.alarms.scored(self.step, score, threshold, warning, self.now)
            assert verdict is self.verdict
            states.append(verdict.state)
            self.step += 1
        return states[0] if len(states) == 1 else states

    def not_scored(self, reason='the features hold NaN'):
        self.now += 1.0
        state = self.alarms.not_scored(self.step, reason, self.now).state
        self.step += 1
        return state

    def wait(self, seconds):
        self.now += seconds
        return self.alarms.tick(self.now).state


# --- the arrows of the drawing


def test_before_any_episode_nothing_is_known():
    alarms = AlarmStateMachine()
    assert alarms.verdict == NOTHING
    assert alarms.verdict.state == UNKNOWN
    assert not alarms.running
    assert alarms.tick(1e9).state == UNKNOWN, 'without an episode nothing is stale'
    assert alarms.reset().state == UNKNOWN


def test_an_episode_without_a_step_is_unknown():
    episode = Episode()
    assert episode.alarms.running
    assert episode.state == UNKNOWN
    assert math.isnan(episode.verdict.score)


@pytest.mark.parametrize(
    ('score', 'state'), [(LOW, NOMINAL), (RAISED, WARNING), (HIGH, ALARM)], ids=str
)
def test_the_first_scored_step_leads_out_of_unknown(score, state):
    episode = Episode()
    assert episode.score(score) == state
    assert (episode.verdict.step, episode.verdict.score, episode.verdict.threshold) == (
        0,
        score,
        1.0,
    )


def test_nominal_and_warning_follow_the_score():
    assert Episode().score(LOW, RAISED, LOW, RAISED, RAISED, LOW) == [
        NOMINAL,
        WARNING,
        NOMINAL,
        WARNING,
        WARNING,
        NOMINAL,
    ]


def test_a_warning_ends_after_so_many_lower_scores_in_succession():
    episode = Episode(warning_steps=3)
    assert episode.score(LOW, RAISED, LOW, LOW) == [NOMINAL, WARNING, WARNING, WARNING]
    assert '2 of 3 lower scores' in episode.verdict.reason
    assert episode.score(RAISED, LOW, LOW, LOW, LOW) == [WARNING] * 3 + [NOMINAL] * 2


def test_a_warning_that_lasts_is_over_with_a_reset_an_episode_and_no_alarm():
    episode = Episode(warning_steps=3)
    episode.score(HIGH)
    episode.alarms.reset()
    assert episode.score(LOW) == NOMINAL
    episode.score(RAISED)
    episode.alarms.start(episode.now)
    assert episode.score(LOW) == NOMINAL
    episode.score(RAISED)
    assert episode.wait(100.0) == STALE
    assert episode.score(LOW) == WARNING, 'the silence was no lower score'
    assert episode.score(HIGH) == ALARM


def test_the_last_step_above_is_kept_while_the_alarm_is_latched():
    episode = Episode(k=2, n=2)
    assert episode.alarms.raised_at is None
    episode.score(HIGH, HIGH, LOW, HIGH, HIGH, LOW)
    assert episode.alarms.raised_at == 4
    episode.alarms.reset()
    assert episode.alarms.raised_at is None


def test_on_the_band_is_not_above_it():
    episode = Episode()
    assert episode.score(0.5) == NOMINAL
    assert episode.score(1.0) == WARNING
    assert episode.score(math.nextafter(1.0, 2.0)) == ALARM


def test_without_a_warning_band_there_is_no_warning():
    assert Episode().score(LOW, RAISED, HIGH, warning=1.0) == [NOMINAL, NOMINAL, ALARM]


@pytest.mark.parametrize('before', [LOW, RAISED], ids=['nominal', 'warning'])
def test_above_the_band_is_an_alarm(before):
    episode = Episode()
    episode.score(before)
    assert episode.score(HIGH) == ALARM
    assert '1.2' in episode.verdict.reason
    assert 'step 1' in episode.verdict.reason


def test_an_infinite_band_raises_no_alarm_and_an_infinite_score_cannot_be_scored():
    episode = Episode()
    assert episode.score(1e30, threshold=math.inf, warning=math.inf) == NOMINAL
    assert episode.score(math.inf) == INVALID
    assert Episode().score(-math.inf) == INVALID


def test_a_latched_alarm_outlives_low_scores_silence_and_broken_steps():
    episode = Episode()
    episode.score(HIGH)
    reason = episode.verdict.reason
    assert episode.score(LOW) == ALARM
    assert (episode.verdict.step, episode.verdict.score) == (1, LOW), 'the score goes on'
    assert episode.wait(1000.0) == ALARM
    assert episode.not_scored() == ALARM
    episode.alarms.history.missing(5, 'steps are missing')
    assert episode.score(LOW) == ALARM
    assert episode.verdict.reason == reason, 'the reason stays the one that raised it'


def leave_max_score(alarms):
    alarms.end()


def leave_by_start(alarms):
    alarms.start(0.0)


@pytest.mark.parametrize('leave', [leave_max_score, leave_by_start])
@pytest.mark.parametrize('state', [UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID])
def test_every_state_ends_with_its_episode(state, leave):
    episode = Episode()
    reach = {
        UNKNOWN: lambda: None,
        NOMINAL: lambda: episode.score(LOW),
        WARNING: lambda: episode.score(RAISED),
        ALARM: lambda: episode.score(HIGH),
        STALE: lambda: episode.wait(10.0),
        INVALID: lambda: episode.not_scored(),
    }
    reach[state]()
    assert episode.state == state
    leave(episode.alarms)
    assert episode.state == UNKNOWN
    assert episode.alarms.running == (leave is leave_by_start)


def test_nothing_is_stale_after_the_end():
    episode = Episode()
    episode.score(LOW)
    episode.alarms.end()
    assert episode.wait(1000.0) == UNKNOWN


def test_the_next_episode_starts_with_a_clean_record():
    episode = Episode(k=2, n=3)
    episode.score(HIGH)
    episode.alarms.history.missing(1, 'a step is missing')
    episode.alarms.end()
    episode.alarms.start(episode.now)
    assert episode.score(HIGH) == WARNING, 'the high step of the last episode does not count'
    assert episode.score(LOW) == NOMINAL, 'nor do its missing steps'


# --- reset


def test_a_reset_releases_the_alarm_and_the_next_high_step_raises_it_again():
    episode = Episode()
    episode.score(HIGH)
    assert episode.alarms.reset().state == UNKNOWN
    assert 'reset' in episode.verdict.reason
    assert episode.score(LOW, HIGH) == [NOMINAL, ALARM]
    assert 'step 2' in episode.verdict.reason


def test_a_reset_clears_the_count():
    episode = Episode(k=2, n=2)
    episode.score(HIGH, HIGH)
    episode.alarms.reset()
    assert episode.score(HIGH, HIGH) == [WARNING, ALARM]


def test_a_reset_does_not_mend_a_broken_history():
    episode = Episode()
    episode.score(HIGH)
    assert episode.not_scored() == ALARM
    assert episode.alarms.reset().state == INVALID
    assert episode.score(LOW) == INVALID


@pytest.mark.parametrize('state', [UNKNOWN, NOMINAL, WARNING, STALE, INVALID])
def test_a_reset_without_an_alarm_changes_no_state(state):
    episode = Episode()
    {
        UNKNOWN: lambda: None,
        NOMINAL: lambda: episode.score(LOW),
        WARNING: lambda: episode.score(RAISED),
        STALE: lambda: episode.wait(10.0),
        INVALID: lambda: episode.not_scored(),
    }[state]()
    before = episode.verdict
    assert episode.alarms.reset() == before


# --- silence


def test_silence_is_stale_after_its_time_and_not_before():
    episode = Episode(stale_after=2.0)
    episode.score(LOW)
    assert episode.wait(2.0) == NOMINAL
    assert episode.wait(0.001) == STALE
    assert '2 s' in episode.verdict.reason
    assert math.isnan(episode.verdict.score)


def test_silence_from_the_start_is_stale():
    assert Episode(stale_after=2.0).wait(2.001) == STALE


@pytest.mark.parametrize(
    ('score', 'state'), [(LOW, NOMINAL), (RAISED, WARNING), (HIGH, ALARM)], ids=str
)
def test_the_next_scored_step_leads_out_of_stale(score, state):
    episode = Episode()
    episode.wait(10.0)
    assert episode.score(score) == state


def test_a_step_that_cannot_be_scored_leads_from_stale_to_invalid_and_silence_back():
    episode = Episode(stale_after=2.0)
    episode.wait(10.0)
    assert episode.not_scored() == INVALID
    assert episode.wait(1.0) == INVALID, 'a step without a score has come all the same'
    assert episode.wait(10.0) == STALE


def test_steps_that_come_again_do_not_end_the_silence_and_are_said():
    episode = Episode(stale_after=2.0)
    episode.score(LOW)
    for _ in range(3):
        episode.alarms.repeated()
        episode.wait(0.9)
    assert episode.state == STALE
    assert episode.verdict.reason == (
        'no new policy step has arrived for more than 2 s; the number of ignored repetitions is 3'
    )
    episode.score(LOW)
    episode.wait(3.0)
    assert episode.verdict.reason == 'no policy step has arrived for more than 2 s'


def test_infinity_means_never_stale():
    episode = Episode(stale_after=math.inf)
    episode.score(LOW)
    assert episode.wait(1e9) == NOMINAL


def test_a_clock_that_runs_backwards_makes_nothing_stale():
    episode = Episode()
    episode.score(LOW)
    assert episode.wait(-50.0) == NOMINAL


# --- steps that cannot be scored, and steps that never came


def test_a_step_without_a_score_is_invalid_for_the_rest_of_the_episode():
    episode = Episode()
    episode.score(LOW)
    assert episode.not_scored('step 1: NaN') == INVALID
    assert episode.verdict.reason == 'step 1: NaN'
    assert math.isnan(episode.verdict.score)
    assert episode.score(LOW, RAISED) == [INVALID, INVALID]
    assert episode.verdict.reason == 'step 1: NaN', 'the cause stays, and no step is missing'


def test_no_alarm_is_raised_over_a_broken_history():
    episode = Episode()
    episode.not_scored('step 0: NaN')
    assert episode.score(HIGH) == INVALID
    assert episode.verdict.reason == 'step 0: NaN'


def test_the_first_cause_stays_through_other_causes_and_silence_until_the_end():
    episode = Episode(stale_after=2.0)
    episode.score(LOW)
    episode.not_scored('step 1: NaN')
    episode.alarms.history.missing(3, '3 steps are missing')
    episode.not_scored('step 5: the width is wrong')
    assert episode.verdict.reason == 'step 1: NaN'
    assert episode.wait(3.0) == STALE
    assert 'no policy step' in episode.verdict.reason
    assert episode.verdict.reason.endswith('before: step 1: NaN')
    assert episode.score(LOW) == INVALID
    assert episode.verdict.reason == 'step 1: NaN'
    episode.alarms.end()
    episode.alarms.start(episode.now)
    assert episode.alarms.history.cause == ''
    assert episode.score(LOW) == NOMINAL


def test_a_hint_explains_a_first_gap_and_no_other_cause():
    gap, hint = '49 steps are missing (1 to 49)', '; number the inferences'
    episode = Episode()
    episode.alarms.history.missing(49, gap)
    episode.score(LOW)
    episode.alarms.history.missing(49, '49 steps are missing (51 to 99)', hint)
    episode.alarms.history.missing(49, '49 steps are missing (101 to 149)', hint)
    episode.score(LOW)
    assert episode.verdict.reason == gap + hint
    other = Episode()
    other.not_scored('step 0: NaN')
    other.alarms.history.missing(49, gap, hint)
    other.score(LOW)
    assert other.verdict.reason == 'step 0: NaN'


def test_with_an_allowance_the_limit_and_the_first_cause_are_said():
    episode = Episode(max_missing_steps=1)
    assert episode.not_scored('step 0: NaN') == INVALID
    assert episode.verdict.reason == 'step 0: NaN'
    assert episode.score(LOW) == NOMINAL
    episode.alarms.history.missing(2, '2 steps are missing (2 to 3)')
    assert episode.score(LOW) == INVALID
    assert episode.verdict.reason == (
        'more steps are missing or have no score than max_missing_steps = 1; '
        'the first cause: step 0: NaN'
    )


# --- steps that contradict the episode, and steps of none


def test_a_contradiction_is_invalid_until_the_end_however_many_steps_may_be_missing():
    episode = Episode(max_missing_steps=100)
    episode.score(LOW)
    verdict = episode.alarms.misplaced(0, 'step 0 came twice', episode.now)
    assert (verdict.state, verdict.reason) == (INVALID, 'step 0 came twice')
    assert episode.score(LOW, HIGH) == [INVALID, INVALID]
    assert episode.verdict.reason == 'step 0 came twice'
    episode.alarms.start(episode.now)
    assert episode.score(LOW) == NOMINAL


def test_a_contradiction_releases_no_alarm():
    episode = Episode()
    episode.score(HIGH)
    assert episode.alarms.misplaced(0, 'step 0 came twice', episode.now).state == ALARM
    assert episode.alarms.reset().state == INVALID
    assert 'came twice' in episode.verdict.reason


def test_a_step_of_no_episode_is_invalid_while_such_steps_come():
    alarms = AlarmStateMachine()
    assert alarms.misplaced(3, 'after END', 10.0).state == INVALID
    assert alarms.tick(11.0).state == INVALID
    assert alarms.misplaced(4, 'after END', 11.5).reason == 'after END'
    assert alarms.tick(13.0).state == INVALID
    assert alarms.tick(13.6) == NOTHING
    assert alarms.tick(100.0) == NOTHING


def test_steps_of_no_episode_end_with_the_next_episode():
    alarms = AlarmStateMachine()
    alarms.misplaced(3, 'after END', 10.0)
    assert alarms.start(11.0).state == UNKNOWN
    assert alarms.scored(0, LOW, 1.0, 0.5, 11.0).state == NOMINAL


# --- an alarm that a person has to reset


def test_with_latch_reset_an_alarm_outlives_its_episode_and_every_other():
    episode = Episode(latch=Latch.RESET)
    episode.alarms.start(episode.now, "'a'")
    episode.score(HIGH)
    assert episode.alarms.end().state == ALARM
    assert not episode.alarms.running
    reason = episode.verdict.reason
    assert "of episode 'a'" in reason and '~/reset' in reason
    episode.alarms.start(episode.now, "'b'")
    assert episode.verdict.reason == reason
    assert episode.score(LOW, HIGH) == [ALARM, ALARM]
    assert episode.not_scored() == ALARM
    assert episode.wait(1000.0) == ALARM
    episode.alarms.end()
    assert episode.alarms.misplaced(3, 'after END', episode.now).state == ALARM
    assert episode.verdict.reason == reason
    assert episode.alarms.reset().state == UNKNOWN
    episode.alarms.start(episode.now, "'c'")
    assert episode.score(LOW) == NOMINAL


def test_the_latch_changes_at_once():
    episode = Episode()
    episode.score(HIGH)
    episode.alarms.change(AlarmConfig(latch=Latch.RESET))
    assert episode.alarms.end().state == ALARM
    episode.alarms.change(AlarmConfig())
    assert episode.alarms.verdict.state == ALARM
    assert episode.alarms.start(episode.now).state == UNKNOWN


@pytest.mark.parametrize('latch', list(Latch))
def test_another_detector_holds_the_alarm_that_the_latch_holds(latch):
    episode = Episode(latch=latch)
    episode.score(HIGH)
    episode.alarms.end()
    following = AlarmStateMachine(AlarmConfig(latch=latch))
    following.hold(episode.alarms)
    assert (following.verdict.state == ALARM) == (latch is Latch.RESET)
    assert (following.start(0.0).state == ALARM) == (latch is Latch.RESET)


@pytest.mark.parametrize(
    'broken',
    [
        {'score': math.nan},
        {'threshold': math.nan},
        {'warning_threshold': math.nan},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_nan_is_never_nominal(broken):
    episode = Episode()
    given = {'score': LOW, 'threshold': 1.0, 'warning_threshold': 0.5} | broken
    verdict = episode.alarms.scored(0, **given, now=episode.now)
    assert verdict.state == INVALID
    assert 'NaN' in verdict.reason
    assert episode.score(LOW) == INVALID, 'that step is missing from the history'


def test_missing_steps_break_the_history_at_the_next_step():
    episode = Episode()
    episode.score(LOW)
    episode.alarms.history.missing(2, '2 steps are missing (1 to 2)')
    assert episode.score(LOW) == INVALID
    assert episode.verdict.reason == '2 steps are missing (1 to 2)'


def test_as_many_steps_as_allowed_may_be_missing():
    episode = Episode(max_missing_steps=2)
    episode.alarms.history.missing(1, 'a step is missing')
    assert episode.score(LOW) == NOMINAL
    assert episode.not_scored() == INVALID, 'this step itself was not scored'
    assert episode.score(LOW) == NOMINAL
    episode.alarms.history.missing(1, 'a step is missing')
    assert episode.score(LOW) == INVALID


# --- k of n


def test_k_of_n_waits_for_k_steps_and_warns_meanwhile():
    episode = Episode(k=2, n=3)
    assert episode.score(LOW, HIGH, LOW, HIGH) == [NOMINAL, WARNING, NOMINAL, ALARM]
    assert '2 of the last 3' in episode.verdict.reason


def test_k_high_steps_too_far_apart_are_no_alarm():
    assert Episode(k=2, n=3).score(HIGH, LOW, LOW, HIGH) == [WARNING, NOMINAL, NOMINAL, WARNING]


def test_k_of_n_does_not_wait_for_n_steps():
    assert Episode(k=2, n=50).score(HIGH, HIGH) == [WARNING, ALARM]


def test_a_step_without_a_score_is_not_among_the_last_n():
    episode = Episode(k=2, n=2, max_missing_steps=9)
    episode.score(HIGH)
    episode.not_scored()
    assert episode.score(HIGH) == ALARM


# --- configuration


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'k': 0}, 'k = 0'),
        ({'k': 3, 'n': 2}, 'k = 3 and n = 2'),
        ({'stale_after': -1.0}, 'stale_after'),
        ({'stale_after': math.nan}, 'stale_after'),
        ({'max_missing_steps': -1}, 'max_missing_steps'),
        ({'max_identical_features': -1}, 'max_identical_features'),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config, message):
    with pytest.raises(AlarmError, match=message):
        AlarmConfig(**config)


# --- whatever happens

scores = st.sampled_from([LOW, RAISED, HIGH, math.nan, math.inf, -math.inf])
events = st.lists(
    st.one_of(
        st.tuples(st.just('scored'), scores),
        st.tuples(st.just('not_scored'), st.none()),
        st.tuples(st.just('missing'), st.integers(1, 3)),
        st.tuples(st.just('misplaced'), st.none()),
        st.tuples(st.just('wait'), st.sampled_from([0.5, 3.0])),
        st.tuples(st.sampled_from(['reset', 'end', 'start']), st.none()),
    ),
    max_size=40,
)
configs = st.builds(
    lambda k, more, missing, latch: AlarmConfig(
        k=k, n=k + more, stale_after=2.0, max_missing_steps=missing, latch=latch
    ),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from(Latch),
)


def happen(alarms, event, value, step, now):
    """Apply one event; returns the state after it."""
    match event:
        case 'scored':
            return alarms.scored(step, value, 1.0, 0.5, now).state
        case 'not_scored':
            return alarms.not_scored(step, 'unreadable', now).state
        case 'missing':
            alarms.history.missing(value, 'steps are missing')
            return alarms.verdict.state
        case 'misplaced':
            return alarms.misplaced(step, 'of no episode', now).state
        case 'wait':
            return alarms.tick(now).state
        case 'reset':
            return alarms.reset().state
        case 'end':
            return alarms.end().state
        case 'start':
            return alarms.start(now).state
    raise AssertionError(event)


@settings(max_examples=300, deadline=None)
@given(events=events, config=configs)
def test_what_no_sequence_of_events_may_do(events, config):
    alarms, now, before = AlarmStateMachine(config), 0.0, UNKNOWN
    alarms.start(now)
    scored = False
    for step, (event, value) in enumerate(events):
        now += value if event == 'wait' else 0.1
        state = happen(alarms, event, value, step, now)
        assert alarms.verdict.state == state
        good = event == 'scored' and not math.isnan(value)
        if state in (NOMINAL, WARNING) and before not in (NOMINAL, WARNING):
            assert good, 'only a scored step leads to nominal or warning'
        if event in ('scored', 'not_scored', 'misplaced') and not good:
            assert state in (INVALID, ALARM), 'a step that was not scored is no step that is fine'
        if before == ALARM:
            clears = ('reset',) if config.latch is Latch.RESET else ('reset', 'end', 'start')
            assert state == ALARM or event in clears
        if state == ALARM and before != ALARM:
            assert good
            assert value > 1.0
        if event in ('start', 'end'):
            scored = state == ALARM
            assert state == (ALARM if before == ALARM and config.latch is Latch.RESET else UNKNOWN)
        scored = scored or good
        assert scored or state in (UNKNOWN, STALE, INVALID)
        before = state


def expected_states(scores, k, n):
    """Return the states of an episode of good steps, computed in the simplest way."""
    states, high = [], []
    for score in scores:
        high.append(score > 1.0)
        if ALARM in states or sum(high[-n:]) >= k:
            states.append(ALARM)
        else:
            states.append(WARNING if score > 0.5 else NOMINAL)
    return states


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(0, 2, width=32), min_size=1, max_size=30),
    k=st.integers(1, 4),
    more=st.integers(0, 3),
)
def test_an_episode_of_good_steps_is_k_of_n_and_nothing_else(values, k, more):
    episode = Episode(k=k, n=k + more)
    assert [episode.score(value) for value in values] == expected_states(values, k, k + more)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), length=st.integers(1, 20))
def test_one_of_one_alarms_at_the_first_crossing_of_the_band(data, length):
    finite = st.floats(-2, 2, width=32)
    upper = data.draw(
        st.lists(st.one_of(finite, st.just(math.inf)), min_size=length, max_size=length)
    )
    values = data.draw(st.lists(finite, min_size=length, max_size=length))
    threshold = Threshold(0.1, np.array(upper, dtype=np.float64))
    episode = Episode()
    states = [
        episode.score(score, threshold=threshold.at(t), warning=threshold.at(t))
        for t, score in enumerate(values)
    ]
    first = states.index(ALARM) if ALARM in states else None
    assert first == threshold.first_crossing(np.array(values, dtype=np.float32))


@pytest.mark.ros
def test_the_states_have_the_numbers_of_the_messages():
    from safe_msgs import msg as messages

    for message in (messages.FailureScore, messages.FailureAlarm):
        for state in AlarmState:
            assert getattr(message, f'STATE_{state.name}') == state
