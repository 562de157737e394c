# SPDX-License-Identifier: Apache-2.0
"""The verb ``judge``: how well a detector folder does on the rollouts of a set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_training.cli.evaluate import plain_rows, print_details
from safe_training.cli.options import (
    add_folder_alpha,
    add_source_options,
    check_alpha,
    rollouts_of,
)
from safe_training.reporting.numbers import as_number, percent, plain_json

if TYPE_CHECKING:
    import argparse

    from safe_monitor_node.bands.band import Band
    from safe_monitor_node.calibrated_detector import CalibratedDetector
    from safe_training.metrics.part_report import PartReport
    from safe_training.metrics.scored import ScoredRollout
    from vla_feature_bridge.rollout import Rollout

DESCRIPTION = """Evaluate a detector folder on a set: on the rollouts that it was trained on, on those
that it held out, on those of unseen tasks, and on rollouts that it does not know ("new")."""
EXAMPLE = """examples:
  python -m safe_training judge my_set my_detector
  python -m safe_training judge my_set my_detector --alpha 0.2 --details
  python -m safe_training judge my_set my_detector --bands
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    parser.add_argument(
        'folder', type=Path, metavar='FOLDER', help='detector folder that `fit` wrote'
    )
    add_folder_alpha(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--details',
        action='store_true',
        help='all evaluation times, rates and tasks of each part as well',
    )
    what.add_argument(
        '--bands',
        action='store_true',
        help='instead: the promised and the realised false-alarm rate at every alpha of the band, '
        'or at --alpha',
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')


def run(args: argparse.Namespace) -> int:
    """Score, evaluate and print."""
    from safe_monitor_node.bands.threshold import BandError
    from safe_monitor_node.storage.detector_folder import DetectorFolderError, load_detector
    from safe_training.evaluation.evaluate import score_part
    from safe_training.evaluation.judge import band_for, parts_of
    from safe_training.evaluation.protocol import EvaluationError

    check_alpha(args.alpha)
    rollouts, feature = rollouts_of(args)
    loaded = load_detector(args.folder)
    try:
        band = band_for(loaded, feature)
        members = parts_of(loaded, rollouts)
        parts = {part: score_part(loaded.detector, members[part], part) for part in members}
        if args.bands:
            return _judge_bands(args, loaded, band, members, parts)
        return _judge_parts(args, loaded, band, parts)
    except (EvaluationError, BandError) as error:
        raise DetectorFolderError(f'{args.folder}: {error}') from error


def _judge_parts(
    args: argparse.Namespace,
    loaded: CalibratedDetector,
    band: Band,
    parts: dict[str, list[ScoredRollout]],
) -> int:
    from safe_training.evaluation.evaluate import Row
    from safe_training.metrics.operating_curves import alpha_curve, operating_curve
    from safe_training.metrics.part_report import flatten_report, per_task, report_part
    from safe_training.metrics.scored import min_lengths
    from safe_training.reporting.tables.evaluation import (
        LEGEND,
        print_table,
        report_table,
        wide_console,
    )

    alpha = args.alpha or loaded.alpha
    name = loaded.detector.name
    scored = [s for members in parts.values() for s in members]
    shortest = min_lengths([s.task for s in scored], [len(s) for s in scored])
    probability = loaded.detector.gives_probability
    reports = {
        part: report_part(members, shortest, band, alpha, probability=probability)
        for part, members in parts.items()
    }
    rows = [
        Row(name, 0, part, flatten_report(report), per_task(report))
        for part, report in reports.items()
    ]
    intervals = {
        part: rollout_intervals(members, reports[part], shortest) for part, members in parts.items()
    }
    if args.json:
        plain = plain_rows(rows)
        for row in plain:
            part = row['part']
            row['intervals'] = {k: [as_number(v) for v in i] for k, i in intervals[part].items()}
            row['alpha_curve'] = _plain_curve(alpha_curve(parts[part], band))
            row['operating_curve'] = _plain_curve(operating_curve(parts[part]))
        print(plain_json({'folder': str(args.folder), 'alpha': alpha, 'parts': plain}))
        return 0
    console = wide_console()
    title = f'{name} from {args.folder}, promised false-alarm rate {percent(alpha)} %'
    print_table(console, report_table(rows, title))
    console.print(LEGEND, style='dim')
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
            print_details(console, rows, part)
    return 0


def _plain_curve(curve: object) -> dict[str, list[float | None]]:
    return {
        name: [as_number(value) for value in values.tolist()]
        for name, values in vars(curve).items()
    }


def rollout_intervals(
    scored: Sequence[ScoredRollout], report: PartReport, stops: Mapping[Any, int]
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals over the rollouts of a part; NaN where a number does not exist."""
    import numpy as np
    from scipy.stats import binomtest

    from safe_training.metrics.bootstrap import bootstrap_auc_interval
    from safe_training.metrics.scored import labels, max_scores_until_min_length

    auc = bootstrap_auc_interval(
        max_scores_until_min_length(scored, stops),
        labels(scored),
        generator=np.random.default_rng(0),
    )
    pooled = report.alarms.pooled
    rates = {'roc_auc_max_score_until_min_length': (auc.low, auc.high)}
    for name, count in (
        ('false_alarm_rate', pooled.n_successes),
        ('detection_rate', pooled.n_failures),
    ):
        rates[name] = (np.nan, np.nan)
        if count:
            found = binomtest(round(getattr(pooled, name) * count), count).proportion_ci(0.95)
            rates[name] = (float(found.low), float(found.high))
    return rates


def _judge_bands(
    args: argparse.Namespace,
    loaded: CalibratedDetector,
    band: Band,
    members: dict[str, list[Rollout]],
    parts: dict[str, list[ScoredRollout]],
) -> int:
    from rich.text import Text

    from safe_training.cli.compare_bands import FEWEST
    from safe_training.reporting.tables.evaluation import (
        empty_table,
        print_table,
        shortened,
        wide_console,
    )

    alphas = [args.alpha] if args.alpha else sorted(band.alphas.tolist())
    rows = [
        row for part in parts for row in _part_rows(part, members[part], parts[part], band, alphas)
    ]
    if args.json:
        print(plain_json({'folder': str(args.folder), 'band': band.meta(), 'rows': rows}))
        return 0
    console = wide_console()
    console.print(Text(_promise(band, loaded.alpha)), soft_wrap=True)
    table = empty_table(
        f'{loaded.detector.name} from {args.folder}',
        ['rollouts'],
        ('successes', 'promised', 'realised', '95 % interval', 'worst task', 'no alarm\npossible'),
    )
    for row in rows:
        table.add_row(
            row['rollouts'],
            str(row['successes']),
            percent(row['promised']),
            percent(row['realised']) + ('!' if row['above'] else ''),
            '-' if row['low'] is None else f'{percent(row["low"])} to {percent(row["high"])}',
            '-' if row['worst_task'] is None
            else Text(f'{percent(row["worst_rate"])} {shortened(row["worst_task"])}'),
            'yes' if row['infinite'] else '',
        )  # fmt: skip
    print_table(console, table)
    console.print(
        'Percent of the successes that raised an alarm. Interval: Clopper-Pearson. Rollouts that\n'
        'the band was made from are shown for completeness and are no evidence. "!": even the\n'
        'lower end of the interval exceeds the promise. Worst task: of those with '
        f'{FEWEST} successes\nor more.',
        style='dim',
    )
    return 0


def _promise(band: Band, alpha: float) -> str:
    made = band.provenance
    text = (
        f'Band {band.kind} of {band.length} steps, ranked on {band.n_calibration} rollouts'
        + (f' (shape from {band.n_center} others)' if band.n_center else '')
        + (f': {made["calibrated_on"]}' if made.get('calibrated_on') else '')
        + '.'
    )
    own = [t for t in band.tasks if band.at(alpha, t).task]
    if own:
        text += f' Bands of their tasks at alpha {alpha:g}: {", ".join(own)}.'
    if made.get('scores') == 'loto':
        text += ' Scores without their task: a guide to new tasks, no finite-sample promise.'
    if made.get('note'):
        text += f' {made["note"]}'
    return text


def _part_rows(
    part: str,
    members: Sequence[Rollout],
    scored: Sequence[Any],
    band: Band,
    alphas: Sequence[float],
) -> Iterator[dict[str, Any]]:
    from scipy.stats import binomtest

    from safe_training.cli.compare_bands import worst_task
    from safe_training.evaluation.band_comparison import Tally
    from safe_training.metrics.alarms import band_alarms

    made = band.provenance
    used = {*made.get('calibration_rollouts', ()), *made.get('center_rollouts', ())}
    groups = {
        f'{part}, calibrated on': [i for i, r in enumerate(members) if r.episode_id in used],
        part: [i for i, r in enumerate(members) if r.episode_id not in used],
    }
    for name, indices in groups.items():
        successes = [scored[i] for i in indices if not scored[i].failed]
        if not successes:
            continue
        for alpha in alphas:
            tally = Tally()
            for rollout, alarm in zip(successes, band_alarms(successes, band, alpha), strict=True):
                tally.add(str(rollout.task), alarm is not None)
            alarms, count = sum(tally.alarms.values()), len(successes)
            interval = binomtest(alarms, count).proportion_ci(0.95)
            worst = worst_task([tally])
            yield {
                'rollouts': name,
                'successes': count,
                'promised': alpha,
                'realised': tally.rate,
                'low': float(interval.low),
                'high': float(interval.high),
                'above': bool(interval.low > alpha),
                'worst_task': None if worst is None else worst[0],
                'worst_rate': None if worst is None else worst[1],
                'infinite': not band.at(alpha).can_alarm,
            }
