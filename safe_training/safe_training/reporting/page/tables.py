# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of the report page."""

from __future__ import annotations

from collections.abc import Mapping

from safe_monitor_node.bands.band import Band
from safe_training.metrics.binomial import clopper_pearson
from safe_training.metrics.part_report import EVALUATION_TIMES, PartReport, flatten_report
from safe_training.reporting.tables.measures import CLOCK, CLOCK_MACRO, HEADLINE, MACRO, MEASURES
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    count_cell,
    interval_cell,
    name_columns,
    rate_cell,
)

_COUNTS = (Column('failures'), Column('successes'))
_RATES = (
    HEADLINE,
    MACRO,
    CLOCK,
    CLOCK_MACRO,
    'false_alarm_rate',
    'detection_rate',
    'balanced_accuracy',
    'detection_time',
)
_EVALUATION_NOTE = (
    'All numbers are in percent. AUC: ROC-AUC of the largest score until the minimum length of '
    'the task (the length of its shortest rollout), pooled over tasks. Macro: mean of the AUC '
    'over tasks with both outcomes. Clock: the same numbers for a score that is only the step '
    'number; a useful detector must be better. T_det: step of the first alarm as a share of the '
    'length of the failure, 100 without alarm.'
)
_PER_TASK_NOTE = (
    'All numbers are in percent. A single task has few rollouts. Therefore its rates are coarse, '
    'and some rates are high or low by chance. AUC: failures compared with successes of the same '
    'task, by the largest score until the minimum length of the task; "-" if the task has only '
    'one outcome. Detected and T_det: over the failures of the task; T_det of a missed failure is '
    '100.'
)
_EVALUATION_TIMES_NOTE = (
    'All numbers are in percent. "At" a share of the minimum length: the score at this step. '
    '"Running": only rollouts that still run at this share of the median length of the successes '
    'of their task, ranked by their largest score so far; the macro AUC of the clock is 50. AP: '
    'average precision; its chance level is the share of failures.'
)
_PROMISE_NOTE = (
    'The promise holds for rollouts similar to the calibration rollouts, which are usually the '
    'successes of the part `seen`. On this part the promise holds by construction, so its rate '
    'is not evidence. A rate is marked as above the promise if the lower end of its 95 % '
    'interval (Clopper-Pearson) is above the promised rate.'
)


def evaluation_table(reports: Mapping[str, PartReport], detector: str) -> ResultTable:
    """Return the table with the results of the detector and of the clock on each part."""
    rows = []
    for part, report in reports.items():
        values = flatten_report(report)
        counts = [count_cell(int(values[column.title])) for column in _COUNTS]
        rows.append(TableRow((Cell(part), *counts, *(rate_cell(values[n]) for n in _RATES))))
    columns = (*name_columns('part'), *_COUNTS, *(MEASURES[name] for name in _RATES))
    return ResultTable(detector, columns, tuple(rows), (_EVALUATION_NOTE,))


def evaluation_times_table(reports: Mapping[str, PartReport]) -> ResultTable:
    """Return the table with the ranking of failures at every evaluation time."""
    rows = []
    for part, report in reports.items():
        for time, shown in EVALUATION_TIMES.items():
            found, clock = report.ranking[time], report.clock[time]
            rates = (
                found.pooled.roc_auc,
                found.macro_roc_auc,
                clock.pooled.roc_auc,
                clock.macro_roc_auc,
                found.pooled.average_precision,
                found.macro_average_precision,
            )
            rows.append(TableRow((Cell(shown), Cell(part), *(rate_cell(r) for r in rates))))
    titles = ('AUC', 'macro', 'clock', 'clock macro', 'AP', 'macro AP')
    columns = (*name_columns('evaluation time', 'part'), *(Column(title) for title in titles))
    return ResultTable('Evaluation times', columns, tuple(rows), (_EVALUATION_TIMES_NOTE,))


def per_task_table(reports: Mapping[str, PartReport]) -> ResultTable:
    """Return the table with the results on each task of each part."""
    rows = []
    for part, report in reports.items():
        ranking = report.ranking['max_score_until_min_length'].per_task
        for task in sorted(report.alarms.per_task, key=str):
            rates = report.alarms.per_task[task]
            cells = (
                Cell(str(task)),
                Cell(part),
                count_cell(rates.n_failures),
                count_cell(rates.n_successes),
                rate_cell(ranking[task].roc_auc),
                _counted(rates.false_alarm_rate, rates.n_successes),
                _counted(rates.detection_rate, rates.n_failures),
                rate_cell(rates.detection_time),
            )
            rows.append(TableRow(cells))
    measures = (HEADLINE, 'false_alarm_rate', 'detection_rate', 'detection_time')
    columns = (*name_columns('task', 'part'), *_COUNTS, *(MEASURES[name] for name in measures))
    return ResultTable('Per task', columns, tuple(rows), (_PER_TASK_NOTE,))


def _counted(rate: float, total: int) -> Cell:
    return rate_cell(rate, detail=f'{round(rate * total)} of {total}') if total else Cell()


def promise_table(reports: Mapping[str, PartReport], band: Band, alpha: float) -> ResultTable:
    """Return the promised and the realised false-alarm rate of each part."""
    rows = []
    for part, report in reports.items():
        pooled = report.alarms.pooled
        cells = [Cell(), Cell(), Cell('0 of 0')]
        if pooled.n_successes:
            alarms = round(pooled.false_alarm_rate * pooled.n_successes)
            low, high = clopper_pearson(alarms, pooled.n_successes)
            flag = 'above' if low > alpha else ''
            cells = [
                rate_cell(pooled.false_alarm_rate, flag=flag),
                interval_cell(low, high),
                Cell(f'{alarms} of {pooled.n_successes}'),
            ]
        rows.append(TableRow((Cell(part), rate_cell(alpha), *cells)))
    titles = ('promised %', 'realised %', '95 % interval', 'successes with alarm')
    columns = (*name_columns('part'), *(Column(title) for title in titles))
    return ResultTable(_band_text(band, alpha), columns, tuple(rows), (_PROMISE_NOTE,))


def _band_text(band: Band, alpha: float) -> str:
    text = f'Band {band.kind}, ranked on {band.n_calibration} rollouts'
    if made_from := band.provenance.get('calibrated_on', ''):
        text += f': {made_from}'
    if own := sum(bool(band.at(alpha, task).task) for task in band.tasks):
        text += f'; {own} tasks have their own band'
    return text
