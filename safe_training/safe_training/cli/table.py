# SPDX-License-Identifier: Apache-2.0
"""The verb ``table``: the paper's Table 1 from results folders, and the robust tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from safe_training.evaluation.protocol import PROTOCOLS, SelectOn

if TYPE_CHECKING:
    import argparse

    from safe_training.reporting.tables.model import Table
    from safe_training.sweep.results import Result

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
        help='paper: Table 1 as published, then the other tables; robust: only the table of random '
        'task splits; loto: only the table of leaving one task out (default: each table that '
        'there are results for)',
    )
    parser.add_argument(
        '--select-on',
        choices=get_args(SelectOn),
        default='seen',
        help='choose the combination of parameters by its numbers on held-out rollouts of seen '
        'tasks, or on the reported unseen tasks; unseen flatters, and is only for comparison with '
        'papers that chose so (default %(default)s)',
    )
    parser.add_argument(
        '--format', choices=FORMATS, default='markdown', help='what to print (default %(default)s)'
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='also write every table there, in all formats'
    )


def run(args: argparse.Namespace) -> int:
    """Make, write and print the tables."""
    from safe_training.reporting.tables.entries import TableError
    from safe_training.sweep.results import read_results
    from safe_training.sweep.unfinished import unfinished
    from vla_feature_bridge.atomic import replace_files

    results = read_results(*args.results)
    if args.protocol in ('robust', 'loto'):
        results = [r for r in results if r.protocol == args.protocol]
        if not results:
            raise TableError(
                f'there are no results of the {args.protocol} protocol; run '
                f'`sweep --protocol {args.protocol}` first, or ask for --protocol paper'
            )
    for line in unfinished(args.results, results):
        print(f'safe_training table: {line}', file=sys.stderr)
    with_paper = args.protocol == 'paper' or any(r.protocol == 'paper' for r in results)
    made = tables_of(results, with_paper=with_paper, select_on=args.select_on)
    if args.out is not None:
        # Under names of their own, so that flattering tables never replace the others.
        chosen = '' if args.select_on == 'seen' else '_chosen_on_unseen'
        replace_files(
            {
                args.out / f'table1_{name}{chosen}.{_SUFFIX[kind]}': text
                for name, texts in made.items()
                for kind, text in texts.items()
            }
        )
    print('\n'.join(texts[args.format] for texts in made.values()), end='')
    return 0


def tables_of(
    results: Sequence[Result], *, with_paper: bool, select_on: SelectOn = 'seen'
) -> dict[str, dict[str, str]]:
    """Return the text of each table in each format, as ``[protocol][format]``.

    Raises
    ------
    TableError
        There are no results, or none of the published protocol where they are wanted.
    """
    from safe_training.reporting.tables.aggregated import judged_by, paper_table, robust_tables
    from safe_training.reporting.tables.csv import to_csv
    from safe_training.reporting.tables.entries import (
        TableError,
        entries,
        paper_entries,
        robust_entry,
    )

    made: dict[str, dict[str, str]] = {}
    if with_paper:
        found, _ = paper_entries(results, select_on)
        made['paper'] = _texts([paper_table(results, select_on)], to_csv(found))
    for kind, there in judged_by(results).items():
        found = entries(there, partial(robust_entry, select_on=select_on))
        made[kind] = _texts(robust_tables(there, select_on), to_csv(found))
    if not made:
        raise TableError('the results folders hold no rows; run a sweep or an evaluation first')
    return made


def _texts(tables: Sequence[Table], as_csv: str) -> dict[str, str]:
    from safe_training.reporting.tables.latex import to_latex
    from safe_training.reporting.tables.markdown import to_markdown

    return {
        'markdown': '\n'.join(to_markdown(table) for table in tables),
        'latex': '\n'.join(to_latex(table) for table in tables),
        'csv': as_csv,
    }
