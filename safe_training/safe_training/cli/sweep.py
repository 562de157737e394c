# SPDX-License-Identifier: Apache-2.0
"""The verb ``sweep``: a grid of configurations over task splits, all that can be at once."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from safe_training.cli.options import UsageError, check_alpha, refuse_options
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.protocol import PROTOCOLS, ROBUST_SPLITS, Protocol, ProtocolName
from safe_training.evaluation.saved_splits import saved_protocol
from safe_training.fitting.batched import Precision
from safe_training.reporting.numbers import plain_json
from safe_training.sweep.grid import read_grid, shipped_grids
from safe_training.sweep.plan import Settings
from safe_training.sweep.run import Listener, SplitChoice, fastest_precision, run_sweep

EXAMPLE = """examples:
  python -m safe_training sweep my_set --grid learned --out my_results
  python -m safe_training sweep dump --grid openvla_libero10 --protocol paper --out my_results
  python -m safe_training table my_results
"""


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'sweep',
        help='fit and evaluate a grid of configurations',
        description=(
            'Fit and evaluate every configuration of a grid on several task splits. Models that '
            'can be are trained together. An interrupted sweep goes on when it is called again.'
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('set', metavar='SET', help='rollout set, or any source of `convert`')
    parser.add_argument(
        '--grid',
        required=True,
        help=f'grid file (YAML), or one of those shipped: {", ".join(shipped_grids())}',
    )
    parser.add_argument(
        '--out', required=True, type=Path, metavar='RESULTS', help='folder of the results'
    )
    parser.add_argument('--benchmark', help="name in tables (default: the grid's)")
    parser.add_argument(
        '--protocol',
        choices=PROTOCOLS,
        help=f"robust (default): {ROBUST_SPLITS} task splits; paper: the grid's published splits; "
        'loto: leave one task out, each task unseen once',
    )
    parser.add_argument(
        '--splits', type=int, help='number of task splits, from split 0 on (not with loto)'
    )
    parser.add_argument(
        '--splits-from',
        type=Path,
        metavar='FILE',
        help='take the splits that `evaluate --save-splits` or another sweep wrote',
    )
    parser.add_argument(
        '--alpha',
        type=float,
        default=Protocol().alpha,
        help='promised false-alarm rate (default %(default)s)',
    )
    parser.add_argument(
        '--stop-early',
        action='store_true',
        help='stop where the loss on held-out seen rollouts is lowest; trains one at a time',
    )
    parser.add_argument(
        '--precision',
        choices=('auto', *get_args(Precision)),
        default='auto',
        help='of the matrix products of models trained together (default: the faster one here)',
    )
    parser.add_argument(
        '--device', default='cpu', help='where models are trained together (default %(default)s)'
    )
    parser.add_argument(
        '--ray',
        nargs='?',
        const='local',
        metavar='ADDRESS',
        help='run on a Ray cluster; without an address, on one started here',
    )
    parser.add_argument('--json', action='store_true', help='print what was done as JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sweep."""
    check_alpha(args.alpha)
    if args.splits is not None and args.splits < 1:
        raise UsageError(f'--splits must be at least 1, found {args.splits}')
    if args.splits is not None and args.protocol == 'loto':
        raise UsageError(
            '--splits does not go with --protocol loto, which has one split for each task; '
            'leave --splits out'
        )
    protocol_name: ProtocolName = args.protocol or 'robust'
    if args.splits_from is not None:
        refuse_options(args, '--splits-from', ('splits', 'protocol'))
        protocol_name = saved_protocol(args.splits_from)
    grid = read_grid(args.grid)
    protocol = replace(
        Protocol(),
        unseen_ratio=grid.unseen_ratio,
        seen_train_ratio=grid.seen_train_ratio,
        alpha=args.alpha,
        stop_early=args.stop_early,
        name=protocol_name,
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
                SplitChoice(args.splits, args.splits_from),
                ray_address=args.ray,
                listener=Listener(progress, console.print),
            )
    except KeyboardInterrupt:
        console.print(f'{args.out} keeps what is done; the same command goes on from there')
        raise
    if args.json:
        print(
            plain_json(
                {
                    'out': str(args.out),
                    'units_run': outcome.done,
                    'units_kept': outcome.kept,
                    'left_out': list(outcome.failures),
                    'precision': precision,
                }
            )
        )
        return 0
    print(
        f'{outcome.done} units run, {outcome.kept} were there already, '
        f'{len(outcome.failures)} configurations left out; written to {args.out}'
    )
    return 0
