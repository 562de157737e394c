# SPDX-License-Identifier: Apache-2.0
"""The verb ``overlay``: videos of rollouts with their scores, bands and alarms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from safe_training.cli.figures import judged_rollouts
from safe_training.cli.options import add_folder, add_folder_alpha, add_source_options
from safe_training.reporting.numbers import plain_json

if TYPE_CHECKING:
    import argparse

    from safe_training.metrics.scored import ScoredRollout

DESCRIPTION = 'Write the video of each rollout with its score, band and alarm under it.'
EXAMPLE = """examples:
  python -m safe_training overlay my_set my_detector --videos recordings --out overlays
  python -m safe_training overlay my_set my_detector --videos recordings --out overlays \\
      --episode "open the drawer/3"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_source_options(parser)
    add_folder(parser)
    add_folder_alpha(parser)
    parser.add_argument(
        '--videos', type=Path, required=True, metavar='DIR', help='folder that holds the videos'
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder to write mp4 files to'
    )
    parser.add_argument(
        '--episode', action='append', metavar='ID', help='only this episode, repeatable'
    )
    parser.add_argument('--json', action='store_true', help='print the files as JSON')


def run(args: argparse.Namespace) -> int:
    """Write the videos; returns 1 if a video cannot be read, after writing the others."""
    from safe_training.reporting.video.frames import VideoError, opencv

    opencv()  # If OpenCV is missing, raise the error before the rollouts are scored.
    if not args.videos.is_dir():
        raise VideoError(
            where=str(args.videos),
            expected='a folder of videos',
            found='none',
            advice='check --videos',
        )
    judged = judged_rollouts(args, need_outcomes=False)
    chosen = _chosen(args, judged.rollouts)
    videos = _videos(args, chosen)
    args.out.mkdir(parents=True, exist_ok=True)
    written, failed = [], []
    for rollout, source in videos:
        try:
            target = _write(args, rollout, source)
        except VideoError as error:
            failed.append(str(error))
            print(f'safe_training overlay: {error}', file=sys.stderr)
            continue
        written.append({'episode': rollout.episode_id, 'file': str(target)})
        if not args.json:
            print(target)
    without = len(chosen) - len(videos)
    if args.json:
        print(plain_json({'files': written, 'failed': failed, 'without_video': without}))
    elif without:
        print(f'{without} of {len(chosen)} rollouts have no video in {args.videos}')
    return 1 if failed else 0


def _chosen(args: argparse.Namespace, judged: list[ScoredRollout]) -> list[ScoredRollout]:
    """Return the rollouts of --episode; all of them without it."""
    from safe_training.reporting.video.frames import VideoError

    if not args.episode:
        return judged
    known = {rollout.episode_id for rollout in judged}
    for name in args.episode:
        if name not in known:
            raise VideoError(
                where=args.set,
                expected=f'an episode {name!r}',
                found='no episode with this name',
                advice=f'give a name such as {judged[0].episode_id!r}; for a rollout set or a '
                f'recording, `label {args.set} --list --all` prints all names',
            )
    return [rollout for rollout in judged if rollout.episode_id in args.episode]


def _videos(
    args: argparse.Namespace, rollouts: list[ScoredRollout]
) -> list[tuple[ScoredRollout, Path]]:
    """Return the rollouts that have a video, each with its file."""
    from safe_training.reporting.video.frames import VideoError, find_video

    found = [(rollout, find_video(rollout.required_rollout, args.videos)) for rollout in rollouts]
    videos = [(rollout, path) for rollout, path in found if path is not None]
    if not videos:
        example = rollouts[0].required_rollout
        raise VideoError(
            where=str(args.videos),
            expected=f'videos of the {len(rollouts)} rollouts, such as '
            f'{example.video or example.episode_id + ".mp4"!r}',
            found='none',
            advice='check --videos, and the names of the files',
        )
    return videos


def _write(args: argparse.Namespace, rollout: ScoredRollout, source: Path) -> Path:
    """Write the video of one rollout; returns its file."""
    from safe_training.reporting.video.frames import VideoError
    from safe_training.reporting.video.overlay import file_name, write_overlay

    target: Path = args.out / f'{file_name(rollout.episode_id)}.mp4'
    if target.resolve() == source:
        raise VideoError(
            where=str(source),
            expected='an output file that differs from the source video',
            found='the same file',
            advice='give another folder with --out',
        )
    frames = write_overlay(rollout, source, target)
    if frames.rule == 'stretched':
        print(
            f'safe_training overlay: {source}: expected frames that match {len(rollout)} steps of '
            f'{rollout.required_rollout.exec_horizon} actions or the time stamps, found '
            f'{len(frames.steps)} frames; the steps are spread evenly over the video',
            file=sys.stderr,
        )
    return target
