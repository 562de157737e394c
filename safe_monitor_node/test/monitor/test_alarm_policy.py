# SPDX-License-Identifier: Apache-2.0
"""The table of advice: its rows, its errors, and the advice for a situation."""

from __future__ import annotations

import math
from itertools import product

import pytest

from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.alarm_policy import Advice, AdviceError, AdviceTable
from safe_monitor_node.monitor.policy_rows import read_rows
from safe_monitor_node.monitor.situation import Situation

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState
NONE, SLOW, STOP, BACKTRACK, ASK = Advice
EXAMPLE = [
    'WARNING: SLOW',
    'ALARM: STOP',
    'ALARM after 10 steps: ASK',
    'ALARM margin > 2.0: BACKTRACK',
]


def table(*rows: str, **parameters: object) -> AdviceTable:
    return AdviceTable(read_rows(rows), **parameters)  # type: ignore[arg-type]


def situation(state: AlarmState, *, known: bool = True, **facts: object) -> Situation:
    made = Situation()
    made.take(state, 0.0, known=known)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


# --- without rows: the three parameters, as in version 0.2


@pytest.mark.parametrize('alarm_advice', Advice)
@pytest.mark.parametrize(('blind', 'unknown'), product([True, False], repeat=2))
@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('state', AlarmState)
def test_without_rows_the_parameters_give_the_advice(
    state: AlarmState, known: bool, blind: bool, unknown: bool, alarm_advice: Advice
) -> None:
    made = table(alarm_advice=alarm_advice, stop_when_blind=blind, stop_when_unknown=unknown)
    expected = NONE
    if state == ALARM:
        expected = alarm_advice
    elif (blind and (state in (STALE, INVALID) or not known)) or (unknown and state == UNKNOWN):
        expected = STOP
    if state == ALARM and not known:
        return  # StartOfWatch makes no other state than ALARM and UNKNOWN of what is not known
    assert made.advice(situation(state, known=known)) == expected


def test_the_advice_that_halts_is_stop_backtrack_and_ask() -> None:
    assert [advice.name for advice in Advice if advice.halts] == ['STOP', 'BACKTRACK', 'ASK']


# --- rows


@pytest.mark.parametrize(
    ('state', 'steps', 'margin', 'advice'),
    [
        (NOMINAL, 0, -0.5, NONE),
        (WARNING, 50, -0.1, SLOW),
        (ALARM, 0, 0.1, STOP),
        (ALARM, 9, 0.1, STOP),
        (ALARM, 10, 2.0, ASK),
        (ALARM, 0, 2.1, BACKTRACK),
        (ALARM, 10, 2.1, BACKTRACK),
        (STALE, 0, math.nan, STOP),
    ],
)
def test_the_last_row_that_fits_gives_the_advice(
    state: AlarmState, steps: int, margin: float, advice: Advice
) -> None:
    now = situation(state, steps=steps)
    now.take_margins({'rnd': margin})
    assert table(*EXAMPLE).advice(now) == advice


def test_a_task_has_rows_of_its_own() -> None:
    made = table('ALARM: ASK', 'ALARM: SLOW for task  pour the  water: slowly ')
    assert made.advice(situation(ALARM, task='pour the water: slowly')) == SLOW
    assert made.advice(situation(ALARM, task='Pour the water: slowly')) == ASK
    assert made.advice(situation(ALARM)) == ASK


def test_a_row_can_wait_for_seconds() -> None:
    made = table('STALE after 2.5 s: ASK', 'ALARM after 3 steps after 1s: ASK')
    assert made.advice(situation(STALE, seconds=2.4)) == STOP
    assert made.advice(situation(STALE, seconds=2.5)) == ASK
    assert made.advice(situation(ALARM, steps=3, seconds=0.9)) == STOP
    assert made.advice(situation(ALARM, steps=3, seconds=1.0)) == ASK


def test_a_margin_of_one_of_several_detectors() -> None:
    made = table('ALARM margin of rnd > 1 and after 2 steps: ASK')
    made.check_detectors(['rnd', 'entropy'])
    now = situation(ALARM, steps=2)
    now.take_margins({'rnd': 0.5, 'entropy': 7.0})
    assert made.advice(now) == STOP
    now.take_margins({'rnd': 1.5})
    assert made.advice(now) == ASK


def test_no_row_releases_a_robot_that_the_monitor_cannot_see() -> None:
    made = table('UNKNOWN: SLOW')
    assert made.advice(situation(UNKNOWN)) == SLOW
    assert made.advice(situation(UNKNOWN, known=False)) == STOP
    assert table('UNKNOWN: ASK').advice(situation(UNKNOWN, known=False)) == ASK


@pytest.mark.parametrize(
    ('text', 'row'),
    [
        ('alarm:stop', (ALARM, STOP, 0, 0.0, -math.inf, '', None)),
        ('  Warning  margin>-.5 :  Slow ', (WARNING, SLOW, 0, 0.0, -0.5, '', None)),
        ('ALARM after 1 step: ask', (ALARM, ASK, 1, 0.0, -math.inf, '', None)),
        ('ALARM margin of a_1 > 1e-3: ASK', (ALARM, ASK, 0, 0.0, 1e-3, 'a_1', None)),
        ('INVALID after 5 s: ASK for task wipe', (INVALID, ASK, 0, 5.0, -math.inf, '', 'wipe')),
    ],
)
def test_a_row_is_read(text: str, row: tuple[object, ...]) -> None:
    (found,) = read_rows([text, ' ', ''])
    assert (
        found.state,
        found.advice,
        found.steps,
        found.seconds,
        found.margin,
        found.detector,
        found.task,
    ) == row


# --- errors


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('ALRM: STOP', r"a state \(UNKNOWN, .*found 'ALRM'; the nearest name is ALARM"),
        ('ALARM: STOPP', r"an advice \(NONE, .*found 'STOPP'; the nearest name is STOP"),
        ('ALARM:', r'an advice \(NONE, .*found none'),
        (': STOP', r'a state \(UNKNOWN, .*found none'),
        ('ALARM STOP', "a row such as 'ALARM: STOP', .*found no colon"),
        ('ALARM: STOP now', "a row such as .*found 'STOP now' after the colon"),
        ('ALARM: STOP for wipe', "found 'STOP for wipe' after the colon"),
        ('ALARM afer 10 steps: ASK', "a condition such as .*found 'afer 10 steps'; .* is after"),
        ('ALARM after 10: ASK', "found 'after 10'"),
        ('ALARM after 1.5 steps: ASK', "found 'after 1.5 steps'"),
        ('ALARM margin > big: ASK', "found 'margin > big'"),
        ('ALARM margin < 2: ASK', "found 'margin < 2'"),
        ('ALARM after 2 steps after 3 steps: ASK', "each condition once, found 'after 3 steps'"),
        ('ALARM margin > -1e999: NONE', "a finite number, found 'margin > -1e999'"),
        ('STALE after 1e999 s: ASK', "a finite number, found 'after 1e999 s'"),
        ('STALE margin > 2: ASK', 'found a margin with STALE, which has no score'),
    ],
)
def test_a_wrong_row_is_refused_with_what_is_expected(text: str, words: str) -> None:
    with pytest.raises(AdviceError, match=words) as caught:
        read_rows(['WARNING: SLOW', text])
    assert str(caught.value).startswith(f'parameter alarm_policy, row {text!r}: expected ')


def test_all_wrong_rows_are_said_at_once() -> None:
    with pytest.raises(AdviceError) as caught:
        read_rows(['ALRM: STOP', 'WARNING: SLOW', 'ALARM: HALT'])
    assert "row 'ALRM: STOP'" in str(caught.value)
    assert "row 'ALARM: HALT'" in str(caught.value)
    assert "row 'WARNING: SLOW'" not in str(caught.value)


@pytest.mark.parametrize(
    'rows',
    [
        ('ALARM: STOP', 'ALARM: ASK'),
        ('ALARM after 10 steps: ASK', 'ALARM: STOP'),
        ('ALARM after 10 steps: ASK', 'ALARM after 5 steps: STOP'),
        ('ALARM margin > 2: ASK', 'ALARM margin > 1: STOP'),
        ('ALARM after 3 s: SLOW for task wipe', 'ALARM: STOP'),
        ('ALARM: SLOW for task wipe', 'ALARM: STOP for task wipe'),
    ],
)
def test_a_row_that_never_has_an_effect_is_refused(rows: tuple[str, str]) -> None:
    with pytest.raises(AdviceError, match='expected a row that has an effect') as caught:
        table(*rows)
    assert f'row {rows[0]!r}' in str(caught.value)
    assert f'the later row {rows[1]!r}' in str(caught.value)


@pytest.mark.parametrize(
    'rows',
    [
        ('ALARM after 10 steps: ASK', 'ALARM after 5 s: STOP'),
        ('ALARM margin of a > 2: ASK', 'ALARM margin of b > 1: STOP'),
        ('ALARM: SLOW for task wipe', 'ALARM: STOP for task pour'),
        ('ALARM: STOP', 'WARNING: SLOW'),
    ],
)
def test_rows_that_can_both_have_an_effect_are_taken(rows: tuple[str, str]) -> None:
    table(*rows)
    table(*reversed(rows))


@pytest.mark.parametrize('advice', ['NONE', 'SLOW'])
@pytest.mark.parametrize(
    ('state', 'parameter'),
    [
        ('STALE', 'stop_when_blind'),
        ('INVALID after 3 s', 'stop_when_blind'),
        ('UNKNOWN', 'stop_when_unknown'),
    ],
)
def test_a_row_that_contradicts_a_stop_is_refused(state: str, parameter: str, advice: str) -> None:
    row = f'{state}: {advice}'
    words = f'because {parameter} is true, found {advice}; .* set {parameter} to false'
    with pytest.raises(AdviceError, match=words):
        table(row, **{parameter: True})
    table(row, **{parameter: False})
    table(f'{state}: ASK', **{parameter: True})


def test_an_alarm_advice_without_effect_is_refused() -> None:
    with pytest.raises(AdviceError, match=r"row 'ALARM: ASK' of alarm_policy .*found 'slow'"):
        table('ALARM: ASK', alarm_advice=SLOW)
    table('ALARM: ASK', alarm_advice=ASK)
    table('ALARM: ASK', alarm_advice=STOP)
    table('ALARM: ASK for task wipe', alarm_advice=SLOW)
    table('ALARM after 5 steps: ASK', alarm_advice=SLOW)


def test_a_margin_without_a_name_belongs_to_a_single_detector() -> None:
    table('ALARM margin > 2: ASK').check_detectors(['rnd'])
    table('ALARM margin of rnd > 2: ASK').check_detectors(['rnd'])
    with pytest.raises(AdviceError, match=r'different units.*write margin of rnd'):
        table('ALARM margin > 2: ASK').check_detectors(['rnd', 'entropy'])
    with pytest.raises(
        AdviceError, match=r"\(rnd, entropy\), found 'rdn'; the nearest name is rnd"
    ):
        table('ALARM margin of rdn > 2: ASK').check_detectors(['rnd', 'entropy'])


# --- how long a state has lasted


def test_steps_and_seconds_count_from_the_step_that_began_the_state() -> None:
    now = Situation()
    now.take(NOMINAL, 1.0, episode='a', stepped=True)
    now.take(ALARM, 2.0, episode='a', stepped=True)
    assert (now.steps, now.seconds) == (0, 0.0)
    now.take(ALARM, 2.5, episode='a')
    assert (now.steps, now.seconds) == (0, 0.5)
    now.take(ALARM, 3.0, episode='a', stepped=True)
    assert (now.steps, now.seconds) == (1, 1.0)
    now.take(INVALID, 4.0, episode='a', stepped=True)
    assert (now.state, now.steps, now.seconds) == (INVALID, 0, 0.0)


def test_a_state_begins_anew_with_an_episode_but_a_held_alarm_does_not() -> None:
    now = Situation()
    now.take(WARNING, 1.0, episode='a', task='pour', stepped=True)
    now.take(WARNING, 2.0, episode='b', task='wipe', stepped=True)
    assert (now.steps, now.seconds, now.task) == (0, 0.0, 'wipe')
    now.take(ALARM, 3.0, episode='b', task='wipe', stepped=True)
    now.take(ALARM, 4.0, episode='c', task='pour', stepped=True, held=True)
    assert (now.steps, now.seconds) == (1, 1.0)
    assert now.task == 'wipe', 'the alarm is of this task'
    now.take(ALARM, 5.0, episode='d', task='pour', stepped=True)
    assert (now.steps, now.seconds, now.task) == (0, 0.0, 'pour'), 'another alarm'


def test_a_late_start_changes_the_task_of_the_running_episode() -> None:
    now = Situation()
    now.take(ALARM, 1.0, episode='a', stepped=True)
    now.take(ALARM, 2.0, episode='a', task='pour')
    assert now.task == 'pour'


def test_the_largest_margin_since_the_state_began_counts() -> None:
    now = Situation()
    now.take(WARNING, 1.0)
    now.take_margins({'rnd': -0.1})
    now.take(ALARM, 2.0)
    assert now.margin() == -math.inf
    for margin in (1.0, 3.0, -2.0, math.nan):
        now.take_margins({'rnd': margin})
    assert now.margin() == now.margin('rnd') == 3.0
    assert now.margin('other') == -math.inf
