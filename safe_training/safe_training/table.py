# SPDX-License-Identifier: Apache-2.0
"""Makes the paper's Table 1 from results, and the table that we would rather be judged by.

What is chosen stands in `table_entries`, how a table is written in `table_formats`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from safe_training.results import Result
from safe_training.table_entries import (
    HEADLINE,
    MACRO,
    Entry,
    TableError,
    entries,
    paper_entries,
    robust_entry,
    rows_of,
)

PAPER_NOTES = (
    'Published protocol, reproduced for comparison: ROC-AUC x 100 of the largest score up to the '
    "task's earliest stop, pooled over tasks; mean and sample standard deviation over splits. "
    'What is wrong with it: of each method the combination with the best mean on Seen is kept, and '
    'the same Seen is reported (methods with more combinations gain more); the alarm band is '
    'calibrated on it too; the earliest stop is taken over all rollouts, those tested on included, '
    'which no running monitor knows; where features are normalised, it is over all rollouts; '
    'pooling over tasks rewards telling tasks apart; three splits are few. Judge by the robust '
    'table.',
)
ROBUST_NOTES = (
    'All on tasks never trained on, in percent. On each split the combination with the highest '
    'macro ROC-AUC on the held-out rollouts of the seen tasks is taken; unseen tasks have no part '
    'in the choice. Macro: mean over tasks with both outcomes, 95 % bootstrap interval of its mean '
    'over splits (the splits share rollouts: it speaks of the draw of tasks). Clock: the same for '
    'a score that is just the step number. False alarms against those promised: the band promises '
    'for tasks like the seen ones. T_det: first alarm as a share of the failure, 100 if none came.',
)


@dataclass(frozen=True)
class Cell:
    """What one cell shows: a number in percent with its spread, or text."""

    text: str = '-'
    spread: str = ''
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A heading, and the heading above it that it shares with its neighbours."""

    heading: str
    over: str = ''


@dataclass(frozen=True)
class TableRow:
    """One method."""

    group: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table of methods in groups."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


def paper_table(results: Sequence[Result]) -> Table:
    """Return Table 1 of the results of the published protocol, one pair of columns a benchmark.

    Subsets of a benchmark share its columns: their mean, see `over_subsets`.

    Raises
    ------
    TableError
        There are none.
    """
    found, of_subsets = paper_entries(results)
    benchmarks = list(dict.fromkeys(entry.benchmark for entry in found))
    by_place = {(e.benchmark, e.detector): e for e in found}
    columns: list[Column] = []
    filled: list[list[Cell]] = []
    rows = rows_of({e.detector for e in found})
    for benchmark in benchmarks:
        there = [by_place.get((benchmark, detector)) for _, detector, _ in rows]
        for part in ('seen', 'unseen'):
            columns.append(Column(part.capitalize(), benchmark))
            filled.append(_numbers(there, f'{part}/{HEADLINE}', decimals=2, best=True))
        columns.append(Column('of', benchmark))
        filled.append([Cell(str(e.combinations)) if e else Cell() for e in there])
    notes = [*PAPER_NOTES, '"of": how many combinations the one shown was chosen among.']
    return Table(
        'Table 1, published protocol',
        tuple(columns),
        _assemble(rows, filled),
        (*notes, *of_subsets, *_gaps(found, ('seen', 'unseen'), HEADLINE)),
    )


def robust_tables(results: Sequence[Result]) -> list[Table]:
    """Return one table for each benchmark, with everything chosen inside each split.

    A benchmark that has results of the published protocol only is judged on its few splits.

    Raises
    ------
    TableError
        There are no results.
    """
    if not results:
        raise TableError('the results folders hold no rows; run a sweep or an evaluation first')
    tables = []
    for benchmark in dict.fromkeys(r.benchmark for r in results):
        of_it = [r for r in results if r.benchmark == benchmark]
        robust = [r for r in of_it if r.protocol == 'robust']
        found = entries(robust or of_it, robust_entry)
        if found:
            tables.append(_robust_table(benchmark, found, published=not robust))
    return tables


_ROBUST_COLUMNS = (
    ('AUC', HEADLINE, True),
    ('macro AUC', MACRO, True),
    ('clock macro', f'clock_{MACRO}', False),
    ('false alarms', 'false_alarm_rate', False),
    ('promised', 'alpha', False),
    ('detected', 'detection_rate', False),
    ('bal. acc.', 'balanced_accuracy', True),
    ('T_det', 'detection_time', False),
)


def _robust_table(benchmark: str, found: Sequence[Entry], *, published: bool) -> Table:
    rows = rows_of({e.detector for e in found})
    by_name = {e.detector: e for e in found}
    there: list[Entry | None] = [by_name[detector] for _, detector, _ in rows]
    columns: list[Column] = []
    filled: list[list[Cell]] = []
    for heading, metric, best in _ROBUST_COLUMNS:
        columns.append(Column(heading))
        spread = metric != 'alpha' and not metric.startswith('clock_')
        filled.append(_numbers(there, f'unseen/{metric}', decimals=1, best=best, spread=spread))
        if metric == MACRO:
            columns.append(Column('95 %'))
            filled.append([_interval(entry, f'unseen/{MACRO}') for entry in there])
    columns += [Column('splits'), Column('of')]
    filled.append([Cell(_shown_of(e, f'unseen/{MACRO}')) if e else Cell() for e in there])
    filled.append([Cell(str(e.combinations)) if e else Cell() for e in there])
    splits = max(e.splits for e in found)
    notes = [*ROBUST_NOTES, '"of": how many combinations were chosen among on each split.']
    if published:
        notes.append(f'Made of the {splits} splits of the published protocol, which are few.')
    return Table(
        f'{benchmark}, {splits} task split{"s" if splits != 1 else ""}, unseen tasks',
        tuple(columns),
        _assemble(rows, filled),
        (*notes, *_gaps(found, ('unseen',), MACRO)),
    )


def _numbers(
    there: Sequence[Entry | None], name: str, *, decimals: int, best: bool, spread: bool = True
) -> list[Cell]:
    shown = []
    for entry in there:
        summary = entry.values.get(name) if entry else None
        if summary is None or math.isnan(summary.mean):
            shown.append(Cell())
            continue
        std = f'{100 * summary.std:.{decimals}f}' if spread and summary.splits > 1 else ''
        shown.append(Cell(f'{100 * summary.mean:.{decimals}f}', std))
    numbers = [float(cell.text) for cell in shown if cell.text != '-']
    if not best or not numbers:
        return shown
    highest = max(numbers)
    return [Cell(c.text, c.spread, c.text != '-' and float(c.text) == highest) for c in shown]


def _interval(entry: Entry | None, name: str) -> Cell:
    summary = entry.values.get(name) if entry else None
    if summary is None or math.isnan(summary.low):
        return Cell()
    return Cell(f'{100 * summary.low:.1f} to {100 * summary.high:.1f}')


def _shown_of(entry: Entry, name: str) -> str:
    summary = entry.values.get(name)
    used = summary.splits if summary else 0
    return str(used) if used == entry.splits else f'{used}/{entry.splits}'


def _assemble(
    rows: Sequence[tuple[str, str, str]], filled: Sequence[Sequence[Cell]]
) -> tuple[TableRow, ...]:
    return tuple(
        TableRow(group, name, tuple(column[index] for column in filled))
        for index, (group, _, name) in enumerate(rows)
    )


def _gaps(found: Sequence[Entry], parts: Sequence[str], metric: str) -> list[str]:
    """Say where a mean is over fewer splits than the benchmark has; it is no mean of the others."""
    most: dict[str, int] = {}
    for entry in found:
        most[entry.benchmark] = max(most.get(entry.benchmark, 0), entry.splits)
    lacking: dict[tuple[str, str, int], list[str]] = {}
    for entry in found:
        for part in parts:
            summary = entry.values.get(f'{part}/{metric}')
            used = summary.splits if summary else 0
            if used < most[entry.benchmark]:
                lacking.setdefault((entry.benchmark, part, used), []).append(entry.detector)
    return [
        f'{benchmark}, {part}: only {used} of {most[benchmark]} splits have the number for '
        f'{", ".join(detectors)}.'
        for (benchmark, part, used), detectors in lacking.items()
    ]
