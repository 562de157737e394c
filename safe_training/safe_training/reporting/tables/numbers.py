# SPDX-License-Identifier: Apache-2.0
"""Makes cells and sentences of the numbers that several tables show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from safe_training.evaluation.summary import Difference, Summary, TaskNumbers, fragile_tasks
from safe_training.metrics.early import EarlyReport
from safe_training.metrics.task_bootstrap import FEW_TASKS
from safe_training.reporting.numbers import percent
from safe_training.reporting.tables.measures import EARLY, MACRO, STEPS
from safe_training.reporting.tables.model import Cell, interval_cell, rate_cell, steps_cell

SHOWN = {EARLY: 'found early', MACRO: 'macro AUC'}
"""Names in sentences of the numbers by which detectors are compared."""
INTERVALS_NOTE = (
    'Intervals (95 %) are bootstrap intervals over tasks of the mean over tasks, in which each '
    'task is first averaged over its splits. With a dozen tasks they cover the true mean in '
    'about 90 % of the cases. ± is the standard deviation over splits, which share tasks: it does '
    'not show the accuracy of the mean.'
)


def number_cell(
    name: str, value: float, std: float | None = None, *, detail: str = '', flag: str = ''
) -> Cell:
    """Return a cell that shows a number: steps unchanged, shares in percent."""
    if name in STEPS:
        return steps_cell(value, std, detail=detail, flag=flag)
    return rate_cell(value, std, detail=detail, flag=flag)


def summary_cell(name: str, summary: Summary, splits: int = 0) -> Cell:
    """Return a mean with its deviation, and its number of splits if it is below ``splits``."""
    return number_cell(
        name,
        summary.mean,
        summary.std if summary.splits > 1 else None,
        detail=str(summary.splits) if 0 < summary.splits < splits else '',
    )


def task_interval_cell(name: str, summary: Summary | None) -> Cell:
    """Return a cell with the interval over tasks; empty if there is none."""
    if summary is None or summary.low != summary.low:
        return Cell()
    if name in STEPS:
        return Cell(f'{summary.low:.1f} to {summary.high:.1f}')
    return interval_cell(summary.low, summary.high)


def interval_text(summary: Summary) -> str:
    """Return the mean over tasks with its interval, such as '41.2 % (30.1 to 52.8)'."""
    text = f'{percent(summary.over_tasks)} %'
    if summary.low == summary.low:
        text += f' ({percent(summary.low)} to {percent(summary.high)})'
    return text


def early_sentence(early: EarlyReport) -> str:
    """Return a sentence with the share found early and the saved steps, compared with the clock."""
    found, saved = early.pooled.found_early, early.pooled.steps_saved
    if math.isnan(found.detector):
        return 'no failure of a task with a success, so no failure can be found early.'
    text = (
        f'{percent(found.detector)} % of {early.pooled.n_with_median} failures are found before a '
        'median success of their task is over. A clock with the same false-alarm rate '
        f'({percent(early.false_alarm_rate)} %) finds {percent(found.clock)} %. Alarms save '
        f'{saved.detector:.1f} steps per failure against the time-out, and {saved.gain:+.1f} '
        'against the clock.'
    )
    left_out = early.pooled.n_failures - early.pooled.n_with_median
    if left_out:
        text += f' {left_out} failures of tasks without a success are left out.'
    return text


def difference_lines(found: Iterable[Difference], names: Mapping[str, str]) -> list[str]:
    """Return a sentence for each comparison of two detectors.

    Parameters
    ----------
    found : iterable of Difference
    names : mapping of detector to its name in the sentence
    """
    lines = []
    for made in found:
        interval = made.interval
        line = (
            f'{SHOWN.get(made.number, made.number)}, {names.get(made.first, made.first)} minus '
            f'{names.get(made.second, made.second)}: {_signed(interval.value)} points'
        )
        if interval.low == interval.low:
            line += (
                f' ({_signed(interval.low)} to {_signed(interval.high)} over {interval.used} tasks)'
            )
        if made.too_few_tasks:
            line += (
                f'. WARNING: {interval.used} tasks do not tell which one is better; fewer than '
                f'{FEW_TASKS} tasks cannot show a difference inside its interval'
            )
        lines.append(line)
    return lines


def fragile_line(splits: Sequence[TaskNumbers]) -> str:
    """Return a sentence with the tasks whose AUC uses only one step; empty without such tasks."""
    tasks = fragile_tasks(splits)
    if not tasks:
        return ''
    return (
        'The shortest rollout has one step in '
        + ', '.join(tasks)
        + ': until the minimum length, the AUC of these tasks is computed from their first step '
        'alone. Look at the macro AUC at the median'
    )


def _signed(share: float) -> str:
    return f'{100 * share:+.1f}'
