# SPDX-License-Identifier: Apache-2.0
"""The protocol: how rollouts are split, what the band is calibrated on, and splits kept on disk.

Three ways to split. ``robust``: many random task splits. ``paper``: the published seeds, draw for
draw, of the tasks in the order of their numbers. ``loto``: leave one task out, once for every task.
None of them chooses anything by the rollouts that are reported on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safe_training.calibration import Quantile
from safe_training.splits import Split, SplitError, divide, leave_one_task_out, split_tasks
from safe_training.whole_files import write_whole
from vla_feature_bridge.rollout import Rollout

Scheme = Literal['robust', 'paper', 'loto']
SCHEMES: tuple[Scheme, ...] = ('robust', 'paper', 'loto')
ROBUST_SPLITS = 10
PAPER_SEEDS = (0, 1, 2)

_FORMAT = 'safe_splits'
_VERSION = 1
_LARGEST_FILE = 256 << 20


class EvaluationError(ValueError):
    """Rollouts cannot be evaluated as asked; the message says what was found and what to do."""


@dataclass(frozen=True)
class Protocol:
    """How rollouts are split and alarms calibrated; the same for every detector that is compared.

    Attributes
    ----------
    unseen_ratio, seen_train_ratio : float
        Share of the tasks that is never trained on (not for ``loto``: one task); share of a seen
        task's rollouts that trains.
    alpha : float
        Promised false-alarm rate.
    modulation : {'adaptive', 'std', 'constant', 'none'}
        Shape of the band; 'none': one threshold for all steps, which needs the fewest successes.
    horizon : int
        Steps of the band; 0 takes the longest rollout there is.
    quantile : {'finite_sample', 'published'}
        The rank that keeps the promise for any number of rollouts, or the interpolated quantile of
        the published code, which promises too much for few; for comparison.
    calibration : {'heldout', 'loto'}
        What the band is calibrated on: held-out successes of the seen tasks, or the training
        successes, each scored by a detector fitted on the other tasks (leave-one-task-out). The
        first promises for tasks like the seen ones, the second is the better guide to new tasks.
    per_task : bool
        Calibrate a band for every seen task as well (Mondrian): the promise then holds within each
        of them. Tasks with too few successes, and new ones, have the band of all tasks.
    stop_early : bool
        Stop training where the loss on the held-out rollouts of the seen tasks is lowest. The band
        is then calibrated on rollouts that training has looked at, which weakens its promise.
    scheme : {'robust', 'paper', 'loto'}
        How splits are drawn: see the module.
    """

    unseen_ratio: float = 0.3
    seen_train_ratio: float = 0.6
    alpha: float = 0.1
    modulation: str = 'adaptive'
    horizon: int = 0
    quantile: Quantile = 'finite_sample'
    calibration: Literal['heldout', 'loto'] = 'heldout'
    per_task: bool = False
    stop_early: bool = False
    scheme: Scheme = 'robust'

    def __post_init__(self) -> None:
        if self.per_task and self.calibration == 'loto':
            raise EvaluationError(
                'bands of single tasks are calibrated on held-out rollouts of these tasks; '
                'leave-one-task-out calibration is for new tasks, so choose one of the two'
            )


def choose_split(rollouts: Sequence[Rollout], protocol: Protocol, seed: int) -> Split:
    """Split labelled rollouts by task.

    Rollouts that their source sets aside (``Rollout.unseen``) are the unseen part, and nothing else
    is: no detector may train or be calibrated on their tasks.

    Parameters
    ----------
    seed : int
        Of a random split; for ``loto`` the number of the task that is left out, in sorted order.

    Raises
    ------
    EvaluationError, SplitError
        There is nothing to train on or to leave out.
    """
    aside = {r.task for r in rollouts if r.unseen}
    known = [i for i, r in enumerate(rollouts) if r.task not in aside]
    if not known:
        raise EvaluationError(
            'every task is set aside as unseen, so there is nothing to fit on; '
            'give a source that also holds tasks to train on'
        )
    if protocol.scheme == 'loto':
        if aside:
            raise EvaluationError(
                f'the source sets {len(aside)} tasks aside as unseen, such as {min(aside)!r}, so '
                'tasks cannot be left out in turn; use --protocol robust'
            )
        return leave_one_task_out(
            [r.task for r in rollouts], fold=seed, seen_train_ratio=protocol.seen_train_ratio
        )
    order = numbered_tasks([rollouts[i] for i in known]) if protocol.scheme == 'paper' else None
    labels = [rollouts[i].task for i in known]
    if not aside:
        return split_tasks(
            labels,
            seed=seed,
            unseen_ratio=protocol.unseen_ratio,
            seen_train_ratio=protocol.seen_train_ratio,
            order=order,
        )
    seen_tasks = order or split_tasks(labels, seed=seed, unseen_ratio=0.0).seen_tasks
    return divide(
        [r.task for r in rollouts],
        seen_tasks=seen_tasks,
        unseen_tasks=sorted(aside),
        seed=seed,
        unseen_ratio=0.0,
        seen_train_ratio=protocol.seen_train_ratio,
    )


def numbered_tasks(rollouts: Sequence[Rollout]) -> list[str] | None:
    """Return the tasks in the order of their numbers; None where these do not tell them apart.

    The published splits are of task numbers; names sort otherwise.
    """
    numbers = {r.task: r.task_id for r in rollouts}
    pairs = {(r.task, r.task_id) for r in rollouts}
    if not len(pairs) == len(numbers) == len(set(numbers.values())):
        return None
    return sorted(numbers, key=numbers.__getitem__)


def choose_splits(
    rollouts: Sequence[Rollout], protocol: Protocol, seeds: Iterable[int]
) -> list[Split]:
    """Return the split of each seed; see :func:`choose_split`."""
    return [choose_split(rollouts, protocol, seed) for seed in seeds]


def fold_count(rollouts: Sequence[Rollout]) -> int:
    """Return how many splits leave-one-task-out has: one for each task."""
    return len({r.task for r in rollouts})


@dataclass(frozen=True)
class SavedSplits:
    """Splits from a file: how they were drawn, and each by its number."""

    scheme: Scheme
    splits: dict[int, Split]


def write_splits(
    path: Path, rollouts: Sequence[Rollout], splits: Sequence[Split], scheme: Scheme
) -> None:
    """Write splits with the episodes that they are of; the file is whole or absent."""
    content = {
        'format': _FORMAT,
        'version': _VERSION,
        'scheme': scheme,
        'episodes': [r.episode_id for r in rollouts],
        'tasks': [r.task for r in rollouts],
        'splits': [split.to_dict() for split in splits],
    }
    write_whole({path: json.dumps(content) + '\n'})


def read_splits(path: Path, rollouts: Sequence[Rollout]) -> SavedSplits:
    """Read what :func:`write_splits` wrote, for rollouts in whatever order they come now.

    Raises
    ------
    SplitError
        The file is damaged or of something else, or it is of other rollouts: a split used on
        others would report training rollouts as unseen.
    """
    content = _content(path)
    episodes, tasks = _texts(path, content, 'episodes'), _texts(path, content, 'tasks')
    entries = content.get('splits')
    if len(tasks) != len(episodes) or not isinstance(entries, list) or not entries:
        raise SplitError(f'{path}: episodes, tasks and splits do not belong together; save again')
    place = _places(path, episodes, rollouts)
    for episode, task, index in zip(episodes, tasks, place, strict=True):
        if rollouts[index].task != task:
            raise SplitError(
                f'{path}: episode {episode!r} was of task {task!r}, found '
                f'{rollouts[index].task!r}; use the set it was made of, or split again'
            )
    splits = []
    for entry in entries:
        try:
            split = Split.from_dict(entry)
            split.check_against(tasks)
        except (SplitError, TypeError) as error:
            raise SplitError(f'{path}: {error}') from error
        if not split.train:
            raise SplitError(f'{path}: split {split.seed} trains on no rollout; save again')
        splits.append(
            replace(
                split,
                train=tuple(place[i] for i in split.train),
                seen=tuple(place[i] for i in split.seen),
                unseen=tuple(place[i] for i in split.unseen),
            )
        )
    seeds = [split.seed for split in splits]
    if len(set(seeds)) != len(seeds):
        raise SplitError(f'{path}: two splits have the same number among {seeds}; save again')
    return SavedSplits(saved_scheme(path), {split.seed: split for split in splits})


def saved_scheme(path: Path) -> Scheme:
    """Return how the splits of a file were drawn; :class:`SplitError` as when reading them."""
    found = _content(path).get('scheme')
    for scheme in SCHEMES:
        if scheme == found:
            return scheme
    raise SplitError(
        f'{path}: expected splits of one of {", ".join(SCHEMES)}, found {found!r}; save again'
    )


def split_numbers(path: Path) -> tuple[int, ...]:
    """Return the numbers of the splits that a file holds; :class:`SplitError` as when reading."""
    entries: Any = _content(path).get('splits')
    try:
        return tuple(Split.from_dict(entry).seed for entry in entries)
    except (SplitError, TypeError) as error:
        raise SplitError(f'{path}: holds no splits ({error}); save them again') from error


def saved_split(path: Path, rollouts: Sequence[Rollout], seed: int) -> Split:
    """Read one split by its number."""
    splits = read_splits(path, rollouts).splits
    if seed not in splits:
        raise SplitError(f'{path}: holds the splits {sorted(splits)}, not {seed}; give one of them')
    return splits[seed]


def _content(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SplitError(f'{path}: {path.stat().st_size} bytes is too large for saved splits')
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SplitError):
            raise
        raise SplitError(f'{path}: expected saved splits (JSON), found {error}') from error
    found = content.get('format') if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or found != _FORMAT:
        raise SplitError(
            f'{path}: expected splits that `evaluate --save-splits` or `sweep` wrote, found '
            f'{found!r}'
        )
    if content.get('version') != _VERSION:
        raise SplitError(
            f'{path}: expected version {_VERSION}, found {content.get("version")!r}; save again'
        )
    return content


def _texts(path: Path, content: Mapping[str, Any], name: str) -> list[str]:
    values = content.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise SplitError(f'{path}: {name} must be a list of names; save the splits again')
    return values


def _places(path: Path, episodes: Sequence[str], rollouts: Sequence[Rollout]) -> list[int]:
    """Return where each saved episode is among the rollouts."""
    there = {r.episode_id: i for i, r in enumerate(rollouts)}
    if len(there) != len(rollouts) or len(set(episodes)) != len(episodes):
        raise SplitError(
            f'{path}: splits can be kept only for rollouts whose episode ids differ; '
            'convert the recordings with names of their own'
        )
    missing = [e for e in episodes if e not in there]
    added = sorted(there.keys() - set(episodes))
    if missing or added:
        found = ' and '.join(
            f'{len(names)} that {what} (such as {names[0]!r})'
            for names, what in ((missing, 'are not there any more'), (added, 'are new'))
            if names
        )
        raise SplitError(
            f'{path}: made of {len(episodes)} labelled rollouts, found {found}; '
            'use the set it was made of, or split again'
        )
    return [there[e] for e in episodes]
