# SPDX-License-Identifier: Apache-2.0
"""The verb ``compare-bands``: what each kind of band promises, and what it keeps on others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safe_monitor_node.detectors.registry import DETECTORS
from safe_training.cli.options import (
    add_param_option,
    add_source_options,
    check_alpha,
    check_splits,
    rollouts_of,
)
from safe_training.cli.params import detector_params
from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.compared_bands import COMPARED
from safe_training.evaluation.protocol import ROBUST_SPLITS, Protocol
from safe_training.reporting.numbers import as_number, percent, plain_json

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from safe_training.evaluation.band_comparison import BandResult
    from safe_training.evaluation.evaluate import Summary
    from safe_training.metrics.binomial import Tally

DESCRIPTION = """Fit a detector on many task splits, calibrate each kind of band, and compare the
false-alarm rate that it promises with the rate on rollouts that did not make it."""
EXAMPLE = """examples:
  python -m safe_training compare-bands my_set --detector linear_probe
  python -m safe_training compare-bands my_set --detector safe_lstm --band none --band per-task
"""
ALPHAS = (0.05, 0.1, 0.2, 0.3)
LEGEND = (
    'Percent. Promised: of the successes at most so many raise an alarm. Like: held-out successes\n'
    'of the seen tasks, half of which calibrated (drawn {draws} times a split). New: successes of\n'
    'tasks never seen. Worst: the task with the highest rate, of those with {fewest} successes or\n'
    'more. No alarm: splits with too few successes for this promise, where the band is infinite.\n'
    '"!" where the lower end of the 95 % interval (bootstrap over splits) exceeds the promise.\n'
    'Left-out scores: of the training successes, each by a detector that did not know its task.\n'
    'Moved by labels: told of every success at once; its promise is on the long run.'
)


def add_arguments(parser: VerbParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    parser.add_argument(
        '--detector', required=True, choices=sorted(DETECTORS), help='detector to fit'
    )
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
    parser.add_argument(
        '--adaptation-step',
        type=float,
        metavar='STEP',
        help='step size of the moving threshold (default: a tenth of alpha)',
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    group = parser.add_argument_group('task splits')
    group.add_argument(
        '--splits', type=int, metavar='COUNT', help=f'how many (default {ROBUST_SPLITS})'
    )
    group.add_argument(
        '--first-split', type=int, metavar='N', help='number of the first split (default 0)'
    )
    group.add_argument(
        '--splits-from',
        type=Path,
        metavar='FILE',
        help='take the splits that `evaluate --save-splits` or `sweep` wrote',
    )
    parser.exclude(
        ('--splits', '--first-split'),
        beside='--splits-from',
        why='holds splits that are drawn already',
    )
    add_param_option(parser.add_argument_group('training'))


def run(args: argparse.Namespace) -> int:
    """Fit, calibrate, compare and print."""
    from safe_training.evaluation.band_comparison import DRAWS, Comparison, compare_bands
    from safe_training.evaluation.protocol import choose_splits
    from safe_training.evaluation.saved_splits import read_splits
    from safe_training.metrics.binomial import FEWEST
    from safe_training.reporting.tables.evaluation import print_table, wide_console

    for alpha in args.alpha or ():
        check_alpha(alpha)
    check_splits(args.splits)
    if args.adaptation_step is not None and not 0 < args.adaptation_step <= 1:
        raise UsageError(f'--adaptation-step must lie in (0, 1], found {args.adaptation_step}')
    rollouts = rollouts_of(args)
    alphas = sorted(set(args.alpha or ALPHAS))
    protocol = Protocol(alpha=alphas[0])
    if args.splits_from is not None:
        splits = list(read_splits(args.splits_from, rollouts).splits.values())
    else:
        first = args.first_split or 0
        numbers = range(first, first + (args.splits or ROBUST_SPLITS))
        splits = choose_splits(rollouts, protocol, numbers)
    params = detector_params([args.detector], args.params)[args.detector]
    with progress_bar(f'calibrate {args.detector}', quiet=args.json) as progress:
        found = compare_bands(
            args.detector,
            rollouts,
            splits,
            Comparison(alphas, tuple(dict.fromkeys(args.band or COMPARED)), args.adaptation_step),
            params=params,
            protocol=protocol,
            progress=progress,
        )
    if args.json:
        print(plain_json({'detector': args.detector, 'bands': [_plain(kept) for kept in found]}))
        return 0
    console = wide_console()
    for alpha in alphas:
        title = (
            f'{args.detector}, {len(splits)} task splits: promised false-alarm rate '
            f'{percent(alpha)} %'
        )
        print_table(console, _table([kept for kept in found if kept.alpha == alpha], title))
    console.print(LEGEND.format(draws=DRAWS, fewest=FEWEST), style='dim')
    return 0


def _table(found: Sequence[BandResult], title: str) -> Table:
    columns = (
        'ranked\non', 'no\nalarm', 'like', 'like,\nworst', 'new', 'new,\nworst',
        'new,\ndetected', 'T_det',
    )  # fmt: skip
    from safe_training.reporting.tables.evaluation import empty_table

    table = empty_table(title, ['band'], columns)
    for kind in dict.fromkeys(kept.band for kept in found):
        of_kind = [kept for kept in found if kept.band == kind]
        alpha = of_kind[0].alpha
        counts = [kept.n_calibration for kept in of_kind]
        times = [
            float(np.mean(k.detection_times)) if k.detection_times else np.nan for k in of_kind
        ]
        table.add_row(
            COMPARED[kind].title,
            f'{np.median(counts):.0f}',
            f'{sum(not k.finite for k in of_kind)}/{len(of_kind)}',
            _rate([k.like.rate for k in of_kind], alpha),
            _worst([k.like for k in of_kind]),
            _rate([k.new.rate for k in of_kind], alpha),
            _worst([k.new for k in of_kind]),
            _mean([k.detected.rate for k in of_kind]),
            _mean(times),
        )
    return table


def _rate(rates: Sequence[float], alpha: float) -> str:
    from safe_training.evaluation.evaluate import summary_of

    summary = summary_of(rates)
    return _shown(summary) + ('!' if summary.low > alpha else '')


def _mean(rates: Sequence[float]) -> str:
    from safe_training.evaluation.evaluate import summary_of

    return _shown(summary_of(rates))


def _shown(summary: Summary) -> str:
    spread = f'±{percent(summary.std)}' if summary.splits > 1 else ''
    return f'{percent(summary.mean)}{spread}'


def _worst(tallies: Sequence[Tally]) -> str:
    from safe_training.metrics.binomial import worst_task

    found = worst_task(tallies)
    return '-' if found is None else percent(found[1])


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
