# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of an evaluation: the main table, and a table with the details of one part.

The table with the details contains every evaluation time, every rate and every task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from safe_training.evaluation.evaluate import CLOCK as CLOCK_DETECTOR
from safe_training.evaluation.evaluate import Row
from safe_training.evaluation.summary import (
    Summary,
    TaskNumbers,
    differences_to_best,
    summarise,
)
from safe_training.metrics.onset import NEAR
from safe_training.metrics.part_report import EVALUATION_TIMES
from safe_training.reporting.numbers import percent
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
    name_columns,
)
from safe_training.reporting.tables.numbers import (
    INTERVALS_NOTE,
    difference_lines,
    fragile_line,
    interval_text,
    summary_cell,
)
from safe_training.reporting.tables.tasks import task_table

LEGEND = (
    'Numbers are in percent, except steps and the time to fit and calibrate. Found early: failures '
    'with an alarm before the median success of their task is over. Clock early: the same for a '
    'step counter with the same false-alarm rate. Steps saved: policy steps from the alarm to the '
    'end of the failure, 0 without alarm, mean over failures. Over clock: minus the steps that the '
    'step counter saves. AUC: ROC-AUC of the largest score until the minimum length of the task '
    '(the length of its shortest rollout), pooled over tasks. Macro: mean of the AUC over tasks '
    'that have both outcomes. At median: macro AUC of the rollouts that still run at the median '
    'success length of their task. Clock AUC: the AUC of the step number. False alarms: successes '
    'with an alarm during the rollout. Detected: failures with an alarm. T_det: step of the first '
    'alarm as a share of the length of the failure, 100 without alarm. The detector "clock" only '
    'counts steps. It detects most failures, but late, because failures run until the time limit. '
    'A number in brackets is the number of splits in which the value exists.'
)
TWO_MEANS_NOTE = (
    'The table has means over splits. The lines with intervals have means over tasks, in which the '
    'weight of a task is its number of failures (found early) or successes (false alarms). '
    'Therefore their numbers differ.'
)
_MAIN = (
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
    ('found early', EARLY),
    ('found early by the clock', CLOCK_EARLY),
    ('found early, mean over tasks', 'macro_found_early'),
    ('found early by the clock, mean over tasks', 'clock_macro_found_early'),
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
    (f'alarms at most {NEAR} steps from the annotated failure', 'alarm_near'),
    (f'estimated beginnings at most {NEAR} steps from it', 'onset_near'),
    ('Brier score of the probability', 'brier_score'),
    ('Brier score of the step number', 'clock_brier_score'),
    ('Brier score of a constant', 'base_rate_brier_score'),
    ('calibration error of the probability', 'calibration_error'),
)

_ANNOTATED_STEPS = (
    ('median lead before the annotated failure', 'median_lead_steps'),
    ('median distance of the alarm from the annotated failure', 'alarm_distance_steps'),
    ('median distance of the estimated beginning from it', 'onset_distance_steps'),
)


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
            cells = [Cell(part), *(summary_cell(name, values[name], splits) for name in _MAIN)]
            if timed:
                seconds = values['fit_seconds'].mean
                cells.append(Cell(f'{seconds:.2f}', value=seconds))
            shown.append(TableRow(tuple(cells), detector))
    return ResultTable(title, tuple(columns), tuple(shown), (LEGEND,), group_title='detector')


def promise_lines(rows: Sequence[Row], part: str = 'unseen') -> Iterator[str]:
    """Yield sentences about one part of each detector, with intervals over tasks.

    They contain the share that is found early, the promised and the realised rate, and the quality
    of the probability of failure.
    """
    for detector, parts in summarise(rows).items():
        values = parts.get(part)
        if values is None:
            continue
        yield (
            f'{detector}, {part}: found early {interval_text(values[EARLY])}, '
            f'clock {percent(values[CLOCK_EARLY].over_tasks)} %; '
            f'macro AUC {interval_text(values[MACRO])}; '
            f'false alarms {interval_text(values["false_alarm_rate"])}, '
            f'promised {percent(values["alpha"].mean)} %{_excluded(values)}'
        )
        yield from _infinite_line(detector, values['finite_band'])
        if values['brier_score'].splits:
            yield (
                f'{detector}, {part}: Brier score of the probability of failure '
                f'{values["brier_score"].mean:.4f}, of the step number '
                f'{values["clock_brier_score"].mean:.4f}, of a constant '
                f'{values["base_rate_brier_score"].mean:.4f} (lower is better); '
                f'calibration error {values["calibration_error"].mean:.3f}'
            )


def _excluded(values: Mapping[str, Summary]) -> str:
    count = values['failures_without_median'].mean
    if not count > 0:
        return ''
    return f'; {count:.4g} failures of tasks without a success are left out'


def _infinite_line(detector: str, finite: Summary) -> Iterator[str]:
    if finite.mean < 1:
        yield (
            f'{detector}: on {round(finite.splits * (1 - finite.mean))} of {finite.splits} splits '
            'the successes are too few for calibration: the band is infinite and no alarm is '
            'possible'
        )


def comparison_lines(rows: Sequence[Row], part: str = 'unseen') -> Iterator[str]:
    """Yield sentences that compare the detectors of a part and that list fragile tasks."""
    of_part: dict[str, list[Row]] = {}
    for row in rows:
        if row.part == part:
            of_part.setdefault(row.detector, []).append(row)
    compared = {name: members for name, members in of_part.items() if name != CLOCK_DETECTOR}
    for number in (EARLY, MACRO):
        yield from difference_lines(differences_to_best(number, compared), {})
    if of_part:
        yield TWO_MEANS_NOTE
        yield INTERVALS_NOTE
        if fragile := fragile_line([row for members in of_part.values() for row in members]):
            yield fragile


def by_task_table(rows: Sequence[Row], part: str) -> ResultTable:
    """Return one row for each detector and task of a part."""
    detectors: dict[str, list[TaskNumbers]] = {}
    for row in rows:
        if row.part == part:
            detectors.setdefault(row.detector, []).append(row)
    return task_table(f'{part}: by task', detectors)


def detail_tables(rows: Sequence[Row], part: str) -> Iterator[ResultTable]:
    """Return the tables with all details for one part of each detector."""
    for detector, parts in summarise(rows).items():
        if part in parts:
            title = f'{detector}, {part}'
            yield _rankings_table(title, parts[part])
            yield _rates_table(title, parts[part])
            own = [row for row in rows if (row.detector, row.part) == (detector, part)]
            yield task_table(f'{title}: by task', {detector: own}, with_note=False)


def _rankings_table(title: str, values: Mapping[str, Summary]) -> ResultTable:
    splits = values['alpha'].splits
    rows = tuple(
        TableRow(
            (
                Cell(shown),
                *(summary_cell(name, values[f'{name}{time}'], splits) for _, name in _RANKINGS),
            )
        )
        for time, shown in EVALUATION_TIMES.items()
    )
    columns = (*name_columns('evaluation time'), *(column for column, _ in _RANKINGS))
    return ResultTable(f'{title}: how failures rank', columns, rows, (_RANKINGS_LEGEND,))


def _rates_table(title: str, values: Mapping[str, Summary]) -> ResultTable:
    splits = values['alpha'].splits
    rows = [
        TableRow((Cell(shown), summary_cell(name, values[name], splits)))
        for shown, name in _RATES
        if values[name].splits
    ]
    for shown, name in _ANNOTATED_STEPS:
        if values[name].splits:
            steps = Cell(f'{values[name].mean:.1f}', value=values[name].mean)
            rows.append(TableRow((Cell(f'{shown} [steps]'), steps)))
    columns = (*name_columns('rate'), Column('%'))
    return ResultTable(f'{title}: alarms', columns, tuple(rows))
