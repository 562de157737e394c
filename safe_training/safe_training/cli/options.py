# SPDX-License-Identifier: Apache-2.0
"""Options of several verbs: rollouts, splits, bands and detector parameters."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from safe_monitor_node.detectors.registry import DETECTORS
from safe_training.calibration.curves import Quantile
from safe_training.calibration.kinds import KINDS
from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.evaluation.protocol import (
    FEW_TASKS,
    SEEN_TRAIN_RATIO,
    CalibrateOn,
    EvaluationError,
    Protocol,
    ProtocolName,
)
from vla_feature_bridge.pooling import parse_pooling

if TYPE_CHECKING:
    import argparse

    from safe_training.evaluation.splits import Split
    from safe_training.recordings.rollouts import Rollouts
    from vla_feature_bridge.rollout import Rollout

_DEFAULT = Protocol()


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the argument SET, and the options for reading SET."""
    parser.add_argument(
        'set', metavar='SET', help='rollout set, or any source that `convert` reads'
    )
    add_reading_options(parser, 'SET')


def add_reading_options(parser: argparse.ArgumentParser, source: str) -> None:
    """Add the options for reading rollouts; ``source`` is the name of the source in the help."""
    group = parser.add_argument_group(f'reading {source}')
    group.add_argument(
        '--pooling',
        action='append',
        default=[],
        metavar='AXIS=COMMAND',
        help='reduction of one axis of raw features, such as token=mean; repeat for each axis, '
        'in the order of the reductions',
    )
    group.add_argument(
        '--feature', metavar='NAME', help=f'name of the feature array, if {source} has several'
    )
    group.add_argument(
        '--skip-bad', action='store_true', help='skip episodes that cannot be read, and list them'
    )


def add_detector_option(
    parser: argparse.ArgumentParser, what: str, *, required: bool = False, repeated: bool = False
) -> None:
    """Add the name of a detector, or a list of names."""
    parser.add_argument(
        '--detector',
        required=required,
        action='append' if repeated else 'store',
        choices=sorted(DETECTORS),
        metavar='NAME',
        help=f'{what}; one of {", ".join(sorted(DETECTORS))}',
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument for the detector folder, after SET."""
    parser.add_argument(
        'folder', type=Path, metavar='FOLDER', help='detector folder that `fit` wrote'
    )


def add_folder_alpha(parser: argparse.ArgumentParser) -> None:
    """Add the promised rate for judging a detector folder."""
    parser.add_argument(
        '--alpha',
        type=float,
        metavar='RATE',
        help='promised false-alarm rate (default: the rate stored in the detector folder)',
    )


def add_split_options(parser: VerbParser) -> None:
    """Add the file of saved splits, and the shares of a new split."""
    group = parser.add_argument_group('task splits')
    group.add_argument(
        '--splits-from',
        type=Path,
        metavar='FILE',
        help='use the splits in a file that `evaluate --save-splits` or `sweep` wrote',
    )
    group.add_argument(
        '--unseen-ratio',
        type=float,
        metavar='SHARE',
        help=(
            'share of the tasks that are unseen, which means not used for training (default '
            f'{_DEFAULT.unseen_ratio})'
        ),
    )
    group.add_argument(
        '--train-ratio',
        type=float,
        metavar='SHARE',
        help=(
            'share of the rollouts of each seen task used for training; the others are held '
            'out, for results on seen tasks and for --calibrate-on heldout (default: all '
            f'rollouts with --calibrate-on loto, otherwise {SEEN_TRAIN_RATIO})'
        ),
    )
    parser.exclude(
        ('--unseen-ratio', '--train-ratio'),
        by='--splits-from',
        why='reads existing splits',
    )


def add_band_options(parser: VerbParser) -> None:
    """Add how the band is calibrated."""
    group = parser.add_argument_group('band')
    group.add_argument(
        '--alpha',
        type=float,
        metavar='RATE',
        help=f'promised false-alarm rate (default {_DEFAULT.alpha})',
    )
    group.add_argument(
        '--modulation',
        choices=tuple(KINDS),
        help='shape of the band over time; none: the same threshold for all steps, useful if '
        f'there are few successes (default {_DEFAULT.modulation})',
    )
    group.add_argument(
        '--max-steps',
        type=int,
        metavar='STEPS',
        help='steps that the band covers, normally the time limit (default: the longest rollout)',
    )
    group.add_argument(
        '--quantile',
        choices=get_args(Quantile),
        help='finite_sample: the promise holds for any number of rollouts; published: the '
        f'quantile of the paper, only for comparison (default {_DEFAULT.quantile})',
    )
    group.add_argument(
        '--calibrate-on',
        choices=get_args(CalibrateOn),
        help='heldout: calibrate on held-out rollouts of the seen tasks; loto: calibrate on '
        'training rollouts, each scored by a detector that was fitted without its task, '
        'which is closer to new tasks; auto (default): loto if there are more than '
        f'{FEW_TASKS} seen tasks',
    )
    group.add_argument(
        '--per-task',
        action='store_true',
        help='also calibrate a band for each seen task; the promise then holds within each task',
    )
    parser.exclude(
        ('--per-task',),
        by='--calibrate-on',
        value='loto',
        why='calibrates only one band for all tasks',
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add how a detector is fitted."""
    group = parser.add_argument_group('training')
    group.add_argument(
        '--stop-early',
        action='store_true',
        help='stop training at the lowest loss on the held-out rollouts of seen tasks (this '
        'weakens the promise of the band, because the band is calibrated on the same '
        'rollouts)',
    )
    add_param_option(group)


def add_param_option(parser: argparse._ActionsContainer) -> None:
    """Add the parameters of detectors."""
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        dest='params',
        metavar='[DETECTOR.]NAME=VALUE',
        help='detector parameter, for example epochs=100 or safe_lstm.hidden=128; repeatable',
    )


def add_jobs_option(parser: argparse._ActionsContainer, default: str) -> None:
    """Add the number of processes; ``default`` says how it is chosen."""
    parser.add_argument(
        '--jobs',
        type=_jobs_argument,
        metavar='N',
        help=f'number of processes that work at the same time (default: {default})',
    )


def add_split_jobs_option(parser: argparse._ActionsContainer) -> None:
    """Add the number of processes that work on splits."""
    add_jobs_option(parser, 'the number of cores, fewer if the memory is small')


def jobs_of(args: argparse.Namespace, rollouts: Rollouts, splits: Iterable[Sequence[Split]]) -> int:
    """Return the number of processes for the splits of all detectors."""
    from safe_training.evaluation.split_workers import useful_jobs

    return args.jobs or useful_jobs(rollouts, sum(map(len, splits)))


def _jobs_argument(argument: str) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= 256:
        raise ArgumentTypeError(f'expected an integer from 1 to 256, found {argument!r}')
    return int(argument)


def check_alpha(alpha: float | None) -> None:
    """Raise :class:`UsageError` if the value is given and is not a rate between 0 and 1."""
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(
            where='--alpha', expected='a rate above 0 and below 1, such as 0.1', found=str(alpha)
        )


def check_splits(splits: int | None) -> None:
    """Raise :class:`UsageError` if the value is given and is not a positive number of splits."""
    if splits is not None and splits < 1:
        raise UsageError(where='--splits', expected='at least 1', found=str(splits))


def rollouts_of(args: argparse.Namespace, *, need_outcomes: bool = True) -> Rollouts:
    """Return the rollouts of SET: only rollouts with an outcome, or all rollouts."""
    from safe_training.evaluation.fit_and_calibrate import labelled
    from safe_training.recordings.sources import load_rollouts

    rollouts = load_rollouts(
        args.set,
        pooling=parse_pooling(args.pooling) if args.pooling else None,
        feature=args.feature,
        skip_bad=args.skip_bad,
    )
    return labelled(rollouts) if need_outcomes else rollouts


def trained_in_epochs(detectors: Sequence[str]) -> list[str]:
    """Return the detectors that are trained over epochs, which takes a long time."""
    return [name for name in detectors if DETECTORS[name].trains_over_epochs()]


def calibration_note(
    args: argparse.Namespace,
    detectors: Sequence[str],
    protocol: Protocol,
    parts: Sequence[Sequence[Rollout]],
) -> str:
    """Return a text about the scores that calibrate the bands; with the reason if it is a default.

    Parameters
    ----------
    detectors : sequence of str
        Detectors of the command.
    protocol : Protocol
        From :func:`protocol_of`.
    parts : sequence of sequence of Rollout
        Training rollouts of each split.
    """
    from safe_training.evaluation.protocol import settled, why_held_out

    used = [settled(protocol, part).calibrate_on for part in parts]
    if set(used) == {'loto'}:
        return (
            'bands calibrated on training successes, each scored by a detector that was fitted '
            'without its task (leave-one-task-out)'
        )
    some = '' if set(used) == {'heldout'} else f' in {used.count("heldout")} of {len(used)} splits'
    text = f'bands calibrated on held-out successes of the seen tasks{some}'
    slow = trained_in_epochs(detectors)
    if args.calibrate_on == 'heldout':
        return text
    if args.calibrate_on is None and slow:
        return (
            f'{text}, because leave-one-task-out trains {" and ".join(slow)} once more for each '
            'seen task (--calibrate-on loto does it)'
        )
    reasons = {why_held_out(protocol, part) for part in parts} - {''}
    return f'{text}, because {"; ".join(sorted(reasons))}'


def protocol_of(
    args: argparse.Namespace, detectors: Sequence[str], name: ProtocolName = 'robust'
) -> Protocol:
    """Return the protocol from the options.

    Without ``--calibrate-on``, detectors that are trained over epochs are calibrated on held-out
    rollouts: leave-one-task-out would train them once more for each seen task.
    """
    check_alpha(args.alpha)
    if args.max_steps is not None and args.max_steps < 0:
        raise UsageError(where='--max-steps', expected='at least 0', found=str(args.max_steps))
    given = {
        'unseen_ratio': args.unseen_ratio,
        'seen_train_ratio': args.train_ratio,
        'alpha': args.alpha,
        'modulation': args.modulation,
        'max_steps': args.max_steps,
        'quantile': args.quantile,
        'calibrate_on': args.calibrate_on,
    }
    if args.calibrate_on is None and trained_in_epochs(detectors):
        given['calibrate_on'] = 'heldout'
    try:
        return Protocol(
            per_task=args.per_task,
            stop_early=args.stop_early,
            name=name,
            **{name: value for name, value in given.items() if value is not None},
        )
    except EvaluationError as error:
        raise UsageError(str(error)) from error
