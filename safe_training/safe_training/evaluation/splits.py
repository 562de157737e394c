# SPDX-License-Identifier: Apache-2.0
"""Splits of rollouts: training, held-out rollouts of the same tasks, and unseen tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout import Rollout

Task = int | str

_OTHER_ROLLOUTS = 'use the rollouts from which the split was made, or make a new split'


class SplitError(SafeError):
    """Rollouts cannot be split as requested, or a saved split does not match the rollouts."""


@dataclass(frozen=True)
class Split:
    """A split of rollouts by task.

    It has training rollouts, held-out rollouts of the same tasks, and rollouts of unseen tasks.

    Attributes
    ----------
    train, seen, unseen : tuple of int
        Indices into the rollouts that were split; each rollout is in exactly one part. `seen`
        ("val_seen" in the paper) are held-out rollouts of the training tasks; the conformal band is
        calibrated on their successes.
    seen_tasks, unseen_tasks : tuple of int or str
        Task labels in shuffled order; `train` and `seen` follow it.
    number : int
        Number of the split: it seeds the shuffle of the tasks and the permutation inside each
        seen task.
    unseen_ratio, seen_train_ratio : float
        Share of the tasks that are unseen; share of the rollouts of a seen task that are used for
        training.
    episodes : tuple of str
        Episode id of each rollout that was split, in this order; empty if the split was made of
        task labels only. `==` ignores this field.
    """

    train: tuple[int, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    seen_tasks: tuple[Task, ...]
    unseen_tasks: tuple[Task, ...]
    number: int
    unseen_ratio: float
    seen_train_ratio: float
    episodes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        indices = sorted((*self.train, *self.seen, *self.unseen))
        if indices != list(range(len(indices))):
            raise SplitError(
                f'split: expected each of the rollouts 0 to {len(indices) - 1} in exactly one of '
                'train, seen and unseen, found rollouts that are missing or repeated'
            )
        tasks = (*self.seen_tasks, *self.unseen_tasks)
        if len(set(tasks)) != len(tasks):
            raise SplitError(
                f'split: expected each task once, found a repeated task in {list(tasks)}'
            )

    def __len__(self) -> int:
        """Return the number of rollouts that were split."""
        return len(self.train) + len(self.seen) + len(self.unseen)

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """The three parts by name, in the order of a table: train, seen, unseen."""
        return {'train': self.train, 'seen': self.seen, 'unseen': self.unseen}

    def check_against(self, tasks: Sequence[Task]) -> None:
        """Raise `SplitError` unless this split was made of rollouts with these tasks.

        A split must only be used with its own rollouts. With other rollouts, training rollouts
        could count as held out.

        Parameters
        ----------
        tasks : sequence of int or str, length N
            Task of each rollout of this set.
        """
        if len(tasks) != len(self):
            raise SplitError(
                f'split: expected the {len(self)} rollouts from which the split was made, found '
                f'{len(tasks)} rollouts; {_OTHER_ROLLOUTS}'
            )
        sides = ((self.train + self.seen, self.seen_tasks), (self.unseen, self.unseen_tasks))
        for indices, expected in sides:
            allowed = set(expected)
            for index in indices:
                if tasks[index] not in allowed:
                    raise SplitError(
                        f'split, rollout {index}: expected one of the tasks {list(expected)}, '
                        f'found {tasks[index]!r}; {_OTHER_ROLLOUTS}'
                    )

    def check_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        """Raise `SplitError` unless this split was made of these rollouts, in this order.

        With rollouts in another order, the indices of a split would be wrong: rollouts of unseen
        tasks would be used for training.
        """
        self.check_against([rollout.task for rollout in rollouts])
        for index, (expected, rollout) in enumerate(zip(self.episodes, rollouts, strict=False)):
            if rollout.episode_id != expected:
                raise SplitError(
                    where=f'split {self.number}, rollout {index}',
                    expected=f'episode {expected!r}',
                    found=repr(rollout.episode_id),
                    advice='use the rollouts from which the split was made, in the same order, '
                    'or make a new split',
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the split as JSON values for `from_dict`."""
        return {
            'train': list(self.train),
            'seen': list(self.seen),
            'unseen': list(self.unseen),
            'seen_tasks': list(self.seen_tasks),
            'unseen_tasks': list(self.unseen_tasks),
            'split': self.number,
            'unseen_ratio': self.unseen_ratio,
            'seen_train_ratio': self.seen_train_ratio,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Split:
        """Read the values of `to_dict`; `SplitError` contains the missing or wrong field."""
        return cls(
            train=_index_tuple(values, 'train'),
            seen=_index_tuple(values, 'seen'),
            unseen=_index_tuple(values, 'unseen'),
            seen_tasks=_task_tuple(values, 'seen_tasks'),
            unseen_tasks=_task_tuple(values, 'unseen_tasks'),
            number=_split_number(values),
            unseen_ratio=float(_number(values, 'unseen_ratio')),
            seen_train_ratio=float(_number(values, 'seen_train_ratio')),
        )


def split_tasks(
    tasks: Sequence[Task],
    *,
    number: int,
    unseen_ratio: float = 0.3,
    seen_train_ratio: float = 0.6,
    order: Sequence[Task] | None = None,
) -> Split:
    """Return a split of rollouts by task, with the algorithm of the published protocol.

    The distinct tasks, sorted or as in `order`, are shuffled by the legacy NumPy generator; the
    last `round(unseen_ratio * n_tasks)` of them are unseen. Then each seen task, in shuffled order,
    draws one torch permutation of its rollouts; the first `int(seen_train_ratio * n)` are used for
    training, the others are held out. Unseen rollouts keep their order. Both generators are local;
    they give the same numbers as the globally seeded generators of the published code.

    Parameters
    ----------
    tasks : sequence of int or str, length N
        Task of each rollout, in stored order. Tasks are sorted before the shuffle, so the split
        does not depend on their order in a file. It is the published split if the labels are the
        task numbers 0..n-1 (or sort in the same order).
    number : int
        Number of the split, 0 to 2**32 - 1. For 10 tasks: 0 makes {3, 0, 5} unseen, 1 {7, 8, 5},
        2 {6, 9, 8}.
    unseen_ratio : float
        Share of unseen tasks, in [0, 1). With 0, all tasks are seen.
    seen_train_ratio : float
        Share of training rollouts of a seen task, in (0, 1]. With 1, there are no held-out rollouts
        for calibration.
    order : sequence of int or str, optional
        Every task once, in the order before the shuffle; for labels that are names, the order of
        the published task numbers.

    Raises
    ------
    SplitError
        There are no rollouts, task labels have mixed types, a ratio is out of range, no task can be
        held out, or no rollout is left for training.
    """
    labels = _labels(tasks, seen_train_ratio)
    ordered: list[Any] = sorted(labels) if order is None else [_task(task) for task in order]
    if len(ordered) != len(labels) or set(ordered) != labels:
        raise SplitError(
            f'split, order: expected each of the {len(labels)} tasks once, found {ordered}'
        )
    if not 0.0 <= unseen_ratio < 1.0:
        raise SplitError(f'split, unseen_ratio: expected a number in [0, 1), found {unseen_ratio}')
    if not 0 <= number < 2**32:
        raise SplitError(f'split: expected a split number from 0 to {2**32 - 1}, found {number}')
    n_unseen = _number_of_unseen_tasks(len(ordered), unseen_ratio)
    positions = np.arange(len(ordered))
    np.random.RandomState(number).shuffle(positions)
    shuffled = [ordered[position] for position in positions]
    n_seen = len(shuffled) - n_unseen
    return divide(
        tasks,
        seen_tasks=shuffled[:n_seen],
        unseen_tasks=shuffled[n_seen:],
        number=number,
        unseen_ratio=unseen_ratio,
        seen_train_ratio=seen_train_ratio,
    )


def divide(
    tasks: Sequence[Task],
    *,
    seen_tasks: Sequence[Task],
    unseen_tasks: Sequence[Task],
    number: int,
    unseen_ratio: float,
    seen_train_ratio: float,
) -> Split:
    """Return a split of rollouts whose tasks are known to be seen or unseen.

    Each seen task, in this order, draws one torch permutation of its rollouts; the first
    `int(seen_train_ratio * n)` are used for training. `unseen_ratio` is only recorded.
    """
    # Import PyTorch only here: reading a split or a protocol does not need it.
    import torch

    labels = [_task(task) for task in tasks]
    members: dict[Task, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)

    generator = torch.Generator().manual_seed(number)
    train: list[int] = []
    seen: list[int] = []
    for task in seen_tasks:
        count = len(members[task])
        draw = torch.randperm(count, generator=generator).tolist()
        n_train = int(seen_train_ratio * count)
        train.extend(members[task][position] for position in draw[:n_train])
        seen.extend(members[task][position] for position in draw[n_train:])
    if not train:
        raise SplitError(
            f'split: expected rollouts for training, found none, because {len(seen)} rollouts of '
            f'{len(seen_tasks)} seen tasks are too few for seen_train_ratio {seen_train_ratio}; '
            'record more rollouts per task, or raise seen_train_ratio (--train-ratio)'
        )
    unseen = set(unseen_tasks)
    return Split(
        train=tuple(train),
        seen=tuple(seen),
        unseen=tuple(index for index, label in enumerate(labels) if label in unseen),
        seen_tasks=tuple(seen_tasks),
        unseen_tasks=tuple(unseen_tasks),
        number=number,
        unseen_ratio=float(unseen_ratio),
        seen_train_ratio=float(seen_train_ratio),
    )


def leave_one_task_out(tasks: Sequence[Task], *, fold: int, seen_train_ratio: float = 0.6) -> Split:
    """Return a split with one unseen task: the `fold`-th in sorted order.

    The rollouts of the other tasks are divided as in :func:`split_tasks`; `fold` is the number.

    Parameters
    ----------
    tasks : sequence of int or str, length N
        As in :func:`split_tasks`.
    fold : int
        From 0 to the number of tasks - 1.
    seen_train_ratio : float
        In (0, 1].

    Raises
    ------
    SplitError
        There are fewer than two tasks, or the fold does not exist. See also :func:`split_tasks`.
    """
    ordered: list[Any] = sorted(_labels(tasks, seen_train_ratio))
    if len(ordered) < 2:
        raise SplitError(
            f'leave-one-task-out: expected rollouts of at least 2 tasks, found {len(ordered)}; '
            'record rollouts of other tasks'
        )
    if not 0 <= fold < len(ordered):
        raise SplitError(
            f'leave-one-task-out: expected the number of one of the {len(ordered)} tasks, 0 to '
            f'{len(ordered) - 1}, found {fold}'
        )
    left_out = ordered[fold]
    return divide(
        tasks,
        seen_tasks=[task for task in ordered if task != left_out],
        unseen_tasks=[left_out],
        number=fold,
        unseen_ratio=1 / len(ordered),
        seen_train_ratio=seen_train_ratio,
    )


def _labels(tasks: Sequence[Task], seen_train_ratio: float) -> set[Task]:
    """Return the set of tasks, all of one kind."""
    labels = {_task(task) for task in tasks}
    if not labels:
        raise SplitError('split: expected rollouts to split, found none; check the source')
    if len({isinstance(label, str) for label in labels}) > 1:
        raise SplitError(
            'split: expected task labels of one type, found strings and numbers; use the same '
            'type for all tasks'
        )
    if not 0.0 < seen_train_ratio <= 1.0:
        raise SplitError(
            f'split, seen_train_ratio: expected a number in (0, 1], found {seen_train_ratio}'
        )
    return labels


def _number_of_unseen_tasks(n_tasks: int, unseen_ratio: float) -> int:
    if unseen_ratio == 0.0:
        return 0
    if n_tasks == 1:
        raise SplitError(
            'split: expected rollouts of two or more tasks (one or more are unseen), found one '
            'task; record rollouts of other tasks, or set unseen_ratio to 0 (--unseen-ratio 0) to '
            'evaluate only on this task'
        )
    n_unseen = round(unseen_ratio * n_tasks)
    if n_unseen == 0:
        raise SplitError(
            'split: expected at least one unseen task, found none, because unseen_ratio '
            f'{unseen_ratio} of {n_tasks} tasks is rounded to 0; raise unseen_ratio '
            '(--unseen-ratio), or set unseen_ratio to 0 for no unseen tasks'
        )
    if n_unseen == n_tasks:
        raise SplitError(
            'split: expected at least one seen task, found none, because unseen_ratio '
            f'{unseen_ratio} of {n_tasks} tasks is rounded to {n_unseen}; lower unseen_ratio '
            '(--unseen-ratio)'
        )
    return n_unseen


def _task(label: Any) -> Task:
    if isinstance(label, str):
        return str(label)
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        return int(label)
    raise SplitError(f'split: expected integers or strings as task labels, found {label!r}')


def _field(values: Mapping[str, Any], name: str) -> Any:
    if not isinstance(values, Mapping):
        raise SplitError(f'split: expected a mapping of fields, found {values!r:.80}')
    if name not in values:
        raise SplitError(f'split: expected the field {name!r}, found {", ".join(map(str, values))}')
    return values[name]


def _wrong(name: str, expected: str, found: Any) -> SplitError:
    """Return the error of a field with a wrong value."""
    return SplitError(where=f'split, field {name!r}', expected=expected, found=f'{found!r:.80}')


def _number(values: Mapping[str, Any], name: str) -> int | float:
    value = _field(values, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(name, 'a number', value)
    return value


def _split_number(values: Mapping[str, Any]) -> int:
    name = 'seed' if 'seed' in values else 'split'  # 0.1 wrote 'seed'
    number = _number(values, name)
    if not isinstance(number, int) or not 0 <= number < 2**32:
        raise _wrong(name, f'an integer from 0 to {2**32 - 1}', number)
    return number


def _index_tuple(values: Mapping[str, Any], name: str) -> tuple[int, ...]:
    entries = _field(values, name)
    if not isinstance(entries, (list, tuple)):
        raise _wrong(name, 'a list of indices', entries)
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int):
            raise _wrong(name, 'a list of integers', entry)
    return tuple(entries)


def _task_tuple(values: Mapping[str, Any], name: str) -> tuple[Task, ...]:
    entries = _field(values, name)
    if not isinstance(entries, (list, tuple)):
        raise _wrong(name, 'a list of tasks', entries)
    return tuple(_task(entry) for entry in entries)
