# SPDX-License-Identifier: Apache-2.0
"""The verb ``compare-bands``: promised and realised false-alarm rates of each kind of band."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_training.cli.options import (
    add_detector_option,
    add_param_option,
    add_source_options,
    add_split_jobs_option,
    check_alpha,
    check_splits,
    jobs_of,
    rollouts_of,
)
from safe_training.cli.params import detector_params
from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.compared_bands import COMPARED
from safe_training.evaluation.protocol import CHEAP_SPLITS, HELD_OUT_PROTOCOL, ROBUST_SPLITS
from safe_training.reporting.numbers import as_number, plain_json

if TYPE_CHECKING:
    import argparse

    from safe_training.evaluation.band_comparison import BandResult
    from safe_training.metrics.binomial import Tally

DESCRIPTION = """Fit a detector on many task splits and calibrate each kind of band. Compare the
promised false-alarm rate with the rate on rollouts that were not used for the calibration."""
EXAMPLE = """examples:
  python -m safe_training compare-bands my_set --detector linear_probe
  python -m safe_training compare-bands my_set --detector safe_lstm --band none --band per-task
"""
ALPHAS = (0.05, 0.1, 0.2, 0.3)


def add_arguments(parser: VerbParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    add_detector_option(parser, 'detector to fit', required=True)
    parser.add_argument(
        '--alpha',
        type=float,
        action='append',
        metavar='RATE',
        help=f'promised rate, repeatable (default {", ".join(f"{a:g}" for a in ALPHAS)})',
    )
    parser.add_argument(
        '--band',
        action='append',
        choices=tuple(COMPARED),
        help='kind of band, repeatable, as in `fit --modulation` (default: all)',
    )
    parser.add_argument(
        '--adaptation-step',
        type=float,
        metavar='STEP',
        help='step size of the adaptive threshold (default: alpha / 10)',
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    add_split_jobs_option(parser)
    group = parser.add_argument_group('task splits')
    group.add_argument(
        '--splits',
        type=int,
        metavar='COUNT',
        help=f'number of task splits (default {CHEAP_SPLITS}, or {ROBUST_SPLITS} for a detector '
        'that trains a network)',
    )
    group.add_argument(
        '--first-split', type=int, metavar='N', help='number of the first split (default 0)'
    )
    group.add_argument(
        '--splits-from',
        type=Path,
        metavar='FILE',
        help='use the splits in a file that `evaluate --save-splits` or `sweep` wrote',
    )
    parser.exclude(
        ('--splits', '--first-split'),
        by='--splits-from',
        why='reads existing splits',
    )
    add_param_option(parser.add_argument_group('training'))


def run(args: argparse.Namespace) -> int:
    """Fit, calibrate, compare and print."""
    from safe_training.evaluation.band_comparison import Comparison, compare_bands
    from safe_training.evaluation.evaluate import default_splits
    from safe_training.evaluation.protocol import choose_splits
    from safe_training.evaluation.saved_splits import read_splits
    from safe_training.reporting.tables.bands import comparison_tables
    from safe_training.reporting.tables.terminal import print_table, wide_console

    for alpha in args.alpha or ():
        check_alpha(alpha)
    check_splits(args.splits)
    if args.adaptation_step is not None and not 0 < args.adaptation_step <= 1:
        raise UsageError(
            where='--adaptation-step',
            expected='a number in (0, 1]',
            found=str(args.adaptation_step),
        )
    rollouts = rollouts_of(args)
    alphas = sorted(set(args.alpha or ALPHAS))
    protocol = replace(HELD_OUT_PROTOCOL, alpha=alphas[0])
    if args.splits_from is not None:
        splits = list(read_splits(args.splits_from, rollouts).splits.values())
    else:
        first = args.first_split or 0
        numbers = range(first, first + (args.splits or default_splits(args.detector)))
        splits = choose_splits(rollouts, protocol, numbers)
    params = detector_params([args.detector], args.params)[args.detector]
    comparison = Comparison(
        alphas,
        tuple(dict.fromkeys(args.band or COMPARED)),
        args.adaptation_step,
        jobs=jobs_of(args, rollouts, [splits]),
    )
    with progress_bar(f'calibrate {args.detector}', quiet=args.json) as progress:
        found = compare_bands(
            args.detector,
            rollouts,
            splits,
            comparison,
            params=params,
            protocol=protocol,
            progress=progress,
        )
    if args.json:
        print(plain_json({'detector': args.detector, 'bands': [_plain(kept) for kept in found]}))
        return 0
    console = wide_console()
    for table in comparison_tables(found, args.detector, alphas, len(splits)):
        print_table(console, table)
    return 0


def _plain(kept: BandResult) -> dict[str, Any]:
    import numpy as np

    def tally(counted: Tally) -> dict[str, Any]:
        return {
            'rate': as_number(counted.rate),
            'repeats': counted.repeats,
            'tasks': {
                task: {'alarms': counted.alarms[task], 'rollouts': counted.rollouts[task]}
                for task in counted.rollouts
            },
        }

    return {
        'kind': kept.band,
        'alpha': kept.alpha,
        'split': kept.split,
        'n_calibration': kept.n_calibration,
        'finite': kept.finite,
        'like': tally(kept.like),
        'new': tally(kept.new),
        'detected': tally(kept.detected),
        'detection_time': float(np.mean(kept.detection_times)) if kept.detection_times else None,
    }
