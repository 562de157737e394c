# SPDX-License-Identifier: Apache-2.0
"""Tables of the report page as HTML; whatever comes from data is escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from safe_monitor_node.calibrated_detector import CalibratedDetector
from safe_training.metrics.binomial import clopper_pearson
from safe_training.metrics.part_report import MOMENTS, PartReport, flatten_report
from safe_training.reporting.numbers import percent

if TYPE_CHECKING:
    from safe_training.reporting.tables.model import Table


_COLUMNS = (
    ('failures', 'failures', False),
    ('successes', 'successes', False),
    ('AUC', 'roc_auc_max_score_until_min_length', True),
    ('macro AUC', 'macro_roc_auc_max_score_until_min_length', True),
    ('clock AUC', 'clock_roc_auc_max_score_until_min_length', True),
    ('clock macro', 'clock_macro_roc_auc_max_score_until_min_length', True),
    ('false alarms', 'false_alarm_rate', True),
    ('detected', 'detection_rate', True),
    ('bal. acc.', 'balanced_accuracy', True),
    ('T_det', 'detection_time', True),
)
_PER_TASK_COLUMNS = (
    'task',
    'part',
    'failures',
    'successes',
    'AUC',
    'false alarms',
    'detected',
    'T_det',
)
# More rows than this would stand between a reader and what comes after them.
_MOST_UNFOLDED = 12
_EVALUATION_NOTE = (
    'Percent. AUC: ROC-AUC of the largest score up to the earliest stop of the task, pooled over '
    'tasks; macro: its mean over tasks that have both outcomes. Clock: the same for a score that '
    'is just the step number: a detector is worth what it does better than that. T_det: first '
    'alarm as a share of the failure, 100 if none came.'
)
_PER_TASK_NOTE = (
    'Percent. A single task has few rollouts: its rates are coarse, and some will look good or bad '
    'by chance. AUC: failures against successes of the same task, each by its largest score up to '
    'the earliest stop; - where the task has only one of them. Detected and T_det: over its '
    'failures, missed ones count as 100.'
)
_MOMENTS_NOTE = (
    'Percent. "At" a share of the earliest stop: the score of that one step. "Running": only '
    'rollouts that still run at that share of the median success of their task, by their largest '
    'score yet; a clock cannot use that moment. AP: average precision, whose '
    'chance level is the share of failures.'
)
_PROMISE_NOTE = (
    'The promise holds for rollouts like those that the band was calibrated on, usually successes '
    'of the part seen, where it is kept by construction and no evidence. A rate is marked '
    'as above the promise where even the lower end of its 95 % interval (Clopper-Pearson) lies '
    'above it.'
)


def evaluation_table(reports: Mapping[str, PartReport], detector: str) -> str:
    """Return what the detector achieves on each part, with the clock beside it."""
    head = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name, _, _ in _COLUMNS)
    rows = []
    for part, report in reports.items():
        values = flatten_report(report)
        cells = ''.join(
            f'<td>{percent(values[key]) if rate else int(values[key])}</td>'
            for _, key, rate in _COLUMNS
        )
        rows.append(f'<tr><th scope="row">{html.escape(part)}</th>{cells}</tr>')
    return _table(html.escape(detector), f'<th scope="col">part</th>{head}', rows) + small_print(
        _EVALUATION_NOTE
    )


def moments_table(reports: Mapping[str, PartReport]) -> str:
    """Return how failures rank at every moment of a rollout, folded."""
    rows = []
    for part, report in reports.items():
        for moment, shown in MOMENTS.items():
            found, clock = report.ranking[moment], report.clock[moment]
            cells = (
                part,
                *(
                    percent(value)
                    for value in (
                        found.pooled.roc_auc,
                        found.macro_roc_auc,
                        clock.pooled.roc_auc,
                        clock.macro_roc_auc,
                        found.pooled.average_precision,
                        found.macro_average_precision,
                    )
                ),
            )
            rows.append(
                f'<tr><th scope="row">{html.escape(shown)}</th>'
                + ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
                + '</tr>'
            )
    head = ''.join(
        f'<th scope="col">{name}</th>'
        for name in ('moment', 'part', 'AUC', 'macro', 'clock', 'clock macro', 'AP', 'macro AP')
    )
    return (
        '<details class="tasks"><summary>How failures rank, moment by moment</summary>'
        + _table('Moments', head, rows)
        + small_print(_MOMENTS_NOTE)
        + '</details>'
    )


def per_task_table(reports: Mapping[str, PartReport]) -> str:
    """Return what the detector does on each task of each part, folded where that is long."""
    rows = []
    for part, report in reports.items():
        ranking = report.ranking['max_score_until_min_length'].per_task
        for task in sorted(report.alarms.per_task, key=str):
            rates = report.alarms.per_task[task]
            cells = (
                part,
                rates.n_failures,
                rates.n_successes,
                percent(ranking[task].roc_auc),
                _counted(rates.false_alarm_rate, rates.n_successes),
                _counted(rates.detection_rate, rates.n_failures),
                percent(rates.detection_time),
            )
            rows.append(
                f'<tr><th scope="row">{html.escape(str(task))}</th>'
                + ''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)
                + '</tr>'
            )
    head = ''.join(f'<th scope="col">{name}</th>' for name in _PER_TASK_COLUMNS)
    unfolded = ' open' if len(rows) <= _MOST_UNFOLDED else ''
    return (
        f'<details class="tasks"{unfolded}><summary>Per task ({len(rows)} rows)</summary>'
        + _table('Per task', head, rows)
        + small_print(_PER_TASK_NOTE)
        + '</details>'
    )


def _counted(rate: float, of: int) -> str:
    return f'{percent(rate)} ({round(rate * of)} of {of})' if of else '-'


def promise_table(
    reports: Mapping[str, PartReport], loaded: CalibratedDetector, alpha: float
) -> str:
    """Return the promised and the realised false-alarm rate of each part."""
    rows = []
    for part, report in reports.items():
        pooled = report.alarms.pooled
        cells = f'<td>{percent(alpha)}</td>'
        if pooled.n_successes:
            alarms = round(pooled.false_alarm_rate * pooled.n_successes)
            low, high = clopper_pearson(alarms, pooled.n_successes)
            broken = low > alpha
            cells += (
                f'<td{" class=broken" if broken else ""}>{percent(pooled.false_alarm_rate)}'
                f'{" (above)" if broken else ""}</td>'
                f'<td>{percent(low)} to {percent(high)}</td>'
                f'<td>{alarms} of {pooled.n_successes}</td>'
            )
        else:
            cells += '<td>-</td><td>-</td><td>0 of 0</td>'
        rows.append(f'<tr><th scope="row">{html.escape(part)}</th>{cells}</tr>')
    head = ''.join(
        f'<th scope="col">{name}</th>'
        for name in ('part', 'promised %', 'realised %', '95 % interval', 'successes with alarm')
    )
    assert loaded.band is not None
    band = loaded.band
    what = str(band.provenance.get('calibrated_on', ''))
    caption = f'Band {band.kind}, ranked on {band.n_calibration} rollouts' + (
        f': {what}' if what else ''
    )
    if own := sum(bool(band.at(alpha, task).task) for task in band.tasks):
        caption += f'; {own} tasks have a band of their own'
    return _table(html.escape(caption), head, rows) + small_print(_PROMISE_NOTE)


def results_section(tables: Sequence[Table]) -> str:
    """Return the section with the tables of sweeps; empty without one."""
    if not tables:
        return ''
    parts = ['<section aria-labelledby="results-title"><h2 id="results-title">Sweeps</h2>']
    for table in tables:
        head = '<th scope="col">method</th>' + ''.join(
            f'<th scope="col">{html.escape(f"{c.over} {c.heading}".strip())}</th>'
            for c in table.columns
        )
        rows = []
        for row in table.rows:
            cells = ''.join(
                '<td>'
                + (f'<strong>{html.escape(c.text)}</strong>' if c.best else html.escape(c.text))
                + (f' ± {html.escape(c.spread)}' if c.spread else '')
                + '</td>'
                for c in row.cells
            )
            name = html.escape(f'{row.group}: {row.name}' if row.group else row.name)
            rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
        parts.append(_table(html.escape(table.title), head, rows))
        parts += [small_print(text) for text in table.notes]
    return '\n'.join([*parts, '</section>'])


def _table(caption: str, head: str, rows: Sequence[str]) -> str:
    body = '\n'.join(rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f'<caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div>'
    )


def small_print(text: str) -> str:
    """Return a paragraph of explanation."""
    return f'<p class="note">{html.escape(text)}</p>'
