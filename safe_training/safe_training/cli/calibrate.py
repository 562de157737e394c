# SPDX-License-Identifier: Apache-2.0
"""The verb ``calibrate``: gives each new task its own threshold from good runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_training.cli.options import add_reading_options, rollouts_of
from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.reporting.numbers import as_number, plain_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from safe_monitor_node.calibrated_detector import CalibratedDetector
    from safe_training.evaluation.good_runs import NewThreshold

DESCRIPTION = """Give each new task its own threshold from good runs: a few successful rollouts of
each task. A new detector folder is written. The detector is not fitted again."""
EXAMPLE = """examples:
  python -m safe_training calibrate my_detector good_runs.mcap --out my_detector_with_task
  python -m safe_training calibrate my_detector good_runs --k 3 --out my_detector_with_task
"""


def add_arguments(parser: VerbParser) -> None:
    """Add the options of the verb."""
    parser.add_argument(
        'folder', type=Path, metavar='FOLDER', help='detector folder that `fit` wrote'
    )
    parser.add_argument(
        'set',
        metavar='GOOD_RUNS',
        help='successful rollouts of one or more new tasks: a rollout set, a recording, or any '
        'source that `convert` reads',
    )
    add_reading_options(parser, 'GOOD_RUNS')
    parser.add_argument(
        '--out', required=True, type=Path, metavar='NEW_FOLDER', help='detector folder to write'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace an existing detector folder'
    )
    add_k_option(parser)
    parser.add_argument('--json', action='store_true', help='print what was made as JSON')


def add_k_option(parser: argparse.ArgumentParser) -> None:
    """Add the number of good runs."""
    parser.add_argument(
        '--k',
        type=int,
        metavar='K',
        help='number of good runs for the threshold of each task: the first K successes of the '
        'task (default 5, or all successes if the task has fewer)',
    )


def run(args: argparse.Namespace) -> int:
    """Score the good runs, write the folder and print the thresholds."""
    from safe_monitor_node.bands.good_runs import GoodRunsError
    from safe_monitor_node.storage.detector_folder import load_detector
    from safe_training.evaluation.good_runs import new_thresholds, with_thresholds

    check_k(args.k)
    rollouts = rollouts_of(args, need_outcomes=False)
    loaded = load_detector(args.folder)
    try:
        thresholds = new_thresholds(loaded, rollouts, args.k)
    except GoodRunsError as error:
        raise GoodRunsError(f'{args.folder}: {error}') from error
    made = with_thresholds(loaded, thresholds, rollouts.source)
    made.save(args.out, overwrite=args.overwrite)
    if args.json:
        print(plain_json({'folder': str(args.out), 'tasks': plain_thresholds(thresholds)}))
    else:
        print_thresholds(made, thresholds)
        print(f'written to {args.out}')
    return 0


def check_k(k: int | None) -> None:
    """Raise :class:`UsageError` if the value is given and is not a positive number."""
    if k is not None and k < 1:
        raise UsageError(where='--k', expected='at least 1', found=str(k))


def print_thresholds(detector: CalibratedDetector, thresholds: Sequence[NewThreshold]) -> None:
    """Print the threshold of each task, its promise, and the rollouts that were left out."""
    from safe_monitor_node.bands.good_runs import PROMISE

    for new in thresholds:
        band = new.band
        print(
            f'task {new.task!r}: threshold {new.threshold:.4g} at alpha {detector.alpha:g} '
            f'(without good runs {new.before:.4g} at the first step), from '
            f'{band.provenance["k"]} good runs, {band.provenance["form"]} form, B = '
            f'{band.provenance["factor"]:.3g}, {band.provenance["seen_tasks"]} seen tasks'
        )
        for note in new.notes:
            print(f'note: task {new.task!r}: {note}')
    print(f'promise: {PROMISE}')


def plain_thresholds(thresholds: Sequence[NewThreshold]) -> list[dict[str, Any]]:
    """Return the thresholds as JSON values."""
    return [
        {
            'task': new.task,
            'threshold': as_number(new.threshold),
            'before': as_number(new.before),
            'notes': list(new.notes),
            **new.band.provenance,
        }
        for new in thresholds
    ]
