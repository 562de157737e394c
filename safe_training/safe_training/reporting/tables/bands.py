# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of bands: what each kind promises, and what was realised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from safe_monitor_node.bands.band import Band
from safe_training.evaluation.band_comparison import DRAWS, KINDS, Kept, Tally
from safe_training.evaluation.evaluate import summary_of
from safe_training.metrics.alarms import band_alarms
from safe_training.metrics.scored import ScoredRollout
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
from vla_feature_bridge.rollout import Rollout

# A rate of fewer successes says nothing about a task.
FEWEST = 10
KINDS_LEGEND = (
    'Percent. Promised: of the successes at most so many raise an alarm. Like: held-out successes\n'
    f'of the seen tasks, half of which calibrated (drawn {DRAWS} times a split). New: successes '
    f'of\ntasks never seen. Worst: the task with the highest rate, of those with {FEWEST} '
    'successes or\nmore. No alarm: splits with too few successes for this promise, where the band '
    'is infinite.\n'
    '"!" where the lower end of the 95 % interval (bootstrap over splits) exceeds the promise.\n'
    'Left-out scores: of the training successes, each by a detector that did not know its task.\n'
    'Moved by labels: told of every success at once; its promise is on the long run.'
)
FOLDER_LEGEND = (
    'Percent of the successes that raised an alarm. Interval: Clopper-Pearson. Rollouts that\n'
    'the band was made from are shown for completeness and are no evidence. "!": even the\n'
    'lower end of the interval exceeds the promise. Worst task: of those with '
    f'{FEWEST} successes\nor more.'
)
_KINDS_COLUMNS = (
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
    Column('95 % interval'),
    Column('worst task'),
    Column('no alarm possible', narrow='no alarm\npossible'),
)


# -- kinds of bands over splits


def kinds_tables(
    found: Sequence[Kept], detector: str, alphas: Sequence[float], splits: int
) -> list[ResultTable]:
    """Return one table for each promised rate; the last one explains all."""
    return [
        _kinds_table(
            [kept for kept in found if kept.alpha == alpha],
            f'{detector}, {splits} task splits: promised false-alarm rate {percent(alpha)} %',
            (KINDS_LEGEND,) if alpha == alphas[-1] else (),
        )
        for alpha in alphas
    ]


def _kinds_table(found: Sequence[Kept], title: str, notes: tuple[str, ...]) -> ResultTable:
    rows = tuple(
        _kind_row([kept for kept in found if kept.kind == kind])
        for kind in dict.fromkeys(kept.kind for kept in found)
    )
    return ResultTable(title, _KINDS_COLUMNS, rows, notes)


def _kind_row(splits: Sequence[Kept]) -> TableRow:
    """Return the row of one kind of band, which has one `Kept` a split."""
    kind, alpha = splits[0].kind, splits[0].alpha
    ranked_on = float(np.median([kept.n_calibration for kept in splits]))
    times = [float(np.mean(k.detection_times)) if k.detection_times else np.nan for k in splits]
    return TableRow(
        (
            Cell(KINDS[kind]),
            Cell(f'{ranked_on:.0f}', value=ranked_on),
            Cell(f'{sum(not kept.finite for kept in splits)}/{len(splits)}'),
            promised_cell([kept.like.rate for kept in splits], alpha),
            _worst_cell([kept.like for kept in splits]),
            promised_cell([kept.new.rate for kept in splits], alpha),
            _worst_cell([kept.new for kept in splits]),
            _mean_cell([kept.detected.rate for kept in splits]),
            _mean_cell(times),
        )
    )


def promised_cell(rates: Sequence[float], alpha: float) -> Cell:
    """Return the mean of a rate over splits, flagged if even its interval lies above ``alpha``."""
    return _mean_cell(rates, flag='above' if summary_of(rates).low > alpha else '')


def _mean_cell(rates: Sequence[float], flag: str = '') -> Cell:
    summary = summary_of(rates)
    return rate_cell(summary.mean, summary.std if summary.splits > 1 else None, flag=flag)


def _worst_cell(tallies: Sequence[Tally]) -> Cell:
    found = worst_task(tallies)
    return Cell() if found is None else rate_cell(found[1])


def worst_task(tallies: Sequence[Tally]) -> tuple[str, float] | None:
    """Return the task with the highest rate over all splits, None if none has enough rollouts."""
    alarms: dict[str, int] = {}
    counts: dict[str, int] = {}
    enough: set[str] = set()
    for tally in tallies:
        for task, count in tally.rollouts.items():
            alarms[task] = alarms.get(task, 0) + tally.alarms[task]
            counts[task] = counts.get(task, 0) + count
            # Of one draw: a rollout that is drawn again is no further evidence.
            if count >= FEWEST * tally.repeats:
                enough.add(task)
    rates = {task: alarms[task] / counts[task] for task in sorted(enough)}
    if not rates:
        return None
    worst = max(rates, key=rates.__getitem__)
    return worst, rates[worst]


# -- the band of a detector folder


def promise_rows(
    part: str,
    members: Sequence[Rollout],
    scored: Sequence[ScoredRollout],
    band: Band,
    alphas: Sequence[float],
) -> Iterator[dict[str, Any]]:
    """Return what a band promises and what it realised on the successes of one part.

    Rollouts that the band was made from are counted apart from the others. One mapping for each of
    these two groups that has successes, and each alpha; rates are shares of 1.
    """
    made = band.provenance
    used = {*made.get('calibration_rollouts', ()), *made.get('center_rollouts', ())}
    groups = {
        f'{part}, calibrated on': [i for i, r in enumerate(members) if r.episode_id in used],
        part: [i for i, r in enumerate(members) if r.episode_id not in used],
    }
    for name, indices in groups.items():
        successes = [scored[i] for i in indices if not scored[i].failed]
        for alpha in alphas if successes else ():
            yield {'rollouts': name, **_realised(successes, band, alpha)}


def _realised(successes: Sequence[ScoredRollout], band: Band, alpha: float) -> dict[str, Any]:
    tally = Tally()
    for rollout, alarm in zip(successes, band_alarms(successes, band, alpha), strict=True):
        tally.add(str(rollout.task), alarm is not None)
    alarms, count = sum(tally.alarms.values()), len(successes)
    interval = binomtest(alarms, count).proportion_ci(0.95)
    worst = worst_task([tally])
    return {
        'successes': count,
        'promised': alpha,
        'realised': tally.rate,
        'low': float(interval.low),
        'high': float(interval.high),
        'above': bool(interval.low > alpha),
        'worst_task': None if worst is None else worst[0],
        'worst_rate': None if worst is None else worst[1],
        'infinite': not band.at(alpha).can_alarm,
    }


def folder_table(rows: Sequence[Mapping[str, Any]], title: str) -> ResultTable:
    """Return the table of the rows of `promise_rows`."""
    return ResultTable(
        title, _FOLDER_COLUMNS, tuple(_folder_row(row) for row in rows), (FOLDER_LEGEND,)
    )


def _folder_row(row: Mapping[str, Any]) -> TableRow:
    worst = Cell()
    if row['worst_task'] is not None:
        worst = Cell(f'{percent(row["worst_rate"])} {shortened(row["worst_task"])}')
    return TableRow(
        (
            Cell(row['rollouts']),
            count_cell(row['successes']),
            rate_cell(row['promised']),
            rate_cell(row['realised'], flag='above' if row['above'] else ''),
            interval_cell(row['low'], row['high']),
            worst,
            Cell('yes' if row['infinite'] else ''),
        )
    )


def promise_text(band: Band, alpha: float) -> str:
    """Return in words what a band was made from and what it promises."""
    made = band.provenance
    text = (
        f'Band {band.kind} of {band.length} steps, ranked on {band.n_calibration} rollouts'
        + (f' (shape from {band.n_center} others)' if band.n_center else '')
        + (f': {made["calibrated_on"]}' if made.get('calibrated_on') else '')
        + '.'
    )
    own = [t for t in band.tasks if band.at(alpha, t).task]
    if own:
        text += f' Bands of their tasks at alpha {alpha:g}: {", ".join(own)}.'
    if made.get('scores') == 'loto':
        text += ' Scores without their task: a guide to new tasks, no finite-sample promise.'
    if made.get('note'):
        text += f' {made["note"]}'
    return text
