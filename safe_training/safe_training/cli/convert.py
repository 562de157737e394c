# SPDX-License-Identifier: Apache-2.0
"""The verbs ``info`` and ``convert``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from safe_training.cli.progress import progress_bar
from safe_training.recordings.convert import BagOptions, convert
from safe_training.recordings.describe import info
from vla_feature_bridge.pooling import PoolingError, parse_pooling
from vla_feature_bridge.rollout_set.writer import partial_folder

if TYPE_CHECKING:
    from rich.console import Console


#: How many bad episodes are described on the terminal; --json has all.
_COMPLAINTS = 10
#: Longer lists are printed as their length; --json has them whole.
_LONG_LIST = 16

_INFO_EXAMPLE = """\
example:
  python -m safe_training info test/data/openvla_dump
"""
_CONVERT_EXAMPLE = """\
example:
  python -m safe_training convert test/data/openvla_dump sets/openvla --pooling token=mean
  python -m safe_training convert test/data/openvla_dump sets/raw --keep raw
  python -m safe_training convert sets/raw sets/first_and_last --pooling 'token=first&last'
  python -m safe_training convert recordings/monday sets/monday
  python -m safe_training convert sets/openvla openvla.mcap --rate 5
"""


# -- command line


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs ``info`` and ``convert``; each sets ``run``, a callable of the arguments."""
    verb = subparsers.add_parser(
        'info',
        help='say what is in a dump, archive, rollout set or detector folder',
        description='Say what is in a dump, archive, rollout set or detector folder, and how that '
        'was found. Reads every episode; exit status 1 when some are bad.',
        epilog=_INFO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument('source', metavar='SOURCE', help='folder or file')
    verb.add_argument('--json', action='store_true', help='print JSON for machines')
    verb.set_defaults(run=run_info)

    verb = subparsers.add_parser(
        'convert',
        help='turn any source into a rollout set, or into a rosbag2 recording',
        description='Turn a dump, archive or rosbag2 recording into a rollout set, or pool a raw '
        'set anew; or turn any of these into a recording that ros2 bag plays. An error leaves '
        'nothing behind; after an interruption the same command continues a set.',
        epilog=_CONVERT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument('source', metavar='SOURCE', help='any source that info recognises')
    verb.add_argument(
        'destination',
        metavar='DEST',
        help='rollout set to make, or recording where it ends in .mcap (one file) or .bag (folder)',
    )
    verb.add_argument(
        '--to', choices=('set', 'bag'), help='what to make, whatever the name of DEST'
    )
    verb.add_argument(
        '--rate',
        type=float,
        default=10.0,
        metavar='HZ',
        help='inferences per second of a recording, where rollouts have no stamps '
        '(default: %(default)s)',
    )
    verb.add_argument(
        '--compression',
        choices=('none', 'zstd'),
        default='none',
        help='of a recording (default: %(default)s)',
    )
    verb.add_argument(
        '--pooling',
        action='append',
        default=[],
        type=_pooling_argument,
        metavar='AXIS=COMMAND',
        help='how to reduce one axis of raw features, such as token=mean; repeat in the order '
        'wanted (default: what the format states)',
    )
    verb.add_argument(
        '--feature',
        metavar='NAME',
        help='which feature array, where the source holds several; none for sampled actions, '
        'tokens and signals alone',
    )
    verb.add_argument(
        '--keep',
        choices=('pooled', 'raw'),
        default='pooled',
        help='store one vector a step, or the whole tensor, which can be pooled in any way later '
        '(default: %(default)s)',
    )
    verb.add_argument(
        '--unseen-root',
        metavar='SOURCE2',
        help='a second source of the same format, of tasks that no detector may train on',
    )
    verb.add_argument(
        '--all-episodes',
        action='store_true',
        help='keep also what the published protocol of the format leaves out (Franka/DROID: '
        'episodes of other lengths, and those drawn to balance success rates)',
    )
    verb.add_argument(
        '--jobs',
        type=_jobs_argument,
        metavar='N',
        help='how many processes read at the same time (default: as many as are worth it)',
    )
    verb.add_argument(
        '--skip-bad',
        action='store_true',
        help='leave out and report episodes that cannot be read, instead of stopping',
    )
    verb.add_argument('--overwrite', action='store_true', help='replace a rollout set at DEST')
    verb.add_argument('--json', action='store_true', help='print JSON for machines')
    verb.set_defaults(run=run_convert)


def _pooling_argument(argument: str) -> tuple[str, str]:
    try:
        return parse_pooling([argument])[0]
    except PoolingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _jobs_argument(argument: str) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= 256:
        raise argparse.ArgumentTypeError(f'expected a number from 1 to 256, found {argument!r}')
    return int(argument)


def run_info(arguments: argparse.Namespace) -> int:
    """Run the verb ``info``; returns the exit status, 1 when some episodes are bad."""
    with progress_bar('reading', quiet=arguments.json) as bar:
        found = info(arguments.source, lambda done, total: bar(done, total, ''))
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print_info(found)
    _complain('bad', found.get('bad', []))
    return 1 if found.get('bad') else 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Run the verb ``convert``; returns the exit status."""
    try:
        with progress_bar('converting', quiet=arguments.json) as bar:
            done = convert(
                arguments.source,
                arguments.destination,
                pooling=tuple(arguments.pooling) or None,
                feature=arguments.feature,
                skip_bad=arguments.skip_bad,
                overwrite=arguments.overwrite,
                progress=lambda done, total: bar(done, total, ''),
                keep=arguments.keep,
                all_episodes=arguments.all_episodes,
                unseen_root=arguments.unseen_root,
                jobs=arguments.jobs,
                to=arguments.to,
                bag=BagOptions(arguments.rate, arguments.compression),
            )
    except KeyboardInterrupt:
        partial = partial_folder(arguments.destination)
        if partial.is_dir():
            print(
                f'{partial}: keeps what is done; give the same command again to continue, or '
                'remove this folder',
                file=sys.stderr,
            )
        raise
    for note in done['notes']:
        print(f'note: {note}', file=sys.stderr)
    if done['continued']:
        print(
            f'note: continued an interrupted conversion that had done {done["continued"]} episodes',
            file=sys.stderr,
        )
    _complain('skipped', done['skipped'])
    if arguments.json:
        print(json.dumps(done, indent=2, ensure_ascii=False))
    else:
        skipped = f', {len(done["skipped"])} skipped' if done['skipped'] else ''
        print(
            f'{done["destination"]}: {done["rollouts"]} rollouts, {done["steps"]} steps, '
            f'{done["feature"]} from {done["kind"]}{skipped}'
        )
    return 0


def _complain(what: str, messages: list[str]) -> None:
    for message in messages[:_COMPLAINTS]:
        print(f'{what}: {message}', file=sys.stderr)
    if len(messages) > _COMPLAINTS:
        print(f'{what}: {len(messages) - _COMPLAINTS} more (--json lists all)', file=sys.stderr)


def _print_info(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if 'tasks' not in found:
        _print_pairs(console, found)
        return
    why = {'kind': f'{found["kind"]} ({found["why"]})', 'policy': found['policy'] or 'not stated'}
    length = found['length']
    outcomes = f'{found["successes"]} successes, {found["failures"]} failures'
    if found['unlabelled']:
        outcomes += f', {found["unlabelled"]} unlabelled'
    if found['notes']:
        why['note'] = '; '.join(found['notes'])
    _print_pairs(
        console,
        {
            'path': found['path'],
            **why,
            'episodes': f'{found["episodes"]} ({outcomes}) of {len(found["tasks"])} tasks',
            'steps': f'{found["steps"]} ({length["shortest"]} to {length["longest"]} an episode, '
            f'median {length["median"]:g})',
            'feature': _feature_text(found),
            'actions': _actions_text(found),
            'tokens': ', '.join(found['tokens']),
            'signals': ', '.join(found['signals']) or 'none',
        },
    )
    _print_tasks(console, found['tasks'])


def _feature_text(found: dict[str, Any]) -> str:
    feature = found['feature']
    text = f'{feature["text"]}, {feature["dim"]} wide, {", ".join(found["dtype"])}'
    return text + (f'; raw axes: {", ".join(found["raw_axes"])}' if found['raw_axes'] else '')


def _actions_text(found: dict[str, Any]) -> str:
    if found['actions'] == ['none']:
        return 'none'
    executed = ', '.join(map(str, found['exec_horizon']))
    return f'{", ".join(found["actions"])} (samples x horizon x dimension), {executed} executed'


def _print_pairs(console: Console, pairs: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for key, value in pairs.items():
        text = value if isinstance(value, str) else json.dumps(_short(value), ensure_ascii=False)
        grid.add_row(Text(key, style='bold'), Text(text))
    console.print(grid)


def _short(value: Any) -> Any:
    """Replace long lists by their length; --json has them whole."""
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list) and len(value) > _LONG_LIST:
        return f'({len(value)} entries)'
    return value


def _print_tasks(console: Console, tasks: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column('id', justify='right')
    table.add_column('task')
    for name in ('episodes', 'successes', 'failures', 'steps'):
        table.add_column(name, justify='right', no_wrap=True)
    for row in tasks:
        numbers = [str(row[key]) for key in ('episodes', 'successes', 'failures')]
        steps = f'{row["shortest"]} to {row["longest"]}'
        task = Text(row['task'] + (' (unseen)' if row['unseen'] else ''))
        table.add_row(str(row['task_id']), task, *numbers, steps)
    console.print(table)
