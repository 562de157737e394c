# SPDX-License-Identifier: Apache-2.0
"""Splits on disk.

A file is written completely or not at all. Splits are matched to rollouts by episode id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safe_training.evaluation.protocol import PROTOCOLS, ProtocolName
from safe_training.evaluation.splits import Split, SplitError
from vla_feature_bridge.atomic import replace_files
from vla_feature_bridge.rollout import Rollout

_FORMAT = 'safe_splits'
_VERSION = 1
_LARGEST_FILE = 256 << 20
_OTHER_SET = 'use the rollout set from which the splits were made, or make new splits'


@dataclass(frozen=True)
class SavedSplits:
    """Splits of a file: the protocol that made them, and a mapping from number to split."""

    protocol: ProtocolName
    splits: dict[int, Split]


def write_splits(
    path: Path, rollouts: Sequence[Rollout], splits: Sequence[Split], protocol: ProtocolName
) -> None:
    """Write splits with their episodes, completely or not at all."""
    content = {
        'format': _FORMAT,
        'version': _VERSION,
        'protocol': protocol,
        'episodes': [r.episode_id for r in rollouts],
        'tasks': [r.task for r in rollouts],
        'splits': [split.to_dict() for split in splits],
    }
    replace_files({path: json.dumps(content) + '\n'})


def read_splits(path: Path, rollouts: Sequence[Rollout]) -> SavedSplits:
    """Return the splits of :func:`write_splits`; the rollouts may now be in a different order.

    Raises
    ------
    SplitError
        The file is damaged, is not a file of splits, or was made from different rollouts. With
        different rollouts, training rollouts could be reported as unseen.
    """
    content = _content(path)
    episodes, tasks = _texts(path, content, 'episodes'), _texts(path, content, 'tasks')
    entries = content.get('splits')
    if len(tasks) != len(episodes):
        raise SplitError(
            where=str(path),
            expected='one task for each episode',
            found=f'{len(tasks)} tasks for {len(episodes)} episodes',
            advice='save the splits again',
        )
    if not isinstance(entries, list) or not entries:
        raise SplitError(
            where=str(path),
            expected='a list of splits',
            found='none',
            advice='save the splits again',
        )
    place = _places(path, episodes, rollouts)
    for episode, task, index in zip(episodes, tasks, place, strict=True):
        if rollouts[index].task != task:
            raise SplitError(
                where=f'{path}, episode {episode!r}',
                expected=f'task {task!r}',
                found=repr(rollouts[index].task),
                advice=_OTHER_SET,
            )
    splits = []
    for entry in entries:
        try:
            split = Split.from_dict(entry)
            split.check_against(tasks)
        except (SplitError, TypeError) as error:
            raise SplitError(f'{path}: {error}') from error
        if not split.train:
            raise SplitError(
                where=f'{path}, split {split.number}',
                expected='training rollouts',
                found='none',
                advice='save the splits again',
            )
        splits.append(
            replace(
                split,
                train=tuple(place[i] for i in split.train),
                seen=tuple(place[i] for i in split.seen),
                unseen=tuple(place[i] for i in split.unseen),
                episodes=tuple(r.episode_id for r in rollouts),
            )
        )
    numbers = [split.number for split in splits]
    if len(set(numbers)) != len(numbers):
        raise SplitError(
            where=str(path),
            expected='splits with different numbers',
            found=str(numbers),
            advice='save the splits again',
        )
    return SavedSplits(saved_protocol(path), {split.number: split for split in splits})


def saved_protocol(path: Path) -> ProtocolName:
    """Return the protocol of the splits of a file; see :func:`read_splits` for errors."""
    content = _content(path)
    found = content.get('protocol', content.get('scheme'))  # 0.1 wrote 'scheme'
    for protocol in PROTOCOLS:
        if protocol == found:
            return protocol
    raise SplitError(
        where=f'{path}, protocol',
        expected=f'one of {", ".join(PROTOCOLS)}',
        found=repr(found),
        advice='save the splits again',
    )


def split_numbers(path: Path) -> tuple[int, ...]:
    """Return the numbers of the splits of a file; see :func:`read_splits` for errors."""
    entries: Any = _content(path).get('splits')
    try:
        return tuple(Split.from_dict(entry).number for entry in entries)
    except (SplitError, TypeError) as error:
        raise SplitError(
            where=str(path),
            expected='a list of splits',
            found=str(error),
            advice='save the splits again',
        ) from error


def saved_split(path: Path, rollouts: Sequence[Rollout], number: int) -> Split:
    """Return one split of a file by its number."""
    splits = read_splits(path, rollouts).splits
    if number not in splits:
        raise SplitError(
            where=str(path),
            expected=f'the number of a saved split, one of {", ".join(map(str, sorted(splits)))}',
            found=str(number),
            advice='give one of these numbers',
        )
    return splits[number]


def _content(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise SplitError(
                where=str(path),
                expected=f'saved splits of at most {_LARGEST_FILE} bytes',
                found=f'{path.stat().st_size} bytes',
                advice='give the file that `evaluate --save-splits` or `sweep` wrote',
            )
        content = json.loads(path.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SplitError):
            raise
        raise SplitError(
            where=str(path),
            expected='saved splits (JSON)',
            found=f'text that is not valid JSON ({error})',
            advice='save the splits again',
        ) from error
    found = content.get('format') if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or found != _FORMAT:
        raise SplitError(
            where=str(path),
            expected=f'saved splits (format {_FORMAT!r})',
            found=f'{found!r}',
            advice='give the file that `evaluate --save-splits` or `sweep` wrote',
        )
    if content.get('version') != _VERSION:
        raise SplitError(
            where=f'{path}, version',
            expected=str(_VERSION),
            found=repr(content.get('version')),
            advice='save the splits again',
        )
    return content


def _texts(path: Path, content: Mapping[str, Any], name: str) -> list[str]:
    values = content.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise SplitError(
            where=f'{path}, {name}',
            expected='a list of texts',
            found=f'{values!r:.80}',
            advice='save the splits again',
        )
    return values


def _places(path: Path, episodes: Sequence[str], rollouts: Sequence[Rollout]) -> list[int]:
    """Return the index of the rollout of each saved episode."""
    there = {r.episode_id: i for i, r in enumerate(rollouts)}
    if len(there) != len(rollouts) or len(set(episodes)) != len(episodes):
        raise SplitError(
            where=str(path),
            expected='a different episode id for each rollout',
            found='repeated ids',
            advice='convert the recordings again with unique episode names',
        )
    missing = [e for e in episodes if e not in there]
    added = sorted(there.keys() - set(episodes))
    if missing or added:
        found = ' and '.join(
            f'{len(names)} {what} rollout{"" if len(names) == 1 else "s"} (such as {names[0]!r})'
            for names, what in ((missing, 'missing'), (added, 'new'))
            if names
        )
        raise SplitError(
            where=str(path),
            expected=f'the {len(episodes)} labelled rollouts from which the splits were made',
            found=found,
            advice=_OTHER_SET,
        )
    return [there[e] for e in episodes]
