# SPDX-License-Identifier: Apache-2.0
"""The verb ``fit``: fits and calibrates a detector and writes its detector folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from safe_monitor_node.detectors.registry import make_detector
from safe_training.cli.calibrate import add_k_option, check_k, print_thresholds
from safe_training.cli.options import (
    add_band_options,
    add_detector_option,
    add_source_options,
    add_split_options,
    add_training_options,
    calibration_note,
    protocol_of,
    rollouts_of,
)
from safe_training.cli.params import detector_params
from safe_training.cli.parsing import UsageError, VerbParser
from safe_training.cli.progress import progress_bar
from safe_training.reporting.numbers import plain_json

if TYPE_CHECKING:
    from safe_monitor_node.calibrated_detector import CalibratedDetector
    from safe_training.evaluation.splits import Split
    from safe_training.recordings.rollouts import Rollouts

DESCRIPTION = """Fit a detector on the seen tasks of a rollout set, calibrate its band on successes
of these tasks, and write a detector folder."""
EXAMPLE = """example:
  python -m safe_training fit my_set --detector safe_lstm --out my_detector --param epochs=200
"""


def add_arguments(parser: VerbParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    add_detector_option(parser, 'detector to fit', required=True)
    parser.add_argument(
        '--out', required=True, type=Path, metavar='FOLDER', help='detector folder to write'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace an existing detector folder'
    )
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    parser.add_argument(
        '--split', type=int, default=0, metavar='N', help='number of the task split (default 0)'
    )
    parser.add_argument(
        '--good-runs',
        type=Path,
        metavar='GOOD_RUNS',
        help='also calibrate thresholds for the tasks of these successful rollouts, as '
        '`calibrate` does',
    )
    add_k_option(parser)
    add_split_options(parser)
    add_band_options(parser)
    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Fit, calibrate, write."""
    from safe_monitor_node.storage.detector_folder import DetectorFolderError, describe
    from safe_training.evaluation.fit_and_calibrate import fit_and_calibrate
    from safe_training.evaluation.good_runs import new_thresholds, with_thresholds
    from safe_training.evaluation.protocol import choose_split
    from safe_training.evaluation.saved_splits import saved_split
    from vla_feature_bridge.atomic import check_writable

    if args.out.exists() and not args.overwrite:
        raise DetectorFolderError(
            where=str(args.out),
            expected='a new folder',
            found='an existing folder',
            advice='give another folder with --out, or add --overwrite',
        )
    check_k(args.k)
    if args.k is not None and args.good_runs is None:
        raise UsageError(
            where='--k',
            expected='--good-runs',
            found='no --good-runs',
            advice='add --good-runs GOOD_RUNS, because K is a number of good runs',
        )
    check_writable(args.out)  # check this before hours of fitting
    params = detector_params([args.detector], args.params)[args.detector]
    detector = make_detector(args.detector, **params)
    protocol = protocol_of(args, [args.detector])
    rollouts = rollouts_of(args)
    good_runs = None if args.good_runs is None else _good_runs_of(args)
    if args.splits_from is not None:
        split = saved_split(args.splits_from, rollouts, args.split)
    else:
        split = choose_split(rollouts, args.split, protocol)
    with progress_bar(f'fit {args.detector}', quiet=args.json) as progress:
        fitted = fit_and_calibrate(detector, rollouts, split, protocol, progress=progress)
    thresholds = [] if good_runs is None else new_thresholds(fitted, good_runs, args.k)
    if good_runs is not None:
        fitted = with_thresholds(fitted, thresholds, good_runs.source)
    fitted.save(args.out, overwrite=args.overwrite)
    if args.json:
        print(plain_json(describe(args.out)))
    else:
        training = [rollouts[i] for i in split.train]
        note = calibration_note(args, [args.detector], protocol, [training])
        _print_fitted(args, fitted, split, note)
        if thresholds:
            print_thresholds(fitted, thresholds)
    return 0


def _good_runs_of(args: argparse.Namespace) -> Rollouts:
    """Return the good runs; they are read before the training, which can take hours."""
    named = argparse.Namespace(**{**vars(args), 'set': args.good_runs})
    return rollouts_of(named, need_outcomes=False)


def _print_fitted(
    args: argparse.Namespace, fitted: CalibratedDetector, split: Split, note: str
) -> None:
    from rich.console import Console

    from safe_training.evaluation.provenance import describe_task_bands, probability_text

    band, alpha = fitted.band, fitted.alpha
    # Print without rich markup: a name such as hidden_states[token=last] must not be read as
    # markup, and a path must not be wrapped.
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f'{args.detector} fitted on {len(split.train)} rollouts of {len(split.seen_tasks)} tasks '
        f'({fitted.feature}, width {fitted.feature.dim})'
    )
    console.print(
        f'band of {band.length} steps from {band.n_center + band.n_calibration} '
        f'{band.provenance["calibrated_on"]}; alpha {alpha:g}'
    )
    console.print(note)
    if not band.at(alpha).can_alarm:
        console.print(f'note: {band.provenance["note"]}')
    console.print(probability_text(fitted.probability))
    if fitted.seen_scores is None:
        console.print(f'note: no scores for good runs: {fitted.provenance["no_seen_scores"]}')
    if args.per_task:
        console.print(describe_task_bands(band, list(map(str, split.seen_tasks)), alpha))
    console.print(
        f'not used: {len(split.unseen)} rollouts of {len(split.unseen_tasks)} unseen tasks'
    )
    console.print(f'written to {args.out}')
