# SPDX-License-Identifier: Apache-2.0
"""The verb ``evaluate``: how well detectors do on tasks never seen in training.

The clock stands beside them.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safe_monitor_node.bands.threshold import BandError
from safe_monitor_node.detectors import DETECTORS
from safe_monitor_node.storage.detector_folder import DetectorFolderError, load_detector
from safe_training.cli.options import (
    UsageError,
    add_protocol_options,
    add_source_options,
    check_alpha,
    detector_params,
    pooling_of,
    protocol_of,
    refuse_options,
)
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.evaluate import Row, evaluate, summarise
from safe_training.evaluation.fit_and_calibrate import labelled
from safe_training.evaluation.judge import judge
from safe_training.evaluation.protocol import (
    PAPER_SPLITS,
    PROTOCOLS,
    ROBUST_SPLITS,
    EvaluationError,
    Protocol,
    ProtocolName,
    choose_splits,
    fold_count,
    numbered_tasks,
)
from safe_training.evaluation.saved_splits import read_splits, saved_protocol, write_splits
from safe_training.evaluation.splits import Split
from safe_training.metrics.operating_curves import (
    AlphaCurve,
    OperatingCurve,
    alpha_curve,
    operating_curve,
)
from safe_training.metrics.part_report import flatten_report, per_task
from safe_training.recordings.rollouts import Rollouts
from safe_training.recordings.sources import load_rollouts
from safe_training.reporting.numbers import as_number, percent, plain_json
from safe_training.reporting.tables.evaluation import detail_tables, promise_lines, report_table
from safe_training.reporting.tables.terminal import print_table, wide_console
from safe_training.sweep.results import Result, canonical, write_results
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout

PAPER_NOTE = (
    'For comparison with published numbers, which are of splits by task number (by name where\n'
    'tasks have no number of their own): three are few, and the earliest stop is taken over all\n'
    'rollouts, those tested on included. Judge by --protocol robust.'
)
EXAMPLE = """examples:
  python -m safe_training evaluate my_set
  python -m safe_training evaluate my_set --detector safe_lstm --detector linear_probe --details
  python -m safe_training evaluate my_set --detector linear_probe --protocol loto
  python -m safe_training evaluate my_set --folder my_detector
"""

DEFAULT_DETECTORS = ('safe_lstm', 'safe_mlp', 'clock')
# What only makes sense where something is fitted.
_FITTING = (
    'seed', 'splits', 'protocol', 'splits_from', 'save_splits', 'unseen_ratio', 'train_ratio',
    'modulation', 'max_steps', 'quantile', 'calibrate_on', 'per_task', 'stop_early', 'params', 'out',
    'benchmark',
)  # fmt: skip


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'evaluate',
        help='evaluate detectors on seen and unseen tasks',
        description=(
            'Fit and evaluate detectors over many task splits, or evaluate a detector folder.'
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--folder', type=Path, help='detector folder to evaluate')
    which.add_argument(
        '--detector',
        action='append',
        choices=sorted(DETECTORS),
        help=f'detector to fit and evaluate, repeatable (default: {", ".join(DEFAULT_DETECTORS)})',
    )
    parser.add_argument(
        '--protocol',
        choices=PROTOCOLS,
        help=f'robust (default): {ROBUST_SPLITS} random task splits; paper: the published splits '
        f'{", ".join(map(str, PAPER_SPLITS))}; loto: leave one task out, once for each',
    )
    parser.add_argument('--splits', type=int, help='number of task splits')
    parser.add_argument(
        '--save-splits', type=Path, metavar='FILE', help='write the splits, for --splits-from'
    )
    parser.add_argument(
        '--details', action='store_true', help='all moments, rates and tasks of the unseen part'
    )
    parser.add_argument(
        '--out', type=Path, metavar='RESULTS', help='also write results that `table` reads'
    )
    parser.add_argument(
        '--benchmark', help='name of the rollouts in results (default: that of SET)'
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    add_protocol_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    if args.splits is not None and args.splits < 1:
        raise UsageError(f'--splits must be at least 1, found {args.splits}')
    check_alpha(args.alpha)
    if args.folder is not None:
        refuse_options(args, '--folder', _FITTING)
    protocol_name: ProtocolName = args.protocol or 'robust'
    if args.splits_from is not None:
        refuse_options(args, '--splits-from', ('seed', 'splits', 'protocol'))
        protocol_name = saved_protocol(args.splits_from)
    protocol = protocol_of(args, protocol_name)
    if args.benchmark is not None and args.out is None:
        raise UsageError('--benchmark names rollouts in results; give --out as well')
    rollouts = load_rollouts(
        args.set, pooling=pooling_of(args), feature=args.feature, skip_bad=args.skip_bad
    )
    rollouts = labelled(rollouts)
    if args.folder is not None:
        return _evaluate_folder(args, rollouts)
    return _evaluate_detectors(args, protocol, rollouts)


def splits_of(
    args: argparse.Namespace, protocol: Protocol, rollouts: Sequence[Rollout]
) -> tuple[list[Split], str]:
    """Return the splits that the options ask for, and what they are.

    Raises
    ------
    UsageError
        An option has no meaning with another one.
    """
    if args.splits_from is not None:
        splits = list(read_splits(args.splits_from, rollouts).splits.values())
        return splits, f'{len(splits)} splits of {args.splits_from} ({protocol.name})'
    if protocol.name == 'loto':
        refuse_options(args, '--protocol loto', ('seed', 'splits'))
        splits = choose_splits(rollouts, protocol, range(fold_count(rollouts)))
        return splits, f'one task left out of {len(splits)}, each in turn'
    if protocol.name == 'paper':
        refuse_options(args, '--protocol paper', ('seed',))
        numbers = PAPER_SPLITS if args.splits is None else tuple(range(args.splits))
        splits = choose_splits(rollouts, protocol, numbers)
        drawn = 'published splits' if numbered_tasks(rollouts) else 'splits drawn by task name'
        return splits, f'{drawn} {", ".join(map(str, numbers))}'
    first = args.seed or 0
    splits = choose_splits(rollouts, protocol, range(first, first + (args.splits or ROBUST_SPLITS)))
    return splits, f'{len(splits)} random task split{"s" if len(splits) > 1 else ""}'


def _evaluate_folder(args: argparse.Namespace, rollouts: Rollouts) -> int:
    loaded = load_detector(args.folder)
    alpha = args.alpha or loaded.alpha
    name = loaded.detector.name
    try:
        judged = judge(loaded, rollouts, alpha)
        reports = judged.report()
    except (EvaluationError, BandError) as error:
        raise DetectorFolderError(f'{args.folder}: {error}') from error
    rows = [
        Row(name, 0, part, flatten_report(report), per_task(report))
        for part, report in reports.items()
    ]
    band, intervals = judged.band, judged.intervals()
    if args.json:
        plain = _plain(rows)
        for row in plain:
            part = row['part']
            row['intervals'] = {k: [as_number(v) for v in i] for k, i in intervals[part].items()}
            row['alpha_curve'] = _curve(alpha_curve(judged.parts[part], band))
            row['operating_curve'] = _curve(operating_curve(judged.parts[part]))
        print(plain_json({'folder': str(args.folder), 'alpha': alpha, 'parts': plain}))
        return 0
    console = wide_console()
    title = f'{name} from {args.folder}, promised false-alarm rate {percent(alpha)} %'
    print_table(console, report_table(rows, title))
    for part, found in intervals.items():
        auc, rate = found['roc_auc_max_score_until_min_length'], found['false_alarm_rate']
        console.print(
            f'{part}: 95 % intervals over rollouts: AUC {percent(auc[0])} to {percent(auc[1])} '
            f'(bootstrap), false alarms {percent(rate[0])} to {percent(rate[1])} (Clopper-Pearson)',
            style='dim',
            soft_wrap=True,
        )
    if not band.at(alpha).can_alarm:
        console.print(f'No alarm can be raised at this alpha: {band.provenance.get("note", "")}')
    if args.details:
        for part in reports:
            for table in detail_tables(rows, part):
                print_table(console, table)
    return 0


def _curve(curve: AlphaCurve | OperatingCurve) -> dict[str, list[float | None]]:
    return {
        name: [as_number(value) for value in values.tolist()]
        for name, values in vars(curve).items()
    }


def _evaluate_detectors(args: argparse.Namespace, protocol: Protocol, rollouts: Rollouts) -> int:
    names = list(dict.fromkeys(args.detector or DEFAULT_DETECTORS))
    params = detector_params(names, args.params)
    splits, what = splits_of(args, protocol, rollouts)
    if args.save_splits is not None:
        write_splits(args.save_splits, rollouts, splits, protocol.name)
    with progress_bar('evaluate', quiet=args.json) as progress:
        rows = evaluate(
            names, rollouts, splits, params=params, protocol=protocol, progress=progress
        )
    if args.out is not None:
        _write(args, protocol, rows, params, rollouts.feature)
    if args.json:
        print(plain_json(_as_json(args, protocol, splits, params, rows)))
        return 0
    console = wide_console()
    title = f'{what} (mean ± std), promised false-alarm rate {percent(protocol.alpha)} %'
    print_table(console, report_table(rows, title))
    for line in promise_lines(rows):
        console.print(line, style='dim', markup=False, soft_wrap=True)
    if protocol.name == 'paper':
        console.print(PAPER_NOTE, style='dim')
    if args.details:
        for table in detail_tables(rows, 'unseen'):
            print_table(console, table)
    return 0


def _as_json(
    args: argparse.Namespace,
    protocol: Protocol,
    splits: Sequence[Split],
    params: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
) -> dict[str, Any]:
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
        'rows': _plain(rows),
    }


def _write(
    args: argparse.Namespace,
    protocol: Protocol,
    rows: Sequence[Row],
    params: Mapping[str, Mapping[str, Any]],
    feature: FeatureSpec,
) -> None:
    """Write the rows as results; another evaluation of the same things replaces them."""
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
        )
        for row in rows
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr(sorted(result.key for result in results)).encode()).hexdigest()
    write_results(args.out / f'evaluate-{digest[:16]}.parquet', results)


def _plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
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
