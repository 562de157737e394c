# SPDX-License-Identifier: Apache-2.0
"""The verb ``fit``: rollouts in, a detector folder with a calibrated band out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from safe_monitor_node.detectors import DETECTORS, make_detector
from safe_monitor_node.storage.detector_folder import DetectorFolderError, describe
from safe_training.cli.options import (
    add_protocol_options,
    add_source_options,
    detector_params,
    pooling_of,
    protocol_of,
)
from safe_training.cli.progress import progress_bar
from safe_training.evaluation.fit_and_calibrate import fit_and_calibrate, labelled
from safe_training.evaluation.protocol import choose_split
from safe_training.evaluation.provenance import describe_task_bands
from safe_training.evaluation.saved_splits import saved_split
from safe_training.recordings.sources import load_rollouts
from safe_training.reporting.numbers import plain_json

EXAMPLE = """example:
  python -m safe_training fit my_set --detector safe_lstm --out my_detector --param epochs=200
"""


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'fit',
        help='fit a detector and calibrate its band',
        description=(
            'Fit a detector on the seen tasks of a rollout set, calibrate its band on their '
            'held-out successes, and write a detector folder.'
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    parser.add_argument(
        '--detector', required=True, choices=sorted(DETECTORS), help='which detector'
    )
    parser.add_argument(
        '--out', required=True, type=Path, metavar='FOLDER', help='detector folder to write'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace an existing detector folder'
    )
    parser.add_argument('--json', action='store_true', help='print what was made as JSON')
    add_protocol_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit, calibrate, write."""
    if args.out.exists() and not args.overwrite:
        raise DetectorFolderError(f'{args.out}: exists already; give another --out, or --overwrite')
    params = detector_params([args.detector], args.params)[args.detector]
    detector = make_detector(args.detector, **params)
    protocol = protocol_of(args)
    rollouts = load_rollouts(
        args.set, pooling=pooling_of(args), feature=args.feature, skip_bad=args.skip_bad
    )
    feature = rollouts.feature
    rollouts = labelled(rollouts)
    number = args.seed or 0
    if args.splits_from is not None:
        split = saved_split(args.splits_from, rollouts, number)
    else:
        split = choose_split(rollouts, number, protocol)
    with progress_bar(f'fit {args.detector}', quiet=args.json) as progress:
        fitted = fit_and_calibrate(detector, rollouts, split, protocol, progress=progress)
    band = fitted.band
    fitted.save(args.out, overwrite=args.overwrite)
    if args.json:
        print(plain_json(describe(args.out)))
        return 0
    # Plain: a feature such as hidden_states[token=last] is no markup, and a path is never broken.
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f'{args.detector} fitted on {len(split.train)} rollouts of {len(split.seen_tasks)} tasks '
        f'({feature}, width {feature.dim})'
    )
    console.print(
        f'band of {band.length} steps from '
        f'{band.n_center + band.n_calibration} '
        f'{band.provenance["calibrated_on"]}; alpha {protocol.alpha:g}'
    )
    if not band.at(protocol.alpha).can_alarm:
        console.print(f'note: {band.provenance["note"]}')
    if protocol.per_task:
        console.print(describe_task_bands(band, list(map(str, split.seen_tasks)), protocol.alpha))
    console.print(f'never used: {len(split.unseen)} rollouts of {len(split.unseen_tasks)} tasks')
    console.print(f'written to {args.out}')
    return 0
