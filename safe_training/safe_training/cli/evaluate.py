# SPDX-License-Identifier: Apache-2.0
"""The verb ``evaluate``: measures detectors on tasks that they were not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_training.cli import evaluate_only
from safe_training.cli.options import (
    add_band_options,
    add_detector_option,
    add_source_options,
    add_split_jobs_option,
    add_split_options,
    add_training_options,
    calibration_note,
    check_splits,
    jobs_of,
    protocol_of,
    rollouts_of,
)
from safe_training.cli.params import detector_params
from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.protocol import (
    CHEAP_SPLITS,
    PAPER_SPLITS,
    PROTOCOLS,
    ROBUST_SPLITS,
    Protocol,
)
from safe_training.reporting.numbers import as_number, percent, plain_json

if TYPE_CHECKING:
    import argparse

    from safe_training.evaluation.evaluate import Row
    from safe_training.evaluation.splits import Split
    from vla_feature_bridge.pooling import FeatureSpec
    from vla_feature_bridge.rollout import Rollout

DESCRIPTION = """Fit detectors on many task splits and evaluate them on seen and unseen tasks."""
EXAMPLE = """examples:
  python -m safe_training evaluate my_set
  python -m safe_training evaluate my_set --detector safe_lstm --detector linear_probe --details
  python -m safe_training evaluate my_set --detector linear_probe --protocol loto --by-task
"""
PAPER_NOTE = (
    'Use the protocol `paper` only for comparison with published numbers. The splits are drawn by '
    'task number (by task name if tasks have no unique number). Three splits are few. The minimum '
    'length is computed from all rollouts, including test rollouts. Use --protocol robust to '
    'choose a detector.'
)
DEFAULT_DETECTORS = ('safe_lstm', 'safe_mlp', 'clock')


def add_arguments(parser: VerbParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    what = f'detector to evaluate, repeatable (default: {", ".join(DEFAULT_DETECTORS)})'
    add_detector_option(parser, what, repeated=True)
    parser.add_argument(
        '--details',
        action='store_true',
        help='also print all evaluation times, all rates and each task of the unseen part',
    )
    parser.add_argument(
        '--by-task',
        action='store_true',
        help='also print the main numbers of each task of the unseen part',
    )
    evaluate_only.add_options(parser)
    parser.add_argument(
        '--out', type=Path, metavar='RESULTS', help='also write results that `table` reads'
    )
    parser.add_argument(
        '--benchmark',
        metavar='NAME',
        help='name of the rollouts in the results (default: the name of SET)',
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    add_split_jobs_option(parser)
    _add_protocol(parser)
    add_split_options(parser)
    add_band_options(parser)
    add_training_options(parser)
    evaluate_only.add_exclusions(parser)


def _add_protocol(parser: VerbParser) -> None:
    """Add the options that choose the task splits."""
    parser.add_argument(
        '--protocol',
        choices=PROTOCOLS,
        help=f'robust (default): {CHEAP_SPLITS} random task splits, or {ROBUST_SPLITS} for a '
        'detector that trains a network; paper: the published splits '
        f'{", ".join(map(str, PAPER_SPLITS))}; loto: leave-one-task-out, one split for each '
        'task',
    )
    parser.add_argument('--splits', type=int, metavar='COUNT', help='number of task splits')
    parser.add_argument(
        '--first-split', type=int, metavar='N', help='number of the first split (default 0)'
    )
    parser.add_argument(
        '--save-splits',
        type=Path,
        metavar='FILE',
        help='write the splits to a file that --splits-from reads',
    )
    numbers = ('--splits', '--first-split')
    parser.exclude(('--protocol', *numbers), by='--splits-from', why='reads existing splits')
    parser.exclude(
        (*numbers, '--unseen-ratio'),
        by='--protocol',
        value='loto',
        why='has one split for each task',
    )
    parser.exclude(('--first-split',), by='--protocol', value='paper', why='begins with split 0')


def run(args: argparse.Namespace) -> int:
    """Fit, evaluate and print."""
    from safe_training.evaluation.evaluate import evaluate
    from safe_training.evaluation.saved_splits import saved_protocol, write_splits
    from vla_feature_bridge.atomic import check_writable

    check_splits(args.splits)
    evaluate_only.check_options(args)
    if args.benchmark is not None and args.out is None:
        raise UsageError(
            where='--benchmark',
            expected='--out',
            found='no --out',
            advice='add --out RESULTS, because the name is written to the results',
        )
    if args.out is not None:
        check_writable(args.out)  # before hours of fitting
    names = list(dict.fromkeys(args.detector or DEFAULT_DETECTORS))
    saved = args.splits_from
    name = (args.protocol or 'robust') if saved is None else saved_protocol(saved)
    protocol = protocol_of(args, names, name)
    rollouts = rollouts_of(args)
    params = detector_params(names, args.params)
    splits, what = splits_of(args, protocol, rollouts, names)
    if args.save_splits is not None:
        write_splits(args.save_splits, rollouts, _longest(splits), protocol.name)
    if args.good_runs is not None:
        evaluate_only.print_good_runs(args, protocol, rollouts, splits)
        return 0
    if args.onset:
        evaluate_only.print_onsets(args, protocol, rollouts, splits, what)
        return 0
    with progress_bar('evaluate', quiet=args.json) as progress:
        rows = evaluate(
            names,
            rollouts,
            splits,
            params=params,
            protocol=protocol,
            jobs=jobs_of(args, rollouts, splits.values()),
            progress=progress,
        )
    if args.out is not None:
        _write(args, protocol, rows, params, rollouts.feature)
    if args.json:
        print(plain_json(_as_json(args, protocol, _longest(splits), params, rows)))
    else:
        parts = [[rollouts[i] for i in split.train] for split in _longest(splits)]
        note = calibration_note(args, names, protocol, parts)
        _print(args, protocol, rows, (what, note))
    return 0


def splits_of(
    args: argparse.Namespace,
    protocol: Protocol,
    rollouts: Sequence[Rollout],
    detectors: Sequence[str],
) -> tuple[dict[str, list[Split]], str]:
    """Return the splits of each detector from the options, and their description."""
    if args.splits_from is None and args.splits is None and protocol.name == 'robust':
        return _default_splits(args, protocol, rollouts, detectors)
    splits, what = _same_splits(args, protocol, rollouts)
    return dict.fromkeys(detectors, splits), what


def _default_splits(
    args: argparse.Namespace,
    protocol: Protocol,
    rollouts: Sequence[Rollout],
    detectors: Sequence[str],
) -> tuple[dict[str, list[Split]], str]:
    """Return random task splits: more splits for detectors that are quick to fit."""
    from safe_training.evaluation.evaluate import default_splits
    from safe_training.evaluation.protocol import choose_splits

    counts = {name: default_splits(name) for name in detectors}
    first = args.first_split or 0
    splits = choose_splits(rollouts, protocol, range(first, first + max(counts.values())))
    what = ', '.join(
        f'{count} random task splits'
        + (
            f' ({", ".join(n for n in counts if counts[n] == count)})'
            if len(set(counts.values())) > 1
            else ''
        )
        for count in sorted(set(counts.values()), reverse=True)
    )
    return {name: splits[:count] for name, count in counts.items()}, what


def _longest(splits: Mapping[str, list[Split]]) -> list[Split]:
    """Return the splits of the detector with the most splits; the others use the first of these."""
    return max(splits.values(), key=len)


def _same_splits(
    args: argparse.Namespace, protocol: Protocol, rollouts: Sequence[Rollout]
) -> tuple[list[Split], str]:
    """Return the splits of all detectors, and their description."""
    from safe_training.evaluation.protocol import choose_splits, fold_count, numbered_tasks
    from safe_training.evaluation.saved_splits import read_splits

    if args.splits_from is not None:
        splits = list(read_splits(args.splits_from, rollouts).splits.values())
        return splits, f'{len(splits)} splits of {args.splits_from} ({protocol.name})'
    if protocol.name == 'loto':
        splits = choose_splits(rollouts, protocol, range(fold_count(rollouts)))
        return splits, f'leave-one-task-out over {len(splits)} tasks'
    if protocol.name == 'paper':
        numbers = PAPER_SPLITS if args.splits is None else tuple(range(args.splits))
        splits = choose_splits(rollouts, protocol, numbers)
        drawn = 'published splits' if numbered_tasks(rollouts) else 'splits by task name'
        return splits, f'{drawn} {", ".join(map(str, numbers))}'
    first = args.first_split or 0
    splits = choose_splits(rollouts, protocol, range(first, first + args.splits))
    return splits, f'{len(splits)} random task split{"s" if len(splits) > 1 else ""}'


def _print(
    args: argparse.Namespace, protocol: Protocol, rows: Sequence[Row], texts: tuple[str, str]
) -> None:
    """Print the rows; ``texts`` describe the splits and the calibration of the bands."""
    from safe_training.reporting.tables.evaluation import (
        by_task_table,
        comparison_lines,
        detail_tables,
        promise_lines,
        report_table,
    )
    from safe_training.reporting.tables.terminal import print_table, wide_console

    console = wide_console()
    what, calibration = texts
    title = f'{what} (mean ± std), promised false-alarm rate {percent(protocol.alpha)} %'
    print_table(console, report_table(rows, title))
    console.print(calibration, style='dim', markup=False)
    for line in (*promise_lines(rows), *comparison_lines(rows)):
        console.print(line, style='dim', markup=False)
    if protocol.name == 'paper':
        console.print(PAPER_NOTE, style='dim')
    if args.by_task:
        print_table(console, by_task_table(rows, 'unseen'))
    if args.details:
        for table in detail_tables(rows, 'unseen'):
            print_table(console, table)


def _as_json(
    args: argparse.Namespace,
    protocol: Protocol,
    splits: Sequence[Split],
    params: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
) -> dict[str, Any]:
    from safe_training.evaluation.summary import summarise

    summary = {
        detector: {
            part: {
                name: {key: as_number(value) for key, value in asdict(s).items()}
                for name, s in values.items()
            }
            for part, values in parts.items()
        }
        for detector, parts in summarise(rows).items()
    }
    return {
        'set': str(args.set),
        'splits': [split.number for split in splits],
        'protocol': asdict(protocol),
        'params': params,
        'summary': summary,
        'rows': plain_rows(rows),
    }


def _write(
    args: argparse.Namespace,
    protocol: Protocol,
    rows: Sequence[Row],
    params: Mapping[str, Mapping[str, Any]],
    feature: FeatureSpec,
) -> None:
    """Write the rows as results; the same evaluation replaces them later."""
    from safe_training.sweep.results import Result, canonical, write_results

    benchmark = args.benchmark or Path(args.set).stem
    results = [
        Result(
            benchmark,
            protocol.name,
            row.detector,
            canonical(params.get(row.detector, {})),
            str(feature),
            row.split,
            row.part,
            row.values,
            row.tasks,
        )
        for row in rows
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr(sorted(result.key for result in results)).encode()).hexdigest()
    write_results(args.out / f'evaluate-{digest[:16]}.parquet', results)


def plain_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON values."""
    return [
        {
            'detector': row.detector,
            'split': row.split,
            'part': row.part,
            **{name: as_number(value) for name, value in row.values.items()},
            'per_task': {
                task: {name: as_number(value) for name, value in values.items()}
                for task, values in row.tasks.items()
            },
        }
        for row in rows
    ]
