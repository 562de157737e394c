# SPDX-License-Identifier: Apache-2.0
"""Options that ``fit`` and ``evaluate`` share: rollouts, split, detector parameters."""

from __future__ import annotations

import argparse
import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from safe_monitor_node.detectors import DETECTORS
from safe_training.calibration.curves import Quantile
from safe_training.calibration.functional import Modulation
from safe_training.evaluation.protocol import EvaluationError, Protocol, ProtocolName
from vla_feature_bridge.pooling import parse_pooling

MODULATIONS = (*get_args(Modulation), 'none')


class UsageError(ValueError):
    """An option was given a value that it does not take; the message says what it takes."""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add SET and how to read it."""
    parser.add_argument(
        'set', metavar='SET', help='rollout set, or any source that `convert` reads'
    )
    parser.add_argument(
        '--pooling',
        action='append',
        default=[],
        metavar='AXIS=COMMAND',
        help='how to pool a raw source, in order',
    )
    parser.add_argument('--feature', help='feature array to take where the source holds several')
    parser.add_argument(
        '--skip-bad', action='store_true', help='leave out unreadable episodes and list them'
    )


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """Add the split and the band."""
    default = Protocol()
    parser.add_argument('--seed', type=int, help='number of the (first) task split (default 0)')
    parser.add_argument(
        '--splits-from',
        type=Path,
        metavar='FILE',
        help='take the splits that `evaluate --save-splits` or `sweep` wrote',
    )
    parser.add_argument(
        '--unseen-ratio',
        type=float,
        help=f'share of tasks never trained on (default {default.unseen_ratio})',
    )
    parser.add_argument(
        '--train-ratio',
        type=float,
        help=(
            "share of a seen task's rollouts that trains, the others calibrate "
            f'(default {default.seen_train_ratio})'
        ),
    )
    parser.add_argument(
        '--alpha', type=float, help=f'promised false-alarm rate (default {default.alpha})'
    )
    parser.add_argument(
        '--modulation',
        choices=MODULATIONS,
        help='shape of the band over time; none: one threshold, for few successes '
        f'(default {default.modulation})',
    )
    parser.add_argument(
        '--max-steps',
        type=int,
        metavar='STEPS',
        help='steps that the band covers, normally the time limit (default: the longest rollout)',
    )
    parser.add_argument(
        '--quantile',
        choices=get_args(Quantile),
        help='finite_sample keeps the promise for any number of rollouts; published is the '
        f"paper's, for comparison (default {default.quantile})",
    )
    parser.add_argument(
        '--calibrate-on',
        choices=('heldout', 'loto'),
        help='calibrate the band on held-out rollouts of the seen tasks, or on training rollouts '
        f'scored without their task, a better guide to new tasks (default {default.calibrate_on})',
    )
    parser.add_argument(
        '--per-task',
        action='store_true',
        help='calibrate a band for each seen task as well, so that the promise holds within it',
    )
    parser.add_argument(
        '--stop-early',
        action='store_true',
        help='stop training where the loss on the held-out seen rollouts is lowest '
        "(weakens the band's promise, which is calibrated on them)",
    )
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        dest='params',
        metavar='[DETECTOR.]NAME=VALUE',
        help='detector parameter, for example epochs=100 or safe_lstm.hidden=128',
    )


def check_alpha(alpha: float | None) -> None:
    """Raise :class:`UsageError` unless this is a rate, or was not given."""
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(f'--alpha must lie between 0 and 1, such as 0.1, found {alpha}')


def protocol_of(args: argparse.Namespace, name: ProtocolName = 'robust') -> Protocol:
    """Return the protocol that the options ask for."""
    check_alpha(args.alpha)
    given = {
        'unseen_ratio': args.unseen_ratio,
        'seen_train_ratio': args.train_ratio,
        'alpha': args.alpha,
        'modulation': args.modulation,
        'max_steps': args.max_steps,
        'quantile': args.quantile,
        'calibrate_on': args.calibrate_on,
    }
    if args.splits_from is not None:
        refuse_options(args, '--splits-from', ('unseen_ratio', 'train_ratio'))
    if name == 'loto':
        refuse_options(args, '--protocol loto', ('unseen_ratio',))
    try:
        return Protocol(
            per_task=args.per_task,
            stop_early=args.stop_early,
            name=name,
            **{name: value for name, value in given.items() if value is not None},
        )
    except EvaluationError as error:
        raise UsageError(f'--per-task and --calibrate-on loto: {error}') from error


def refuse_options(args: argparse.Namespace, because: str, names: Sequence[str]) -> None:
    """Raise :class:`UsageError` for options that another one leaves without a meaning."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and value != []:
            option = 'set NAME=VALUE' if name == 'params' else name.replace('_', '-')
            raise UsageError(f'--{option} has no meaning with {because}; leave one of them out')


def pooling_of(args: argparse.Namespace) -> tuple[tuple[str, str], ...] | None:
    """Return the pooling that the options ask for; None for the source's default."""
    return parse_pooling(args.pooling) if args.pooling else None


# What a parameter takes whose default is None; annotations are text in our modules.
_OPTIONAL: dict[str, type] = {
    'float | None': float,
    'int | None': int,
    'str | None': str,
    'list[int] | None': list,
}


def detector_params(names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read ``NAME=VALUE`` (for every named detector that has it) and ``DETECTOR.NAME=VALUE``.

    Raises
    ------
    UsageError
        Malformed, of another type than the parameter, or no named detector has it.
    """
    known = {name: inspect.signature(DETECTORS[name]).parameters for name in names}
    params: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, equals, text = setting.partition('=')
        if not equals:
            raise UsageError(f'--param {setting!r}: expected NAME=VALUE, such as epochs=100')
        detector, _, parameter = key.rpartition('.')
        if detector and detector not in DETECTORS:
            raise UsageError(f'--param {setting!r}: unknown detector {detector!r}')
        takers = [n for n in names if parameter in known[n] and detector in ('', n)]
        if not takers:
            raise UsageError(
                f'--param {setting!r}: none of {", ".join(names)} has a parameter {parameter!r}; '
                + '; '.join(f'{n} has {", ".join(p) or "none"}' for n, p in known.items())
            )
        for name in takers:
            params[name][parameter] = _value(setting, text, known[name][parameter])
    return params


def _value(setting: str, text: str, parameter: inspect.Parameter) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    default = parameter.default
    kind = _OPTIONAL.get(str(parameter.annotation), object) if default is None else type(default)
    if value is None and default is None:
        return None
    # An integer may stand for a float, but true stands for no number.
    if kind is float and type(value) is int:
        value = float(text)
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(
            f'--param {setting!r}: expected a value of type {kind.__name__}, such as {default!r}, '
            f'found {value!r}'
        )
    return value
