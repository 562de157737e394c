# SPDX-License-Identifier: Apache-2.0
"""The verb ``figures``: draws all figures of a detector on a set, as PNG and vector files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safe_training.cli.options import (
    add_folder,
    add_folder_alpha,
    add_source_options,
    check_alpha,
    rollouts_of,
)
from safe_training.reporting.figures.projectors import PROJECTORS
from safe_training.reporting.numbers import plain_json

if TYPE_CHECKING:
    import argparse

    from safe_training.evaluation.judge import JudgedSet

DESCRIPTION = (
    'Draw figures of the scores and alarms of a detector folder on a set of labelled rollouts.'
)
EXAMPLE = """examples:
  python -m safe_training figures my_set my_detector --out figures
  python -m safe_training figures my_set my_detector --out figures --projector tsne
"""
FORMATS = ('png', 'pdf', 'svg')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    add_folder(parser)
    add_folder_alpha(parser)
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder to write the files to'
    )
    parser.add_argument(
        '--projector',
        action='append',
        choices=tuple(PROJECTORS),
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


def judged_rollouts(args: argparse.Namespace, *, need_outcomes: bool = True) -> JudgedSet:
    """Return the rollouts of SET with the scores and alarms of the detector in FOLDER."""
    from safe_monitor_node.storage.detector_folder import load_detector
    from safe_training.evaluation.judge import judge
    from safe_training.evaluation.protocol import EvaluationError

    check_alpha(args.alpha)
    detector = load_detector(args.folder)
    rollouts = rollouts_of(args, need_outcomes=need_outcomes)
    try:
        return judge(detector, rollouts, args.alpha)
    except EvaluationError as error:
        raise EvaluationError(f'{args.folder}: {error}') from error


def run(args: argparse.Namespace) -> int:
    """Draw and write."""
    from safe_training.reporting.figures.catalogue import FigureData, figures_of
    from safe_training.reporting.figures.style import save

    judged = judged_rollouts(args)
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    detector = judged.detector.detector.name
    data = FigureData(judged, detector, args.projector or ('pca',), args.seed)
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
