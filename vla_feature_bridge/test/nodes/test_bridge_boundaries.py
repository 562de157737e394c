# SPDX-License-Identifier: Apache-2.0
"""The rules that read the start and the end of an episode from signs of the robot."""

import pytest

from vla_feature_bridge.nodes.bridge_boundaries import (
    BoundaryError,
    EpisodeValues,
    Goal,
    GoalRule,
    InstructionRule,
    ValueRule,
)

EXECUTING, CANCELING, SUCCEEDED, CANCELED, ABORTED = 2, 3, 4, 5, 6


def seen(rule, values):
    """Return what a rule makes of each value: 'start', 'end', 'success', 'failure' or '-'."""
    words = []
    for value in values:
        boundary = rule.take(value)
        if boundary is None:
            words.append('-')
        elif boundary.kind == 'end' and boundary.success is not None:
            words.append('success' if boundary.success else 'failure')
        else:
            words.append(boundary.kind)
    return words


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([True, True, False, False, True], ['start', '-', 'end', '-', 'start']),
        ([0, 0, 1, 1, 2, 0], ['start', '-', 'start', '-', 'start', 'start']),
        (['pick', 'pick', '', 'place'], ['start', '-', 'end', 'start']),
    ],
)
def test_without_values_each_change_begins_an_episode(values, expected):
    assert seen(ValueRule(EpisodeValues()), values) == expected


def test_a_phase_begins_and_every_other_phase_ends_unless_the_ends_are_named():
    assert seen(ValueRule(EpisodeValues(start=('6',))), [0, 6, 6, 3, 4, 6]) == [
        '-',
        'start',
        '-',
        'end',
        '-',
        'start',
    ]
    named = EpisodeValues(start=('start',), success=('done',), failure=('failed',), end=('stop',))
    words = ['start', 'pause', 'start', 'done', 'start', 'failed', 'start', 'stop', 'idle']
    assert seen(ValueRule(named), words) == [
        *('start', '-', 'start', 'success', 'start', 'failure', 'start', 'end', '-'),
    ]


def test_a_value_of_another_type_is_refused():
    with pytest.raises(BoundaryError, match=r'expected a bool.*found float'):
        ValueRule(EpisodeValues()).take(1.5)


@pytest.mark.parametrize(
    ('status', 'gives_outcome', 'success', 'word'),
    [
        (SUCCEEDED, True, True, 'SUCCEEDED'),
        (ABORTED, True, False, 'ABORTED'),
        (CANCELED, True, None, 'CANCELED'),
        (SUCCEEDED, False, None, 'SUCCEEDED'),
        (ABORTED, False, None, 'ABORTED'),
    ],
)
def test_a_goal_is_an_episode_while_it_executes(status, gives_outcome, success, word):
    rule = GoalRule(gives_outcome)
    assert rule.take([Goal('a', 1)]) == []
    (start,) = rule.take([Goal('a', EXECUTING)])
    assert (start.kind, start.episode_id) == ('start', 'a')
    assert rule.take([Goal('a', EXECUTING)]) == []
    assert rule.take([Goal('a', CANCELING)]) == []
    (end,) = rule.take([Goal('a', status)])
    assert (end.kind, end.success) == ('end', success)
    assert word in end.reason
    assert rule.take([Goal('a', status)]) == []


def test_the_next_goal_begins_in_the_message_that_ends_the_last_one():
    rule = GoalRule(True)
    rule.take([Goal('a', EXECUTING, 1)])
    assert rule.take([Goal('a', EXECUTING, 1), Goal('b', EXECUTING, 2)]) == []
    end, start = rule.take([Goal('a', ABORTED, 1), Goal('b', EXECUTING, 2)])
    assert (end.kind, end.success, start.kind, start.episode_id) == ('end', False, 'start', 'b')


def test_a_goal_of_a_server_that_is_gone_ends_with_unknown_outcome():
    rule = GoalRule(True)
    rule.take([Goal('a', EXECUTING)])
    (end,) = rule.take([])
    assert (end.kind, end.success) == ('end', None)


def test_an_instruction_that_changes_begins_and_an_empty_one_ends():
    rule = InstructionRule()
    assert seen(rule, ['', 'pick', 'pick', 'place', '', '', 'place']) == [
        *('-', 'start', '-', 'start', 'end', '-', 'start'),
    ]
