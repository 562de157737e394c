# SPDX-License-Identifier: Apache-2.0
"""Makes the paper's Table 1 from results of a sweep, and the robust table.

Use the robust table to compare detectors: no choice in it uses the reported rollouts. `entries`
chooses the combination of each method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from safe_training.evaluation.protocol import SelectOn
from safe_training.reporting.tables.compared import best_marked, comparison_notes, has_tasks
from safe_training.reporting.tables.entries import (
    HEADLINE,
    MACRO,
    Entry,
    entries,
    paper_entries,
    robust_entry,
    rows_of,
)
from safe_training.reporting.tables.measures import (
    AT_MEDIAN,
    CLOCK_EARLY,
    CLOCK_MACRO,
    EARLY,
    INTERVAL,
    MEASURES,
    SAVED,
    SAVED_OVER_CLOCK,
    STEPS,
)
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableError,
    TableRow,
    count_cell,
    name_columns,
    rate_cell,
    steps_cell,
)
from safe_training.reporting.tables.numbers import (
    INTERVALS_NOTE,
    task_interval_cell,
)
from safe_training.reporting.tables.tasks import task_table
from safe_training.sweep.results import Result

NO_RESULTS = (
    'results: expected rows in the folders, found none; run `sweep` or `evaluate --out` first'
)

_PAPER_NOTE = (
    'Published protocol, reproduced for comparison: ROC-AUC x 100 of the largest score until '
    'the minimum length of the task, pooled over tasks; mean and sample standard deviation '
    'over splits. Limitations: {choice} (this favours methods with more combinations); the '
    'alarm band is also calibrated on Seen; the minimum length is taken over all rollouts, '
    'including test rollouts, and a running monitor does not know it; features, if normalised, '
    'are normalised over all rollouts; an AUC pooled over tasks rewards a detector that only '
    'recognises tasks; three splits are few. Use the robust table to choose a detector.'
)
_PAPER_CHOICE = (
    'for each method, the combination with the best mean on {part} is chosen, and the same '
    'part {part} is reported'
)
_ROBUST_NOTE = (
    'All numbers are for unseen tasks, in percent. On each split, the combination with the '
    'highest macro ROC-AUC on {choice}. Macro: mean over tasks with both outcomes. '
)
_LOTO_NOTE = (
    'Each task is unseen once: in fold k, the k-th task in sorted order is used for the test '
    'and all other tasks are used for training. Numbers are in percent: mean and standard '
    'deviation over the folds in which the number exists. A task with only one outcome has no '
    'AUC. On each fold the combination with the highest macro ROC-AUC on {choice}. Macro: mean '
    'over folds. '
)
_ROBUST_CHOICE = {
    'seen': 'the held-out rollouts of the seen tasks is chosen; unseen tasks are not used for the '
    'choice',
    'unseen': 'the unseen tasks is chosen',
}
_COLUMNS_NOTE = (
    'Found early: failures with an alarm before the median success of their task is over; clock '
    'early: the same for a step counter with the same false-alarm rate. Steps saved: policy steps '
    'from the alarm to the end of the failure (0 without alarm), as a mean over failures; over '
    'clock: minus the steps that the step counter saves. At median: only rollouts that still run '
    'at the median '
    'success length. Clock macro: the macro AUC of the step number. Promised: the promised '
    'false-alarm rate; the promise holds for tasks similar to the seen tasks. T_det: step of '
    'the first alarm as a share of the length of the failure, 100 without alarm.'
)
_ON_UNSEEN_TITLE = ', CHOSEN ON THE REPORTED UNSEEN TASKS'
_ON_UNSEEN = (
    'CHOSEN ON THE REPORTED TASKS (--select-on unseen): for each method, the combination with '
    'the best numbers on the unseen tasks is shown. These numbers are too optimistic, because '
    'the choice uses the reported results. This favours methods with more combinations. Use '
    'this table only for comparison with papers that chose in the same way.'
)
# Metric; True if it has an interval and its best values are marked; True if it varies over splits.
_ROBUST_COLUMNS = (
    (EARLY, True, True),
    (CLOCK_EARLY, False, False),
    (SAVED, False, True),
    (SAVED_OVER_CLOCK, False, True),
    (MACRO, True, True),
    (AT_MEDIAN, False, True),
    (CLOCK_MACRO, False, False),
    (HEADLINE, False, True),
    ('false_alarm_rate', False, True),
    ('alpha', False, False),
    ('detection_rate', False, True),
    ('balanced_accuracy', False, True),
    ('detection_time', False, True),
)
# Results up to version 0.2 lack these numbers.
_NEW_COLUMNS = frozenset({EARLY, CLOCK_EARLY, SAVED, SAVED_OVER_CLOCK, AT_MEDIAN})
_NO_TASKS = (
    'The results contain no numbers of single tasks, because version 0.2 or an older version '
    'wrote them. Therefore there are no intervals over tasks. Run the sweep or the evaluation '
    'again.'
)
_METHOD = name_columns('Method')
_COMBINATIONS = 'of'


def paper_table(results: Sequence[Result], select_on: SelectOn = 'seen') -> ResultTable:
    """Return Table 1: results of the published protocol, with three columns per benchmark.

    For a benchmark with subsets, the columns contain the mean over the subsets, see `over_subsets`.

    Raises
    ------
    TableError
        There are no results of the published protocol.
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
            filled.append(_numbers(of_rows, f'{part}/{HEADLINE}', decimals=2))
        columns.append(Column(_COMBINATIONS, benchmark))
        filled.append(_combinations(of_rows))
    choice = _PAPER_CHOICE.format(part=select_on.capitalize())
    notes = (
        _PAPER_NOTE.format(choice=choice),
        '"of": number of combinations from which the shown combination was chosen.',
        *of_subsets,
        *_gaps(found, ('seen', 'unseen'), HEADLINE),
    )
    table = ResultTable(
        'Table 1, published protocol', (*_METHOD, *columns), _rows(rows, filled), notes
    )
    return table if select_on == 'seen' else _warned(table)


def results_by_kind(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results for the tables with a choice inside each split, by kind of table.

    'robust' are random task splits, 'loto' leaves one task out. Both are never averaged together.
    If a benchmark only has results of the published protocol, its few splits are used instead of
    random splits.
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
    """Return one table for each benchmark and kind of split.

    Every choice is made inside a split.

    `results_by_kind` selects the results of each table.

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


def task_tables(results: Sequence[Result], select_on: SelectOn = 'seen') -> list[ResultTable]:
    """Return one table for each benchmark and kind of split, with the unseen tasks of each method.

    Results of version 0.2 and before have no numbers of tasks.
    """
    tables = []
    for kind, members in results_by_kind(results).items():
        for benchmark in dict.fromkeys(r.benchmark for r in members):
            of_it = [r for r in members if r.benchmark == benchmark]
            found = entries(of_it, partial(robust_entry, select_on=select_on))
            titles = {d: title for _, d, title in rows_of({e.detector for e in found})}
            detectors = {titles[e.detector]: e.parts['unseen'] for e in found if has_tasks(e)}
            if detectors:
                table = task_table(f'{benchmark}, {kind}, unseen tasks: by task', detectors)
                tables.append(table if select_on == 'seen' else _warned(table))
    return tables


def _robust_table(benchmark: str, found: Sequence[Entry]) -> ResultTable:
    left_out = found[0].protocol == 'loto'
    rows = rows_of({e.detector for e in found})
    by_name = {e.detector: e for e in found}
    of_rows: list[Entry | None] = [by_name[detector] for _, detector, _ in rows]
    columns: list[Column] = []
    filled: list[list[Cell]] = []
    for metric, compared, spread in _ROBUST_COLUMNS:
        if left_out and metric == HEADLINE:
            # With a single task, the pooled AUC is equal to the macro AUC.
            continue
        cells = _numbers(of_rows, f'unseen/{metric}', spread=spread)
        if metric in _NEW_COLUMNS and all(cell == Cell() for cell in cells):
            continue
        columns.append(MEASURES[metric])
        filled.append(best_marked(cells, of_rows, metric) if compared else cells)
        intervals = [
            task_interval_cell(metric, entry.values.get(f'unseen/{metric}') if entry else None)
            for entry in of_rows
        ]
        if compared and any(cell != Cell() for cell in intervals):
            columns.append(INTERVAL)
            filled.append(intervals)
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
        INTERVALS_NOTE if any(has_tasks(entry) for entry in found) else _NO_TASKS,
        *comparison_notes(found),
        f'"of": number of combinations from which one was chosen on each {many[:-1]}.',
    ]
    if protocol == 'paper':
        count = max(e.splits for e in found)
        notes.append(f'Based on only the {count} splits of the published protocol.')
    cannot_alarm = [e.detector for e in found if _finite_share(e) < 1]
    if cannot_alarm:
        notes.append(
            f'On some {many}, the successes are too few for calibration. On these {many} the band '
            'is infinite and no alarm is possible. Therefore the alarm rates of '
            f'{", ".join(cannot_alarm)} are too low.'
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
        if name.partition('/')[2] in STEPS:
            cells.append(steps_cell(summary.mean, std))
        else:
            cells.append(rate_cell(summary.mean, std, decimals=decimals))
    return cells


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
    """Return notes about means over fewer splits, which cannot be compared with the other means."""
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
