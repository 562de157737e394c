# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping

from safe_monitor_node.bands.band import Band
from safe_training.metrics.binomial import clopper_pearson
from safe_training.metrics.bootstrap import Interval
from safe_training.metrics.part_report import EVALUATION_TIMES, PartReport, flatten_report
from safe_training.metrics.task_bootstrap import task_interval
from safe_training.reporting.tables.measures import (
    AT_MEDIAN,
    CLOCK,
    CLOCK_EARLY,
    EARLY,
    HEADLINE,
    MACRO,
    MEASURES,
    SAVED,
    SAVED_OVER_CLOCK,
)
from safe_training.reporting.tables.model import (
    Cell,
    Column,
    ResultTable,
    TableRow,
    count_cell,
    interval_cell,
    name_columns,
    rate_cell,
    steps_cell,
)
from safe_training.reporting.tables.numbers import early_sentence, number_cell

_COUNTS = (Column('failures'), Column('successes'))
_NUMBERS = (
    EARLY,
    CLOCK_EARLY,
    SAVED,
    SAVED_OVER_CLOCK,
    MACRO,
    AT_MEDIAN,
    HEADLINE,
    CLOCK,
    'false_alarm_rate',
    'detection_rate',
    'balanced_accuracy',
    'detection_time',
)
_BRIER = (
    ('brier_score', Column('Brier', explanation='of the probability of failure; lower is better')),
    ('clock_brier_score', Column('Brier, clock', explanation='of a probability by the step alone')),
    ('base_rate_brier_score', Column('Brier, constant', explanation='of a constant probability')),
)
_EVALUATION_NOTE = (
    'Numbers are in percent, except steps and Brier scores. Found early: failures with an alarm '
    'before the median success of their task is over. Clock early: the same for a step counter '
    'with the same false-alarm rate. Steps saved: policy steps from the alarm to the end of the '
    'failure, 0 without alarm, mean over failures; over clock: minus the steps that the step '
    'counter saves. AUC: ROC-AUC of the largest score until the minimum length of '
    'the task (the length of its shortest rollout), pooled over tasks. Macro: mean of the AUC '
    'over tasks with both outcomes. At median: macro AUC of the rollouts that still run at the '
    'median success length of their task. Clock AUC: the AUC of the step number. Brier: mean '
    'squared error of the probability of failure while rollouts run, and for comparison the same '
    'of the step number and of a constant; lower is better, "-" if the detector folder has no '
    'probability '
    'map. T_det: step of the first alarm as a share of the '
    'length of the failure, 100 without alarm.'
)
_PER_TASK_NOTE = (
    'Numbers are in percent, except steps. A single task has few rollouts. Therefore its rates '
    'are coarse, and some rates are high or low by chance. AUC: failures compared with successes '
    'of the same task, by the largest score until the minimum length of the task; "-" if the '
    'task has only one outcome. Clock early and over clock: the clock has the false-alarm rate '
    'of the detector on the whole part, not on this task. Detected and T_det: over the failures '
    'of the task; T_det of a missed failure is 100.'
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
    'is not evidence. Over tasks: bootstrap interval; with a dozen tasks it covers the true rate '
    'in about 90 % of the cases. Over rollouts: Clopper-Pearson interval, which is too narrow '
    'for other tasks. A rate is marked as above the promise if the lower end of its interval '
    'over tasks is above the promised rate.'
)


def evaluation_table(reports: Mapping[str, PartReport], detector: str) -> ResultTable:
    """Return the table with the results of the detector and of the clock on each part."""
    rows = []
    for part, report in reports.items():
        values = flatten_report(report)
        counts = [count_cell(int(values[column.title])) for column in _COUNTS]
        numbers = [number_cell(name, values[name]) for name in _NUMBERS]
        brier = [_brier_cell(values[name]) for name, _ in _BRIER]
        rows.append(TableRow((Cell(part), *numbers, *brier, *counts)))
    columns = (
        *name_columns('part'),
        *(MEASURES[name] for name in _NUMBERS),
        *(column for _, column in _BRIER),
        *_COUNTS,
    )
    return ResultTable(detector, columns, tuple(rows), (_EVALUATION_NOTE,))


def _brier_cell(score: float) -> Cell:
    return Cell() if math.isnan(score) else Cell(f'{score:.3f}', value=score)


def summary_text(reports: Mapping[str, PartReport]) -> str:
    """Return the main numbers, for the part that is most similar to new rollouts."""
    part = next(p for p in ('unseen', 'new', 'seen', 'train') if p in reports)
    return f'Part {part}: {early_sentence(reports[part].early)}'


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
            early = report.early.per_task[task]
            cells = (
                Cell(str(task)),
                Cell(part),
                _counted(early.found_early.detector, early.n_with_median),
                rate_cell(early.found_early.clock),
                steps_cell(early.steps_saved.detector),
                steps_cell(early.steps_saved.gain),
                count_cell(rates.n_failures),
                count_cell(rates.n_successes),
                rate_cell(ranking[task].roc_auc),
                _counted(rates.false_alarm_rate, rates.n_successes),
                _counted(rates.detection_rate, rates.n_failures),
                rate_cell(rates.detection_time),
            )
            rows.append(TableRow(cells))
    measures = (HEADLINE, 'false_alarm_rate', 'detection_rate', 'detection_time')
    columns = (
        *name_columns('task', 'part'),
        *(MEASURES[name] for name in (EARLY, CLOCK_EARLY, SAVED, SAVED_OVER_CLOCK)),
        *_COUNTS,
        *(MEASURES[name] for name in measures),
    )
    return ResultTable('Per task', columns, tuple(rows), (_PER_TASK_NOTE,))


def _counted(rate: float, total: int) -> Cell:
    return rate_cell(rate, detail=f'{round(rate * total)} of {total}') if total else Cell()


def promise_table(reports: Mapping[str, PartReport], band: Band, alpha: float) -> ResultTable:
    """Return the promised and the realised false-alarm rate of each part."""
    rows = []
    for part, report in reports.items():
        pooled = report.alarms.pooled
        cells = [Cell(), Cell(), Cell(), Cell('0 of 0')]
        if pooled.n_successes:
            alarms = round(pooled.false_alarm_rate * pooled.n_successes)
            low, high = clopper_pearson(alarms, pooled.n_successes)
            over_tasks = _interval_over_tasks(report)
            flag = 'above' if over_tasks.low > alpha else ''
            cells = [
                rate_cell(pooled.false_alarm_rate, flag=flag),
                interval_cell(over_tasks.low, over_tasks.high),
                interval_cell(low, high),
                Cell(f'{alarms} of {pooled.n_successes}'),
            ]
        rows.append(TableRow((Cell(part), rate_cell(alpha), *cells)))
    titles = (
        'promised %',
        'realised %',
        '95 % over tasks',
        '95 % over rollouts',
        'successes with alarm',
    )
    columns = (*name_columns('part'), *(Column(title) for title in titles))
    return ResultTable(_band_text(band, alpha), columns, tuple(rows), (_PROMISE_NOTE,))


def _interval_over_tasks(report: PartReport) -> Interval:
    return task_interval(
        {
            (str(task), 0): (rates.false_alarm_rate, float(rates.n_successes))
            for task, rates in report.alarms.per_task.items()
        }
    )


def _band_text(band: Band, alpha: float) -> str:
    text = f'Band {band.kind}, ranked on {band.n_calibration} rollouts'
    if made_from := band.provenance.get('calibrated_on', ''):
        text += f': {made_from}'
    if own := sum(bool(band.at(alpha, task).task) for task in band.tasks):
        text += f'; {own} tasks have their own band'
    return text
