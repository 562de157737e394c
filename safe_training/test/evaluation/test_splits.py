# SPDX-License-Identifier: Apache-2.0
"""The split of rollouts by task: published splits draw for draw, and what it refuses."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from shared_files import golden_json

from safe_training.evaluation.splits import Split, SplitError, split_tasks

CASES = golden_json('split_protocol')


@pytest.mark.parametrize('case', CASES, ids=lambda case: f'{case["n_tasks"]}-{case["seed"]}')
def test_published_splits_come_out_in_order(case):
    pairs = [
        (task, episode)
        for episode in range(case['rollouts_per_task'])
        for task in range(case['n_tasks'])
    ]
    split = split_tasks(
        [task for task, _ in pairs],
        number=case['seed'],
        unseen_ratio=case['unseen_task_ratio'],
        seen_train_ratio=case['seen_train_ratio'],
    )
    assert list(split.seen_tasks) == case['seen_tasks_in_order']
    assert sorted(split.unseen_tasks) == case['unseen_tasks']
    assert [list(pairs[index]) for index in split.train] == case['train']
    assert [list(pairs[index]) for index in split.seen] == case['val_seen']
    assert [list(pairs[index]) for index in split.unseen] == case['val_unseen']


@pytest.mark.parametrize(('seed', 'unseen'), [(0, (3, 0, 5)), (1, (7, 8, 5)), (2, (6, 9, 8))])
def test_unseen_tasks_of_the_published_seeds(seed, unseen):
    assert split_tasks(list(range(10)) * 2, number=seed).unseen_tasks == unseen


def test_which_tasks_are_unseen_does_not_depend_on_the_order_of_the_rollouts():
    tasks = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5] * 2
    assert split_tasks(tasks, number=0).unseen_tasks == (3, 0, 5)
    names = [f'task {task}' for task in tasks]
    assert split_tasks(names, number=0).unseen_tasks == ('task 3', 'task 0', 'task 5')


def global_generator_states():
    legacy = np.random.get_state()  # noqa: NPY002 - the global generator is what is watched
    return legacy[1].tolist(), legacy[2], torch.get_rng_state().tolist()


def test_global_generators_are_neither_read_nor_moved():
    tasks = list(range(10)) * 5
    expected = split_tasks(tasks, number=3)
    np.random.random_sample(5)  # noqa: NPY002 - moves the global generator
    torch.rand(5)
    before = global_generator_states()
    assert split_tasks(tasks, number=3) == expected
    assert global_generator_states() == before


def test_string_tasks_split_as_their_sorted_positions():
    numbers = [3, 1, 0, 2] * 6
    names = ['close', 'open', 'press', 'turn']
    by_number = split_tasks(numbers, number=5)
    by_name = split_tasks([names[number] for number in numbers], number=5)
    assert by_name.train == by_number.train
    assert by_name.seen == by_number.seen
    assert by_name.unseen == by_number.unseen
    assert by_name.unseen_tasks == tuple(names[task] for task in by_number.unseen_tasks)


@settings(max_examples=60, deadline=None)
@given(
    tasks=st.lists(st.integers(0, 7), min_size=8, max_size=80),
    seed=st.integers(0, 2**32 - 1),
    unseen_ratio=st.sampled_from([0.0, 0.25, 0.3, 0.5]),
    seen_train_ratio=st.floats(0.3, 1.0),
)
def test_parts_divide_the_rollouts_and_the_tasks(tasks, seed, unseen_ratio, seen_train_ratio):
    try:
        split = split_tasks(
            tasks, number=seed, unseen_ratio=unseen_ratio, seen_train_ratio=seen_train_ratio
        )
    except SplitError:
        return
    assert sorted(split.train + split.seen + split.unseen) == list(range(len(tasks)))
    assert {tasks[index] for index in split.train + split.seen} == set(split.seen_tasks)
    assert {tasks[index] for index in split.unseen} == set(split.unseen_tasks)
    assert not set(split.seen_tasks) & set(split.unseen_tasks)
    assert len(split.unseen_tasks) == round(unseen_ratio * len(set(tasks)))
    for task in split.seen_tasks:
        count = tasks.count(task)
        trained = sum(tasks[index] == task for index in split.train)
        assert trained == int(seen_train_ratio * count)
    assert Split.from_dict(json.loads(json.dumps(split.to_dict()))) == split
    split.check_against(tasks)


def test_numpy_labels_survive_json():
    split = split_tasks(np.array([0, 1, 2, 0, 1, 2]), number=0, seen_train_ratio=0.5)
    assert Split.from_dict(json.loads(json.dumps(split.to_dict()))) == split


@pytest.mark.parametrize(
    ('tasks', 'options', 'message'),
    [
        ([], {}, 'expected rollouts to split, found none'),
        ([4] * 9, {}, r'one task.*--unseen-ratio 0'),
        (
            [0, 0, 1, 1, 2, 2],
            {'unseen_ratio': 0.1},
            'unseen_ratio 0.1 of 3 tasks is rounded to 0; raise unseen_ratio',
        ),
        (
            [0, 0, 1, 1],
            {'unseen_ratio': 0.9},
            'unseen_ratio 0.9 of 2 tasks is rounded to 2; lower unseen_ratio',
        ),
        (
            [0, 1, 2, 3],
            {},
            'training, found none, because 3 rollouts of 3 seen tasks are .* seen_train_ratio 0.6',
        ),
        (
            [0, 0, 1, 1],
            {'unseen_ratio': 1.0},
            r'unseen_ratio: expected a number in \[0, 1\), found 1.0',
        ),
        (
            [0, 0, 1, 1],
            {'seen_train_ratio': 0.0},
            r'seen_train_ratio: expected a number in \(0, 1\], found 0.0',
        ),
        ([0, 0, 'open', 'open'], {}, 'one type'),
        ([0.5, 1.5], {}, 'integers or strings as task labels, found 0.5'),
        ([0, 0, 1, 1], {'number': -1}, 'a split number from 0 to 4294967295, found -1'),
    ],
)
def test_what_cannot_be_split_is_refused(tasks, options, message):
    with pytest.raises(SplitError, match=message):
        split_tasks(tasks, **{'number': 0, **options})


def test_one_task_alone_splits_without_unseen_tasks():
    split = split_tasks(['pour'] * 10, number=0, unseen_ratio=0)
    assert (len(split.train), len(split.seen), split.unseen) == (6, 4, ())


def test_a_split_of_other_rollouts_is_noticed():
    tasks = [0, 1, 2, 3] * 5
    split = split_tasks(tasks, number=0)
    with pytest.raises(SplitError, match='the 20 rollouts from which the split was made, found 19'):
        split.check_against(tasks[:-1])
    index, other = split.train[0], split.unseen_tasks[0]
    tasks[index] = other
    with pytest.raises(
        SplitError, match=f'rollout {index}: expected one of the tasks .* found {other}'
    ):
        split.check_against(tasks)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train': [0, 0]}, 'in exactly one of'),
        ({'train': [0, 99]}, 'in exactly one of'),
        ({'train': ['0']}, 'list of integers'),
        ({'train': 3}, 'list of indices'),
        ({'split': 0.5}, 'an integer from 0'),
        ({'unseen_ratio': None}, 'a number, found None'),
        (
            {'unseen_tasks': [0, 1, 2]},
            r'expected each task once, found a repeated task in \[.*0, 1, 2\]',
        ),
    ],
)
def test_a_damaged_saved_split_is_refused(change, message):
    values = split_tasks([0, 1, 2] * 4, number=0).to_dict()
    with pytest.raises(SplitError, match=message):
        Split.from_dict({**values, **change})


def test_a_saved_split_without_a_field_is_refused():
    values = split_tasks([0, 1, 2] * 4, number=0).to_dict()
    for name in values:
        rest = {key: value for key, value in values.items() if key != name}
        with pytest.raises(SplitError, match=f"expected the field '{name}'"):
            Split.from_dict(rest)
