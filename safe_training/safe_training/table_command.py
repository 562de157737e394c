# SPDX-License-Identifier: Apache-2.0
"""The verb ``table``: the paper's Table 1 from results folders, and the robust table beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_training.results import Result, read_results
from safe_training.table import Table, paper_table, robust_tables
from safe_training.table_entries import TableError, entries, paper_entries, robust_entry
from safe_training.table_formats import to_csv, to_latex, to_markdown, write_whole

EXAMPLE = """examples:
  python -m safe_training table my_results
  python -m safe_training table my_results more_results --protocol paper --out tables
"""
FORMATS = ('markdown', 'latex', 'csv')
_SUFFIX = {'markdown': 'md', 'latex': 'tex', 'csv': 'csv'}


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'table',
        help="make the paper's Table 1 and the robust table",
        description=(
            'Make tables of all methods and benchmarks in results folders, which `sweep` writes.'
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'results', nargs='+', type=Path, metavar='RESULTS', help='folders of results'
    )
    parser.add_argument(
        '--protocol',
        choices=('paper', 'robust'),
        help='paper: Table 1 as published, the robust table after it; robust: that one alone '
        '(default: what there are results of)',
    )
    parser.add_argument(
        '--format', choices=FORMATS, default='markdown', help='what to print (default %(default)s)'
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='also write every table there, in all formats'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make, write and print the tables."""
    results = read_results(*args.results)
    if args.protocol == 'robust':
        results = [r for r in results if r.protocol == 'robust']
        if not results:
            raise TableError(
                'there are no results of the robust protocol; run `sweep` first, or ask for '
                '--protocol paper'
            )
    with_paper = args.protocol == 'paper' or any(r.protocol == 'paper' for r in results)
    made = tables_of(results, with_paper=with_paper)
    if args.out is not None:
        write_whole(
            {
                args.out / f'table1_{name}.{_SUFFIX[kind]}': text
                for name, texts in made.items()
                for kind, text in texts.items()
            }
        )
    print('\n'.join(texts[args.format] for texts in made.values()), end='')
    return 0


def tables_of(results: Sequence[Result], *, with_paper: bool) -> dict[str, dict[str, str]]:
    """Return the text of each table in each format, as ``[protocol][format]``."""
    made: dict[str, dict[str, str]] = {}
    if with_paper:
        made['paper'] = _texts([paper_table(results)], to_csv(paper_entries(results)[0]))
    robust = robust_tables(results)
    judged = {r.benchmark for r in results if r.protocol == 'robust'}
    used = [r for r in results if r.protocol == 'robust' or r.benchmark not in judged]
    made['robust'] = _texts(robust, to_csv(entries(used, robust_entry)))
    return made


def _texts(tables: Sequence[Table], as_csv: str) -> dict[str, str]:
    return {
        'markdown': '\n'.join(to_markdown(table) for table in tables),
        'latex': '\n'.join(to_latex(table) for table in tables),
        'csv': as_csv,
    }
