# SPDX-License-Identifier: Apache-2.0
"""The verb ``overlay``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from safe_training.cli.figures import add_folder_options, judged_rollouts
from safe_training.cli.options import add_source_options
from safe_training.reporting.numbers import plain_json
from safe_training.reporting.video.frames import VideoError, find_video, opencv
from safe_training.reporting.video.overlay import file_name, write_overlay

EXAMPLE = """examples:
  python -m safe_training overlay my_set --folder my_detector --videos recordings --out judged
  python -m safe_training overlay my_set --folder my_detector --videos recordings --out judged \\
      --episode "open the drawer/3"
"""


def add_command(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        'overlay',
        help="burn score, band and alarm into the rollouts' videos",
        description='Write the video of each rollout with its score, band and alarm under it.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    add_folder_options(parser)
    parser.add_argument('--videos', type=Path, required=True, help='folder that holds the videos')
    parser.add_argument('--out', type=Path, required=True, help='folder to write mp4 files to')
    parser.add_argument(
        '--episode', action='append', metavar='ID', help='only this episode, repeatable'
    )
    parser.add_argument('--json', action='store_true', help='print the files as JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write every video; one that cannot be read is reported, the others are written."""
    opencv()
    if not args.videos.is_dir():
        raise VideoError(f'{args.videos}: expected a folder of videos, found none')
    judged = judged_rollouts(args, need_outcomes=False).rollouts
    if args.episode:
        known = {j.episode_id for j in judged}
        unknown = [name for name in args.episode if name not in known]
        if unknown:
            raise VideoError(
                f'{args.set}: no episode {unknown[0]!r}; `info` and `label --list` list them'
            )
        judged = [j for j in judged if j.episode_id in args.episode]
    found = [(j, find_video(j.required_rollout, args.videos)) for j in judged]
    videos = [(j, path) for j, path in found if path is not None]
    if not videos:
        example = judged[0].required_rollout
        raise VideoError(
            f'{args.videos}: holds no video of the {len(judged)} rollouts; looked for '
            f'{example.video or example.episode_id + ".mp4"!r} and the like'
        )
    args.out.mkdir(parents=True, exist_ok=True)
    written, failed = [], []
    for entry, source in videos:
        target = args.out / f'{file_name(entry.episode_id)}.mp4'
        try:
            if target.resolve() == source:
                raise VideoError(f'{source}: is the video itself; give --out another folder')
            frames = write_overlay(entry, source, target)
        except VideoError as error:
            failed.append(str(error))
            print(f'safe_training overlay: {error}', file=sys.stderr)
            continue
        written.append({'episode': entry.episode_id, 'file': str(target)})
        if not args.json:
            print(target)
        if frames.rule == 'stretched':
            print(
                f'safe_training overlay: {source}: {len(frames.steps)} frames fit neither '
                f'{len(entry.required_rollout)} steps of {entry.required_rollout.exec_horizon} actions nor the '
                'stamps; the steps are spread evenly over it',
                file=sys.stderr,
            )
    without = len(judged) - len(videos)
    if args.json:
        print(plain_json({'files': written, 'failed': failed, 'without_video': without}))
    elif without:
        print(f'{without} of {len(judged)} rollouts have no video below {args.videos}')
    return 1 if failed else 0
