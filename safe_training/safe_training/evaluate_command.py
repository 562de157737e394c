# SPDX-License-Identifier: Apache-2.0
"""The verb ``evaluate``: how well detectors do on tasks never seen in training.

The clock stands beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safe_monitor_node.band import Band
from safe_monitor_node.detectors import DETECTORS
from safe_monitor_node.folder import DetectorFolderError, LoadedDetector, load_detector
from safe_training.detector_options import (
    UsageError,
    add_protocol_options,
    add_source_options,
    as_number,
    detector_params,
    percent,
    plain_json,
    pooling_of,
    progress_bar,
    protocol_of,
)
from safe_training.evaluation import (
    EvaluationError,
    PartReport,
    Row,
    Summary,
    evaluate_splits,
    flatten_report,
    labelled,
    report_part,
    score_part,
    summarise,
)
from safe_training.metrics import earliest_stops
from safe_training.readers import load_rollouts
from vla_feature_bridge.pooling import FeatureSpec
from vla_feature_bridge.rollout import Rollout

EXAMPLE = """examples:
  python -m safe_training evaluate my_set --folder my_detector
  python -m safe_training evaluate my_set --detector safe_lstm --detector safe_mlp --splits 10
"""

DEFAULT_DETECTORS = ('safe_lstm', 'safe_mlp', 'clock')

COLUMNS = (
    ('AUC', 'roc_auc_by_earliest_stop'),
    ('macro', 'macro_roc_auc_by_earliest_stop'),
    ('clock', 'clock_roc_auc_by_earliest_stop'),
    ('clock\nmacro', 'clock_macro_roc_auc_by_earliest_stop'),
    ('false\nalarms', 'false_alarm_rate'),
    ('de-\ntected', 'detection_rate'),
    ('bal.\nacc.', 'balanced_accuracy'),
    ('T_det', 'detection_time'),
)
LEGEND = (
    'Percent, but for the time to fit and calibrate. AUC: ROC-AUC of the largest score up to the\n'
    'earliest stop of the task, pooled over tasks; macro: its mean over tasks that have both\n'
    'outcomes; clock: the same for a score that is just the step number. False alarms: successes\n'
    'with an alarm while they ran; detected: failures with one; T_det: first alarm as a share of\n'
    'the failure, 100 if none came. The detector "clock" only counts steps: failures run to the\n'
    'time limit, so it detects them all, late. A detector is worth what it does better than that.'
)


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'evaluate',
        help='evaluate detectors on seen and unseen tasks',
        description=(
            'Evaluate a detector folder, or fit and evaluate detectors over random task splits.'
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
        '--splits', type=int, default=1, help='number of random task splits (default 1)'
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    add_protocol_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    if args.splits < 1:
        raise UsageError(f'--splits must be at least 1, found {args.splits}')
    rollouts, feature = load_rollouts(
        args.set, pooling=pooling_of(args), feature=args.feature, skip_bad=args.skip_bad
    )
    rollouts = labelled(rollouts)
    if args.folder is not None:
        return _evaluate_folder(args, rollouts, feature)
    return _evaluate_detectors(args, rollouts)


def parts_of(loaded: LoadedDetector, rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Sort rollouts into the parts that a detector's provenance names; the others are 'new'."""
    part_of = {
        episode: part
        for part, episodes in loaded.provenance.get('episodes', {}).items()
        for episode in episodes
    }
    parts: dict[str, list[Rollout]] = {name: [] for name in ('train', 'seen', 'unseen', 'new')}
    for rollout in rollouts:
        parts[part_of.get(rollout.episode_id, 'new')].append(rollout)
    return {name: members for name, members in parts.items() if members}


def band_for(loaded: LoadedDetector, feature: FeatureSpec) -> Band:
    """Return the detector's band if it can judge rollouts with these features.

    Raises
    ------
    EvaluationError
        The features are not what the detector was fitted on, or there is no band.
    """
    if feature != loaded.feature:
        raise EvaluationError(
            f'the rollouts hold features {feature} of width {feature.dim}, '
            f'the detector was fitted on {loaded.feature} of width {loaded.feature.dim}; '
            'convert with the same feature and pooling'
        )
    if loaded.band is None:
        raise EvaluationError('the detector folder has no band; fit it again')
    return loaded.band


def evaluate_folder(
    loaded: LoadedDetector, rollouts: Sequence[Rollout], feature: FeatureSpec, alpha: float
) -> dict[str, PartReport]:
    """Evaluate a loaded detector on each part of the rollouts.

    Raises
    ------
    EvaluationError
        The features are not what the detector was fitted on, or there is no band.
    """
    band = band_for(loaded, feature)
    stops = earliest_stops([r.task for r in rollouts], [len(r) for r in rollouts])
    return {
        name: report_part(score_part(loaded.detector, members, name), stops, band, alpha)
        for name, members in parts_of(loaded, rollouts).items()
    }


def _evaluate_folder(
    args: argparse.Namespace, rollouts: list[Rollout], feature: FeatureSpec
) -> int:
    loaded = load_detector(args.folder)
    try:
        reports = evaluate_folder(loaded, rollouts, feature, loaded.alpha)
    except EvaluationError as error:
        raise DetectorFolderError(f'{args.folder}: {error}') from error
    rows = [
        Row(loaded.detector.name, 0, part, flatten_report(report))
        for part, report in reports.items()
    ]
    if args.json:
        print(
            plain_json({'folder': str(args.folder), 'alpha': loaded.alpha, 'parts': _plain(rows)})
        )
        return 0
    console = wide_console()
    title = (
        f'{loaded.detector.name} from {args.folder}, '
        f'promised false-alarm rate {percent(loaded.alpha)} %'
    )
    console.print(report_table(rows, title))
    console.print(LEGEND, style='dim')
    return 0


def _evaluate_detectors(args: argparse.Namespace, rollouts: list[Rollout]) -> int:
    names = args.detector or list(DEFAULT_DETECTORS)
    params = detector_params(names, args.params)
    seeds = range(args.seed, args.seed + args.splits)
    protocol = protocol_of(args)
    with progress_bar('evaluate', quiet=args.json) as progress:
        rows = evaluate_splits(names, rollouts, protocol, seeds, params, progress=progress)
    if args.json:
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
        print(
            plain_json(
                {
                    'set': str(args.set),
                    'seeds': list(seeds),
                    'protocol': asdict(protocol),
                    'params': params,
                    'summary': summary,
                    'rows': _plain(rows),
                }
            )
        )
        return 0
    console = wide_console()
    title = (
        f'{len(seeds)} random task split{"s" if len(seeds) > 1 else ""} (mean ± std), '
        f'promised false-alarm rate {percent(protocol.alpha)} %'
    )
    console.print(report_table(rows, title))
    console.print(LEGEND, style='dim')
    return 0


def wide_console() -> Console:
    """Return a console for tables: as wide as the terminal, never too narrow for one in a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            'detector': row.detector,
            'seed': row.seed,
            'part': row.part,
            **{name: as_number(value) for name, value in row.values.items()},
        }
        for row in rows
    ]


def report_table(rows: Sequence[Row], title: str) -> Table:
    """Return the table of detectors by part, mean and std over splits where there are several."""
    # As text: a folder's name may hold what looks like markup.
    table = Table(title=Text(title), title_justify='left', box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column('detector', no_wrap=True)
    table.add_column('part', no_wrap=True)
    for heading, _ in COLUMNS:
        table.add_column(heading, justify='right', no_wrap=True)
    timed = any('fit_seconds' in row.values for row in rows)
    if timed:
        table.add_column('fit\n(s)', justify='right', no_wrap=True)
    for detector, parts in summarise(rows).items():
        for part, values in parts.items():
            cells = [_cell(values[name]) for _, name in COLUMNS]
            if timed:
                cells.append(f'{values["fit_seconds"].mean:.2f}')
            table.add_row(detector, part, *cells, end_section=part == list(parts)[-1])
    return table


def _cell(summary: Summary) -> str:
    if summary.splits > 1:
        return f'{percent(summary.mean)}±{percent(summary.std)}'
    return percent(summary.mean)
