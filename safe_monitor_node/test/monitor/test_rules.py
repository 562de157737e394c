# SPDX-License-Identifier: Apache-2.0
"""The rule of several detectors, against a reference that counts by hand."""

from __future__ import annotations

from itertools import product

import pytest

from safe_monitor_node.monitor.alarm import AlarmState
from safe_monitor_node.monitor.rules import Rule, RuleError, checked_names

UNKNOWN, NOMINAL, WARNING, ALARM, STALE, INVALID = AlarmState
NAMES = ('a', 'b', 'c', 'd')


def reference(states: tuple[AlarmState, ...], needed: int) -> AlarmState:
    """Return the state of all, written as the sentences of the documentation."""
    alarms = len([s for s in states if s is ALARM])
    if alarms >= needed:
        return ALARM
    if INVALID in states:
        return INVALID
    if STALE in states:
        return STALE
    if UNKNOWN in states:
        return UNKNOWN
    # Only NOMINAL, WARNING and ALARM are left.
    if alarms >= 1:
        return WARNING
    warnings = len([s for s in states if s is WARNING])
    return WARNING if warnings >= needed else NOMINAL


def texts_of(needed: int, count: int) -> list[str]:
    texts = [f'{needed} of {count}']
    if needed == 1:
        texts.append('any')
    if needed == count:
        texts.append('all')
        if count > 1:
            texts.append(' and '.join(NAMES[:count]))
    return texts


@pytest.mark.parametrize(
    ('count', 'needed'), [(m, k) for m in range(1, 5) for k in range(1, m + 1)], ids=str
)
def test_every_combination_of_states_is_as_counted_by_hand(count: int, needed: int) -> None:
    for text in texts_of(needed, count):
        rule = Rule.parse(text, NAMES[:count])
        for states in product(AlarmState, repeat=count):
            raised = [0 if state is ALARM else None for state in states]
            assert rule.state(states, raised, 0) is reference(states, needed), (text, states)


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_a_detector_that_says_nothing_is_never_taken_for_nominal(count: int) -> None:
    rules = [Rule(needed, count) for needed in range(1, count + 1)]
    rules += [Rule(needed, count, window=3) for needed in range(2, count + 1)]
    for rule, states in product(rules, product(AlarmState, repeat=count)):
        if {UNKNOWN, STALE, INVALID} & set(states):
            raised = [0 if state is ALARM else None for state in states]
            assert rule.state(states, raised, 0) not in (NOMINAL, WARNING)


@pytest.mark.parametrize('needed', [2, 3])
@pytest.mark.parametrize('window', [1, 2, 3])
def test_a_window_is_as_counted_by_hand_over_all_scores_of_five_steps(
    needed: int, window: int
) -> None:
    """Three detectors, five steps: 2**15 patterns of above and not above, each step compared."""
    rule = Rule.parse(f'{needed} of 3 within {window} steps', NAMES[:3])
    for pattern in product(range(8), repeat=5):
        raised: list[int | None] = [None] * 3
        for step, bits in enumerate(pattern):
            raised = [step if bits >> i & 1 else raised[i] for i in range(3)]
            states = [NOMINAL if at is None else ALARM for at in raised]
            # By hand: which detectors were above in one of the last `window` steps?
            last = pattern[max(0, step - window + 1) : step + 1]
            above = {i for bits_ in last for i in range(3) if bits_ >> i & 1}
            found = rule.state(states, raised, step)
            assert (found is ALARM) == (len(above) >= needed), (pattern, step)
            if found is not ALARM:
                ever = any(at is not None for at in raised)
                assert found is (WARNING if ever else NOMINAL)


@pytest.mark.parametrize(
    ('text', 'needed', 'window'),
    [
        ('any', 1, None),
        ('ALL', 3, None),
        (' 2  of 3 ', 2, None),
        ('all within 1 step', 3, 1),
        ('2 of 3 within 10 steps', 2, 10),
        ('a and b and c', 3, None),
        ('c AND a and b WITHIN 5 steps', 3, 5),
    ],
)
def test_a_rule_is_read(text: str, needed: int, window: int | None) -> None:
    rule = Rule.parse(text, NAMES[:3])
    assert (rule.needed, rule.count, rule.window) == (needed, 3, window)
    assert rule.text == ' '.join(text.split())


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', "expected 'any', 'all'"),
        ('al', 'the nearest name is all'),
        ('every', "expected 'any', 'all'"),
        ('2 of 4', 'a number from 1 to 3 of 3, because the detectors are a, b, c'),
        ('0 of 3', 'a number from 1 to 3'),
        ('4 of 3', 'a number from 1 to 3'),
        ('any within 5 steps', "one detector is enough for an alarm, found.*write 'any'"),
        ('1 of 3 within 5 steps', "write '1 of 3'"),
        ('all within 0 steps', 'a window of at least 1 step'),
        ('all within 5', "expected 'any', 'all'"),
        ('a and b', 'each detector once .*never count'),
        ('a and b and b', 'each detector once'),
        ('a and b and cc', "names of the detectors .*found 'cc'; the nearest name is c"),
    ],
)
def test_a_wrong_rule_is_refused_with_what_is_expected(text: str, words: str) -> None:
    with pytest.raises(RuleError, match=words) as caught:
        Rule.parse(text, NAMES[:3])
    assert str(caught.value).startswith('parameter detector_rule: expected ')


def test_names_are_those_of_the_detectors_unless_others_are_given() -> None:
    assert checked_names(['rnd', 'safe_lstm'], []) == ('rnd', 'safe_lstm')
    assert checked_names(['rnd', 'rnd'], ['near', 'far']) == ('near', 'far')
    assert checked_names(['rnd'], []) == ('rnd',)


@pytest.mark.parametrize(
    ('kinds', 'names', 'words'),
    [
        (['rnd', 'rnd'], [], r"found rnd, rnd; set detector_names, .*\['rnd', 'rnd_2'\]"),
        (['rnd', 'rnd'], ['a', 'a'], 'a different name for each detector'),
        (['rnd', 'knn'], ['a'], r'2 names, .*found 1 \(a\)'),
        (['rnd', 'knn'], ['a', 'b b'], "letters, digits and _.*found 'b b'"),
        (['rnd', 'knn'], ['a', '2nd'], "found '2nd'"),
        (['rnd', 'knn'], ['a', 'And'], 'not a word of detector_rule'),
        (['rnd', 'my-detector'], [], "found 'my-detector'"),
        (['rnd', 'knn'], ['safe', 'near'], "or 'safe', found 'safe'; .*topic safe/NAME/score"),
    ],
)
def test_names_that_cannot_be_used_are_refused(
    kinds: list[str], names: list[str], words: str
) -> None:
    with pytest.raises(RuleError, match=words):
        checked_names(kinds, names)
