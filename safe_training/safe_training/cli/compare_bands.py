# SPDX-License-Identifier: Apache-2.0
"""The verb ``compare-bands``: what bands promise, on which rollouts, and what they keep on others."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from safe_monitor_node.bands.threshold import BandError
from safe_monitor_node.detectors import DETECTORS
from safe_monitor_node.storage.detector_folder import DetectorFolderError, load_detector
from safe_training.cli.options import (
    UsageError,
    add_source_options,
    check_alpha,
    detector_params,
    pooling_of,
    refuse_options,
)
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.band_comparison import (
    COMPARED,
    BandResult,
    Comparison,
    compare_bands,
)
from safe_training.evaluation.fit_and_calibrate import labelled
from safe_training.evaluation.judge import judge
from safe_training.evaluation.protocol import (
    ROBUST_SPLITS,
    EvaluationError,
    Protocol,
    choose_splits,
)
from safe_training.evaluation.saved_splits import read_splits
from safe_training.metrics.binomial import Tally
from safe_training.recordings.rollouts import Rollouts
from safe_training.recordings.sources import load_rollouts
from safe_training.reporting.numbers import as_number, plain_json
from safe_training.reporting.tables.bands import comparison_tables, folder_table, promise_text
from safe_training.reporting.tables.terminal import print_table, wide_console

EXAMPLE = """examples:
  python -m safe_training compare-bands my_set --detector linear_probe
  python -m safe_training compare-bands my_set --detector safe_lstm --band none --band per-task
  python -m safe_training compare-bands my_set --folder my_detector
"""
ALPHAS = (0.05, 0.1, 0.2, 0.3)


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'compare-bands',
        help='compare promised and realised false-alarm rates of every kind of band',
        description=(
            'Say what bands promise, on which rollouts, and what was realised on others: for each '
            'kind of band of a detector over task splits, or for a detector folder.'
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--detector', choices=sorted(DETECTORS), help='detector to fit')
    which.add_argument('--folder', type=Path, help='detector folder to judge')
    parser.add_argument(
        '--alpha',
        type=float,
        action='append',
        help=f'promised rate, repeatable (default {", ".join(f"{a:g}" for a in ALPHAS)})',
    )
    parser.add_argument(
        '--band',
        action='append',
        choices=tuple(COMPARED),
        help='kind of band, repeatable (default: all)',
    )
    parser.add_argument('--splits', type=int, help=f'task splits (default {ROBUST_SPLITS})')
    parser.add_argument('--splits-from', type=Path, metavar='FILE', help='saved splits to take')
    parser.add_argument(
        '--rate',
        type=float,
        help='step size of the moving threshold (default: a tenth of alpha)',
    )
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        dest='params',
        metavar='NAME=VALUE',
        help='detector parameter',
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Calibrate, judge and print."""
    for alpha in args.alpha or ():
        check_alpha(alpha)
    if args.folder is not None:
        refuse_options(args, '--folder', ('band', 'splits', 'splits_from', 'params', 'rate'))
    if args.splits is not None and (args.splits < 1 or args.splits_from is not None):
        raise UsageError('--splits must be at least 1, and is not for splits that were saved')
    if args.rate is not None and not 0 < args.rate <= 1:
        raise UsageError(f'--rate must lie in (0, 1], found {args.rate}')
    rollouts = load_rollouts(
        args.set, pooling=pooling_of(args), feature=args.feature, skip_bad=args.skip_bad
    )
    rollouts = labelled(rollouts)
    if args.folder is not None:
        return _folder(args, rollouts)
    return _detector(args, rollouts)


# -- kinds of bands over splits


def _detector(args: argparse.Namespace, rollouts: Rollouts) -> int:
    alphas = sorted(set(args.alpha or ALPHAS))
    protocol = Protocol(alpha=alphas[0])
    if args.splits_from is not None:
        splits = list(read_splits(args.splits_from, rollouts).splits.values())
    else:
        splits = choose_splits(rollouts, protocol, range(args.splits or ROBUST_SPLITS))
    params = detector_params([args.detector], args.params)[args.detector]
    with progress_bar(f'calibrate {args.detector}', quiet=args.json) as progress:
        found = compare_bands(
            args.detector,
            rollouts,
            splits,
            Comparison(alphas, tuple(dict.fromkeys(args.band or COMPARED)), args.rate),
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
        'detection_time': (float(np.mean(kept.detection_times)) if kept.detection_times else None),
    }


# -- a detector folder


def _folder(args: argparse.Namespace, rollouts: Rollouts) -> int:
    loaded = load_detector(args.folder)
    try:
        judged = judge(loaded, rollouts)
        band = judged.band
        alphas = sorted(set(args.alpha or band.alphas.tolist()))
        rates = judged.realised_rates(alphas)
    except (EvaluationError, BandError) as error:
        raise DetectorFolderError(f'{args.folder}: {error}') from error
    if args.json:
        rows = [asdict(rate) for rate in rates]
        print(plain_json({'folder': str(args.folder), 'band': band.meta(), 'rows': rows}))
        return 0
    console = wide_console()
    console.print(Text(promise_text(band, loaded.alpha)), soft_wrap=True)
    print_table(console, folder_table(rates, f'{loaded.detector.name} from {args.folder}'))
    return 0
