# SPDX-License-Identifier: Apache-2.0
"""Makes the paper's Table 1 from results of a sweep, and the robust table.

The robust table is the one to compare detectors by: every choice in it is made without the rollouts
that it reports. Which combination of a method is chosen, `entries` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from safe_training.evaluation.protocol import SelectOn
from safe_training.reporting.numbers import MISSING
from safe_training.reporting.tables.entries import (
    HEADLINE,
    MACRO,
    Entry,
    entries,
    paper_entries,
    robust_entry,
    rows_of,
)
from safe_training.reporting.tables.measures import CLOCK_MACRO, MEASURES
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableError,
    TableRow,
    count_cell,
    interval_cell,
    name_columns,
    rate_cell,
)
from safe_training.sweep.results import Result

NO_RESULTS = 'expected results in the folders, found no rows; run a sweep or an evaluation first'

_PAPER_NOTE = (
    'Published protocol, reproduced for comparison: ROC-AUC x 100 of the largest score until the '
    'minimum length of the task, pooled over tasks; mean and sample standard deviation over '
    'splits. What is wrong with it: {choice} (methods with more combinations gain more); the '
    'alarm band is calibrated on Seen too; the minimum length is taken over all rollouts, those '
    'tested on included, which no running monitor knows; if features are normalised, it is over '
    'all rollouts; pooling over tasks rewards telling tasks apart; three splits are few. Judge by '
    'the robust table.'
)
_PAPER_CHOICE = (
    'of each method the combination with the best mean on {part} is kept, and the same {part} is '
    'reported'
)
_ROBUST_NOTE = (
    'All on tasks never trained on, in percent. On each split the combination with the highest '
    'macro ROC-AUC on {choice}. Macro: mean over tasks with both outcomes, 95 % bootstrap interval '
    'of its mean over splits (the splits share rollouts: it speaks of the draw of tasks). '
)
_LOTO_NOTE = (
    'Each task is unseen once: fold k trains on all tasks but the k-th in sorted order and is '
    'judged on that one. In percent; mean and standard deviation over the folds where the number '
    'exists, a task whose rollouts all ended alike has no AUC. On each fold the combination with '
    'the highest macro ROC-AUC on {choice}. Macro: mean over folds, 95 % bootstrap interval of it '
    '(the folds share rollouts: it speaks of the draw of tasks). '
)
_ROBUST_CHOICE = {
    'seen': 'the held-out rollouts of the seen tasks is taken; unseen tasks have no part in the '
    'choice',
    'unseen': 'the unseen tasks is taken',
}
_COLUMNS_NOTE = (
    'Clock: the same for a score that is just the step number. False alarms against those '
    'promised: the band promises for tasks like the seen ones. T_det: first alarm as a share of '
    'the failure, 100 if none came.'
)
_ON_UNSEEN_TITLE = ', CHOSEN ON THE UNSEEN TASKS THAT IT REPORTS'
_ON_UNSEEN = (
    'CHOSEN ON WHAT IS REPORTED (--select-on unseen): of each method the combination that did best '
    'on the unseen tasks is shown. No choice made beforehand would do so well, and methods with '
    'more combinations gain more. For comparison with papers that chose so, and for nothing else.'
)
# Metric, whether the best of the column is marked, whether it varies between splits.
_ROBUST_COLUMNS = (
    (HEADLINE, True, True),
    (MACRO, True, True),
    (CLOCK_MACRO, False, False),
    ('false_alarm_rate', False, True),
    ('alpha', False, False),
    ('detection_rate', False, True),
    ('balanced_accuracy', True, True),
    ('detection_time', False, True),
)
_METHOD = name_columns('Method')
_COMBINATIONS = 'of'


def paper_table(results: Sequence[Result], select_on: SelectOn = 'seen') -> ResultTable:
    """Return Table 1 of the results of the published protocol, three columns a benchmark.

    Subsets of a benchmark share its columns: their mean, see `over_subsets`.

    Raises
    ------
    TableError
        There are none.
    """
    found, of_subsets = paper_entries(results, select_on)
    by_place = {(e.benchmark, e.detector): e for e in found}
    columns: list[Column] = []
    filled: list[list[Cell]] = []
    rows = rows_of({e.detector for e in found})
    for benchmark in dict.fromkeys(entry.benchmark for entry in found):
        of_rows = [by_place.get((benchmark, detector)) for _, detector, _ in rows]
        for part in ('seen', 'unseen'):
            columns.append(Column(part.capitalize(), benchmark))
            filled.append(_best_marked(_numbers(of_rows, f'{part}/{HEADLINE}', decimals=2)))
        columns.append(Column(_COMBINATIONS, benchmark))
        filled.append(_combinations(of_rows))
    choice = _PAPER_CHOICE.format(part=select_on.capitalize())
    notes = (
        _PAPER_NOTE.format(choice=choice),
        '"of": how many combinations the one shown was chosen among.',
        *of_subsets,
        *_gaps(found, ('seen', 'unseen'), HEADLINE),
    )
    table = ResultTable(
        'Table 1, published protocol', (*_METHOD, *columns), _rows(rows, filled), notes
    )
    return table if select_on == 'seen' else _warned(table)


def results_by_kind(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results that the tables with a nested choice are made of, by kind of table.

    'robust' are random task splits, 'loto' leaves one task out; the two are never averaged. For a
    benchmark that has results of the published protocol only, its few splits take the place of
    random ones.
    """
    not_only_paper = {r.benchmark for r in results if r.protocol != 'paper'}
    kinds = {
        'robust': [
            r
            for r in results
            if r.protocol == 'robust'
            or (r.protocol == 'paper' and r.benchmark not in not_only_paper)
        ],
        'loto': [r for r in results if r.protocol == 'loto'],
    }
    return {kind: members for kind, members in kinds.items() if members}


def robust_tables(results: Sequence[Result], select_on: SelectOn = 'seen') -> list[ResultTable]:
    """Return one table for each benchmark and kind of split, every choice made inside each split.

    Which results a table is made of, `results_by_kind` says.

    Raises
    ------
    TableError
        There are no results.
    """
    if not results:
        raise TableError(NO_RESULTS)
    tables = []
    for members in results_by_kind(results).values():
        for benchmark in dict.fromkeys(r.benchmark for r in members):
            of_it = [r for r in members if r.benchmark == benchmark]
            found = entries(of_it, partial(robust_entry, select_on=select_on))
            if found:
                table = _robust_table(benchmark, found)
                tables.append(table if select_on == 'seen' else _warned(table))
    return tables


def _robust_table(benchmark: str, found: Sequence[Entry]) -> ResultTable:
    left_out = found[0].protocol == 'loto'
    rows = rows_of({e.detector for e in found})
    by_name = {e.detector: e for e in found}
    of_rows: list[Entry | None] = [by_name[detector] for _, detector, _ in rows]
    columns: list[Column] = []
    filled: list[list[Cell]] = []
    for metric, best, spread in _ROBUST_COLUMNS:
        if left_out and metric == HEADLINE:
            # A single task has nothing to pool: this is its macro AUC.
            continue
        columns.append(MEASURES[metric])
        cells = _numbers(of_rows, f'unseen/{metric}', spread=spread)
        filled.append(_best_marked(cells) if best else cells)
        if metric == MACRO:
            columns.append(Column('95 %'))
            filled.append([_interval(entry, f'unseen/{MACRO}') for entry in of_rows])
    columns += [Column('folds' if left_out else 'splits'), Column(_COMBINATIONS)]
    filled += [
        [Cell(_used_of(e, f'unseen/{MACRO}')) if e else Cell() for e in of_rows],
        _combinations(of_rows),
    ]
    count = max(e.splits for e in found)
    title = (
        f'{benchmark}, leave one task out, {count} folds, the unseen task of each'
        if left_out
        else f'{benchmark}, {count} task split{"s" if count != 1 else ""}, unseen tasks'
    )
    return ResultTable(title, (*_METHOD, *columns), _rows(rows, filled), _robust_notes(found))


def _robust_notes(found: Sequence[Entry]) -> tuple[str, ...]:
    protocol, select_on = found[0].protocol, found[0].select_on
    many = 'folds' if protocol == 'loto' else 'splits'
    note = (_LOTO_NOTE if protocol == 'loto' else _ROBUST_NOTE).format(
        choice=_ROBUST_CHOICE[select_on]
    )
    notes = [
        note + _COLUMNS_NOTE,
        f'"of": how many combinations were chosen among on each {many[:-1]}.',
    ]
    if protocol == 'paper':
        count = max(e.splits for e in found)
        notes.append(f'Made of the {count} splits of the published protocol, which are few.')
    cannot_alarm = [e.detector for e in found if _finite_share(e) < 1]
    if cannot_alarm:
        notes.append(
            f'No alarm can be raised in some {many}, for too few successes to calibrate on: the '
            f'band is infinite, and the alarms of {", ".join(cannot_alarm)} say nothing there.'
        )
    return (*notes, *_gaps(found, ('unseen',), MACRO, many))


def _warned(table: ResultTable) -> ResultTable:
    return replace(
        table,
        title=table.title + _ON_UNSEEN_TITLE,
        notes=(_ON_UNSEEN, *table.notes),
        warning='Chosen on the unseen tasks that are reported',
    )


def _finite_share(entry: Entry) -> float:
    summary = entry.values.get('unseen/finite_band')
    return 1.0 if summary is None or math.isnan(summary.mean) else summary.mean


def _numbers(
    of_rows: Sequence[Entry | None], name: str, *, decimals: int = 1, spread: bool = True
) -> list[Cell]:
    cells = []
    for entry in of_rows:
        summary = entry.values.get(name) if entry else None
        if summary is None:
            cells.append(Cell())
            continue
        std = summary.std if spread and summary.splits > 1 else None
        cells.append(rate_cell(summary.mean, std, decimals=decimals))
    return cells


def _best_marked(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells, those emphasised whose number as it is shown is the highest."""
    numbers = [float(cell.text) for cell in cells if cell.text != MISSING]
    return [
        replace(cell, emphasis=cell.text != MISSING and float(cell.text) == max(numbers))
        for cell in cells
    ]


def _interval(entry: Entry | None, name: str) -> Cell:
    summary = entry.values.get(name) if entry else None
    return Cell() if summary is None else interval_cell(summary.low, summary.high)


def _used_of(entry: Entry, name: str) -> str:
    summary = entry.values.get(name)
    used = summary.splits if summary else 0
    return str(used) if used == entry.splits else f'{used}/{entry.splits}'


def _combinations(of_rows: Sequence[Entry | None]) -> list[Cell]:
    return [count_cell(entry.combinations) if entry else Cell() for entry in of_rows]


def _rows(
    rows: Sequence[tuple[str, str, str]], filled: Sequence[Sequence[Cell]]
) -> tuple[TableRow, ...]:
    return tuple(
        TableRow((Cell(name), *(column[index] for column in filled)), group)
        for index, (group, _, name) in enumerate(rows)
    )


def _gaps(
    found: Sequence[Entry], parts: Sequence[str], metric: str, many: str = 'splits'
) -> list[str]:
    """Return notes about means over fewer splits than others, which do not compare with them."""
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
        f'{benchmark}, {part}: only {used} of {most[benchmark]} {many} have the number for '
        f'{", ".join(detectors)}.'
        for (benchmark, part, used), detectors in lacking.items()
    ]
