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
    from safe_training.reporting.video.frames import VideoError

DESCRIPTION = 'Write the video of each rollout, with score, band and alarm below the picture.'
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
    """Write the videos. Return 1 if a video cannot be read; the other videos are still written."""
    from safe_training.reporting.file_names import file_names
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
    videos, unclear, sources = _videos(args, judged.rollouts, chosen)
    # A name does not depend on --episode.
    names = file_names(rollout.episode_id for rollout in judged.rollouts)
    args.out.mkdir(parents=True, exist_ok=True)
    written, failed = [], [str(error) for error in unclear]
    for message in failed:
        print(f'safe_training overlay: {message}', file=sys.stderr)
    for rollout, source in videos:
        try:
            target = args.out / f'{names[rollout.episode_id]}.mp4'
            if target.resolve() in sources:
                raise _overwrites_video(target)
            _write(rollout, source, target)
        except VideoError as error:
            failed.append(str(error))
            print(f'safe_training overlay: {error}', file=sys.stderr)
            continue
        written.append({'episode': rollout.episode_id, 'file': str(target)})
        if not args.json:
            print(target)
    without = len(chosen) - len(videos) - len(unclear)
    if args.json:
        print(plain_json({'files': written, 'failed': failed, 'without_video': without}))
    else:
        _report(args, chosen, without, names)
    return 1 if failed else 0


def _report(
    args: argparse.Namespace, chosen: list[ScoredRollout], without: int, names: dict[str, str]
) -> None:
    """Print the number of rollouts without a video, and the number of changed file names."""
    from safe_training.reporting.file_names import is_marked

    marked = sum(is_marked(names[rollout.episode_id], rollout.episode_id) for rollout in chosen)
    if marked:
        print(
            f'{marked} file names end in a mark, because the names of their episodes are long or '
            'alike; --json prints the episode of each file'
        )
    if without:
        print(f'{without} of {len(chosen)} rollouts have no video in {args.videos}')


def _chosen(args: argparse.Namespace, judged: list[ScoredRollout]) -> list[ScoredRollout]:
    """Return the rollouts that --episode names, or all rollouts without this option."""
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
    args: argparse.Namespace, judged: list[ScoredRollout], chosen: list[ScoredRollout]
) -> tuple[list[tuple[ScoredRollout, Path]], list[VideoError], set[Path]]:
    """Return the chosen rollouts that have a video, each with its file.

    Also returns the errors of unclear videos, and the videos of all rollouts.
    """
    from safe_training.reporting.video.frames import VideoError, find_videos

    found, unclear = find_videos([rollout.required_rollout for rollout in judged], args.videos)
    videos = [(r, found[r.episode_id]) for r in chosen if r.episode_id in found]
    errors = [unclear[r.episode_id] for r in chosen if r.episode_id in unclear]
    if not videos and not errors:
        example = chosen[0].required_rollout
        raise VideoError(
            where=str(args.videos),
            expected=f'videos of the {len(chosen)} rollouts, such as '
            f'{example.video or example.episode_id + ".mp4"!r}',
            found='none',
            advice='check --videos, and the names of the files',
        )
    return videos, errors, set(found.values())


def _overwrites_video(target: Path) -> VideoError:
    from safe_training.reporting.video.frames import VideoError

    return VideoError(
        where=str(target),
        expected='an output file that differs from every source video',
        found='a source video',
        advice='give another folder with --out',
    )


def _write(rollout: ScoredRollout, source: Path, target: Path) -> None:
    """Write the video of one rollout."""
    from safe_training.reporting.video.overlay import write_overlay

    frames = write_overlay(rollout, source, target)
    if frames.rule == 'stretched':
        print(
            f'safe_training overlay: {source}: expected frames that match {len(rollout)} steps of '
            f'{rollout.required_rollout.exec_horizon} actions or the time stamps, found '
            f'{len(frames.steps)} frames; the steps are spread evenly over the video',
            file=sys.stderr,
        )
