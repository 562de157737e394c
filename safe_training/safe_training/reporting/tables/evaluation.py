# SPDX-License-Identifier: Apache-2.0
"""Tables of evaluations for a terminal: the main one, and all moments, rates and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safe_training.evaluation.evaluate import Row, Summary, summarise, summary_of
from safe_training.metrics.part_report import MOMENTS
from safe_training.reporting.numbers import percent

COLUMNS = (
    ('AUC', 'roc_auc_max_score_until_min_length'),
    ('macro', 'macro_roc_auc_max_score_until_min_length'),
    ('clock', 'clock_roc_auc_max_score_until_min_length'),
    ('clock\nmacro', 'clock_macro_roc_auc_max_score_until_min_length'),
    ('false\nalarms', 'false_alarm_rate'),
    ('de-\ntected', 'detection_rate'),
    ('bal.\nacc.', 'balanced_accuracy'),
    ('T_det', 'detection_time'),
)
LEGEND = (
    'Percent, but for the time to fit and calibrate. AUC: ROC-AUC of the largest score up to the\n'
    'earliest stop of the task, pooled over tasks; macro: its mean over tasks that have both\n'
    'outcomes; clock: the same for a score that is just the step number. False alarms: successes\n'
    'with an alarm while they ran; detected: failures with one; T_det: first alarm as a share of\n'
    'the failure, 100 if none came. The detector "clock" only counts steps: failures run to the\n'
    'time limit, so it detects them all, late. A detector is worth what it does better than that.\n'
    'A number in brackets: only so many splits have the number.'
)
_RANKINGS = (
    ('AUC', 'roc_auc_'),
    ('macro', 'macro_roc_auc_'),
    ('AP', 'average_precision_'),
    ('macro\nAP', 'macro_average_precision_'),
    ('clock', 'clock_roc_auc_'),
    ('clock\nmacro', 'clock_macro_roc_auc_'),
)
_MOMENTS_LEGEND = (
    'AP: average precision, whose chance level is the share of failures. "Running": only rollouts\n'
    'that still run at that share of the median success of their task, by their largest score yet.'
)
_RATES = (
    ('detected (TPR)', 'detection_rate'),
    ('false alarms (FPR)', 'false_alarm_rate'),
    ('balanced accuracy', 'balanced_accuracy'),
    ('weighted accuracy (the rarer class weighs more)', 'weighted_accuracy'),
    ('accuracy', 'accuracy'),
    ('F1 of failures', 'f1'),
    ('T_det', 'detection_time'),
    ('detected, mean over tasks', 'macro_detection_rate'),
    ('false alarms, mean over tasks', 'macro_false_alarm_rate'),
    ('detected before the earliest stop', 'detection_rate_until_min_length'),
    ('false alarms before it', 'false_alarm_rate_until_min_length'),
    ('balanced accuracy before it', 'balanced_accuracy_until_min_length'),
    ('alarms before the annotated failure', 'alarms_before_annotated_failure'),
    ('Brier score at the earliest stop', 'brier_score_at_min_length'),
    ('calibration error at it', 'calibration_error_score_at_min_length'),
)


def wide_console() -> Console:
    """Return a console for tables: as wide as the terminal, never too narrow for one in a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as it is: a narrow terminal wraps its lines, and no number is cut."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    if needed > console.width:
        console = Console(highlight=False, width=needed, file=console.file)
    console.print(table)


def shortened(name: str, length: int = 40) -> str:
    """Return a name that leaves room for the numbers beside it."""
    return name if len(name) <= length else f'{name[: length - 1]}…'


def report_table(rows: Sequence[Row], title: str) -> Table:
    """Return the table of detectors by part, mean and std over splits where there are several."""
    table = empty_table(title, ['detector', 'part'], [heading for heading, _ in COLUMNS])
    timed = any('fit_seconds' in row.values for row in rows)
    if timed:
        table.add_column('fit\n(s)', justify='right', no_wrap=True)
    for detector, parts in summarise(rows).items():
        for part, values in parts.items():
            splits = values['alpha'].splits
            cells = [_cell(values[name], splits) for _, name in COLUMNS]
            if timed:
                cells.append(f'{values["fit_seconds"].mean:.2f}')
            table.add_row(detector, part, *cells, end_section=part == list(parts)[-1])
    return table


def promise_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Say for each detector what was promised and what was realised on tasks never seen."""
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
        auc = values['macro_roc_auc_max_score_until_min_length']
        if auc.splits > 1:
            line += f'; macro AUC {percent(auc.low)} to {percent(auc.high)}'
        if finite.mean < 1:
            line += (
                f'. In {round(finite.splits * (1 - finite.mean))} of {finite.splits} splits the '
                'band is infinite, since there are too few successes to calibrate on: no alarm can '
                'be raised there, and none was'
            )
        yield line


def detail_tables(rows: Sequence[Row], part: str) -> Iterator[Table | str]:
    """Return what the main table leaves out, for one part of each detector."""
    for detector, parts in summarise(rows).items():
        if part not in parts:
            continue
        values = parts[part]
        splits = values['alpha'].splits
        table = empty_table(
            f'{detector}, {part}: how failures rank', ['moment'], [c for c, _ in _RANKINGS]
        )
        for moment, shown in MOMENTS.items():
            table.add_row(
                shown, *[_cell(values[f'{name}{moment}'], splits) for _, name in _RANKINGS]
            )
        yield table
        yield _MOMENTS_LEGEND
        table = empty_table(f'{detector}, {part}: alarms', ['rate'], ['%'])
        for shown, name in _RATES:
            if values[name].splits:
                table.add_row(shown, _cell(values[name], splits))
        lead = values['median_lead_steps']
        if lead.splits:
            table.add_row('median lead before the annotated failure [steps]', f'{lead.mean:.1f}')
        yield table
        yield _task_table(detector, part, rows)


def _task_table(detector: str, part: str, rows: Sequence[Row]) -> Table:
    found: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        if (row.detector, row.part) == (detector, part):
            for task, values in row.tasks.items():
                found.setdefault(task, []).append(values)
    columns = ('splits', 'failures', 'successes', 'AUC', 'false\nalarms', 'detected', 'T_det')
    table = empty_table(f'{detector}, {part}: by task', ['task'], columns)
    for task in sorted(found):

        def mean(name: str, of: Callable[[Summary], str], task: str = task) -> str:
            return of(summary_of([values[name] for values in found[task]]))

        def count(summary: Summary) -> str:
            return f'{summary.mean:.4g}'

        table.add_row(
            Text(shortened(task)),
            str(len(found[task])),
            mean('n_failures', count),
            mean('n_successes', count),
            mean('roc_auc_max_score_until_min_length', _cell),
            mean('false_alarm_rate', _cell),
            mean('detection_rate', _cell),
            mean('detection_time', _cell),
        )
    return table


def empty_table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table with columns of names and of numbers."""
    # As text: a folder's name may hold what looks like markup.
    table = Table(title=Text(title), title_justify='left', box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in names:
        table.add_column(name, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify='right', no_wrap=True)
    return table


def _cell(summary: Summary, splits: int = 0) -> str:
    """Show a mean with its deviation, and of how many splits where some of them have no number."""
    shown = percent(summary.mean)
    if summary.splits > 1:
        shown += f'±{percent(summary.std)}'
    return f'{shown} ({summary.splits})' if 0 < summary.splits < splits else shown
