# SPDX-License-Identifier: Apache-2.0
"""The verb ``table``: the paper's Table 1 from results folders, and the robust table beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from safe_training.evaluation.protocol import PROTOCOLS
from safe_training.evaluation.saved_splits import split_numbers
from safe_training.reporting.tables.aggregated import paper_table, results_by_kind, robust_tables
from safe_training.reporting.tables.csv import to_csv
from safe_training.reporting.tables.entries import (
    Entry,
    SelectOn,
    entries,
    paper_entries,
    robust_entry,
)
from safe_training.reporting.tables.exact import exact_table
from safe_training.reporting.tables.latex import to_latex
from safe_training.reporting.tables.markdown import to_markdown
from safe_training.reporting.tables.model import ResultTable, TableError
from safe_training.sweep.results import Result, read_results
from vla_feature_bridge.atomic import replace_files

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
        choices=PROTOCOLS,
        help='paper: Table 1 as published, the other tables after it; robust: that of random task '
        'splits alone; loto: that of leaving one task out alone (default: what there are results '
        'of)',
    )
    parser.add_argument(
        '--select-on',
        choices=get_args(SelectOn),
        default='seen',
        help='what combinations are chosen by: held-out rollouts of seen tasks, or the unseen '
        'tasks that are reported, which flatters and is for comparison with papers that did so '
        'only (default %(default)s)',
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


def unfinished(folders: Sequence[Path], results: Sequence[Result]) -> list[str]:
    """Say which detectors lack splits that a sweep of these folders has begun with."""
    lines = []
    for folder in folders:
        for path in sorted(folder.glob('splits*.json')):
            planned = set(split_numbers(path))
            subset = path.stem.removeprefix('splits').removeprefix('-')
            done: dict[str, set[int]] = {}
            for result in results:
                if (result.subset or '') == subset and result.split in planned:
                    done.setdefault(result.detector, set()).add(result.split)
            lacking = [name for name, seeds in done.items() if seeds != planned]
            if lacking:
                lines.append(
                    f'{folder}{f" ({subset})" if subset else ""}: not all of the {len(planned)} '
                    f'splits are there for {", ".join(sorted(lacking))}; the tables are of those '
                    'that are. Run the sweep again to go on, if it was interrupted'
                )
    return lines


def tables_of(
    results: Sequence[Result], *, with_paper: bool, select_on: SelectOn = 'seen'
) -> dict[str, dict[str, str]]:
    """Return the text of each table in each format, as ``[protocol][format]``.

    Raises
    ------
    TableError
        There are no results, or none of the published protocol where they are wanted.
    """
    made: dict[str, dict[str, str]] = {}
    if with_paper:
        found, _ = paper_entries(results, select_on)
        made['paper'] = _texts([paper_table(results, select_on)], found)
    for kind, there in results_by_kind(results).items():
        found = entries(there, partial(robust_entry, select_on=select_on))
        made[kind] = _texts(robust_tables(there, select_on), found)
    if not made:
        raise TableError(
            'expected results in the folders, found no rows; run a sweep or an evaluation first'
        )
    return made


def _texts(tables: Sequence[ResultTable], found: Sequence[Entry]) -> dict[str, str]:
    return {
        'markdown': '\n'.join(to_markdown(table) for table in tables),
        'latex': '\n'.join(to_latex(table) for table in tables),
        'csv': to_csv(exact_table(found)),
    }
