# SPDX-License-Identifier: Apache-2.0
"""The options of ``evaluate`` that print only one result: --good-runs and --onset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from safe_training.cli.options import jobs_of
from safe_training.cli.params import detector_params
from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.cli.progress import progress_bar
from safe_training.reporting.numbers import as_number, percent, plain_json

if TYPE_CHECKING:
    import argparse

    from safe_training.evaluation.protocol import Protocol
    from safe_training.evaluation.splits import Split
    from safe_training.recordings.rollouts import Rollouts

_OTHERS = ('--out', '--benchmark', '--by-task', '--details')


def add_options(parser: VerbParser) -> None:
    """Add the options."""
    parser.add_argument(
        '--good-runs',
        type=int,
        metavar='K',
        help='print only the false alarms of each unseen task, with and without K good runs of '
        'the task',
    )
    parser.add_argument(
        '--onset',
        action='store_true',
        help='print only the distance of the first alarm and of the estimated beginning to the '
        'true beginning of a failure, for annotated failures and for failures that are spliced '
        'with a success',
    )


def add_exclusions(parser: VerbParser) -> None:
    """Declare which options these options exclude."""
    parser.exclude(_OTHERS, by='--good-runs', why='prints only false alarms of unseen tasks')
    parser.exclude(
        (*_OTHERS, '--good-runs'), by='--onset', why='prints only the beginnings of failures'
    )


def check_options(args: argparse.Namespace) -> None:
    """Raise :class:`UsageError` if a value is not allowed."""
    if args.good_runs is not None and args.good_runs < 1:
        raise UsageError(where='--good-runs', expected='at least 1', found=str(args.good_runs))


def print_good_runs(
    args: argparse.Namespace,
    protocol: Protocol,
    rollouts: Rollouts,
    splits: Mapping[str, list[Split]],
) -> None:
    """Print the false alarms of unseen tasks with and without good runs."""
    from safe_training.evaluation.good_runs_rates import rates_with_good_runs
    from safe_training.reporting.tables.good_runs import good_runs_tables
    from safe_training.reporting.tables.terminal import print_table, wide_console

    params = detector_params(list(splits), args.params)
    with progress_bar('evaluate', quiet=args.json) as progress:
        found = rates_with_good_runs(
            rollouts,
            splits,
            args.good_runs,
            params=params,
            protocol=protocol,
            jobs=jobs_of(args, rollouts, splits.values()),
            progress=progress,
        )
    if args.json:
        rows = [_without_nan(asdict(rates)) for rates in found]
        print(plain_json({'set': str(args.set), 'k': args.good_runs, 'rows': rows}))
        return
    console = wide_console()
    for table in good_runs_tables(found, args.good_runs, protocol.alpha):
        print_table(console, table)


def print_onsets(
    args: argparse.Namespace,
    protocol: Protocol,
    rollouts: Rollouts,
    splits: Mapping[str, list[Split]],
    what: str,
) -> None:
    """Print how well the beginning of failures of unseen tasks is found."""
    from safe_training.evaluation.onset import located_onsets
    from safe_training.reporting.tables.onset import located_table
    from safe_training.reporting.tables.terminal import print_table, wide_console

    params = detector_params(list(splits), args.params)
    with progress_bar('evaluate', quiet=args.json) as progress:
        found = located_onsets(
            list(splits),
            rollouts,
            splits,
            params=params,
            protocol=protocol,
            jobs=jobs_of(args, rollouts, splits.values()),
            progress=progress,
        )
    if args.json:
        rows = [
            {
                'detector': result.detector,
                'failures': result.failures,
                'number': result.report.leads.annotated,
                'median_lead_steps': result.report.leads.median,
                **{
                    source: asdict(getattr(result.report, source))
                    for source in ('alarm', 'onset', 'middle')
                },
            }
            for result in found
        ]
        print(plain_json({'set': str(args.set), 'rows': rows}))
        return
    title = f'{what}, unseen tasks, promised false-alarm rate {percent(protocol.alpha)} %'
    print_table(wide_console(), located_table(found, title))


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nan(value)
        if isinstance(value, Mapping)
        else as_number(value)
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }
