# SPDX-License-Identifier: Apache-2.0
"""The verb ``figures``: every figure that a detector and a set give, as PNG and vector files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from safe_monitor_node.storage.detector_folder import load_detector
from safe_training.cli.options import add_source_options, check_alpha, pooling_of
from safe_training.evaluation.fit_and_calibrate import labelled
from safe_training.evaluation.judge import JudgedSet, judge
from safe_training.evaluation.protocol import EvaluationError
from safe_training.recordings.sources import load_rollouts
from safe_training.reporting.figures.catalogue import FigureData, figures_of
from safe_training.reporting.figures.projectors import PROJECTORS
from safe_training.reporting.figures.style import save
from safe_training.reporting.numbers import plain_json

EXAMPLE = """examples:
  python -m safe_training figures my_set --folder my_detector --out figures
  python -m safe_training figures my_set --folder my_detector --out figures --projector tsne
"""
FORMATS = ('png', 'pdf', 'svg')


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'figures',
        help='draw feature maps, score curves, operating points, detections',
        description='Draw what a detector folder does on a set of labelled rollouts.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    add_folder_options(parser)
    parser.add_argument('--out', type=Path, required=True, help='folder to write the files to')
    parser.add_argument(
        '--projector',
        action='append',
        choices=PROJECTORS,
        help='projection of the feature map, repeatable (default pca); '
        'umap needs the package umap-learn',
    )
    parser.add_argument(
        '--format',
        action='append',
        choices=FORMATS,
        help='format to write, repeatable (default png and pdf)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the projection (default 0)')
    parser.add_argument('--json', action='store_true', help='print the files as JSON')
    parser.set_defaults(run=run)


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add the detector folder and the promised rate."""
    parser.add_argument(
        '--folder', type=Path, required=True, help='detector folder that `fit` wrote'
    )
    parser.add_argument(
        '--alpha', type=float, help="promised false-alarm rate (default: the folder's own)"
    )


def judged_rollouts(args: argparse.Namespace, *, need_outcomes: bool = True) -> JudgedSet:
    """Load the detector and the rollouts that the options name, and judge them."""
    check_alpha(args.alpha)
    loaded = load_detector(args.folder)
    rollouts = load_rollouts(
        args.set, pooling=pooling_of(args), feature=args.feature, skip_bad=args.skip_bad
    )
    if need_outcomes:
        rollouts = labelled(rollouts)
    try:
        return judge(loaded, rollouts, args.alpha)
    except EvaluationError as error:
        raise EvaluationError(f'{args.folder}: {error}') from error


def run(args: argparse.Namespace) -> int:
    """Draw and write."""
    judged = judged_rollouts(args)
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    name = judged.detector.detector.name
    data = FigureData(judged, name, args.projector or ('pca',), args.seed)
    for name, _, figure in figures_of(data):
        for suffix in dict.fromkeys(args.format or ('png', 'pdf')):
            path = args.out / f'{name}.{suffix}'
            save(figure, path)
            written.append(str(path))
            if not args.json:
                print(path)
    if args.json:
        print(plain_json({'files': written}))
    return 0
