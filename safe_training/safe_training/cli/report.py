# SPDX-License-Identifier: Apache-2.0
"""The verb ``report``: one HTML page with tables, figures and every rollout's curve and video."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_training.cli.figures import add_folder_options, judged_rollouts
from safe_training.cli.options import UsageError, add_source_options
from safe_training.reporting.figures.catalogue import FigureData, figures_of
from safe_training.reporting.numbers import plain_json
from safe_training.reporting.page.page import page
from safe_training.reporting.page.videos import page_videos
from safe_training.reporting.video.frames import VideoError
from vla_feature_bridge.atomic import replace_files

if TYPE_CHECKING:
    from safe_training.reporting.tables.model import ResultTable


EXAMPLE = """examples:
  python -m safe_training report my_set --folder my_detector --out report.html
  python -m safe_training report my_set --folder my_detector --videos recordings --out report.html
"""
_MEBI = 1 << 20


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'report',
        help='write one self-contained HTML page about a detector on a set',
        description='Write tables, figures and every rollout of a set as one HTML page.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    add_folder_options(parser)
    parser.add_argument('--out', type=Path, required=True, help='HTML file to write')
    parser.add_argument(
        '--results', type=Path, nargs='+', default=[], help='results folders of sweeps to tabulate'
    )
    parser.add_argument('--videos', type=Path, help="folder that holds the rollouts' videos")
    parser.add_argument(
        '--embed-videos',
        type=float,
        default=50.0,
        metavar='MIB',
        help='how many MiB of videos the page may hold; the others are read from their files '
        '(default %(default)g; 0 for none)',
    )
    parser.add_argument('--title', help='title of the page')
    parser.add_argument('--json', action='store_true', help='print what was written as JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judge, draw and write."""
    if not 0 <= args.embed_videos < float('inf'):
        raise UsageError(f'--embed-videos must be 0 or more MiB, found {args.embed_videos}')
    if args.videos is not None and not args.videos.is_dir():
        raise VideoError(f'{args.videos}: expected a folder of videos, found none')
    tables = _tables(args.results) if args.results else []
    judged = judged_rollouts(args)
    rollouts, name = judged.rollouts, judged.detector.detector.name
    videos = (
        {}
        if args.videos is None
        else page_videos(rollouts, args.videos, args.out, int(args.embed_videos * _MEBI))
    )
    title = args.title or f'{name} on {Path(args.set).name}'
    drawn = list(figures_of(FigureData(judged, name)))
    text = page(title, judged, drawn, videos, tables)
    replace_files({args.out: text})
    embedded = sum(v.content is not None for v in videos.values())
    size = args.out.stat().st_size
    if args.json:
        print(
            plain_json(
                {
                    'file': str(args.out),
                    'bytes': size,
                    'rollouts': len(rollouts),
                    'videos': len(videos),
                    'embedded_videos': embedded,
                }
            )
        )
        return 0
    print(f'{args.out}: {len(rollouts)} rollouts, {size / _MEBI:.1f} MiB')
    if args.videos is not None:
        print(f'{len(videos)} videos, {embedded} of them in the page')
    return 0


def _tables(folders: list[Path]) -> list[ResultTable]:
    # Only here: reading results is no business of a page without them.
    from safe_training.reporting.tables.aggregated import robust_tables
    from safe_training.sweep.results import read_results

    return robust_tables(read_results(*folders))
