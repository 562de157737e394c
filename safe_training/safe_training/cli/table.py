# SPDX-License-Identifier: Apache-2.0
"""The verb ``table``: the paper's Table 1 from results folders, and the robust tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from safe_training.evaluation.protocol import PROTOCOLS, SelectOn
from safe_training.reporting.numbers import plain_json

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Make tables of all methods and benchmarks in folders of results, which `sweep` and
`evaluate --out` write."""
EXAMPLE = """examples:
  python -m safe_training table my_results
  python -m safe_training table my_results more_results --protocol paper --out tables
"""
FORMATS = ('markdown', 'latex', 'csv')
_SUFFIX = {'markdown': 'md', 'latex': 'tex', 'csv': 'csv'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument(
        'results', nargs='+', type=Path, metavar='RESULTS', help='folders of results'
    )
    parser.add_argument(
        '--protocol',
        choices=PROTOCOLS,
        help='paper: Table 1 as published, then the other tables; robust: only the table of '
        'random task splits; loto: only the table of leaving one task out (default: all '
        'tables for which there are results)',
    )
    parser.add_argument(
        '--select-on',
        choices=get_args(SelectOn),
        default='seen',
        help='choose the combination of parameters by its numbers on held-out rollouts of seen '
        'tasks, or on the reported unseen tasks; the numbers with `unseen` are too '
        'optimistic; use `unseen` only for comparison with papers that did the same (default '
        '%(default)s)',
    )
    parser.add_argument(
        '--by-task', action='store_true', help='also make a table of each unseen task'
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        '--format', choices=FORMATS, default='markdown', help='what to print (default %(default)s)'
    )
    shown.add_argument(
        '--json', action='store_true', help='print every number of every row as JSON'
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='DIR',
        help='also write every table to this folder, in all formats',
    )


def run(args: argparse.Namespace) -> int:
    """Make, write and print the tables."""
    from safe_training.reporting.tables.model import TableError
    from safe_training.reporting.tables.results import tables_of_results
    from safe_training.sweep.results import read_results
    from safe_training.sweep.unfinished import unfinished

    results = read_results(*args.results)
    filtered = args.protocol if args.protocol in ('robust', 'loto') else None
    if filtered is not None:
        results = [r for r in results if r.protocol == filtered]
        if not results:
            raise TableError(
                where=f'--protocol {filtered}',
                expected=f'results of the protocol {filtered}',
                found='none',
                advice=f'run `sweep --protocol {filtered}` first, or remove --protocol',
            )
    for line in unfinished(args.results, results, filtered):
        print(f'safe_training table: {line}', file=sys.stderr)
    with_paper = args.protocol == 'paper' or any(r.protocol == 'paper' for r in results)
    made = tables_of_results(
        results, with_paper=with_paper, select_on=args.select_on, by_task=args.by_task
    )
    texts = {name: tables.texts() for name, tables in made.items()}
    if args.out is not None:
        _write(args, texts)
    if args.json:
        print(plain_json({name: tables.rows() for name, tables in made.items()}))
    else:
        print('\n'.join(text[args.format] for text in texts.values()), end='')
    return 0


def _write(args: argparse.Namespace, texts: Mapping[str, Mapping[str, str]]) -> None:
    from vla_feature_bridge.atomic import replace_files

    # Use different file names, so that the optimistic tables never overwrite the other tables.
    chosen = '' if args.select_on == 'seen' else '_chosen_on_unseen'
    replace_files(
        {
            args.out / f'table1_{name}{chosen}.{_SUFFIX[kind]}': text
            for name, formats in texts.items()
            for kind, text in formats.items()
        }
    )
