# SPDX-License-Identifier: Apache-2.0
"""The verb ``sweep``: evaluates a grid of configurations over task splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from safe_training.cli.options import add_split_jobs_option, check_alpha, check_splits
from safe_training.cli.parsing import VerbParser
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.protocol import (
    CHEAP_SPLITS,
    HELD_OUT_PROTOCOL,
    PROTOCOLS,
    ROBUST_SPLITS,
)
from safe_training.fitting.precision import Precision
from safe_training.reporting.numbers import plain_json
from safe_training.sweep.grid import shipped_grids

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Fit and evaluate every configuration of a grid on several task splits.
Models of the same kind are trained together. To continue an interrupted sweep, run the same command
again."""
EXAMPLE = """examples:
  python -m safe_training sweep my_set --grid learned --out my_results
  python -m safe_training sweep dump --grid openvla_libero10 --protocol paper --out my_results
  python -m safe_training table my_results
"""


def add_arguments(parser: VerbParser) -> None:
    """Add the options of the verb."""
    parser.add_argument(
        'set', metavar='SET', help='rollout set, or any source that `convert` reads'
    )
    parser.add_argument(
        '--grid',
        required=True,
        help=f'grid file (YAML), or the name of a shipped grid: {", ".join(shipped_grids())}',
    )
    parser.add_argument(
        '--out', required=True, type=Path, metavar='RESULTS', help='folder of the results'
    )
    parser.add_argument(
        '--benchmark', metavar='NAME', help='name in tables (default: the name in the grid)'
    )
    parser.add_argument('--json', action='store_true', help='print what was done as JSON')
    _add_split_options(parser)
    parser.add_argument(
        '--alpha',
        type=float,
        metavar='RATE',
        default=HELD_OUT_PROTOCOL.alpha,
        help='promised false-alarm rate (default %(default)s)',
    )
    _add_training_options(parser)


def _add_split_options(parser: VerbParser) -> None:
    group = parser.add_argument_group('task splits')
    group.add_argument(
        '--protocol',
        choices=PROTOCOLS,
        help=f'robust (default): {CHEAP_SPLITS} random task splits, or {ROBUST_SPLITS} for a '
        "detector that trains a network; paper: the grid's published splits; loto: leave one task "
        'out, each task once',
    )
    group.add_argument(
        '--splits', type=int, metavar='COUNT', help='number of task splits; the first is split 0'
    )
    group.add_argument(
        '--splits-from',
        type=Path,
        metavar='FILE',
        help='use the splits in a file that `evaluate --save-splits` or another sweep wrote',
    )
    parser.exclude(
        ('--splits', '--protocol'),
        by='--splits-from',
        why='reads existing splits',
    )
    parser.exclude(('--splits',), by='--protocol', value='loto', why='has one split for each task')


def _add_training_options(parser: VerbParser) -> None:
    group = parser.add_argument_group('training')
    group.add_argument(
        '--stop-early',
        action='store_true',
        help='stop training at the lowest loss on the held-out rollouts of seen tasks; models are '
        'then trained one at a time',
    )
    group.add_argument(
        '--precision',
        choices=('auto', *get_args(Precision)),
        default='auto',
        help=(
            'number format of matrix products when models are trained together (default: the '
            'faster format on this machine)'
        ),
    )
    group.add_argument(
        '--device',
        default='cpu',
        help='PyTorch device on which models are trained together (default %(default)s)',
    )
    add_split_jobs_option(group)
    group.add_argument(
        '--ray',
        nargs='?',
        const='local',
        metavar='ADDRESS',
        help='run on a Ray cluster; without an address, a local cluster is started',
    )
    parser.exclude(('--jobs',), by='--ray', why='divides the work over the cluster')


def run(args: argparse.Namespace) -> int:
    """Run or continue a sweep, and print a summary."""
    from rich.console import Console

    from safe_training.evaluation.saved_splits import saved_protocol
    from safe_training.sweep.grid import read_grid
    from safe_training.sweep.plan import Settings
    from safe_training.sweep.run import Listener, SplitChoice, fastest_precision, run_sweep
    from safe_training.sweep.runners import Place

    check_alpha(args.alpha)
    check_splits(args.splits)
    saved = args.splits_from
    name = (args.protocol or 'robust') if saved is None else saved_protocol(saved)
    grid = read_grid(args.grid)
    protocol = replace(
        HELD_OUT_PROTOCOL,
        unseen_ratio=grid.unseen_ratio,
        seen_train_ratio=grid.seen_train_ratio,
        alpha=args.alpha,
        stop_early=args.stop_early,
        name=name,
    )
    precision = fastest_precision(args.device) if args.precision == 'auto' else args.precision
    settings = Settings(protocol, args.benchmark or grid.benchmark, precision, args.device)
    console = Console(highlight=False, markup=False, soft_wrap=True, stderr=True)
    try:
        with progress_bar('sweep', quiet=args.json) as progress:
            outcome = run_sweep(
                args.set,
                grid,
                args.out,
                settings,
                SplitChoice(args.splits, saved),
                place=Place(args.ray, args.jobs),
                listener=Listener(progress, console.print),
            )
    except KeyboardInterrupt:
        console.print(
            f'{args.out} contains the finished results; run the same command again to continue'
        )
        raise
    done = {
        'out': str(args.out),
        'units_run': outcome.done,
        'units_kept': outcome.kept,
        'left_out': list(outcome.failures),
        'precision': precision,
    }
    if args.json:
        print(plain_json(done))
    else:
        print(
            f'{outcome.done} units run, {outcome.kept} units finished earlier, '
            f'{len(outcome.failures)} configurations left out; written to {args.out}'
        )
    return 0
