# SPDX-License-Identifier: Apache-2.0
"""The verb ``report``: one HTML page with tables, figures, curves and videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safe_training.cli.figures import judged_rollouts
from safe_training.cli.options import add_folder, add_folder_alpha, add_source_options
from safe_training.cli.parsing import UsageError
from safe_training.reporting.numbers import plain_json

if TYPE_CHECKING:
    import argparse

    from safe_training.reporting.tables.model import ResultTable

DESCRIPTION = 'Write tables, figures and every rollout of a set as one HTML page.'
EXAMPLE = """examples:
  python -m safe_training report my_set my_detector --out report.html
  python -m safe_training report my_set my_detector --videos recordings --out report.html
"""
_MEBI = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    add_folder(parser)
    add_folder_alpha(parser)
    parser.add_argument(
        '--out', type=Path, required=True, metavar='PAGE', help='HTML file to write'
    )
    parser.add_argument(
        '--results',
        type=Path,
        nargs='+',
        default=[],
        metavar='RESULTS',
        help='results folders of sweeps; their tables are added to the page',
    )
    parser.add_argument(
        '--videos', type=Path, metavar='DIR', help="folder that holds the rollouts' videos"
    )
    parser.add_argument(
        '--embed-videos',
        type=float,
        default=50.0,
        metavar='MIB',
        help='maximum size [MiB] of the videos embedded in the page; the page reads the other '
        'videos from their files (default %(default)g; 0 embeds no video)',
    )
    parser.add_argument('--title', help='title of the page')
    parser.add_argument('--json', action='store_true', help='print what was written as JSON')


def run(args: argparse.Namespace) -> int:
    """Judge, draw and write."""
    from safe_training.reporting.figures.catalogue import FigureData, figures_of
    from safe_training.reporting.page.data import listed_rollouts
    from safe_training.reporting.page.page import page
    from safe_training.reporting.page.videos import page_videos
    from safe_training.reporting.video.frames import VideoError
    from vla_feature_bridge.atomic import check_writable, replace_files

    check_writable(args.out)
    if not 0 <= args.embed_videos < float('inf'):
        raise UsageError(
            where='--embed-videos', expected='0 or more MiB', found=str(args.embed_videos)
        )
    if args.videos is not None and not args.videos.is_dir():
        raise VideoError(
            where=str(args.videos),
            expected='a folder of videos',
            found='none',
            advice='check --videos',
        )
    tables = _tables(args.results) if args.results else []
    judged = judged_rollouts(args)
    rollouts, name = judged.rollouts, judged.detector.detector.name
    listed = listed_rollouts(rollouts)
    videos = (
        {}
        if args.videos is None
        else page_videos(rollouts, args.videos, args.out, int(args.embed_videos * _MEBI), listed)
    )
    title = args.title or f'{name} on {Path(args.set).name}'
    drawn = list(figures_of(FigureData(judged, name)))
    replace_files({args.out: page(title, judged, drawn, videos, tables)})
    written = {
        'file': str(args.out),
        'bytes': args.out.stat().st_size,
        'rollouts': len(rollouts),
        'listed_rollouts': len(listed),
        'videos': len(videos),
        'embedded_videos': sum(video.content is not None for video in videos.values()),
    }
    if args.json:
        print(plain_json(written))
        return 0
    print(f'{args.out}: {len(rollouts)} rollouts, {written["bytes"] / _MEBI:.1f} MiB')
    if len(listed) < len(rollouts):
        print(f'the page lists {len(listed)} rollouts, misses and false alarms first')
    if args.videos is not None:
        print(f'{len(videos)} videos, {written["embedded_videos"]} embedded in the page')
    return 0


def _tables(folders: list[Path]) -> list[ResultTable]:
    from safe_training.reporting.tables.aggregated import robust_tables
    from safe_training.sweep.results import read_results

    return robust_tables(read_results(*folders))
