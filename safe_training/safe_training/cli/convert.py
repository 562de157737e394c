# SPDX-License-Identifier: Apache-2.0
"""The verb ``convert``: converts any source to a rollout set or a recording."""

from __future__ import annotations

import argparse
import json
import sys

from safe_training.cli.messages import print_messages
from safe_training.cli.options import add_jobs_option
from safe_training.cli.progress import progress_bar
from vla_feature_bridge.pooling import PoolingError, parse_pooling

DESCRIPTION = """Convert a dump, archive or rosbag2 recording to a rollout set, or pool a raw set
again; or convert any source to a recording for `ros2 bag play`. After an error, no partial output
remains. After an interruption, the same command continues a rollout set."""
EXAMPLE = """examples:
  python -m safe_training convert test/data/openvla_dump sets/openvla --pooling token=mean
  python -m safe_training convert test/data/openvla_dump sets/raw --keep raw
  python -m safe_training convert sets/raw sets/first_and_last --pooling 'token=first&last'
  python -m safe_training convert recordings/monday sets/monday
  python -m safe_training convert sets/openvla openvla.mcap --frequency 5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument('source', metavar='SOURCE', help='any source that info recognises')
    parser.add_argument(
        'destination',
        metavar='DEST',
        help='output: a rollout set, or a recording if the name ends in .mcap (one file) or '
        '.bag (folder)',
    )
    parser.add_argument(
        '--to', choices=('set', 'bag'), help='type of the output; overrides the name of DEST'
    )
    _add_source_options(parser)
    _add_set_options(parser)
    _add_bag_options(parser)
    parser.add_argument('--overwrite', action='store_true', help='replace DEST if it exists')
    parser.add_argument('--json', action='store_true', help='print JSON for machines')


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('reading SOURCE')
    group.add_argument(
        '--pooling',
        action='append',
        default=[],
        type=_pooling_argument,
        metavar='AXIS=COMMAND',
        help='reduction of one axis of raw features, such as token=mean; repeat for each axis, '
        'in the order of the reductions (default: the pooling of the format)',
    )
    group.add_argument(
        '--feature',
        metavar='NAME',
        help='name of the feature array, if the source has several; `none` reads only sampled '
        'actions, tokens and signals',
    )
    group.add_argument(
        '--unseen-root',
        metavar='SOURCE2',
        help=(
            'second source of the same format; its tasks are unseen: no detector is trained on them'
        ),
    )
    group.add_argument(
        '--all-episodes',
        action='store_true',
        help='also keep episodes that the published protocol removes (Franka/DROID: episodes of '
        'non-standard length, and episodes removed to balance the success rates)',
    )
    group.add_argument(
        '--skip-bad',
        action='store_true',
        help='skip and report episodes that cannot be read, instead of stopping',
    )
    add_jobs_option(group, 'chosen from the size of the source and the number of cores')


def _add_set_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('a rollout set')
    group.add_argument(
        '--keep',
        choices=('pooled', 'raw'),
        default='pooled',
        help='store one vector per step (pooled), or the whole tensor (raw), which can be '
        'pooled later (default: %(default)s)',
    )


def _add_bag_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('a recording')
    group.add_argument(
        '--frequency',
        type=float,
        default=10.0,
        metavar='HZ',
        help='inferences per second, if the rollouts have no time stamps (default: %(default)s)',
    )
    group.add_argument(
        '--compression',
        choices=('none', 'zstd'),
        default='none',
        help='compression of the messages (default: %(default)s)',
    )


def _pooling_argument(argument: str) -> tuple[str, str]:
    try:
        return parse_pooling([argument])[0]
    except PoolingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Convert the source, print the result and return the exit status."""
    from safe_training.recordings.convert import BagOptions, convert
    from vla_feature_bridge.rollout_set.writer import partial_folder

    try:
        with progress_bar('converting', quiet=args.json) as bar:
            done = convert(
                args.source,
                args.destination,
                pooling=tuple(args.pooling) or None,
                feature=args.feature,
                skip_bad=args.skip_bad,
                overwrite=args.overwrite,
                progress=lambda done, total: bar(done, total, ''),
                keep=args.keep,
                all_episodes=args.all_episodes,
                unseen_root=args.unseen_root,
                jobs=args.jobs,
                to=args.to,
                bag=BagOptions(args.frequency, args.compression),
            )
    except (KeyboardInterrupt, OSError):
        partial = partial_folder(args.destination)
        if partial.is_dir():
            print(
                f'{partial}: this folder contains the finished episodes; run the same command '
                'again to continue, or delete this folder',
                file=sys.stderr,
            )
        raise
    for note in done['notes']:
        print(f'note: {note}', file=sys.stderr)
    if done['continued']:
        print(
            f'note: continued an interrupted conversion, which had finished {done["continued"]} '
            'episodes',
            file=sys.stderr,
        )
    print_messages('skipped', done['skipped'])
    if args.json:
        print(json.dumps(done, indent=2, ensure_ascii=False))
    else:
        skipped = f', {len(done["skipped"])} skipped' if done['skipped'] else ''
        print(
            f'{done["destination"]}: {done["rollouts"]} rollouts, {done["steps"]} steps, '
            f'{done["feature"]} from {done["kind"]}{skipped}'
        )
    return 0
