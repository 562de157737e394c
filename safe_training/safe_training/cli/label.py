# SPDX-License-Identifier: Apache-2.0
"""The verb ``label``: say how episodes of a recording or a rollout set went.

Labels of a rollout set go into its index; those of a recording into a csv beside it, since a
recording is never changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_training.recordings.errors import DumpError
from safe_training.recordings.labels import (
    OUTCOMES,
    Label,
    check_step,
    labels_file,
    make_label,
    read_labels,
    set_labels,
    write_labels,
    write_set_labels,
)
from safe_training.recordings.readers.base import ReadOptions
from safe_training.recordings.readers.rosbag2 import RosbagSource
from safe_training.recordings.untrusted.bag import detect_bag
from vla_feature_bridge.rollout_set.layout import MANIFEST
from vla_feature_bridge.rollout_set.reader import RolloutSet

if TYPE_CHECKING:
    from rich.console import Console


_EXAMPLE = r"""examples:
  python -m safe_training label recordings/monday
  python -m safe_training label recordings/monday --list
  python -m safe_training label recordings/monday --episode pick/3 --outcome failure \
      --failure-step 17
  python -m safe_training label sets/monday --csv outcomes.csv

The csv has the columns episode_id, outcome (success, failure, unknown) and, if wanted,
failure_step. Labels of a recording RECORDING are kept in RECORDING.labels.csv beside it.
"""
_KEYS = {'s': 'success', 'f': 'failure', 'u': 'unknown'}
_HELP = 's success, f failure, u unknown, enter skip, b back, q quit'


class _Place(ABC):
    """Something whose episodes can be labelled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: dict[str, Label] = {}

    @abstractmethod
    def describe(self, episode: str) -> dict[str, Any]:
        """Return what a person recognises an episode by; ``steps`` is its length."""

    @abstractmethod
    def _write(self, labels: dict[str, Label]) -> None: ...

    @property
    def unlabelled(self) -> list[str]:
        return [name for name, label in self.labels.items() if label.success is None]

    def set(self, labels: dict[str, Label]) -> None:
        """Check all labels, then write all of them."""
        for name, label in labels.items():
            where = f'{self.path}: episode {name!r}'
            if name not in self.labels:
                raise DumpError(
                    f'{where}: expected one of its {len(self.labels)} episodes, found none of '
                    'that name; --list --all names them'
                )
            check_step(label, int(self.describe(name)['steps']), where)
        self._write(labels)
        self.labels |= labels


class _Set(_Place):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.labels = set_labels(path)
        self._rollouts = RolloutSet.open(path)
        self._positions = {name: n for n, name in enumerate(self._rollouts.episode_ids)}

    def describe(self, episode: str) -> dict[str, Any]:
        position = self._positions[episode]
        return {
            'task': self._rollouts.tasks[position],
            'steps': int(self._rollouts.lengths[position]),
        }

    def _write(self, labels: dict[str, Label]) -> None:
        write_set_labels(self.path, labels)


class _Recording(_Place):
    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path)
        # An episode that cannot be read needs no label, and must not keep others from one.
        self._source = RosbagSource(path, why, ReadOptions(skip_bad=True))
        self.labels = self._source.labels

    def describe(self, episode: str) -> dict[str, Any]:
        return self._source.describe(episode)

    def _write(self, labels: dict[str, Label]) -> None:
        write_labels(labels_file(self.path), labels)


def _open(path: Path) -> _Place:
    if not path.exists():
        raise DumpError(f'{path}: expected a rollout set or a recording, found none')
    if (path / MANIFEST).is_file():
        return _Set(path)
    why = detect_bag(path)
    if why is None:
        raise DumpError(
            f'{path}: expected a rollout set ({MANIFEST}) or a rosbag2 recording, found something '
            'else; dumps carry their outcomes themselves: convert this one and label the set'
        )
    return _Recording(path, why)


# -- command line


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``label``; it sets ``run``, a callable of the arguments."""
    verb = subparsers.add_parser(
        'label',
        help='say how episodes of a recording or a rollout set went',
        description='Go through the unlabelled episodes of a rosbag2 recording or a rollout set '
        'and say how each went: in the terminal, or with flags from a script.',
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument('source', metavar='SOURCE', help='recording or rollout set')
    what = verb.add_mutually_exclusive_group()
    what.add_argument('--episode', metavar='ID', help='label this episode')
    what.add_argument('--csv', metavar='FILE', help='label all episodes that a csv names')
    what.add_argument(
        '--list', action='store_true', help='list unlabelled episodes and change none'
    )
    verb.add_argument('--outcome', choices=tuple(OUTCOMES), help='how the episode went')
    verb.add_argument(
        '--failure-step', metavar='N', type=int, help='step at which the failure began, from 0'
    )
    verb.add_argument('--all', action='store_true', help='labelled episodes too')
    verb.add_argument('--json', action='store_true', help='print JSON for machines')
    verb.set_defaults(run=run_label, refuse=verb.error)


def run_label(arguments: argparse.Namespace) -> int:
    """Run the verb ``label``; returns the exit status."""
    _check_usage(arguments)
    place = _open(Path(arguments.source))
    if arguments.episode is not None:
        where = f'{place.path}: episode {arguments.episode!r}'
        label = make_label(arguments.outcome, arguments.failure_step, where)
        place.set({arguments.episode: label})
    elif arguments.csv is not None:
        place.set(read_labels(Path(arguments.csv)))
    elif not arguments.list:
        if not sys.stdin.isatty():
            raise DumpError(
                f'{place.path}: expected a terminal to ask on, found none; use --list, --episode '
                'with --outcome, or --csv'
            )
        _ask(place, arguments.all)
    _report(place, arguments)
    return 0


def _check_usage(arguments: argparse.Namespace) -> None:
    if (arguments.episode is None) != (arguments.outcome is None):
        arguments.refuse('--episode and --outcome belong together')
    if arguments.failure_step is not None and arguments.outcome != 'failure':
        arguments.refuse('--failure-step belongs to --outcome failure')
    if arguments.failure_step is not None and arguments.failure_step < 0:
        arguments.refuse('--failure-step counts from 0')


def _report(place: _Place, arguments: argparse.Namespace) -> None:
    counts = Counter(label.outcome for label in place.labels.values())
    chosen = list(place.labels) if arguments.all else place.unlabelled
    if arguments.json:
        found = {
            'path': str(place.path),
            'success': counts['success'],
            'failure': counts['failure'],
            'unlabelled': place.unlabelled,
        }
        if arguments.list:
            found['episodes'] = [
                {
                    'episode_id': name,
                    'outcome': place.labels[name].outcome,
                    'failure_step': place.labels[name].failure_step,
                    **place.describe(name),
                }
                for name in chosen
            ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if arguments.list:
        for name in chosen:
            print(f'{_plain(name)}\t{place.labels[name].outcome}')
    print(
        f'{place.path}: {counts["success"]} successes, {counts["failure"]} failures, '
        f'{counts["unknown"]} unlabelled',
        file=sys.stderr if arguments.list else sys.stdout,
    )


def _plain(text: str) -> str:
    """Make a text from a file safe for a terminal: no control characters."""
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in text)


# -- terminal view


def _ask(place: _Place, everything: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    names = list(place.labels) if everything else place.unlabelled
    if not names:
        console.print('Every episode has an outcome; --all goes through them again.')
        return
    console.print(f'{len(names)} episodes to label in {place.path}. {_HELP}', markup=False)
    position = 0
    while position < len(names):
        _show(console, place, names[position], f'{position + 1} of {len(names)}')
        answer = _answer(console)
        if answer == 'q':
            return
        if answer == 'b':
            position = max(0, position - 1)
            continue
        if answer:
            label = Label(OUTCOMES[_KEYS[answer]])
            if answer == 'f':
                label = _ask_step(console, int(place.describe(names[position])['steps']))
            place.set({names[position]: label})
        position += 1


def _show(console: Console, place: _Place, name: str, count: str) -> None:
    from rich.table import Table
    from rich.text import Text

    facts = place.describe(name)
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
    label = place.labels[name]
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
