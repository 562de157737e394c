# SPDX-License-Identifier: Apache-2.0
"""Which rollouts are seen and unseen under each protocol, and splits that are kept on disk."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from rollout_factory import make_rollout, make_rollouts

from safe_monitor_node.bands.band import Band
from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_monitor_node.detectors import make_detector
from safe_training.evaluation.band_comparison import Comparison, compare_bands
from safe_training.evaluation.evaluate import evaluate
from safe_training.evaluation.fit_and_calibrate import fit, labelled
from safe_training.evaluation.judge import judge
from safe_training.evaluation.protocol import (
    HELD_OUT_PROTOCOL,
    EvaluationError,
    Protocol,
    choose_split,
    choose_splits,
    fold_count,
    settled,
    why_held_out,
)
from safe_training.evaluation.saved_splits import read_splits, saved_split, write_splits
from safe_training.evaluation.splits import SplitError, leave_one_task_out
from safe_training.recordings.errors import DumpError
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.pooling import FeatureSpec

# Names sort otherwise than the numbers of the tasks, as instructions do.
NAMES = ('turn', 'push', 'open', 'stack', 'pour', 'lift', 'place', 'wipe', 'close', 'fold')


def numbered_rollouts(per_task=5, names=NAMES, **changes):
    return [
        make_rollout(episode, task=name, task_id=number, **changes)
        for number, name in enumerate(names)
        for episode in range(per_task)
    ]


def unseen_numbers(rollouts, split):
    return {rollouts[i].task_id for i in split.unseen}


@pytest.mark.parametrize(('seed', 'unseen'), [(0, {3, 0, 5}), (1, {7, 8, 5}), (2, {6, 9, 8})])
def test_published_splits_go_by_the_numbers_of_the_tasks(seed, unseen):
    rollouts = numbered_rollouts()
    split = choose_split(rollouts, seed, Protocol(name='paper'))
    assert unseen_numbers(rollouts, split) == unseen
    assert set(split.unseen_tasks) == {NAMES[number] for number in unseen}
    # And whatever order they are stored in.
    shuffled = [rollouts[i] for i in np.random.default_rng(0).permutation(len(rollouts))]
    assert unseen_numbers(shuffled, choose_split(shuffled, seed, Protocol(name='paper'))) == unseen


def test_random_splits_do_not_depend_on_numbers():
    rollouts = numbered_rollouts()
    renumbered = [replace(r, task_id=9 - r.task_id) for r in rollouts]
    for seed in range(5):
        one, other = (choose_split(r, seed, Protocol()) for r in (rollouts, renumbered))
        assert one == other


def test_numbers_that_do_not_tell_tasks_apart_are_not_used():
    same = [replace(r, task_id=0) for r in numbered_rollouts()]
    published = choose_split(same, 0, Protocol(name='paper'))
    assert published == choose_split(same, 0, HELD_OUT_PROTOCOL)


def test_a_second_root_of_unseen_tasks_is_not_shuffled():
    rollouts = numbered_rollouts(names=NAMES[:4]) + numbered_rollouts(names=NAMES[4:6], unseen=True)
    split = choose_split(rollouts, 7, Protocol(name='paper'))
    assert split.seen_tasks == NAMES[:4]
    assert {rollouts[i].task for i in split.unseen} == set(NAMES[4:6])


def test_each_task_is_left_out_once():
    rollouts = numbered_rollouts()
    protocol = Protocol(name='loto', seen_train_ratio=0.6)
    splits = choose_splits(rollouts, protocol, range(fold_count(rollouts)))
    assert [split.unseen_tasks for split in splits] == [(name,) for name in sorted(NAMES)]
    for split in splits:
        assert {rollouts[i].task for i in split.unseen} == set(split.unseen_tasks)
        assert Counter(rollouts[i].task for i in split.train) == dict.fromkeys(split.seen_tasks, 3)
        assert len(split.seen) == 2 * len(split.seen_tasks)
    assert len({split.train for split in splits}) == len(splits)


@pytest.mark.parametrize(
    ('tasks', 'fold', 'match'),
    [
        (['a', 'a'], 0, 'at least 2 tasks'),
        (['a', 'b'], 2, 'tasks, 0 to 1, found 2'),
        (['a', 'b'], -1, 'tasks, 0 to 1, found -1'),
        (['a', 1], 0, 'one type'),
        ([], 0, 'expected rollouts to split, found none'),
    ],
)
def test_what_cannot_be_left_out_is_refused(tasks, fold, match):
    with pytest.raises(SplitError, match=match):
        leave_one_task_out(tasks, fold=fold)


def test_tasks_that_the_source_sets_aside_are_not_left_out_in_turn():
    rollouts = numbered_rollouts(names=NAMES[:4]) + numbered_rollouts(names=NAMES[4:6], unseen=True)
    with pytest.raises(EvaluationError, match='use --protocol robust'):
        choose_split(rollouts, 0, Protocol(name='loto'))


def test_bands_of_tasks_and_scores_without_tasks_exclude_each_other():
    with pytest.raises(EvaluationError, match=r'found both; .*use only one of the two options'):
        Protocol(per_task=True, calibrate_on='loto')


def two_outcomes(names, failing):
    """Return five rollouts of each task; the first two of the named tasks are failures."""
    return [
        replace(r, success=r.episode_index > 1 or r.task not in failing)
        for r in numbered_rollouts(names=names)
    ]


@pytest.mark.parametrize(
    ('changes', 'rollouts', 'reason'),
    [
        ({}, two_outcomes(NAMES[:3], NAMES[:3]), ''),
        ({}, two_outcomes(NAMES[:3], ()), ''),  # a first monitor: no failure was recorded yet
        ({}, two_outcomes(NAMES[:2], NAMES[:2]), 'more than 2 seen tasks'),
        ({}, two_outcomes(NAMES[:3], NAMES[:1]), 'successes and failures of two seen tasks'),
        ({'per_task': True}, two_outcomes(NAMES[:3], NAMES[:3]), 'bands of single tasks'),
        ({'stop_early': True}, two_outcomes(NAMES[:3], NAMES[:3]), 'early stopping'),
        ({'name': 'paper'}, two_outcomes(NAMES[:3], NAMES[:3]), 'published protocol'),
        ({'quantile': 'published'}, two_outcomes(NAMES[:3], NAMES[:3]), 'published protocol'),
    ],
)
def test_a_band_comes_from_leave_one_task_out_unless_there_is_a_reason(changes, rollouts, reason):
    protocol = Protocol(**changes)
    found = why_held_out(protocol, rollouts)
    assert found if reason else not found
    assert reason in found
    fixed = settled(protocol, rollouts)
    assert fixed.calibrate_on == ('heldout' if reason else 'loto')
    assert fixed.seen_train_ratio == (0.6 if reason else 1.0)
    assert settled(fixed, rollouts) == fixed
    for chosen in ('heldout', 'loto'):
        if chosen == 'heldout' or not protocol.per_task:
            named = replace(protocol, calibrate_on=chosen)
            assert settled(named, rollouts).calibrate_on == chosen
    kept = replace(protocol, seen_train_ratio=0.5)
    assert settled(kept, rollouts).seen_train_ratio == 0.5


@pytest.mark.parametrize('name', ['robust', 'loto'])
def test_all_rollouts_of_seen_tasks_train_if_the_band_comes_from_leave_one_task_out(name):
    rollouts = two_outcomes(NAMES, NAMES)
    split = choose_split(rollouts, 1, Protocol(name=name))
    assert not split.seen
    assert split.seen_train_ratio == 1.0
    assert len(split.train) == 5 * len(split.seen_tasks)
    # Whoever wants numbers of seen tasks holds rollouts out.
    held_out = choose_split(rollouts, 1, Protocol(name=name, seen_train_ratio=0.6))
    assert len(held_out.seen) == 2 * len(split.seen_tasks)
    assert (held_out.seen_tasks, held_out.unseen) == (split.seen_tasks, split.unseen)
    named = choose_split(rollouts, 1, Protocol(name=name, calibrate_on='heldout'))
    assert named == held_out


def test_few_seen_tasks_hold_rollouts_out():
    rollouts = two_outcomes(NAMES[:3], NAMES[:3])
    split = choose_split(rollouts, 0, Protocol())
    assert len(split.seen_tasks) == 2
    assert split == choose_split(rollouts, 0, HELD_OUT_PROTOCOL)
    assert len(split.seen) == 4


@pytest.mark.parametrize(
    ('field', 'value', 'expected'),
    [
        ('name', 'rubust', 'one of robust, paper, loto'),
        ('calibrate_on', 'LOTO', 'one of auto, heldout, loto'),
        ('quantile', 'exact', 'one of finite_sample, published'),
        ('modulation', 'adaptive', 'one of max_deviation'),
        ('alpha', 2.0, 'a rate above 0 and below 1'),
        ('alpha', 0.0, 'a rate above 0 and below 1'),
        ('max_steps', -3, '0 or a number of steps'),
    ],
)
def test_an_unknown_value_of_a_protocol_is_refused(field, value, expected):
    with pytest.raises(EvaluationError, match=f'protocol, {field}: expected {expected}') as caught:
        Protocol(**{field: value})
    assert f'found {value!r}' in str(caught.value)


@pytest.mark.parametrize('number', ['0', 1.0, True, Protocol()])
def test_a_split_is_chosen_by_its_number(number):
    with pytest.raises(EvaluationError, match=r'call choose_split\(rollouts, number, protocol\)'):
        choose_split(numbered_rollouts(), number)


def test_no_rollouts_are_said_to_be_none():
    with pytest.raises(EvaluationError, match='expected one or more rollouts, found none'):
        choose_split([])


# --- a split and its rollouts

FEATURE = FeatureSpec('hidden_states', 4)


def a_list(rollouts):
    return Rollouts(rollouts, FEATURE)


@pytest.mark.parametrize('use', ['fit', 'evaluate', 'compare_bands'])
@pytest.mark.parametrize(
    'other', ['reordered', 'reordered within tasks', 'fewer', 'other episodes', 'read again']
)
def test_a_split_is_used_with_its_own_rollouts_only(use, other, tmp_path):
    rollouts = numbered_rollouts()
    split = choose_split(rollouts)
    found = {
        'reordered': rollouts[::-1],
        'reordered within tasks': [rollouts[1], rollouts[0], *rollouts[2:]],
        'fewer': rollouts[:20],
        'other episodes': [replace(r, episode_id=f'new {r.episode_id}') for r in rollouts],
        'read again': rollouts[5:] + rollouts[:5],
    }[other]
    if other == 'read again':
        write_splits(tmp_path / 'splits', rollouts, [split], 'robust')
        split = saved_split(tmp_path / 'splits', rollouts, 0)
    uses = {
        'fit': lambda: fit('mahalanobis', a_list(found), split),
        'evaluate': lambda: evaluate(['mahalanobis'], a_list(found), [split]),
        'compare_bands': lambda: compare_bands('mahalanobis', found, [split], Comparison([0.3])),
    }
    with pytest.raises(SplitError, match='use the rollouts from which the split was made'):
        uses[use]()


@pytest.mark.parametrize('use', ['fit', 'evaluate', 'labelled', 'judge'])
def test_a_plain_list_is_refused_before_any_work(use):
    rollouts = numbered_rollouts()
    split = choose_split(rollouts)
    detector = CalibratedDetector(
        make_detector('clock'), FEATURE, Band(np.array([0.1]), np.ones((1, 9)), 'any', 9), 0.1
    )
    uses = {
        'fit': lambda: fit('mahalanobis', rollouts, split),
        'evaluate': lambda: evaluate(['mahalanobis'], rollouts, [split]),
        'labelled': lambda: labelled(rollouts),
        'judge': lambda: judge(detector, rollouts),
    }
    with pytest.raises(EvaluationError, match=r'found list; .* rollouts\.take\('):
        uses[use]()


def test_rollouts_of_two_action_spaces_are_refused_before_any_work():
    rollouts = numbered_rollouts()
    assert a_list(rollouts).action_space == ''
    other = [replace(r, action_space='robot') for r in rollouts]
    assert a_list(other).take(other[:3]).action_space == 'robot'
    with pytest.raises(DumpError, match=r"expected rollouts with the same .* found '', 'robot'; "):
        a_list([*rollouts, *other])


def test_a_folder_is_no_detector():
    with pytest.raises(EvaluationError, match=r'load_detector\(folder\)'):
        judge('folder', a_list(numbered_rollouts()))


# --- on disk


def parts_by_name(rollouts, split):
    return {part: {rollouts[i].episode_id for i in found} for part, found in split.parts.items()}


def test_saved_splits_find_their_rollouts_in_any_order(tmp_path):
    rollouts = numbered_rollouts()
    splits = choose_splits(rollouts, Protocol(), [4, 2])
    write_splits(tmp_path / 'kept' / 'splits.json', rollouts, splits, 'robust')
    others = [rollouts[i] for i in np.random.default_rng(1).permutation(len(rollouts))]
    found = read_splits(tmp_path / 'kept' / 'splits.json', others)
    assert found.protocol == 'robust'
    assert list(found.splits) == [4, 2]
    for before, after in zip(splits, found.splits.values(), strict=True):
        assert parts_by_name(others, after) == parts_by_name(rollouts, before)
    assert saved_split(tmp_path / 'kept' / 'splits.json', others, 2) == found.splits[2]
    with pytest.raises(
        SplitError, match='expected the number of a saved split, one of 2, 4, found 0'
    ):
        saved_split(tmp_path / 'kept' / 'splits.json', others, 0)
    assert [p.name for p in (tmp_path / 'kept').iterdir()] == ['splits.json']


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda rollouts: rollouts[1:], "found 1 missing rollout .*'turn/0'"),
        (
            lambda rollouts: [*rollouts, replace(rollouts[0], episode_id='new')],
            "found 1 new rollout .*'new'",
        ),
        (
            lambda rollouts: [
                replace(rollouts[0], task='push', episode_id='turn/0'),
                *rollouts[1:],
            ],
            "expected task 'turn', found 'push'",
        ),
        (
            lambda rollouts: [*rollouts, rollouts[0]],
            'expected a different episode id for each rollout, found repeated ids',
        ),
    ],
)
def test_splits_of_other_rollouts_are_refused(tmp_path, change, match):
    path = tmp_path / 'splits.json'
    rollouts = numbered_rollouts()
    write_splits(path, rollouts, choose_splits(rollouts, Protocol(), [0]), 'robust')
    with pytest.raises(SplitError, match=match) as caught:
        read_splits(path, change(rollouts))
    assert str(path) in str(caught.value)


def put(name, value):
    def change(content):
        content[name] = value

    return change


def put_in_split(name, value):
    def change(content):
        content['splits'][0][name] = value

    return change


def train_on_nothing(content):
    split = content['splits'][0]
    split['seen'] += split['train']
    split['train'] = []


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (put('format', 'other'), "found 'other'"),
        (put('version', 2), 'version: expected 1, found 2'),
        (put('episodes', 3), 'episodes: expected a list of texts, found 3'),
        (
            put('tasks', ['a']),
            r'expected one task for each episode, found 1 tasks for \d+ episodes',
        ),
        (put('splits', []), 'expected a list of splits, found none'),
        (
            put('protocol', 'other'),
            "protocol: expected one of robust, paper, loto, found 'other'",
        ),
        (put_in_split('split', -5), 'integer from 0 to 4294967295, found -5'),
        (put_in_split('split', 2**70), f'found {2**70}'),
        (train_on_nothing, 'split 0: expected training rollouts, found none'),
        (put('splits', [3]), 'expected a mapping of fields, found 3'),
        (put_in_split('train', 'all'), "'train': expected a list of indices, found 'all'"),
        (put_in_split('unseen', []), 'in exactly one of'),
        (put_in_split('seen_tasks', ['nobody']), r"one of the tasks \['nobody'\]"),
        (lambda content: content['splits'].append(content['splits'][0]), 'different numbers'),
    ],
)
def test_damaged_splits_are_refused_by_their_name(tmp_path, change, match):
    path = tmp_path / 'splits.json'
    rollouts = numbered_rollouts()
    write_splits(path, rollouts, choose_splits(rollouts, Protocol(), [0]), 'robust')
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError, match=match) as caught:
        read_splits(path, rollouts)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('text', ['', '{', '[' * 100_000, '3', '\x00'])
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / 'splits.json'
    path.write_text(text)
    with pytest.raises(SplitError, match=r'splits\.json'):
        read_splits(path, numbered_rollouts())


def test_a_rollout_without_a_label_belongs_to_no_split():
    rollouts = make_rollouts(6, task=lambda i: f't{i % 3}', success=lambda i: i != 4 or None)
    with pytest.raises(EvaluationError, match=r'expected a label .*, found none; label the'):
        choose_split(rollouts)


def test_a_protocol_refuses_a_band_that_it_does_not_know():
    with pytest.raises(
        EvaluationError, match="max_deviation, std, constant, none, found 'adaptive'"
    ):
        Protocol(modulation='adaptive')
