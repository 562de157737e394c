# SPDX-License-Identifier: Apache-2.0
"""Outcomes set by people, in the index of a rollout set or in the csv file of a recording.

The csv has a header and a row for each labelled episode::

    episode_id,outcome,failure_step
    pick_up_the_mug/0,success,
    pick_up_the_mug/1,failure,17

``outcome`` is ``success``, ``failure`` or ``unknown``. The outcome in the csv file replaces the
outcome in the recording. ``failure_step`` is the step at which the failure began, as annotated by a
person. The value may be empty, and the column may be missing. Other columns are not changed.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_training.recordings.errors import DumpError
from safe_training.recordings.untrusted.csv_file import read_rows
from vla_feature_bridge.atomic import locked, replace_file
from vla_feature_bridge.rollout_set.layout import INDEX
from vla_feature_bridge.rollout_set.reader import RolloutSet

OUTCOMES: dict[str, bool | None] = {'success': True, 'failure': False, 'unknown': None}
COLUMNS = ('episode_id', 'outcome', 'failure_step')

_MAX_BYTES = 64 << 20
_MAX_STEP = 2**32


@dataclass(frozen=True)
class Label:
    """The outcome of an episode and the step of its failure; None if unknown."""

    success: bool | None
    failure_step: int | None = None

    @property
    def outcome(self) -> str:
        """The outcome as text: 'success', 'failure' or 'unknown'."""
        return next(name for name, success in OUTCOMES.items() if success is self.success)


def make_label(outcome: str, failure_step: str | int | None, where: str) -> Label:
    """Return a checked label; raises a :class:`DumpError` whose text begins with ``where``."""
    if outcome not in OUTCOMES:
        raise DumpError(
            where=where,
            expected=f'one of the outcomes {", ".join(OUTCOMES)}',
            found=repr(outcome[:40]),
            advice='write one of these outcomes',
        )
    if failure_step in (None, ''):
        return Label(OUTCOMES[outcome])
    text = str(failure_step)
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) >= _MAX_STEP:
        raise DumpError(
            where=where,
            expected=f'failure_step as a whole number from 0 to {_MAX_STEP - 1}',
            found=repr(text[:40]),
            advice='write the number of a step, or leave failure_step empty',
        )
    if outcome != 'failure':
        raise DumpError(
            where=where,
            expected=f'no failure_step, because the outcome is {outcome!r}',
            found=f'failure_step {text}',
            advice='remove failure_step, or change the outcome to failure',
        )
    return Label(False, int(text))


def check_step(label: Label, length: int, where: str) -> None:
    """Raise :class:`DumpError` if the failure step is not one of ``length`` steps."""
    if label.failure_step is not None and label.failure_step >= length:
        raise DumpError(
            where=where,
            expected=f'failure_step from 0 to {length - 1}, the last step of the episode',
            found=str(label.failure_step),
            advice='correct failure_step',
        )


# -- csv


def read_labels(file: Path) -> dict[str, Label]:
    """Return the label of each episode in a csv.

    Raises
    ------
    DumpError
        A column is missing, a row has no known outcome, or an episode has two rows.
    """
    labels: dict[str, Label] = {}
    for line, row in _read_rows(file):
        where = f'{file}, line {line}'
        episode = row['episode_id']
        if not episode:
            raise DumpError(
                where=where,
                expected='an episode_id',
                found='no episode_id',
                advice='write the episode_id, or remove the line',
            )
        if episode in labels:
            raise DumpError(
                where=where,
                expected=f'one line for episode {episode!r}',
                found='a second line',
                advice='remove one of the two lines',
            )
        labels[episode] = make_label(row['outcome'], row.get('failure_step'), where)
    return labels


def write_labels(file: Path, labels: Mapping[str, Label]) -> None:
    """Add labels to a csv, or replace them; the file is written completely or not at all."""
    rows = {row['episode_id']: row for _, row in _read_rows(file)} if file.exists() else {}
    for episode, label in labels.items():
        step = '' if label.failure_step is None else str(label.failure_step)
        row = rows.setdefault(episode, {'episode_id': episode})
        row |= {'outcome': label.outcome, 'failure_step': step}
    columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows.values() for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows.values())
    replace_file(file, text.getvalue().encode())


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a csv of labels, each with its line number."""
    names, rows = read_rows(file, 'a csv file of labels', _MAX_BYTES)
    missing = [name for name in COLUMNS[:2] if name not in names]
    if missing or len(set(names)) != len(names):
        raise DumpError(
            where=str(file),
            expected=f'a first line with the columns {", ".join(COLUMNS[:2])} and, optionally, '
            f'{COLUMNS[2]}, each column once',
            found=(f'the columns {", ".join(names)[:200]}' if names else 'an empty file'),
            advice=f'write this first line: {",".join(COLUMNS)}',
        )
    for line, row in rows:
        if len(row) != len(names):
            raise DumpError(
                where=f'{file}, line {line}',
                expected=f'{len(names)} values, one value for each column',
                found=f'{"more" if len(row) > len(names) else "fewer"} values',
                advice='correct the line',
            )
    return [(line, dict(zip(names, row, strict=True))) for line, row in rows]


# -- rollout sets


def write_set_labels(folder: Path, labels: Mapping[str, Label]) -> None:
    """Set outcome and failure step of some rollouts of a set; replaces its index atomically.

    Raises
    ------
    RolloutSetError
        The set is damaged.
    DumpError
        The set has no such episode, or a failure step lies outside its episode.
    """
    import pyarrow
    import pyarrow.parquet

    lengths = _set_lengths(folder)
    for episode, label in labels.items():
        where = f'{folder}: episode {episode!r}'
        if episode not in lengths:
            raise DumpError(
                where=where,
                expected='the name of an episode of this set',
                found='no episode with this name',
                advice='print the names of all episodes with: python -m safe_training label '
                f'{shlex.quote(str(folder))} --list --all',
            )
        check_step(label, lengths[episode], where)
    # Two processes that label at the same time must not lose labels.
    with locked(folder, wait=True):
        table = pyarrow.parquet.read_table(folder / INDEX)
        columns: dict[str, list[Any]] = {
            name: table.column(name).to_pylist() for name in ('success', 'failure_step')
        }
        for position, episode in enumerate(table.column('episode_id').to_pylist()):
            if episode in labels:
                columns['success'][position] = labels[episode].success
                columns['failure_step'][position] = labels[episode].failure_step
        for name, values in columns.items():
            place = table.column_names.index(name)
            form = table.schema.field(name)
            table = table.set_column(place, form, pyarrow.array(values, form.type))
        data = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, data)
        replace_file(folder / INDEX, data.getvalue().to_pybytes())


def set_labels(folder: Path) -> dict[str, Label]:
    """Return the label of every rollout of a set; reads only its index."""
    import pyarrow.parquet

    RolloutSet.open(folder)
    columns = pyarrow.parquet.read_table(
        folder / INDEX, columns=['episode_id', 'success', 'failure_step']
    ).to_pydict()
    return {
        episode: Label(success, step)
        for episode, success, step in zip(*columns.values(), strict=True)
    }


def _set_lengths(folder: Path) -> dict[str, int]:
    rollouts = RolloutSet.open(folder)
    return dict(zip(rollouts.episode_ids, map(int, rollouts.lengths), strict=True))
