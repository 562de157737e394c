# SPDX-License-Identifier: Apache-2.0
"""The verb ``info``: describes the content of a dump, archive, rollout set or detector folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from safe_training.cli.messages import print_bad
from safe_training.cli.progress import progress_bar

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

DESCRIPTION = """Describe the content of a dump, archive, rollout set or detector folder, and how
its format was recognised. Every episode is read. The exit status is 1 if an episode cannot be
read."""
EXAMPLE = """example:
  python -m safe_training info test/data/openvla_dump
"""

#: Longer lists are printed as their length; --json has all entries.
_LONG_LIST = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument('source', metavar='SOURCE', help='folder or file')
    parser.add_argument('--json', action='store_true', help='print JSON for machines')


def run(args: argparse.Namespace) -> int:
    """Print the content of a source. Return the exit status, 1 if some episodes cannot be read."""
    from safe_monitor_node.storage.detector_folder import describe, is_detector_folder
    from safe_training.recordings.describe import info

    if is_detector_folder(args.source):
        found = {'path': args.source, **describe(args.source)}
    else:
        with progress_bar('reading', quiet=args.json) as bar:
            found = info(args.source, lambda done, total: bar(done, total, ''))
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print_info(found)
    print_bad(found.get('bad', []))
    return 1 if found.get('bad') else 0


def _print_info(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if 'tasks' not in found:
        space = found['action_space'] or 'not stated'
        band = {**found['band'], 'tasks': [entry['task'] for entry in found['band']['tasks']]}
        shown = {**found, 'band': band, 'action_space': space, **_good_runs_pairs(found)}
        _print_pairs(console, dict(_flat(shown)))
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


def _good_runs_pairs(found: dict[str, Any]) -> dict[str, str]:
    """Return the data about good runs in a detector folder, and the promise of each threshold."""
    described = found.get('good_runs')
    if described is None:
        why = found['provenance'].get('no_seen_scores', 'fit the detector again to get them')
        return {'good_runs': f'no scores for thresholds of new tasks: {why}'}
    seen = described['seen_tasks']
    text = (
        f'a new task can get a threshold from at most {described["largest_k"]} good runs '
        f'({len(seen)} seen tasks with {sum(seen.values())} successes)'
    )
    pairs = {'good_runs': text}
    for task, made in described['tasks'].items():
        threshold = 'none' if made['threshold'] is None else f'{made["threshold"]:.4g}'
        pairs[f'task {task!r}'] = (
            f'threshold {threshold} from {made["k"]} good runs. {made["promise"]}'
        )
    return pairs


def _feature_text(found: dict[str, Any]) -> str:
    feature = found['feature']
    text = f'{feature["text"]}, {feature["dim"]} wide, {", ".join(found["dtype"])}'
    return text + (f'; raw axes: {", ".join(found["raw_axes"])}' if found['raw_axes'] else '')


def _actions_text(found: dict[str, Any]) -> str:
    if found['actions'] == ['none']:
        return 'none'
    executed = ', '.join(map(str, found['exec_horizon']))
    return (
        f'{", ".join(found["actions"])} (samples x horizon x dimension), {executed} executed, '
        f'action space: {found["action_space"] or "not stated"}'
    )


def _print_pairs(console: Console, pairs: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for key, value in pairs.items():
        short = _short(value)
        text = short if isinstance(short, str) else json.dumps(short, ensure_ascii=False)
        grid.add_row(Text(key, style='bold'), Text(text))
    console.print(grid)


def _flat(pairs: Mapping[str, Any], before: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the pairs of a mapping; those of a mapping inside get its key before their key."""
    for key, value in pairs.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{before}{key}.')
        else:
            yield f'{before}{key}', value


def _short(value: Any) -> Any:
    """Return the value; the length of the list in place of a long list."""
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
