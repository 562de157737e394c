# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of promised and realised false-alarm rates for the kinds of bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from safe_monitor_node.bands.band import Band
from safe_training.evaluation.band_comparison import COMPARED, DRAWS, BandResult
from safe_training.evaluation.judge import RealisedRate
from safe_training.evaluation.summary import spread_of
from safe_training.metrics.binomial import FEWEST, Tally, tally_cells, worst_task
from safe_training.metrics.task_bootstrap import task_interval
from safe_training.reporting.numbers import percent
from safe_training.reporting.tables.measures import MEASURES
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
from safe_training.reporting.tables.terminal import shortened

COMPARISON_LEGEND = (
    'All numbers are in percent. Promised: maximum share of the successes with an alarm. Ranked '
    'on: number of calibration rollouts. Like: held-out successes of the seen tasks; one half is '
    f'used for calibration and the other half for the test ({DRAWS} random halves per split). '
    f'New: successes of unseen tasks. Worst: highest rate of a task with {FEWEST} or more '
    'successes. No alarm: number of splits with too few successes for this rate; on these splits '
    'the band is infinite. In brackets: 95 % bootstrap interval over tasks of the mean over '
    'tasks; with a dozen tasks it covers the true mean in about 90 % of the cases. "!": its '
    'lower end is above the promised rate. ± is the standard deviation over splits, which share '
    'tasks. Left-out scores: scores of the training successes, each from a detector that was '
    'fitted without its task. Updated by labels: every success is labelled immediately; the '
    'promise is about the long-run average.'
)
FOLDER_LEGEND = (
    'Realised: percent of the successes that raised an alarm. Over tasks: bootstrap interval over '
    'tasks. Over rollouts: Clopper-Pearson interval, which is too narrow for other tasks. Rows '
    'with "(calibration)" are the calibration rollouts of the band; their rate is not evidence '
    'for the promise. "!": the lower end of the interval over tasks is above the promised rate. '
    f'Worst task: only tasks with {FEWEST} or more successes.'
)
_COMPARISON_COLUMNS = (
    *name_columns('band'),
    Column('ranked on', narrow='ranked\non'),
    Column('no alarm', narrow='no\nalarm'),
    Column('like'),
    Column('like, worst', narrow='like,\nworst'),
    Column('new'),
    Column('new, worst', narrow='new,\nworst'),
    Column('new, detected', narrow='new,\ndetected'),
    MEASURES['detection_time'],
)
_FOLDER_COLUMNS = (
    *name_columns('rollouts'),
    Column('successes'),
    Column('promised'),
    Column('realised'),
    Column('95 % over tasks', narrow='95 %\nover tasks'),
    Column('95 % over rollouts', narrow='95 %\nover rollouts'),
    Column('worst task'),
    Column('no alarm possible', narrow='no alarm\npossible'),
)


# -- bands compared over splits


def comparison_tables(
    found: Sequence[BandResult], detector: str, alphas: Sequence[float], splits: int
) -> list[ResultTable]:
    """Return one table for each promised rate. The last table has the notes for all tables."""
    return [
        _comparison_table(
            [result for result in found if result.alpha == alpha],
            f'{detector}, {splits} task splits: promised false-alarm rate {percent(alpha)} %',
            (COMPARISON_LEGEND,) if alpha == alphas[-1] else (),
        )
        for alpha in alphas
    ]


def _comparison_table(
    found: Sequence[BandResult], title: str, notes: tuple[str, ...]
) -> ResultTable:
    rows = tuple(
        _band_row([result for result in found if result.band == band])
        for band in dict.fromkeys(result.band for result in found)
    )
    return ResultTable(title, _COMPARISON_COLUMNS, rows, notes)


def _band_row(splits: Sequence[BandResult]) -> TableRow:
    """Return the row of one band from one result per split."""
    name, alpha = splits[0].band, splits[0].alpha
    ranked_on = float(np.median([result.n_calibration for result in splits]))
    times = [float(np.mean(k.detection_times)) if k.detection_times else np.nan for k in splits]
    return TableRow(
        (
            Cell(COMPARED[name].title),
            Cell(f'{ranked_on:.0f}', value=ranked_on),
            Cell(f'{sum(not result.finite for result in splits)}/{len(splits)}'),
            promised_cell({r.split: r.like for r in splits}, alpha),
            _worst_cell([result.like for result in splits]),
            promised_cell({r.split: r.new for r in splits}, alpha),
            _worst_cell([result.new for result in splits]),
            _mean_cell([result.detected.rate for result in splits]),
            _mean_cell(times),
        )
    )


def promised_cell(tallies: Mapping[int, Tally], alpha: float) -> Cell:
    """Return the mean of a rate over splits with its interval over tasks.

    It is flagged if the interval lies above ``alpha``.

    Parameters
    ----------
    tallies : mapping of split to Tally
    """
    found = task_interval(tally_cells(tallies))
    return _mean_cell(
        [tally.rate for tally in tallies.values()],
        detail=interval_cell(found.low, found.high).text if found.used > 1 else '',
        flag='above' if found.low > alpha else '',
    )


def _mean_cell(rates: Sequence[float], detail: str = '', flag: str = '') -> Cell:
    summary = spread_of(rates)
    std = summary.std if summary.splits > 1 else None
    return rate_cell(summary.mean, std, detail=detail, flag=flag)


def _worst_cell(tallies: Sequence[Tally]) -> Cell:
    found = worst_task(tallies)
    return Cell() if found is None else rate_cell(found[1])


# -- the band of a detector folder


def folder_table(rates: Sequence[RealisedRate], title: str) -> ResultTable:
    """Return the table of promised and realised rates, one row for each group of successes."""
    return ResultTable(
        title, _FOLDER_COLUMNS, tuple(_folder_row(rate) for rate in rates), (FOLDER_LEGEND,)
    )


def _folder_row(rate: RealisedRate) -> TableRow:
    worst = Cell()
    if rate.worst_task is not None:
        worst = Cell(f'{percent(rate.worst_rate)} {shortened(rate.worst_task)}')
    return TableRow(
        (
            Cell(rate.rollouts),
            count_cell(rate.successes),
            rate_cell(rate.promised),
            rate_cell(rate.realised, flag='above' if rate.above else ''),
            interval_cell(rate.tasks_low, rate.tasks_high),
            interval_cell(rate.low, rate.high),
            worst,
            Cell('yes' if rate.infinite else ''),
        )
    )


def promise_text(band: Band, alpha: float) -> str:
    """Return a text that describes the calibration data and the promise of a band."""
    made = band.provenance
    text = (
        f'Band {band.kind} of {band.length} steps, ranked on {band.n_calibration} rollouts'
        + (f' (shape from {band.n_center} other rollouts)' if band.n_center else '')
        + (f': {made["calibrated_on"]}' if made.get('calibrated_on') else '')
        + '.'
    )
    own = [t for t in band.tasks if band.at(alpha, t).task]
    if own:
        text += f' Tasks with their own band at alpha {alpha:g}: {", ".join(own)}.'
    if made.get('scores') == 'loto':
        text += (
            ' The scores come from detectors that were fitted without the task. The band is an '
            'estimate for new tasks, without a finite-sample promise.'
        )
    if made.get('note'):
        text += f' {made["note"]}'
    return text
