# SPDX-License-Identifier: Apache-2.0
"""The protocol: how rollouts are split, and how the band is calibrated.

A protocol has one of three names. ``robust``: many random task splits. ``paper``: exactly the
published splits; tasks are ordered by their numbers. ``loto``: leave-one-task-out, one split for
every task. No protocol uses the reported rollouts to choose parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from safe_training.calibration.curves import Quantile
from safe_training.calibration.kinds import KINDS
from safe_training.evaluation.splits import Split, divide, leave_one_task_out, split_tasks
from safe_training.recordings.rollouts import Rollouts
from vla_feature_bridge.errors import SafeError
from vla_feature_bridge.rollout import Rollout

ProtocolName = Literal['robust', 'paper', 'loto']
PROTOCOLS: tuple[ProtocolName, ...] = ('robust', 'paper', 'loto')
CalibrateOn = Literal['auto', 'heldout', 'loto']
SEEN_TRAIN_RATIO = 0.6
"""Share of the rollouts of a seen task that are used for training if others are held out."""
FEW_TASKS = 2
"""With at most this number of seen tasks, a band is not calibrated on leave-one-task-out scores by
default.
"""
ROBUST_SPLITS = 10
# For detectors that are fitted in about a second.
CHEAP_SPLITS = 50
PAPER_SPLITS = (0, 1, 2)

# Part of each split that is used to choose a combination of parameters.
SelectOn = Literal['seen', 'unseen']


class EvaluationError(SafeError):
    """The rollouts are not suitable for the requested evaluation.

    The message contains what was found and what to do.
    """


@dataclass(frozen=True)
class Protocol:
    """How rollouts are split and bands calibrated.

    All detectors of a comparison have the same protocol.

    Attributes
    ----------
    unseen_ratio : float
        Share of the tasks that are unseen (not used for training). ``loto`` ignores it and leaves
        out one task.
    seen_train_ratio : float or None
        Share of the rollouts of a seen task that are used for training. None takes all rollouts if
        the band is calibrated on leave-one-task-out scores, and 0.6 otherwise. With 0.6, the other
        rollouts are held out: results for seen tasks are computed from them (part 'seen').
    alpha : float
        Promised false-alarm rate.
    modulation : {'max_deviation', 'std', 'constant', 'none'}
        Kind of band: see :data:`safe_training.calibration.kinds.KINDS`.
    max_steps : int
        Steps of the band; 0 takes the length of the longest rollout.
    quantile : {'finite_sample', 'published'}
        'finite_sample': the rank that keeps the promise for any number of rollouts. 'published':
        the interpolated quantile of the published code. With few rollouts, the realised rate is
        higher than promised. Only for comparison.
    calibrate_on : {'auto', 'heldout', 'loto'}
        Rollouts for calibration. 'heldout': held-out successes of the seen tasks; the promise holds
        for similar tasks. 'loto': the training successes, each scored by a detector that was fitted
        on the other tasks (leave-one-task-out); this is closer to new tasks. 'auto': see
        :func:`settled`.
    per_task : bool
        Calibrate a band for every seen task as well (Mondrian): the promise then holds within each
        task. Tasks with too few successes share a band; new tasks have the band of all tasks.
    stop_early : bool
        Stop training at the lowest loss on the held-out rollouts of the seen tasks. The band is
        then calibrated on rollouts that training has used, which weakens the promise of the band.
    name : {'robust', 'paper', 'loto'}
        Name of the protocol, see the docstring of the module.
    """

    unseen_ratio: float = 0.3
    seen_train_ratio: float | None = None
    alpha: float = 0.1
    modulation: str = 'max_deviation'
    max_steps: int = 0
    quantile: Quantile = 'finite_sample'
    calibrate_on: CalibrateOn = 'auto'
    per_task: bool = False
    stop_early: bool = False
    name: ProtocolName = 'robust'

    def __post_init__(self) -> None:
        _check_choice(self, 'name', PROTOCOLS)
        _check_choice(self, 'modulation', tuple(KINDS))
        _check_choice(self, 'quantile', get_args(Quantile))
        _check_choice(self, 'calibrate_on', get_args(CalibrateOn))
        _check_number(self, 'alpha', 0 < self.alpha < 1, 'a rate above 0 and below 1')
        _check_number(self, 'max_steps', self.max_steps >= 0, '0 or a number of steps')
        if self.per_task and self.calibrate_on == 'loto':
            raise EvaluationError(
                where='protocol',
                expected="per_task=True or calibrate_on='loto'",
                found='both',
                advice='use only one of the two options, because the bands of single tasks need '
                'held-out rollouts of these tasks',
            )


def _check_choice(protocol: Protocol, field: str, choices: Sequence[str]) -> None:
    value = getattr(protocol, field)
    if value not in choices:
        raise EvaluationError(
            where=f'protocol, {field}',
            expected=f'one of {", ".join(choices)}',
            found=repr(value),
        )


def _check_number(protocol: Protocol, field: str, valid: bool, expected: str) -> None:
    if not valid:
        raise EvaluationError(
            where=f'protocol, {field}', expected=expected, found=repr(getattr(protocol, field))
        )


HELD_OUT_PROTOCOL = Protocol(calibrate_on='heldout', seen_train_ratio=SEEN_TRAIN_RATIO)
"""The protocol of version 0.1: a part of each seen task is held out, and calibrates the band."""


def settled(protocol: Protocol, seen: Sequence[Rollout]) -> Protocol:
    """Return the protocol with a fixed ``calibrate_on`` and ``seen_train_ratio``.

    ``calibrate_on='auto'`` becomes 'loto' if there are more than two seen tasks and a detector can
    be fitted without each of them: successes and failures must be rollouts of two tasks or more.
    Rollouts without any failure are also suitable. It becomes 'heldout' with the protocol 'paper',
    with the published quantile, with bands of single tasks and with early stopping, which need
    held-out rollouts or are only for comparison with the paper.

    Parameters
    ----------
    seen : sequence of Rollout
        Labelled rollouts of the seen tasks; once a split exists, its training rollouts.
    """
    calibrate_on = protocol.calibrate_on
    if calibrate_on == 'auto':
        calibrate_on = 'heldout' if why_held_out(protocol, seen) else 'loto'
    ratio = protocol.seen_train_ratio
    if ratio is None:
        ratio = 1.0 if calibrate_on == 'loto' and not protocol.stop_early else SEEN_TRAIN_RATIO
    return replace(protocol, calibrate_on=calibrate_on, seen_train_ratio=ratio)


def why_held_out(protocol: Protocol, seen: Sequence[Rollout]) -> str:
    """Return why ``calibrate_on='auto'`` becomes 'heldout'; empty if it becomes 'loto'."""
    if protocol.per_task:
        return 'the bands of single tasks need held-out rollouts'
    if protocol.stop_early:
        return 'early stopping needs held-out rollouts'
    if protocol.name == 'paper' or protocol.quantile == 'published':
        return 'the published protocol does it'
    tasks = {r.task for r in seen}
    failing, succeeding = ({r.task for r in seen if r.failed is f} for f in (True, False))
    if len(tasks) <= FEW_TASKS:
        return f'leave-one-task-out needs more than {FEW_TASKS} seen tasks'
    if len(failing) == 1 or len(succeeding) < FEW_TASKS:
        return 'leave-one-task-out needs successes and failures of two seen tasks'
    return ''


def require_rollouts(rollouts: Any) -> None:
    """Raise `EvaluationError` unless the argument is :class:`Rollouts` and holds a rollout.

    A plain list has no feature specification. Training may take hours, so the type is checked
    first.
    """
    if not isinstance(rollouts, Rollouts):
        raise EvaluationError(
            where='rollouts',
            expected='an object of the type Rollouts',
            found=type(rollouts).__name__,
            advice='use rollouts.take([...]) for some of the rollouts, load_rollouts(path) for '
            'files, or safe_training.recordings.rollouts.Rollouts(list, feature) for a list',
        )
    _require_any(rollouts)


def _require_any(rollouts: Sequence[Rollout]) -> None:
    if not len(rollouts):
        raise EvaluationError(
            where='rollouts',
            expected='one or more rollouts',
            found='none',
            advice='check the source, and which rollouts were selected',
        )


def choose_split(
    rollouts: Sequence[Rollout], split: int = 0, protocol: Protocol = Protocol()
) -> Split:
    """Return a split of labelled rollouts by task.

    If the source marks rollouts as unseen (``Rollout.unseen``), the unseen part consists of exactly
    these rollouts. No detector is trained or calibrated on their tasks.

    Parameters
    ----------
    split : int
        Number of the split: it seeds a random one; for ``loto`` it is the number of the task that
        is left out, in sorted order.

    Raises
    ------
    EvaluationError, SplitError
        A rollout has no label, or there are too few rollouts or tasks for the split.
    """
    if isinstance(split, bool) or not isinstance(split, int):
        raise EvaluationError(
            where='choose_split',
            expected='the number of the split as an integer',
            found=repr(split),
            advice='call choose_split(rollouts, number, protocol)',
        )
    _require_any(rollouts)
    _require_labels(rollouts)
    drawn = _draw(rollouts, split, protocol)
    return replace(drawn, episodes=tuple(r.episode_id for r in rollouts))


def _require_labels(rollouts: Sequence[Rollout]) -> None:
    for rollout in rollouts:
        if rollout.success is None:
            raise EvaluationError(
                where=f'episode {rollout.episode_id!r}',
                expected='a label (success or failure)',
                found='none',
                advice='label the episode, or use safe_training.labelled(rollouts)',
            )


def _draw(rollouts: Sequence[Rollout], split: int, protocol: Protocol) -> Split:
    aside = {r.task for r in rollouts if r.unseen}
    known = [i for i, r in enumerate(rollouts) if r.task not in aside]
    if not known:
        raise EvaluationError(
            where='rollouts',
            expected='tasks to train on',
            found='only tasks that the source marks as unseen',
            advice='add rollouts of other tasks',
        )
    if protocol.name == 'loto':
        if aside:
            raise EvaluationError(
                where='leave-one-task-out',
                expected='only tasks that may be used for training',
                found=f'{len(aside)} tasks that the source marks as unseen, such as {min(aside)!r}',
                advice='use --protocol robust',
            )
        return _divided(
            rollouts,
            protocol,
            lambda ratio: leave_one_task_out(
                [r.task for r in rollouts], fold=split, seen_train_ratio=ratio
            ),
        )
    order = numbered_tasks([rollouts[i] for i in known]) if protocol.name == 'paper' else None
    labels = [rollouts[i].task for i in known]
    if not aside:
        return _divided(
            rollouts,
            protocol,
            lambda ratio: split_tasks(
                labels,
                number=split,
                unseen_ratio=protocol.unseen_ratio,
                seen_train_ratio=ratio,
                order=order,
            ),
        )
    seen_tasks = order or split_tasks(labels, number=split, unseen_ratio=0.0).seen_tasks
    return _divided(
        rollouts,
        protocol,
        lambda ratio: divide(
            [r.task for r in rollouts],
            seen_tasks=seen_tasks,
            unseen_tasks=sorted(aside),
            number=split,
            unseen_ratio=0.0,
            seen_train_ratio=ratio,
        ),
    )


def _divided(
    rollouts: Sequence[Rollout], protocol: Protocol, draw: Callable[[float], Split]
) -> Split:
    """Return the split of ``draw`` with the share of training rollouts of the protocol.

    If the share is None, it is chosen by the seen tasks, which do not depend on the share.
    """
    if protocol.seen_train_ratio is not None:
        return draw(protocol.seen_train_ratio)
    drawn = draw(1.0)
    ratio = settled(protocol, [rollouts[i] for i in drawn.train]).seen_train_ratio
    return drawn if ratio in (None, 1.0) else draw(ratio)


def numbered_tasks(rollouts: Sequence[Rollout]) -> list[str] | None:
    """Return the tasks in the order of their numbers; None if the numbers are not unique.

    The published splits use the order of the task numbers, which differs from the order of the task
    names.
    """
    numbers = {r.task: r.task_id for r in rollouts}
    pairs = {(r.task, r.task_id) for r in rollouts}
    if not len(pairs) == len(numbers) == len(set(numbers.values())):
        return None
    return sorted(numbers, key=numbers.__getitem__)


def choose_splits(
    rollouts: Sequence[Rollout], protocol: Protocol, numbers: Iterable[int]
) -> list[Split]:
    """Return the split of each number; see :func:`choose_split`."""
    return [choose_split(rollouts, number, protocol) for number in numbers]


def fold_count(rollouts: Sequence[Rollout]) -> int:
    """Return the number of splits of leave-one-task-out: one for each task."""
    return len({r.task for r in rollouts})
