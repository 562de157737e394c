# SPDX-License-Identifier: Apache-2.0
"""The verb ``judge``: evaluates a detector folder on the rollouts of a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_training.cli.evaluate import plain_rows
from safe_training.cli.options import (
    add_folder,
    add_source_options,
    check_alpha,
    rollouts_of,
)
from safe_training.cli.parsing import UsageError
from safe_training.reporting.numbers import as_number, percent, plain_json

if TYPE_CHECKING:
    import argparse

    from safe_training.evaluation.evaluate import Row
    from safe_training.evaluation.judge import JudgedSet
    from safe_training.evaluation.live_parity import LiveParity

DESCRIPTION = """Evaluate a detector folder on a set, part by part: the training rollouts ("train"),
the held-out rollouts of the same tasks ("seen"), the rollouts of tasks that were not used for
training ("unseen"), and rollouts that the folder does not list ("new")."""
EXAMPLE = """examples:
  python -m safe_training judge my_set my_detector
  python -m safe_training judge my_set my_detector --alpha 0.2 --details
  python -m safe_training judge my_set my_detector --bands --alpha 0.1 --alpha 0.2
  python -m safe_training judge monday my_detector --live-parity monday
  python -m safe_training judge my_set my_detector --onset
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    add_folder(parser)
    parser.add_argument(
        '--alpha',
        type=float,
        action='append',
        metavar='RATE',
        help='promised false-alarm rate (default: the rate stored in the detector folder); with '
        '--bands, repeat --alpha for several rates (default: all rates of the band)',
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--details',
        action='store_true',
        help='also print all evaluation times, all rates and each task of each part',
    )
    what.add_argument(
        '--by-task', action='store_true', help='also print the main numbers of each task'
    )
    what.add_argument(
        '--bands',
        action='store_true',
        help='print only the promised and the realised false-alarm rates, for all rates of the '
        'band or for each --alpha',
    )
    what.add_argument(
        '--onset',
        action='store_true',
        help='print only the failures: the first alarm, and the step at which the failure began, '
        'estimated from all scores of the rollout',
    )
    live = parser.add_argument_group('a live session')
    live.add_argument(
        '--live-parity',
        type=Path,
        metavar='RECORDING',
        help='also compare with the scores of a monitor (safe/score) in this recording of the '
        'same episodes, and list each difference; the exit status is 1 if there is a difference',
    )
    live.add_argument(
        '--live-topic',
        default='',
        metavar='TOPIC',
        help='topic of these scores, if the recording has the scores of several monitors',
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')


def run(args: argparse.Namespace) -> int:
    """Score, evaluate and print."""
    from safe_monitor_node.bands.threshold import BandError
    from safe_monitor_node.storage.detector_folder import DetectorFolderError, load_detector
    from safe_training.evaluation.judge import judge
    from safe_training.evaluation.protocol import EvaluationError

    if args.live_topic and args.live_parity is None:
        raise UsageError('--live-topic: expected --live-parity RECORDING too, found none')
    for option in ('bands', 'onset'):
        if args.live_parity is not None and getattr(args, option):
            raise UsageError(
                f'--live-parity cannot be used with --{option}; remove one of the two options'
            )
    alphas = sorted(set(args.alpha or ()))
    for alpha in alphas:
        check_alpha(alpha)
    if len(alphas) > 1 and not args.bands:
        raise UsageError(
            where='--alpha',
            expected='one rate',
            found=', '.join(map(str, alphas)),
            advice='give one rate, or add --bands to print several rates',
        )
    rollouts = rollouts_of(args)
    loaded = load_detector(args.folder)
    try:
        for alpha in alphas:
            loaded.band.at(alpha)
        judged = judge(loaded, rollouts, alphas[0] if alphas else None)
        parity = _parity(args, judged)
        if args.bands:
            _print_bands(args, judged, alphas)
        elif args.onset:
            _print_onsets(args, judged)
        else:
            _print_parts(args, judged, parity)
    except (EvaluationError, BandError) as error:
        raise DetectorFolderError(f'{args.folder}: {error}') from error
    return 1 if parity is not None and parity.differences else 0


def _parity(args: argparse.Namespace, judged: JudgedSet) -> LiveParity | None:
    """Return the comparison with a live session; None without this option."""
    if args.live_parity is None:
        return None
    from safe_training.evaluation.live_parity import compare_live
    from safe_training.recordings.live_scores import read_live_scores

    return compare_live(judged, read_live_scores(args.live_parity, args.live_topic))


def _rows(judged: JudgedSet) -> list[Row]:
    from safe_training.evaluation.evaluate import Row
    from safe_training.metrics.part_report import flatten_report, per_task

    name = judged.detector.detector.name
    return [
        Row(name, 0, part, flatten_report(report), per_task(report))
        for part, report in judged.report().items()
    ]


def _print_parts(args: argparse.Namespace, judged: JudgedSet, parity: LiveParity | None) -> None:
    rows = _rows(judged)
    if args.json:
        parts = [_plain_part(row, judged) for row in plain_rows(rows)]
        found: dict[str, Any] = {'folder': str(args.folder), 'alpha': judged.alpha, 'parts': parts}
        if parity is not None:
            found['live'] = _plain_parity(parity)
        print(plain_json(found))
        return
    _print_tables(args, judged, rows)
    if parity is not None:
        _print_parity(parity)


def _plain_parity(parity: LiveParity) -> dict[str, Any]:
    return {
        'episodes': parity.episodes,
        'steps': parity.steps,
        'largest_difference': as_number(parity.largest),
        'differences': [asdict(difference) for difference in parity.differences],
        'parts': plain_rows(_rows(parity.live)),
    }


def _print_parity(parity: LiveParity) -> None:
    from safe_training.reporting.tables.evaluation import report_table
    from safe_training.reporting.tables.live_parity import difference_table, parity_line
    from safe_training.reporting.tables.terminal import print_table, wide_console

    console = wide_console()
    if rows := _rows(parity.live):
        print_table(console, report_table(rows, 'the same table from the scores of the monitor'))
    if parity.differences:
        print_table(console, difference_table(parity))
    console.print(parity_line(parity), markup=False)


def _plain_part(row: dict[str, Any], judged: JudgedSet) -> dict[str, Any]:
    from safe_training.metrics.operating_curves import alpha_curve, operating_curve

    scored, intervals = judged.parts[row['part']], judged.intervals()[row['part']]
    return {
        **row,
        'intervals': {name: [as_number(end) for end in ends] for name, ends in intervals.items()},
        'alpha_curve': _plain_curve(alpha_curve(scored, judged.band)),
        'operating_curve': _plain_curve(operating_curve(scored)),
    }


def _plain_curve(curve: object) -> dict[str, list[float | None]]:
    return {
        name: [as_number(value) for value in values.tolist()]
        for name, values in vars(curve).items()
    }


def _print_tables(args: argparse.Namespace, judged: JudgedSet, rows: Sequence[Row]) -> None:
    from safe_training.reporting.tables.evaluation import (
        by_task_table,
        detail_tables,
        promise_lines,
        report_table,
    )
    from safe_training.reporting.tables.numbers import INTERVALS_NOTE, fragile_line
    from safe_training.reporting.tables.terminal import print_table, wide_console

    console = wide_console()
    name, alpha, band = judged.detector.detector.name, judged.alpha, judged.band
    title = f'{name} from {args.folder}, promised false-alarm rate {percent(alpha)} %'
    print_table(console, report_table(rows, title))
    for part, found in judged.intervals().items():
        auc, rate = found['roc_auc_max_score_until_min_length'], found['false_alarm_rate']
        console.print(
            f'{part}: 95 % intervals over rollouts of these tasks: AUC {percent(auc[0])} to '
            f'{percent(auc[1])} '
            f'(bootstrap), false alarms {percent(rate[0])} to {percent(rate[1])} (Clopper-Pearson)',
            style='dim',
        )
    if not band.at(alpha).can_alarm:
        console.print(f'No alarm is possible at this alpha. {band.provenance.get("note", "")}')
    lines = [line for part in judged.parts for line in promise_lines(rows, part)]
    for line in (*lines, INTERVALS_NOTE, fragile_line(rows)):
        if line:
            console.print(line, style='dim', markup=False)
    for part in judged.parts:
        if args.by_task:
            print_table(console, by_task_table(rows, part))
        if args.details:
            for table in detail_tables(rows, part):
                print_table(console, table)


def _print_onsets(args: argparse.Namespace, judged: JudgedSet) -> None:
    from safe_training.reporting.tables.onset import failures_table
    from safe_training.reporting.tables.terminal import print_table, wide_console

    failures = [rollout for rollout in judged.rollouts if rollout.failed]
    if args.json:
        rows = [
            {
                'episode_id': rollout.episode_id,
                'task': rollout.task,
                'part': rollout.part,
                'steps': len(rollout),
                'alarm_step': rollout.alarm_step,
                'onset_step': rollout.onset_step,
                'failure_step': rollout.failure_step,
            }
            for rollout in failures
        ]
        print(plain_json({'folder': str(args.folder), 'alpha': judged.alpha, 'failures': rows}))
        return
    name = judged.detector.detector.name
    title = f'{name} from {args.folder}, {len(failures)} failures'
    print_table(wide_console(), failures_table(failures, title))


def _print_bands(args: argparse.Namespace, judged: JudgedSet, alphas: Sequence[float]) -> None:
    from rich.text import Text

    from safe_training.reporting.tables.bands import folder_table, promise_text
    from safe_training.reporting.tables.terminal import print_table, wide_console

    rates = judged.realised_rates(alphas or None)
    if args.json:
        rows = [
            {
                name: as_number(value) if isinstance(value, float) else value
                for name, value in asdict(rate).items()
            }
            for rate in rates
        ]
        print(plain_json({'folder': str(args.folder), 'band': judged.band.meta(), 'rows': rows}))
        return
    detector = judged.detector
    console = wide_console()
    console.print(Text(promise_text(judged.band, detector.alpha)))
    print_table(console, folder_table(rates, f'{detector.detector.name} from {args.folder}'))
