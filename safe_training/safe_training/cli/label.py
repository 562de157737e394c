# SPDX-License-Identifier: Apache-2.0
"""The verb ``label``: sets the outcomes of episodes of a recording or a rollout set."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from safe_training.cli.messages import print_bad
from safe_training.cli.parsing import UsageError
from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import OUTCOMES, Label, check_step, make_label, read_labels

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from safe_training.recordings.labelled import Labelled

DESCRIPTION = """Set the outcome of the unlabelled episodes of a rosbag2 recording or a rollout set:
in the terminal, or with options from a script. Episodes that cannot be read are listed. If there
are such episodes, the exit status of --list is 1."""
EXAMPLE = r"""examples:
  python -m safe_training label recordings/monday
  python -m safe_training label recordings/monday --list
  python -m safe_training label recordings/monday --episode pick/3 --outcome failure \
      --failure-step 17
  python -m safe_training label sets/monday --csv outcomes.csv

The csv file has the columns episode_id, outcome (success, failure, unknown) and optionally
failure_step. Labels of a recording RECORDING are stored in RECORDING.labels.csv in the same folder.
"""
_KEYS = {'s': 'success', 'f': 'failure', 'u': 'unknown'}
_HELP = 'Keys: s = success, f = failure, u = unknown, enter = skip, b = back, q = quit'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument('source', metavar='SOURCE', help='recording or rollout set')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--episode', metavar='ID', help='label this episode')
    what.add_argument('--csv', metavar='FILE', help='label all episodes in a csv file')
    what.add_argument(
        '--list', action='store_true', help='list unlabelled episodes without changing labels'
    )
    parser.add_argument('--outcome', choices=tuple(OUTCOMES), help='outcome of the episode')
    parser.add_argument(
        '--failure-step', metavar='N', type=int, help='step at which the failure began, from 0'
    )
    parser.add_argument('--all', action='store_true', help='include labelled episodes')
    parser.add_argument('--json', action='store_true', help='print JSON for machines')


def run(args: argparse.Namespace) -> int:
    """Label episodes and print the counts of labels. Return the exit status."""
    from safe_training.recordings.labelled import open_labelled

    _check_usage(args)
    episodes = open_labelled(Path(args.source))
    if args.episode is not None:
        where = f'{episodes.path}: episode {args.episode!r}'
        label = make_label(args.outcome, args.failure_step, where)
        episodes.set({args.episode: label})
    elif args.csv is not None:
        episodes.set(read_labels(Path(args.csv)))
    elif not args.list:
        if not sys.stdin.isatty():
            raise DumpError(
                where=str(episodes.path),
                expected='a terminal for questions',
                found='none',
                advice='use --list, --episode with --outcome, or --csv',
            )
        _ask(episodes, args.all)
    _report(episodes, args)
    print_bad(episodes.left_out)
    return 1 if args.list and episodes.left_out else 0


def _check_usage(args: argparse.Namespace) -> None:
    if (args.episode is None) != (args.outcome is None):
        only = '--episode' if args.outcome is None else '--outcome'
        raise UsageError(
            expected='--episode together with --outcome',
            found=f'only {only}',
            advice='add the other option',
        )
    if args.failure_step is not None and args.outcome != 'failure':
        raise UsageError(
            where='--failure-step',
            expected='--outcome failure',
            found=f'--outcome {args.outcome}' if args.outcome else 'no --outcome',
        )
    if args.failure_step is not None and args.failure_step < 0:
        raise UsageError(
            where='--failure-step', expected='a step of 0 or more', found=str(args.failure_step)
        )


def _report(episodes: Labelled, args: argparse.Namespace) -> None:
    counts = Counter(label.outcome for label in episodes.labels.values())
    chosen = list(episodes.labels) if args.all else episodes.unlabelled
    if args.json:
        found = {
            'path': str(episodes.path),
            'success': counts['success'],
            'failure': counts['failure'],
            'unlabelled': episodes.unlabelled,
            'bad': episodes.left_out,
        }
        if args.list:
            found['episodes'] = [
                {
                    'episode_id': name,
                    'outcome': episodes.labels[name].outcome,
                    'failure_step': episodes.labels[name].failure_step,
                    **episodes.describe(name),
                }
                for name in chosen
            ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if args.list:
        for name in chosen:
            print(f'{_plain(name)}\t{episodes.labels[name].outcome}')
    print(
        f'{episodes.path}: {counts["success"]} successes, {counts["failure"]} failures, '
        f'{counts["unknown"]} unlabelled',
        file=sys.stderr if args.list else sys.stdout,
    )


def _plain(text: str) -> str:
    """Make a text from a file safe for a terminal: no control characters."""
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in text)


# -- terminal view


def _ask(episodes: Labelled, everything: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    names = list(episodes.labels) if everything else episodes.unlabelled
    if not names:
        console.print('Every episode has an outcome. Use --all to label them again.')
        return
    console.print(f'{len(names)} episodes to label in {episodes.path}. {_HELP}', markup=False)
    position = 0
    while position < len(names):
        _show(console, episodes, names[position], f'{position + 1} of {len(names)}')
        answer = _answer(console)
        if answer == 'q':
            return
        if answer == 'b':
            position = max(0, position - 1)
            continue
        if answer:
            label = Label(OUTCOMES[_KEYS[answer]])
            if answer == 'f':
                label = _ask_step(console, int(episodes.describe(names[position])['steps']))
            episodes.set({names[position]: label})
        position += 1


def _show(console: Console, episodes: Labelled, name: str, count: str) -> None:
    from rich.table import Table
    from rich.text import Text

    facts = episodes.describe(name)
    rows = {'episode': f'{name}  ({count})', 'task': facts['task']}
    if facts.get('instruction') not in (None, '', facts['task']):
        rows['instruction'] = facts['instruction']
    rows['length'] = f'{facts["steps"]} steps'
    if facts.get('seconds'):
        rows['length'] += f', {facts["seconds"]:.1f} s'
        rows['recorded'] = time.strftime('%F %T', time.localtime(facts['recorded'] * 1e-9))
    if facts.get('video'):
        rows['video'] = facts['video']
    if facts.get('said'):
        rows['said'] = '; '.join(facts['said'][-3:])
    label = episodes.labels[name]
    if label.success is not None:
        step = '' if label.failure_step is None else f' from step {label.failure_step}'
        rows['outcome'] = f'{label.outcome}{step}'
    grid = Table.grid(padding=(0, 2))
    for key, value in rows.items():
        grid.add_row(Text(key, style='bold'), Text(_plain(str(value))))
    console.print()
    console.print(grid)


def _answer(console: Console) -> str:
    while True:
        answer = _read(console, 's, f, u, enter, b or q: ').lower()
        if answer in ('', 'b', 'q', *_KEYS):
            return answer
        console.print(_HELP, markup=False)


def _ask_step(console: Console, length: int) -> Label:
    while True:
        text = _read(console, f'failure began at step (0 to {length - 1}, enter if not known): ')
        try:
            label = make_label('failure', text, 'failure step')
            check_step(label, length, 'failure step')
        except DumpError as error:
            console.print(str(error), markup=False)
            continue
        return label


def _read(console: Console, prompt: str) -> str:
    try:
        return console.input(prompt, markup=False).strip()
    except EOFError:
        console.print()
        return 'q'
