# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of an evaluation: the main table, and a table with the details of one part.

The table with the details contains every evaluation time, every rate and every task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from safe_training.evaluation.evaluate import Row, Summary, summarise, summary_of
from safe_training.metrics.part_report import EVALUATION_TIMES
from safe_training.reporting.numbers import percent
from safe_training.reporting.tables.measures import CLOCK, CLOCK_MACRO, HEADLINE, MACRO, MEASURES
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    count_cell,
    name_columns,
    rate_cell,
)
from safe_training.reporting.tables.terminal import shortened

LEGEND = (
    'All numbers are in percent, except the time to fit and calibrate. AUC: ROC-AUC of the '
    'largest score until the minimum length of the task (the length of its shortest rollout), '
    'pooled over tasks. Macro: mean of the AUC over tasks that have both outcomes. Clock: the '
    'same number for a score that is only the step number. False alarms: successes with an alarm '
    'during the rollout. Detected: failures with an alarm. T_det: step of the first alarm as a '
    'share of the length of the failure, 100 without alarm. The detector "clock" only counts '
    'steps. It detects all failures, but late, because failures run until the time limit. A '
    'useful detector must be better than the clock. A number in brackets is the number of splits '
    'in which the value exists.'
)
_MAIN = (
    HEADLINE,
    MACRO,
    CLOCK,
    CLOCK_MACRO,
    'false_alarm_rate',
    'detection_rate',
    'balanced_accuracy',
    'detection_time',
)
_RANKINGS = (
    (Column('AUC'), 'roc_auc_'),
    (Column('macro'), 'macro_roc_auc_'),
    (Column('AP'), 'average_precision_'),
    (Column('macro AP', narrow='macro\nAP'), 'macro_average_precision_'),
    (Column('clock'), 'clock_roc_auc_'),
    (Column('clock macro', narrow='clock\nmacro'), 'clock_macro_roc_auc_'),
)
_RANKINGS_LEGEND = (
    'AP: average precision; its chance level is the share of failures. "Running": only rollouts '
    'that still run at this share of the median length of the successes of their task, ranked by '
    'their largest score so far.'
)
_RATES = (
    ('detected (TPR)', 'detection_rate'),
    ('false alarms (FPR)', 'false_alarm_rate'),
    ('balanced accuracy', 'balanced_accuracy'),
    ('weighted accuracy (the smaller class has more weight)', 'weighted_accuracy'),
    ('accuracy', 'accuracy'),
    ('F1 of failures', 'f1'),
    ('T_det', 'detection_time'),
    ('detected, mean over tasks', 'macro_detection_rate'),
    ('false alarms, mean over tasks', 'macro_false_alarm_rate'),
    ('detected until the minimum length', 'detection_rate_until_min_length'),
    ('false alarms until the minimum length', 'false_alarm_rate_until_min_length'),
    ('balanced accuracy until the minimum length', 'balanced_accuracy_until_min_length'),
    ('alarms before the annotated failure', 'alarms_before_annotated_failure'),
    ('Brier score at the minimum length', 'brier_score_at_min_length'),
    ('calibration error at the minimum length', 'calibration_error_score_at_min_length'),
)
_TASK_RATES = (HEADLINE, 'false_alarm_rate', 'detection_rate', 'detection_time')


def report_table(rows: Sequence[Row], title: str) -> ResultTable:
    """Return the table of detectors by part: mean, and deviation over several splits."""
    columns = [*name_columns('part'), *(MEASURES[name] for name in _MAIN)]
    timed = any('fit_seconds' in row.values for row in rows)
    if timed:
        columns.append(Column('fit (s)', narrow='fit\n(s)'))
    shown = []
    for detector, parts in summarise(rows).items():
        for part, values in parts.items():
            splits = values['alpha'].splits
            cells = [Cell(part), *(_summary_cell(values[name], splits) for name in _MAIN)]
            if timed:
                seconds = values['fit_seconds'].mean
                cells.append(Cell(f'{seconds:.2f}', value=seconds))
            shown.append(TableRow(tuple(cells), detector))
    return ResultTable(title, tuple(columns), tuple(shown), (LEGEND,), group_title='detector')


def promise_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Return a sentence with the promised and the realised rate on unseen tasks, per detector."""
    for detector, parts in summarise(rows).items():
        values = parts.get('unseen')
        if values is None:
            continue
        found, finite = values['false_alarm_rate'], values['finite_band']
        line = (
            f'{detector}: promised {percent(values["alpha"].mean)} %, '
            f'realised on unseen tasks {percent(found.mean)} %'
        )
        if found.splits > 1:
            line += f' (95 % interval over splits {percent(found.low)} to {percent(found.high)})'
        auc = values[MACRO]
        if auc.splits > 1:
            line += f'; macro AUC {percent(auc.low)} to {percent(auc.high)}'
        if finite.mean < 1:
            line += (
                f'. On {round(finite.splits * (1 - finite.mean))} of {finite.splits} splits the '
                'successes are too few for calibration: the band is infinite and no alarm is '
                'possible'
            )
        yield line


def detail_tables(rows: Sequence[Row], part: str) -> Iterator[ResultTable]:
    """Return the tables with all details for one part of each detector."""
    for detector, parts in summarise(rows).items():
        if part in parts:
            title = f'{detector}, {part}'
            yield _rankings_table(title, parts[part])
            yield _rates_table(title, parts[part])
            own = [row for row in rows if (row.detector, row.part) == (detector, part)]
            yield _task_table(title, own)


def _rankings_table(title: str, values: Mapping[str, Summary]) -> ResultTable:
    splits = values['alpha'].splits
    rows = tuple(
        TableRow(
            (
                Cell(shown),
                *(_summary_cell(values[f'{name}{time}'], splits) for _, name in _RANKINGS),
            )
        )
        for time, shown in EVALUATION_TIMES.items()
    )
    columns = (*name_columns('evaluation time'), *(column for column, _ in _RANKINGS))
    return ResultTable(f'{title}: how failures rank', columns, rows, (_RANKINGS_LEGEND,))


def _rates_table(title: str, values: Mapping[str, Summary]) -> ResultTable:
    splits = values['alpha'].splits
    rows = [
        TableRow((Cell(shown), _summary_cell(values[name], splits)))
        for shown, name in _RATES
        if values[name].splits
    ]
    lead = values['median_lead_steps']
    if lead.splits:
        steps = Cell(f'{lead.mean:.1f}', value=lead.mean)
        rows.append(TableRow((Cell('median lead before the annotated failure [steps]'), steps)))
    columns = (*name_columns('rate'), Column('%'))
    return ResultTable(f'{title}: alarms', columns, tuple(rows))


def _task_table(title: str, rows: Sequence[Row]) -> ResultTable:
    by_task: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        for task, values in row.tasks.items():
            by_task.setdefault(task, []).append(values)
    columns = (
        *name_columns('task'),
        Column('splits'),
        Column('failures'),
        Column('successes'),
        MEASURES[HEADLINE],
        MEASURES['false_alarm_rate'],
        Column('detected'),
        MEASURES['detection_time'],
    )
    shown = tuple(_task_row(task, by_task[task]) for task in sorted(by_task))
    return ResultTable(f'{title}: by task', columns, shown)


def _task_row(task: str, splits: Sequence[Mapping[str, float]]) -> TableRow:
    def summary(name: str) -> Summary:
        return summary_of([values[name] for values in splits])

    counts = [summary(name).mean for name in ('n_failures', 'n_successes')]
    return TableRow(
        (
            Cell(shortened(task), value=task),
            count_cell(len(splits)),
            *(Cell(f'{count:.4g}', value=count) for count in counts),
            *(_summary_cell(summary(name)) for name in _TASK_RATES),
        )
    )


def _summary_cell(summary: Summary, splits: int = 0) -> Cell:
    """Return a mean with its deviation, and its number of splits if it is below ``splits``."""
    return rate_cell(
        summary.mean,
        summary.std if summary.splits > 1 else None,
        detail=str(summary.splits) if 0 < summary.splits < splits else '',
    )
